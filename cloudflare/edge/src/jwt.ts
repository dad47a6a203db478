// How we show a facilitator who we are: a bearer token, or a JWT for each
// request by a CDP key, Ed25519 or ECDSA P-256 (docs.cdp.coinbase.com, "JWT
// authentication"): header {alg, kid, typ, nonce}, claims {sub, iss, aud, nbf,
// exp, uris: ["POST host/path"]}.
import { base64url, encode, hex } from "./bytes";
import type { Env } from "./env";

const CDP_HOST = "api.cdp.coinbase.com";
const LIFETIME = 120; // s

/** bearerFor is the token for one request to a facilitator; "" if it gets none. A token goes to the URL that it is for, and to no other. */
export async function bearerFor(env: Env, base: string, method: string, url: string): Promise<string> {
  if (env.CDP_API_KEY_ID && env.CDP_API_KEY_SECRET && new URL(base).host === CDP_HOST) {
    return cdpJWT(env.CDP_API_KEY_ID, env.CDP_API_KEY_SECRET, method, url, Math.floor(Date.now() / 1000));
  }
  const key = (env.FACILITATOR_API_KEY ?? "").trim();
  if (key.startsWith("{")) {
    const token: unknown = (JSON.parse(key) as Record<string, unknown>)[base];
    return typeof token === "string" ? token : "";
  }
  const first = (env.FACILITATOR_URLS ?? "").split(",")[0]!.trim().replace(/\/+$/, "");
  return base === first ? key : "";
}

interface Signer { alg: "EdDSA" | "ES256"; key: CryptoKey }

const signers = new Map<string, Signer>();

/** cdpJWT signs a token for one request. now is in unix seconds. */
export async function cdpJWT(id: string, secret: string, method: string, url: string, now: number): Promise<string> {
  let s = signers.get(secret);
  if (!s) signers.set(secret, (s = await signer(secret)));
  const u = new URL(url);
  const part = (v: unknown): string => base64url(encode(JSON.stringify(v)));
  const head = part({ alg: s.alg, kid: id, typ: "JWT", nonce: hex(crypto.getRandomValues(new Uint8Array(16))) });
  const claims = part({ sub: id, iss: "cdp", aud: ["cdp_service"], nbf: now, exp: now + LIFETIME, uris: [`${method} ${u.host}${u.pathname}`] });
  const signed = await crypto.subtle.sign(s.alg === "EdDSA" ? "Ed25519" : { name: "ECDSA", hash: "SHA-256" }, s.key, encode(`${head}.${claims}`));
  return `${head}.${claims}.${base64url(new Uint8Array(signed))}`;
}

// signer reads a CDP key: base64 of 64 bytes (Ed25519: seed and public key), or
// PEM of an EC key, SEC 1 or PKCS 8.
async function signer(secret: string): Promise<Signer> {
  const text = secret.replace(/\\n/g, "\n").trim();
  const pem = /-----BEGIN (EC )?PRIVATE KEY-----([\sA-Za-z0-9+/=]+)-----END/.exec(text);
  const bytes = (s: string): Uint8Array => Uint8Array.from(atob(s.replace(/\s/g, "")), (c) => c.charCodeAt(0));
  if (pem) {
    const der = bytes(pem[2]!);
    const key = await crypto.subtle.importKey("pkcs8", pem[1] ? pkcs8(der) : der, { name: "ECDSA", namedCurve: "P-256" }, false, ["sign"]);
    return { alg: "ES256", key };
  }
  const raw = bytes(text);
  if (raw.length !== 64 && raw.length !== 32) throw new Error("CDP_API_KEY_SECRET is neither an Ed25519 key nor an EC key in PEM");
  // PKCS 8 of an Ed25519 seed (RFC 8410).
  const der = Uint8Array.from([0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20, ...raw.subarray(0, 32)]);
  return { alg: "EdDSA", key: await crypto.subtle.importKey("pkcs8", der, "Ed25519", false, ["sign"]) };
}

// pkcs8 wraps a SEC 1 key of P-256 (RFC 5915), as importKey takes nothing else.
function pkcs8(sec1: Uint8Array): Uint8Array {
  const len = (n: number): number[] => (n < 128 ? [n] : n < 256 ? [0x81, n] : [0x82, n >> 8, n & 255]);
  const octets = [4, ...len(sec1.length), ...sec1];
  const body = [2, 1, 0, 0x30, 0x13, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7, ...octets];
  return Uint8Array.from([0x30, ...len(body.length), ...body]);
}
