// The protocol without I/O: what x402/ is in Go. The payment's signature is
// left to the facilitator, as WebCrypto has no secp256k1; everything else about
// a payment is checked here, in the SDK's order and with its reasons.
import { hashHex, unbase64, unhex } from "./bytes";
import type { Asset } from "./env";
import { Fault, refusal } from "./errors";
import { clip, contains, equal, Fields, isObject, parse, type Json, type JsonObject } from "./json";

/** Requirements is one way to pay. quote is clawr's own member of extra. */
export interface Requirements {
  scheme: string;
  network: string;
  amount: string;
  asset: string;
  payTo: string;
  maxTimeoutSeconds: number;
  name: string;
  version: string;
  quote: string;
  extra: JsonObject; // what else is in extra
  rest: JsonObject; // members that are not known
}

/** Authorization is EIP-3009's. Numbers are as they were sent: plain decimal. */
export interface Authorization { from: string; to: string; value: bigint; validAfter: bigint; validBefore: bigint; nonce: string }

/** Payment is a payment header taken apart. */
export interface Payment {
  version: 1 | 2;
  v1: boolean; // it came in X-PAYMENT
  resource?: JsonObject;
  accepted: Requirements;
  payload: JsonObject;
  extensions?: JsonObject;
  auth: Authorization;
  signature: string; // SHA-256 of it, hex
  quote: string;
  quoteHash: string; // "" without a quote
  ref: string; // its payment-identifier; "": none
}

const V1: ReadonlyArray<readonly [name: string, network: string, known: boolean]> = [
  ["base", "eip155:8453", true], ["base-sepolia", "eip155:84532", true], ["abstract", "eip155:2741", true], ["abstract-testnet", "eip155:11124", true],
  ["avalanche", "eip155:43114", true], ["avalanche-fuji", "eip155:43113", true], ["educhain", "eip155:41923", true], ["iotex", "eip155:4689", true],
  ["peaq", "eip155:3338", true], ["polygon", "eip155:137", true], ["polygon-amoy", "eip155:80002", true], ["sei", "eip155:1329", true],
  ["sei-testnet", "eip155:1328", true], ["skale-base-sepolia", "eip155:324705682", true], ["story", "eip155:1514", true], ["celo", "eip155:42220", false],
  ["ethereum", "eip155:1", false], ["flare", "eip155:14", false], ["megaeth", "eip155:4326", false], ["monad", "eip155:143", false],
  ["sepolia", "eip155:11155111", false], ["stable", "eip155:988", false], ["stable-testnet", "eip155:2201", false],
];

/** v1Name is what version 1's clients call a network, or "". */
export const v1Name = (network: string): string => V1.find(([, n, known]) => known && n === network)?.[0] ?? "";
/** fromV1 is the CAIP-2 name of a version 1 network. */
export const fromV1 = (name: string): string => V1.find(([n]) => n === name)?.[1] ?? name;

function bad(why: string): Fault {
  return new Fault("invalid_payment_header", "the payment header cannot be read: " + why,
    { fix: "send base64 of the JSON that the challenge asks for; nothing was charged" });
}

function requirements(v: Json): { r: Requirements; wrong: string } {
  const f = new Fields("payment requirements", v);
  const r: Requirements = { scheme: f.required("scheme"), network: f.required("network"), amount: "", asset: "", payTo: "", maxTimeoutSeconds: 0, name: "", version: "", quote: "", extra: {}, rest: {} };
  if (r.network.length < 3 || !r.network.includes(":")) f.fail("network", "is not a CAIP-2 name");
  r.amount = f.required("amount");
  r.asset = f.required("asset");
  r.payTo = f.required("payTo");
  r.maxTimeoutSeconds = f.integer("maxTimeoutSeconds");
  if (r.maxTimeoutSeconds <= 0) f.fail("maxTimeoutSeconds", "is not positive");
  const extra = f.take("extra");
  if (extra !== undefined) {
    const e = new Fields("extra", extra);
    if (e.wrong) f.wrong ||= e.wrong;
    for (const [name, value] of e.left) {
      if ((name === "name" || name === "version" || name === "quote") && typeof value === "string" && value !== "") r[name] = value;
      else r.extra[name] = value;
    }
  }
  r.rest = Object.fromEntries(f.left);
  return { r, wrong: f.wrong };
}

/** resource applies the SDK's ResourceInfoSchema. */
function checkResource(v: Json): string {
  const label = (s: Json): boolean => typeof s === "string" && /^[\x20-\x7e]{1,32}$/.test(s);
  const f = new Fields("resource", v);
  f.required("url");
  f.optional("description");
  f.optional("mimeType");
  const service = f.take("serviceName"), tags = f.take("tags");
  if (service !== undefined && !label(service)) f.fail("serviceName", "is not 1 to 32 printable ASCII characters");
  if (tags !== undefined && !(Array.isArray(tags) && tags.every(label) && tags.length <= 5)) f.fail("tags", "are not at most 5 of 1 to 32 printable ASCII characters");
  if (f.optional("iconUrl").length > 2048) f.fail("iconUrl", "is longer than 2048");
  return f.wrong;
}

