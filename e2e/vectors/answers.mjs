// Which answers of a facilitator the SDK's client takes. A case with a clawr
// member is one that clawr takes all the same, and says why.
import { HTTPFacilitatorClient } from "@x402/core/server";
import { challenge, offer, set } from "./world.mjs";
import { payload } from "./payments.mjs";

async function judge(call, body) {
  globalThis.fetch = async () => new Response(body, { status: 200 });
  try {
    await call(new HTTPFacilitatorClient({ url: "http://127.0.0.1:1" }));
    return "taken";
  } catch {
    return "refused";
  }
}

const odd = { missing: undefined, null: null, number: 1, string: "false", empty: "", boolean: true, object: {}, array: [] };

async function cases(good, members, call, differ = {}) {
  const out = [];
  const add = async (name, body) => out.push({ name, body, sdk: await judge(call, body), ...(differ[name] && { clawr: differ[name] }) });
  await add("good", JSON.stringify(good));
  await add("empty body", "");
  await add("not JSON", "<html>502</html>");
  await add("null", "null");
  await add("array", "[]");
  await add("more members", JSON.stringify({ ...good, more: { a: 1 } }));
  for (const member of members) {
    for (const [what, to] of Object.entries(odd)) await add(`${member} ${what}`, JSON.stringify(set(good, member, to)));
  }
  return out;
}

export async function make() {
  const real = globalThis.fetch;
  const r = offer();
  const p = await payload(0, challenge([r]));
  const verify = await cases(
    { isValid: true, payer: r.payTo, invalidReason: "a", invalidMessage: "b", extensions: {}, extra: { a: 1 } },
    ["isValid", "invalidReason", "invalidMessage", "payer", "extensions", "extra"],
    (c) => c.verify(p, r),
  );
  const settle = await cases(
    { success: true, transaction: "0x" + "ab".repeat(32), network: r.network, payer: r.payTo, errorReason: "a", errorMessage: "b", amount: "1000", extensions: {}, extra: {} },
    ["success", "transaction", "network", "payer", "errorReason", "errorMessage", "amount", "extensions", "extra"],
    (c) => c.settle(p, r),
  );
  const supported = await cases(
    { kinds: [{ x402Version: 2, scheme: "exact", network: r.network, extra: { a: 1 } }], extensions: ["bazaar"], signers: { "eip155:*": [r.payTo] } },
    ["kinds", "extensions", "signers", "kinds.0.x402Version", "kinds.0.scheme", "kinds.0.network", "kinds.0.extra", "extensions.0"],
    (c) => c.getSupported(),
    { "extensions null": "Go programs write an empty list so", "signers null": "Go programs write an empty map so" },
  );
  globalThis.fetch = real;
  return { verify, settle, supported };
}
