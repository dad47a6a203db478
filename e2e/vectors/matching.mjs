// What the SDK's resource server takes as one of its own offers, and which
// echoes of its extensions it takes.
import { x402ResourceServer } from "@x402/core/server";
import { ExactEvmScheme } from "@x402/evm/exact/server";
import { declarePaymentIdentifierExtension, extractAndValidatePaymentIdentifier } from "@x402/extensions/payment-identifier";
import { challenge, clone, offer, set } from "./world.mjs";

const server = new x402ResourceServer().register("eip155:*", new ExactEvmScheme());

function reversed(v) {
  if (v === null || typeof v !== "object" || Array.isArray(v)) return v;
  return Object.fromEntries(Object.entries(v).reverse().map(([k, x]) => [k, reversed(x)]));
}

async function matches() {
  const rich = offer("eip155:84532", { extra: { name: "USDC", version: "2", quote: "first", nested: { a: 1, list: [1, { b: 2 }] }, n: 1, zero: null } });
  const bare = offer("eip155:84532", { extra: undefined });
  const out = [];
  const add = (name, offers, accepted, clawr) => {
    const p = { x402Version: 2, accepted, payload: {} };
    const found = server.findMatchingRequirements(clone(offers), clone(p));
    out.push({ name, offers, accepted, sdk: found ? offers.findIndex((o) => JSON.stringify(o) === JSON.stringify(found)) : -1, ...(clawr !== undefined && { clawr }) });
  };
  const same = offer();
  add("the same", [same], same);
  add("other order", [rich], reversed(rich));
  add("second of two", [offer("eip155:8453"), same], same);
  add("no offers", [], same);
  for (const [path, to] of [
    ["scheme", "upto"], ["network", "eip155:8453"], ["amount", "999"], ["amount", "1001"], ["amount", "01000"], ["amount", "1000.0"],
    ["asset", "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"], ["asset", same.asset.toLowerCase()], ["payTo", "0x000000000000000000000000000000000000dEaD"],
    ["payTo", same.payTo.toLowerCase()], ["maxTimeoutSeconds", 89], ["maxTimeoutSeconds", 91], ["extra.name", "USD Coin"], ["extra.version", "1"], ["extra.version", 2],
    ["extra.name", undefined], ["extra.version", null], ["extra", undefined], ["extra", {}], ["more", 1], ["more", null], ["extra.more", 1], ["extra.name", ["USDC"]],
  ]) {
    add(`${path} ${JSON.stringify(to)}`, [same], set(same, path, to));
  }
  for (const [path, to] of [
    ["extra.nested.a", 2], ["extra.nested.more", 1], ["extra.nested.list", [1, { b: 2, c: 3 }]], ["extra.nested.list", [1]], ["extra.nested", null], ["extra.n", 1.0], ["extra.n", "1"],
    ["extra.zero", 0], ["extra.zero", undefined],
  ]) {
    add(`rich ${path} ${JSON.stringify(to)}`, [rich], set(rich, path, to));
  }
  add("another quote", [rich], set(rich, "extra.quote", "second"), 0);
  add("no quote", [rich], set(rich, "extra.quote", undefined), 0);
  add("no extra was offered", [bare], same);
  add("empty extra was offered", [set(same, "extra", {})], bare, 0);
  return out;
}

async function echoes() {
  const advertised = { "payment-identifier": declarePaymentIdentifierExtension(false), bazaar: { info: { input: { type: "http", method: "GET" }, list: [1, 2] }, schema: { a: 1 } }, plain: { a: 1 } };
  const out = [];
  const add = (name, sent) => {
    const r = server.validateExtensions({ ...challenge([offer()]), extensions: clone(advertised) }, { x402Version: 2, accepted: offer(), payload: {}, extensions: clone(sent) });
    out.push({ name, advertised, sent, sdk: r.valid ? "taken" : r.invalidReason });
  };
  add("nothing", {});
  add("all", advertised);
  add("one of them", { plain: { a: 1 } });
  add("more in it", set(advertised, "bazaar.info.more", 1));
  add("identifier set", set(advertised, "payment-identifier.info.id", "order_0123456789"));
  add("required changed", set(advertised, "payment-identifier.info.required", true));
  add("nested changed", set(advertised, "bazaar.info.input.method", "POST"));
  add("nested missing", set(advertised, "bazaar.info.input.method", undefined));
  add("list longer", set(advertised, "bazaar.info.list", [1, 2, 3]));
  add("schema changed", set(advertised, "bazaar.schema", { b: 1 }));
  add("info missing", { bazaar: { schema: { a: 1 } } });
  add("info null", set(advertised, "bazaar.info", null));
  add("extension null", set(advertised, "plain", null));
  add("extension a string", set(advertised, "plain", "x"));
  add("info where there was none", set(advertised, "plain", { info: { a: 1 } }));
  add("not advertised", { other: { info: { a: 1 } } });
  add("an app claimed", { "builder-code": { info: { a: "app" } } });
  add("a service named", { "builder-code": { info: { s: ["svc"] } } });
  return out;
}

function identifiers() {
  const id = "order_0123456789";
  const out = [];
  for (const [name, ext, clawr] of [
    ["good", { info: { required: false, id } }],
    ["required", { info: { required: true, id } }],
    ["no id", { info: { required: false } }],
    ["no info", {}],
    ["info null", { info: null }],
    ["required missing", { info: { id } }],
    ["required a string", { info: { required: "true", id } }],
    ["id a number", { info: { required: false, id: 1234567890123456 } }],
    ["id null", { info: { required: false, id: null } }],
    ["15 characters", { info: { required: false, id: "x".repeat(15) } }],
    ["16 characters", { info: { required: false, id: "x".repeat(16) } }],
    ["128 characters", { info: { required: false, id: "x".repeat(128) } }],
    ["129 characters", { info: { required: false, id: "x".repeat(129) } }],
    ["all characters", { info: { required: false, id: "azAZ09_-azAZ09_-" } }],
    ["a space", { info: { required: false, id: "order 0123456789" } }],
    ["a line end", { info: { required: false, id: "order_0123456789\n" } }],
    ["é", { info: { required: false, id: "order_é0123456789" } }],
  ]) {
    const r = extractAndValidatePaymentIdentifier({ extensions: { "payment-identifier": clone(ext) } });
    out.push({ name, extension: ext, sdk: r.validation.valid ? (r.id ?? "") : null, ...(clawr && { clawr }) });
  }
  return out;
}

export async function make() {
  return { matches: await matches(), echoes: await echoes(), identifiers: identifiers() };
}