/** parsePayment reads PAYMENT-SIGNATURE or, with v1, X-PAYMENT. What cannot be taken apart is a 400; nothing has been looked up by then. */
export async function parsePayment(header: string, v1: boolean, asset: Asset): Promise<Payment> {
  const bytes = unbase64(header);
  if (!bytes) throw bad("it is not standard base64");
  let v: Json;
  try {
    v = parse(bytes);
  } catch (err) {
    throw bad("it is not JSON: " + (err as Error).message);
  }
  const f = new Fields("payment payload", v);
  const said = f.integer("x402Version");
  let accepted: Requirements, resource: JsonObject | undefined, extensions: JsonObject | undefined;
  if (v1) {
    if (said !== 1 && said !== 2) f.fail("x402Version", "is neither 1 nor 2");
    const scheme = f.required("scheme"), network = fromV1(f.required("network"));
    accepted = { scheme, network, amount: "", asset: "", payTo: "", maxTimeoutSeconds: 0, name: "", version: "", quote: "", extra: {}, rest: {} };
  } else {
    if (said !== 2) f.fail("x402Version", "is not 2");
    const res = f.take("resource");
    if (res !== undefined) {
      f.wrong ||= checkResource(res);
      if (isObject(res)) resource = res;
    }
    const a = f.take("accepted");
    if (a === undefined) f.fail("accepted", "is missing");
    const { r, wrong } = requirements(a ?? {});
    f.wrong ||= wrong;
    accepted = r;
    extensions = undefined;
  }
  const payload = f.take("payload");
  if (!isObject(payload)) f.fail("payload", payload === undefined ? "is missing" : "is not an object");
  if (!v1) extensions = f.members("extensions");
  if (f.wrong) throw bad(f.wrong);
  const ref = identifier(extensions);
  const { auth, signature } = authorization(payload as JsonObject);
  const quote = accepted.quote;
  return {
    version: v1 ? 1 : 2, v1, resource, accepted: v1 ? { ...accepted, asset: asset.address } : accepted, payload: payload as JsonObject, extensions, auth, ref,
    signature: await hashHex(signature), quote, quoteHash: quote === "" ? "" : await hashHex(new TextEncoder().encode(quote)),
  };
}

/** identifier is the id that a payment names itself by in the extension payment-identifier, or "". */
function identifier(extensions: JsonObject | undefined): string {
  const ext = extensions?.["payment-identifier"] ?? undefined;
  if (ext === undefined) return "";
  const wrong = (why: string): Fault => new Fault("invalid_payment_header", "payment-identifier: " + why,
    { param: "payment-identifier", fix: "send info {required, id} with an id of 16 to 128 letters, digits, - and _" });
  const info = isObject(ext) ? ext["info"] : undefined;
  if (!isObject(info)) throw wrong("info is missing");
  if (typeof info["required"] !== "boolean") throw wrong("info.required is not true or false");
  if (!("id" in info)) return "";
  const id = info["id"];
  if (typeof id !== "string" || !/^[A-Za-z0-9_-]{16,128}$/.test(id)) throw wrong("the id is malformed");
  return id;
}

const UINT256 = 2n ** 256n;

/** decimalUint reads a decimal number of at most 256 bits, without sign, leading zeros, exponent or white space. */
export function decimalUint(s: string): bigint | undefined {
  if (!/^(0|[1-9][0-9]{0,77})$/.test(s)) return undefined;
  const n = BigInt(s);
  return n < UINT256 ? n : undefined;
}

const ADDRESS = /^0x[0-9a-fA-F]{40}$/;

// authorization reads the exact scheme's part of a payment.
function authorization(payload: JsonObject): { auth: Authorization; signature: Uint8Array } {
  const f = new Fields("payload", payload);
  const sig = f.optional("signature"), inner = f.take("authorization");
  if (f.wrong || !isObject(inner)) throw bad("the payload has no EIP-3009 authorization and signature");
  const a = new Fields("authorization", inner);
  const from = a.required("from"), to = a.required("to"), value = a.required("value");
  const after = a.required("validAfter"), before = a.required("validBefore"), nonce = a.required("nonce");
  if (a.wrong) throw bad(a.wrong);
  if (!ADDRESS.test(from)) throw bad("authorization: from is not an address");
  if (!/^0x[0-9a-fA-F]{64}$/.test(nonce)) throw bad("authorization: nonce is not 0x and 64 hexadecimal digits");
  const signature = /^0x[0-9a-fA-F]{2,}$/.test(sig) ? unhex(sig.slice(2)) : undefined;
  if (!signature) throw bad("the signature is missing or not hexadecimal");
  if (!ADDRESS.test(to)) throw bad("authorization: to is not an address");
  const number = (name: string, s: string): bigint => {
    const n = decimalUint(s);
    if (n === undefined) throw bad(`authorization: ${name} is not a plain decimal number`);
    return n;
  };
  const validBefore = number("validBefore", before), validAfter = number("validAfter", after);
  return { auth: { from: from.toLowerCase(), to: to.toLowerCase(), value: number("value", value), validAfter, validBefore, nonce: nonce.toLowerCase() }, signature };
}

