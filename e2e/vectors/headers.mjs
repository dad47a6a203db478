// Which headers the SDK's decoders and schemas take. A case with a clawr
// member is one that clawr judges otherwise, and says why.
import { decodePaymentSignatureHeader, decodePaymentRequiredHeader, decodePaymentResponseHeader, encodePaymentResponseHeader, encodePaymentSignatureHeader, encodePaymentRequiredHeader } from "@x402/core/http";
import { validatePaymentPayload, validatePaymentRequired } from "@x402/core/schemas";
import { base64, challenge, offer, set, SELLER } from "./world.mjs";
import { payload } from "./payments.mjs";

function judge(decode, header) {
  try {
    decode(header);
    return "taken";
  } catch {
    return "refused";
  }
}

// shapes are wrong (or oddly right) forms of a good message.
function shapes(good, paths) {
  const out = {};
  for (const path of paths) {
    for (const [what, to] of Object.entries({ missing: undefined, null: null, number: 7, string: "x", empty: "", boolean: true, object: {}, array: [] })) {
      out[`${path} ${what}`] = set(good, path, to);
    }
  }
  return out;
}

function encodings(good) {
  const text = JSON.stringify(good);
  const b64 = base64(text);
  const padded = base64(text + " ".repeat((4 - (text.length % 3)) % 3));
  return {
    good: [b64],
    "no JSON": [base64("hello")],
    "empty": [""],
    "null": [base64("null")],
    "array": [base64(`[${text}]`)],
    "string": [base64(JSON.stringify(text))],
    "not base64": ["{}"],
    "url-safe alphabet": [b64.replace(/^e/, "-")],
    "spaces inside": [b64.slice(0, 8) + " " + b64.slice(8)],
    "line end": [b64 + "\n"],
    "padding inside": [b64.slice(0, 2) + "==" + b64],
    "three paddings": [b64.replace(/=*$/, "===")],
    "trailing comma": [base64(text.slice(0, -1) + ",}")],
    "trailing data": [base64(text + "{}")],
    "truncated": [base64(text.slice(0, -1))],
    "single quotes": [base64(text.replaceAll('"', "'"))],
    "white space around": [base64(` \n${text}\t`)],
    "byte order mark": [base64("\ufeff" + text), "the SDK's TextDecoder drops it; JSON has none (RFC 8259, 8.1)"],
    "invalid UTF-8": [Buffer.from(text.replace("api", "\xff"), "latin1").toString("base64"), "the SDK puts U+FFFD there, so that two headers mean the same"],
    "repeated member": [base64(text.replace("{", '{"x402Version":2,')), "parsers differ in which one counts"],
    "escaped member names": [base64(text.replace('"x402Version"', '"\\u00782402Version"'.replace("2402", "402")))],
    "number as 2.0": [base64(text.replace('"x402Version":2', '"x402Version":2.0'))],
    "number as 2e0": [base64(text.replace('"x402Version":2', '"x402Version":2e0'))],
    "proto member": [base64(text.replace("{", '{"__proto__":{"accepted":1},"constructor":{},'))],
    "65 levels": [base64(text.replace("{", `{"x":${"[".repeat(64)}${"]".repeat(64)},`)), "deeper than 64"],
    "64 levels": [base64(text.replace("{", `{"x":${"[".repeat(63)}${"]".repeat(63)},`))],
    "unpadded": [padded.replace(/=*$/, "").length % 4 ? padded.replace(/=*$/, "") : base64(text + " ").replace(/=*$/, ""), "one spelling only"],
  };
}

function cases(good, decode, paths, differ) {
  const out = [];
  for (const [name, [header, clawr]] of Object.entries(encodings(good))) {
    out.push({ name, header, sdk: judge(decode, header), ...(clawr && { clawr }) });
  }
  for (const [name, value] of Object.entries(shapes(good, paths))) {
    const header = base64(JSON.stringify(value));
    out.push({ name, header, sdk: judge(decode, header), ...(differ[name] && { clawr: differ[name] }) });
  }
  return out;
}

const requirementsPaths = ["scheme", "network", "amount", "asset", "payTo", "maxTimeoutSeconds", "extra"];
const resourcePaths = ["url", "description", "mimeType", "serviceName", "tags", "iconUrl"];

export async function make() {
  const required = challenge([offer()], {
    resource: { url: "https://api.example.com/a", description: "d", mimeType: "text/csv", serviceName: "s", tags: ["t"], iconUrl: "i" },
    extensions: { bazaar: { info: {} } },
  });
  const good = await payload(0, required);
  const signature = cases(good, (h) => validatePaymentPayload(decodePaymentSignatureHeader(h)), [
    "x402Version", "resource", "accepted", "payload", "extensions",
    ...requirementsPaths.map((p) => `accepted.${p}`), ...resourcePaths.map((p) => `resource.${p}`),
  ], {});
  const challenges = cases(required, (h) => validatePaymentRequired(decodePaymentRequiredHeader(h)), [
    "x402Version", "error", "resource", "accepts", "extensions",
    ...requirementsPaths.map((p) => `accepts.0.${p}`), ...resourcePaths.map((p) => `resource.${p}`),
  ], {});
  for (const [name, tags] of Object.entries({ "six tags": ["a", "b", "c", "d", "e", "f"], "empty tag": [""], "tag of 33": ["x".repeat(33)], "tag of 32": ["x".repeat(32)], "tag é": ["é"], "tag 1": [1] })) {
    const header = encodePaymentSignatureHeader(set(good, "resource.tags", tags));
    signature.push({ name, header, sdk: judge((h) => validatePaymentPayload(decodePaymentSignatureHeader(h)), header) });
  }
  for (const [name, path, to, clawr] of [
    ["half a second", "accepted.maxTimeoutSeconds", 0.5, "whole seconds only: it could match no offer of clawr's"],
    ["minus one second", "accepted.maxTimeoutSeconds", -1],
    ["no seconds", "accepted.maxTimeoutSeconds", 0],
    ["network of two characters", "accepted.network", "a:"],
    ["network of three characters", "accepted.network", "a:b"],
    ["version 3", "x402Version", 3],
    ["version 1 in the form of 2", "x402Version", 1],
    ["iconUrl of 2049", "resource.iconUrl", "x".repeat(2049)],
  ]) {
    const header = encodePaymentSignatureHeader(set(good, path, to));
    signature.push({ name, header, sdk: judge((h) => validatePaymentPayload(decodePaymentSignatureHeader(h)), header), ...(clawr && { clawr }) });
  }
  const settled = [];
  for (const [name, r] of Object.entries({
    settled: { success: true, transaction: "0x" + "ab".repeat(32), network: "eip155:84532", payer: SELLER },
    refused: { success: false, errorReason: "invalid_exact_evm_insufficient_balance", transaction: "", network: "eip155:84532", payer: SELLER },
    pending: { success: false, errorReason: "settlement_pending", errorMessage: "no receipt “yet”", transaction: "0x" + "cd".repeat(32), network: "eip155:8453", payer: SELLER, amount: "1000" },
    extended: { success: true, transaction: "0x01", network: "eip155:1", extensions: { a: { b: [1] } }, extra: { chargedAmount: "5" }, extensionResponses: { secret: 1 } },
  })) {
    const header = encodePaymentResponseHeader(r);
    settled.push({ name, header, response: decodePaymentResponseHeader(header) });
  }
  const unpaid = [{ name: "challenge", header: encodePaymentRequiredHeader(required), required }];
  return { signature, challenges, settled, unpaid };
}
