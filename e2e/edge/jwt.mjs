// Holds the tokens that the edge makes of CDP keys against node's own crypto: an
// Ed25519 key as CDP gives it, and EC keys in both forms of PEM.
import { generateKeyPairSync, verify } from "node:crypto";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { Miniflare } from "miniflare";

const source = `import { cdpJWT } from ${JSON.stringify(fileURLToPath(new URL("../../cloudflare/edge/src/jwt.ts", import.meta.url)))};
export default { async fetch(req) { const { id, secret, method, url, now } = await req.json(); return new Response(await cdpJWT(id, secret, method, url, now)); } };`;
const { outputFiles } = await build({ stdin: { contents: source, resolveDir: ".", loader: "ts" }, bundle: true, format: "esm", target: "es2022", write: false });
const mf = new Miniflare({ modules: [{ type: "ESModule", path: "jwt.js", contents: outputFiles[0].text }], compatibilityDate: "2026-07-01" });

const ed = generateKeyPairSync("ed25519"), ec = generateKeyPairSync("ec", { namedCurve: "P-256" });
const seed = Buffer.from(ed.privateKey.export({ format: "jwk" }).d, "base64url"), pub = Buffer.from(ed.publicKey.export({ format: "jwk" }).x, "base64url");
let checked = 0;
try {
  for (const [alg, key, secret] of [
    ["EdDSA", ed.publicKey, Buffer.concat([seed, pub]).toString("base64")],
    ["ES256", ec.publicKey, ec.privateKey.export({ type: "sec1", format: "pem" })],
    ["ES256", ec.publicKey, ec.privateKey.export({ type: "pkcs8", format: "pem" })],
    ["ES256", ec.publicKey, ec.privateKey.export({ type: "sec1", format: "pem" }).replace(/\n/g, "\\n")],
  ]) {
    const asked = { id: "organizations/o/apiKeys/k", secret, method: "POST", url: "https://api.cdp.coinbase.com/platform/v2/x402/settle", now: 1_770_000_000 };
    const token = await (await mf.dispatchFetch("http://jwt/", { method: "POST", body: JSON.stringify(asked) })).text();
    const [head, claims, signature] = token.split(".");
    const read = (part) => JSON.parse(Buffer.from(part, "base64url"));
    const h = read(head), c = read(claims);
    const signed = Buffer.from(`${head}.${claims}`), sig = Buffer.from(signature, "base64url");
    const ok = alg === "EdDSA" ? verify(null, signed, key, sig) : verify("sha256", signed, { key, dsaEncoding: "ieee-p1363" }, sig);
    if (!ok || h.alg !== alg || h.kid !== asked.id || h.typ !== "JWT" || !/^[0-9a-f]{32}$/.test(h.nonce) || c.sub !== asked.id || c.iss !== "cdp" || c.nbf !== asked.now || c.exp !== asked.now + 120 ||
      c.uris[0] !== "POST api.cdp.coinbase.com/platform/v2/x402/settle") throw new Error(`${alg}: ${ok} ${JSON.stringify([h, c])}`);
    checked++;
  }
} finally {
  await mf.dispose();
}
console.log(JSON.stringify({ checked }));