/** matches reports whether a payment accepted the offer: all equal but extra, whose members are there; the quote's MAC speaks for itself. */
export function matches(o: Requirements, p: Payment): boolean {
  const a = p.accepted;
  if (o.scheme !== a.scheme || o.network !== a.network) return false;
  if (p.version === 1) return true;
  return o.amount === a.amount && o.asset === a.asset && o.payTo === a.payTo && o.maxTimeoutSeconds === a.maxTimeoutSeconds &&
    equal(o.rest, a.rest) && o.name === a.name && o.version === a.version && Object.keys(o.extra).every((n) => n in a.extra && contains(o.extra[n], a.extra[n]));
}

/** checkEcho holds the extensions that a client sends against those that were advertised, whose info must still say everything; and it refuses what only a server may say. */
export function checkEcho(advertised: JsonObject, sent: JsonObject | undefined): void {
  const infoOf = (ext: Json | undefined): Json | undefined => (isObject(ext) && "info" in ext ? ext["info"] : ext);
  for (const [name, ext] of Object.entries(sent ?? {})) {
    if (Object.hasOwn(advertised, name) && !contains(infoOf(advertised[name]), infoOf(ext))) {
      throw refusal("extension_echo_mismatch", `extension ${JSON.stringify(clip(name))} is not what was advertised`);
    }
  }
  const info = infoOf(sent?.["builder-code"]);
  if (isObject(info) && "a" in info) throw refusal("extension_echo_mismatch", 'extension "builder-code" names an app that was not advertised');
}

/** checkTerms checks that a payment pays what r asks, in time. The signature, the nonce and the balance are the facilitator's to check. */
export function checkTerms(p: Payment, r: Requirements, advertised: JsonObject, now: number, slack: number): void {
  if (!matches(r, p)) throw refusal("invalid_payment_requirements", "no matching payment requirements");
  checkEcho(advertised, p.extensions);
  const a = p.auth;
  if (a.to !== r.payTo.toLowerCase()) throw refusal("invalid_exact_evm_recipient_mismatch", `the authorization pays ${a.to}`);
  const s = Math.floor(now / 1000);
  if (a.validBefore < BigInt(s + slack)) {
    throw refusal("invalid_exact_evm_payload_authorization_valid_before", `the authorization ends in ${a.validBefore - BigInt(s)} s, it must last ${slack} s`);
  }
  if (a.validAfter > BigInt(s)) throw refusal("invalid_exact_evm_payload_authorization_valid_after", "the authorization is not valid yet");
  if (a.value !== BigInt(r.amount)) {
    throw refusal(p.version === 1 ? "invalid_exact_evm_authorization_value" : "invalid_exact_evm_payload_authorization_value_mismatch", `the authorization is of ${a.value}, the price is ${clip(r.amount)}`);
  }
}

/** wire is r as it travels; without is for facilitators, who never see a quote. */
export function wire(r: Requirements, quote: string): JsonObject {
  const extra: JsonObject = {};
  if (r.name) extra["name"] = r.name;
  if (r.version) extra["version"] = r.version;
  for (const [n, v] of Object.entries(r.extra)) if (n !== "quote") extra[n] = v;
  if (quote) extra["quote"] = quote;
  const out: JsonObject = { scheme: r.scheme, network: r.network, amount: r.amount, asset: r.asset, payTo: r.payTo, maxTimeoutSeconds: r.maxTimeoutSeconds };
  if (Object.keys(extra).length > 0) out["extra"] = extra;
  return { ...out, ...r.rest };
}

/** message is the body of /verify and /settle: of version 2 whatever the payment came as, and without its quote. */
export function message(p: Payment, terms: Requirements): string {
  const accepted = p.version === 1 ? terms : p.accepted;
  const payload: JsonObject = { x402Version: 2 };
  if (p.resource) payload["resource"] = p.resource;
  payload["accepted"] = wire(accepted, "");
  payload["payload"] = p.payload;
  if (p.extensions) payload["extensions"] = p.extensions;
  return JSON.stringify({ x402Version: 2, paymentPayload: payload, paymentRequirements: wire(terms, "") });
}

/** Receipt is the content of PAYMENT-RESPONSE. */
export interface Receipt { success: boolean; errorReason?: string; payer?: string; transaction: string; network: string }

/** receiptHeader is r as a header. */
export function receiptHeader(r: Receipt): string {
  return btoa(JSON.stringify({ success: r.success, errorReason: r.errorReason || undefined, payer: r.payer || undefined, transaction: r.transaction, network: r.network }));
}
