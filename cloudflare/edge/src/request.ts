// A request as it came, and the headers that answers have: dispatch/request.go.
import { encode, hashHex, hex, Hmac } from "./bytes";
import { Fault } from "./errors";

const MAX_PAYMENT_HEADER = 16 << 10;

/** PaymentHeader is a payment as it came: one of the two headers, once. */
export interface PaymentHeader { value: string; v1: boolean }

/** paymentHeader finds the payment of a request. Two of them are refused: hops could disagree on which one counts. The runtime joins repeated headers by commas, which base64 has none of. */
export function paymentHeader(h: Headers): PaymentHeader | undefined {
  const v2 = h.get("payment-signature"), v1 = h.get("x-payment");
  if (v2 === null && v1 === null) return undefined;
  const value = v2 ?? v1!;
  if ((v2 !== null && v1 !== null) || value.includes(",")) {
    throw new Fault("invalid_payment_header", "more than one payment header", { fix: "send PAYMENT-SIGNATURE once" });
  }
  if (value.length > MAX_PAYMENT_HEADER) throw new Fault("headers_too_large", "the payment header is over 16 KB", { fix: "send only what the challenge asks for" });
  if (value === "") throw new Fault("invalid_payment_header", "the payment header is empty", { fix: "leave it out to be told the price" });
  return { value, v1: v2 === null };
}

/** Target is a URL taken apart as it came: what a URL parser would tidy up is what a fingerprint has to see. */
export interface Target { scheme: string; authority: string; host: string; path: string; query: string }

/** target takes a request's URL apart. host is without port and trailing dot, lower case. */
export function target(url: string): Target {
  const m = /^([a-z]+):\/\/([^/?#]*)([^?#]*)(?:\?([^#]*))?/i.exec(url);
  if (!m) throw new Fault("invalid_request", "the URL cannot be read", { fix: "check the URL" });
  const authority = m[2]!.slice(m[2]!.lastIndexOf("@") + 1);
  const port = /:[0-9]*$/.exec(authority);
  const host = (port ? authority.slice(0, port.index) : authority).toLowerCase().replace(/\.$/, "");
  return { scheme: m[1]!.toLowerCase(), authority, host, path: escapePath(m[3] === "" ? "/" : m[3]!), query: m[4] ?? "" };
}

// escapePath is what Go's EscapedPath makes of a path: what stands in no URL is escaped.
function escapePath(path: string): string {
  if (/^[\x21-\x7e]*$/.test(path) && !/["<>\\^`{|}]/.test(path)) return path;
  return percent(path, (c) => c <= 0x20 || c >= 0x7f || '"<>\\^`{|}'.includes(String.fromCharCode(c)));
}

/** escaped percent-encodes what is not printable ASCII, and what JSON escapes. */
export function escaped(s: string): string {
  return /^[\x21\x23-\x3b\x3d\x3f-\x5b\x5d-\x7e]*$/.test(s) ? s : percent(s, (c) => c <= 0x20 || c >= 0x7f || c === 0x22 || c === 0x5c || c === 0x3c || c === 0x3e);
}

function percent(s: string, odd: (c: number) => boolean): string {
  let out = "";
  for (const c of encode(s)) out += odd(c) ? "%" + c.toString(16).toUpperCase().padStart(2, "0") : String.fromCharCode(c);
  return out;
}

/** clientAddr names the peer: of IPv6 the /64, which is what one client is given. */
export function clientAddr(h: Headers): string {
  const ip = h.get("cf-connecting-ip") ?? "";
  if (!ip.includes(":")) return ip;
  const [head = "", tail] = ip.split("%")[0]!.toLowerCase().split("::");
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(ip);
  if (mapped) return mapped[1]!;
  const left = head === "" ? [] : head.split(":"), right = tail === undefined || tail === "" ? [] : tail.split(":");
  const all = tail === undefined ? left : [...left, ...Array<string>(Math.max(0, 8 - left.length - right.length)).fill("0"), ...right];
  return all.slice(0, 4).map((g) => g.replace(/^0+(?=.)/, "")).join(":") + "::/64";
}

const callers = new Map<string, string>();
const salted: { salt?: Uint8Array; mac?: Hmac } = {};

/** callerHash names a caller without giving it away: HMAC-SHA-256 under the salt, 16 hex. */
export function callerHash(salt: Uint8Array, kind: "addr:" | "payer:", value: string): string {
  if (salted.salt !== salt) {
    Object.assign(salted, { salt, mac: new Hmac(salt) });
    callers.clear();
  }
  const key = kind + value;
  let h = callers.get(key);
  if (h === undefined) {
    h = hex(salted.mac!.sum(encode(key)).subarray(0, 8));
    if (callers.size >= 65_536) callers.clear();
    callers.set(key, h);
  }
  return h;
}

/** fingerprint names the one request that a payment buys; each part is length prefixed, so that no two requests run together. */
export async function fingerprint(parts: string[]): Promise<string> {
  return hashHex(encode(parts.map((s) => `${encode(s).length}:${s}`).join("")));
}

const HEX = "0123456789abcdef";

/** newRequestID is for finding a request in a log; it is no secret. */
export function newRequestID(prefix = "req_"): string {
  let a = (Math.random() * 2 ** 32) >>> 0, b = (Math.random() * 2 ** 32) >>> 0, s = prefix;
  for (let i = 0; i < 8; i++, a >>>= 4) s += HEX[a & 15]!;
  for (let i = 0; i < 8; i++, b >>>= 4) s += HEX[b & 15]!;
  return s;
}

/** CORS are the headers that every answer has. */
export const CORS: ReadonlyArray<readonly [string, string]> = [
  ["Access-Control-Allow-Origin", "*"],
  ["Access-Control-Expose-Headers", "PAYMENT-REQUIRED, PAYMENT-RESPONSE, X-PAYMENT-RESPONSE, X-Request-Id, X-Tenant-Id, Retry-After"],
];

/** PREFLIGHT are those of an answer to OPTIONS, for which nobody can pay. */
export const PREFLIGHT: ReadonlyArray<readonly [string, string]> = [
  ["Access-Control-Allow-Headers", "PAYMENT-SIGNATURE, X-PAYMENT, SIGN-IN-WITH-X, Access-Control-Expose-Headers, Content-Type, If-None-Match"],
  ["Access-Control-Allow-Methods", "GET, HEAD, POST, OPTIONS"],
  ["Access-Control-Max-Age", "86400"],
];

const OURS = new Set(["connection", "keep-alive", "proxy-connection", "proxy-authenticate", "te", "trailer", "transfer-encoding", "upgrade",
  "content-length", "date", "cache-control", "set-cookie", "x-request-id", "x-tenant-id", "retry-after",
  "payment-required", "payment-signature", "payment-response", "x-payment", "x-payment-response",
  "extension-responses", "settlement-overrides", "x-clawr-replayed"]);

/** ours reports whether a header of an answer is not its worker's to set. */
export function ours(name: string): boolean {
  return OURS.has(name) || name.startsWith("access-control-") || name.startsWith("x-clawr-");
}

/** passed are the headers of a request that its tenant may see: no payment, nothing internal, and no say in which version runs. */
export function passed(h: Headers): Headers {
  const out = new Headers();
  for (const [name, value] of h) {
    if (name.startsWith("x-clawr-") || name.startsWith("cloudflare-workers-version-") || name.startsWith("cf-") || name.startsWith("x-forwarded-") || name === "x-real-ip" ||
      name === "payment-signature" || name === "x-payment" || name === "sign-in-with-x" || name === "host" || name === "authorization" || name === "cookie") continue;
    out.append(name, value);
  }
  return out;
}
