// Sells GET /data with @x402/express.
//
//	FACILITATOR_URL TOKEN  who verifies and settles, and its bearer token, if it wants one
//	NETWORK ASSET PAY_TO   such as eip155:84532, the token and the seller
//	ASSET_NAME ASSET_VERSION   the token's EIP-712 domain; USDC and 2
//	AMOUNT=1000            the price in atomic units
//	MAX_TIMEOUT=90         seconds that a payment is good for
//	SCHEME=exact           or batch-settlement
//	PORT=0                 a free one by default
//
// Prints {"listening":port} when it sells.
import { HTTPFacilitatorClient } from "@x402/core/server";
import { BatchSettlementEvmScheme } from "@x402/evm/batch-settlement/server";
import { ExactEvmScheme } from "@x402/evm/exact/server";
import { paymentMiddleware, x402ResourceServer } from "@x402/express";
import express from "express";
import { listen } from "./common.mjs";

const { FACILITATOR_URL: url, TOKEN, NETWORK: network, ASSET: asset, PAY_TO: payTo, ASSET_NAME: name = "USDC", ASSET_VERSION: version = "2", AMOUNT: amount = "1000", MAX_TIMEOUT = "90", SCHEME: scheme = "exact" } = process.env;
const headers = { Authorization: `Bearer ${TOKEN}` };
const facilitator = new HTTPFacilitatorClient({
  url,
  ...(TOKEN && { createAuthHeaders: async () => ({ verify: headers, settle: headers, supported: headers }) }),
});
const server = new x402ResourceServer(facilitator).register(network, scheme === "exact" ? new ExactEvmScheme() : new BatchSettlementEvmScheme(payTo));
const routes = {
  "GET /data": {
    accepts: { scheme, network, payTo, price: { asset, amount, extra: { name, version } }, maxTimeoutSeconds: Number(MAX_TIMEOUT) },
    description: "one row",
    mimeType: "application/json",
  },
};

const app = express();
let runs = 0; // how often the work was done
app.get("/runs", (_, res) => res.json({ runs }));
app.use(paymentMiddleware(routes, server));
app.get("/data", (_, res) => res.json({ data: [{ row: ++runs }] }));
listen(app);
