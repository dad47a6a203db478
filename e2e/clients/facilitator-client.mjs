// Drives a facilitator with HTTPFacilitatorClient of @x402/core.
//
//	FACILITATOR_URL TOKEN  where it is, and its bearer token, if it wants one
//	ACTION=supported,verify,settle   what to ask, in this order
//	REQUIREMENTS           the payment requirements, JSON
//	PAYLOAD                the payment payload, JSON; else PRIVATE_KEY signs one
//	X402_VERSION=2         which version PRIVATE_KEY's payment is of
//
// Prints {payload, supported, verify, settle}; what threw is {error:{…}}.
import { x402Client } from "@x402/core/client";
import { HTTPFacilitatorClient } from "@x402/core/server";
import { ExactEvmScheme } from "@x402/evm/exact/client";
import { ExactEvmSchemeV1 } from "@x402/evm/exact/v1/client";
import { privateKeyToAccount } from "viem/accounts";
import { print } from "./common.mjs";

const { FACILITATOR_URL: url, TOKEN, ACTION = "supported,verify,settle", REQUIREMENTS, PAYLOAD, PRIVATE_KEY, X402_VERSION = "2" } = process.env;
const headers = { Authorization: `Bearer ${TOKEN}` };
const facilitator = new HTTPFacilitatorClient({
  url,
  ...(TOKEN && { createAuthHeaders: async () => ({ verify: headers, settle: headers, supported: headers }) }),
});
const requirements = REQUIREMENTS && JSON.parse(REQUIREMENTS);

async function sign() {
  const account = privateKeyToAccount(PRIVATE_KEY);
  const client = new x402Client().setSpendControls(false).register("eip155:*", new ExactEvmScheme(account));
  if (X402_VERSION === "1") {
    client.registerV1(requirements.network, new ExactEvmSchemeV1(account));
    return client.createPaymentPayload({ x402Version: 1, accepts: [requirements] });
  }
  return client.createPaymentPayload({ x402Version: 2, resource: { url: "http://127.0.0.1/" }, accepts: [requirements] });
}

const ask = {
  supported: () => facilitator.getSupported(),
  verify: (p) => facilitator.verify(p, requirements),
  settle: (p) => facilitator.settle(p, requirements),
};
const payload = PAYLOAD ? JSON.parse(PAYLOAD) : PRIVATE_KEY && (await sign());
const out = { payload };
for (const action of ACTION.split(",")) {
  try {
    out[action] = await ask[action](payload);
  } catch (e) {
    out[action] = { error: { ...e, name: e.name, message: e.message } };
  }
}
print(out);
