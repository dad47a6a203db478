// The 402: dispatch/challenge.go, byte for byte. What the challenges of one
// version have in common is rendered once and cut where they differ, at the
// reason, the URL and the quote: it is the most frequent answer of all, and free.
import { binary, encode } from "./bytes";
import type { Config } from "./env";
import type { Entry, Version } from "./directory";
import { Fault } from "./errors";
import type { JsonObject } from "./json";
import { atomic } from "./money";
import { escaped, type Target } from "./request";
import { v1Name, wire, type Requirements } from "./x402";

/** terms are what is asked for a version: the requirements without a quote. */
export function terms(cfg: Config, v: Version, units: number): Requirements {
  if (cfg.facilitators.length === 0) {
    throw new Fault("facilitator_unavailable", "this node has no facilitator, so it cannot take payments", { fix: "its operator must give clawr serve a facilitator" });
  }
  if (v.network !== "" && v.network !== cfg.asset.network) {
    throw new Fault("facilitator_unavailable", `this API is sold on ${v.network}, which this node does not serve`, { fix: "its operator must run a node for that network" });
  }
  const amount = atomic(v.price * units, cfg.asset.decimals);
  if (amount === undefined) throw new Fault("invalid_amount", "this call costs more than can be paid", { fix: "ask for less" });
  return {
    scheme: "exact", network: cfg.asset.network, amount: String(amount), asset: cfg.asset.address, payTo: v.payTo, maxTimeoutSeconds: cfg.maxTimeoutSeconds,
    name: cfg.asset.name, version: cfg.asset.version, quote: "", extra: {}, rest: {},
  };
}

interface Rendered {
  version: number;
  units: number;
  amount: bigint;
  header: [string, string, string, string]; // bytes of the JSON, around reason, URL and quote
  described: string; // the last of them with the bazaar extension, for the path that it describes
  accepts: [string, string, string]; // text of the body's accepts, around URL and quote
}

const MAX_DESCRIPTION = 300;
const MAX_HEADER = 3071; // bytes of JSON of a challenge with an extension: 4 KB in base64

/** advertised are the extensions of every challenge: a payment may name itself. */
export function advertised(e: Entry): JsonObject {
  return {
    "payment-identifier": {
      info: { required: e.named },
      schema: {
        $schema: "https://json-schema.org/draft/2020-12/schema", type: "object",
        properties: { required: { type: "boolean" }, id: { type: "string", minLength: 16, maxLength: 128, pattern: "^[a-zA-Z0-9_-]+$" } }, required: ["required"],
      },
    },
  };
}

// clip is s, or as much of it as fits n bytes.
function clip(s: string, n: number): string {
  const b = encode(s);
  if (b.length <= n) return s;
  while (n > 0 && (b[n]! & 0xc0) === 0x80) n--;
  return new TextDecoder().decode(b.subarray(0, n)) + "…";
}

function cut(s: string, sep: string): [string, string] {
  const i = s.indexOf(sep);
  return [s.slice(0, i), s.slice(i + sep.length)];
}

function render(cfg: Config, e: Entry, units: number): Rendered {
  const r = terms(cfg, e, units);
  const mark = crypto.randomUUID(); // no data of a tenant can hold it
  const reason = "reason" + mark, url = "url" + mark, quote = "quote" + mark;
  const description = clip(e.description, MAX_DESCRIPTION);
  const resource: JsonObject = description === "" ? { url, mimeType: "application/json" } : { url, description, mimeType: "application/json" };
  const extensions = advertised(e);
  const required = (extensions: JsonObject): string => JSON.stringify({ x402Version: 2, error: reason, resource, accepts: [wire(r, quote)], extensions });
  const json = required(extensions);
  const i = json.indexOf(reason), j = json.indexOf(url);
  const bytes = (s: string): string => binary(encode(s));
  const [middle, end] = cut(json.slice(j + url.length), quote);
  const described = e.discovery ? cut(required({ ...extensions, bazaar: e.discovery.bazaar }), quote)[1] : "";
  const name = v1Name(r.network);
  let accepts = JSON.stringify([wire(r, quote)]), first = "";
  if (name !== "") {
    const { scheme, network: _, amount, ...tail } = wire(r, quote);
    accepts = JSON.stringify([{ scheme, network: name, amount, maxAmountRequired: amount, resource: url, description, mimeType: "application/json", ...tail }]);
    const k = accepts.indexOf(url);
    first = accepts.slice(0, k);
    accepts = accepts.slice(k + url.length);
  }
  const [before, after] = cut(accepts, quote);
  return {
    version: e.version, units, amount: BigInt(r.amount),
    header: [bytes(json.slice(0, i)), bytes(json.slice(i + reason.length, j)), bytes(middle), bytes(end)], described: bytes(described), accepts: [first, before, after],
  };
}

/** goString is s as encoding/json writes it. */
export function goString(s: string): string {
  return JSON.stringify(s).replace(/[<>&\u2028\u2029]/g, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
}

const plain = (s: string): string => (/^[\x20-\x21\x23-\x5b\x5d-\x7e]*$/.test(s) ? `"${s}"` : goString(s));

/** docs is where an error is explained. */
export function docs(cfg: Config, code: string): string {
  return cfg.docs === "" ? "" : `${cfg.docs}/errors.md#${code}`;
}

const MAX_URL = 1024;

/** address is the URL that the caller asked for, as a client can ask again; what makes it too long is left out, first of all the query. */
export function address(cfg: Config, t: Target, byPath: boolean): string {
  const scheme = t.scheme === "https" || cfg.publicURL.startsWith("https:") ? "https" : "http";
  let s = cfg.publicURL !== "" && byPath ? cfg.publicURL : `${scheme}://${escaped(t.authority.slice(0, 255))}`;
  if (s.length + t.path.length < MAX_URL) {
    s += t.path;
    if (t.query !== "" && s.length + t.query.length < MAX_URL) s += "?" + escaped(t.query);
  }
  return s;
}

/** challenge renders a 402: what is to be paid, and why. reason is one of the protocol's strings. */
export function challenge(cfg: Config, e: Entry, units: number, reason: string, message: string, url: string, path: string, requestID: string, now: number): { header: string; body: string } {
  let r = e.rendered as Rendered | undefined;
  if (!r || r.units !== units || r.version !== e.version) e.rendered = r = render(cfg, e, units);
  const quote = cfg.quotes.mint(e.id, { version: e.version, units: r.amount, expires: Math.floor(now / 1000) + cfg.maxTimeoutSeconds });
  const at = docs(cfg, reason);
  const head = r.header[0] + reason + r.header[1] + url + r.header[2] + quote;
  const fits = r.described !== "" && path === e.discovery?.path && head.length + r.described.length <= MAX_HEADER;
  return {
    header: btoa(head + (fits ? r.described : r.header[3])),
    body: `{"x402Version":2,"ok":false,"error":"${reason}","message":${plain(message)},"fix":"pay as accepts says: clawr pay URL, or any x402 client","docs":${plain(at)}` +
      `,"requestId":"${requestID}","accepts":${r.accepts[0] === "" ? "" : r.accepts[0] + url}${r.accepts[1]}${quote}${r.accepts[2]}` +
      `,"clawr":{"retry":"new_payment","hint":"sign a payment for one entry of accepts and send it as PAYMENT-SIGNATURE"}}`,
  };
}
