// The official TypeScript facilitator, behind express.
//
//	RPC_URL NETWORK PRIVATE_KEY   the chain, such as eip155:31337, and who pays for gas
//	POLL_MS=20             how often viem looks for a receipt; its default is
//	                       made for public chains
//	PORT=0                 a free one by default
//
// Prints {"listening":port} when it is ready. It takes its own account nonces
// from viem's nonce manager, so that it can settle several payments at once.
import { x402Facilitator } from "@x402/core/facilitator";
import { toFacilitatorEvmSigner } from "@x402/evm";
import { BatchSettlementEvmScheme } from "@x402/evm/batch-settlement/facilitator";
import { registerExactEvmScheme } from "@x402/evm/exact/facilitator";
import express from "express";
import { createWalletClient, defineChain, http, nonceManager, publicActions } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { listen } from "./common.mjs";

const { RPC_URL: rpc, NETWORK: network, PRIVATE_KEY, POLL_MS = "20" } = process.env;
const chain = defineChain({
  id: Number(network.split(":")[1]),
  name: network,
  nativeCurrency: { name: "Ether", symbol: "ETH", decimals: 18 },
  rpcUrls: { default: { http: [rpc] } },
  contracts: { multicall3: { address: "0xcA11bde05977b3631167028862bE2a173976CA11" } },
});
const account = privateKeyToAccount(PRIVATE_KEY, { nonceManager });
const wallet = createWalletClient({ account, chain, transport: http(rpc), pollingInterval: Number(POLL_MS) }).extend(publicActions);
const signer = toFacilitatorEvmSigner({ ...wallet, address: account.address });
const facilitator = registerExactEvmScheme(new x402Facilitator(), { networks: network, signer });
// The same account pays for gas and answers for claims.
facilitator.register(network, new BatchSettlementEvmScheme(signer, account));

const app = express();
app.use(express.json());
const answer = (ask) => async (req, res) => {
  try {
    res.json(await ask(req.body.paymentPayload, req.body.paymentRequirements));
  } catch (e) {
    res.status(500).json({ error: e.message });
  }
};
app.post("/verify", answer((p, r) => facilitator.verify(p, r)));
app.post("/settle", answer((p, r) => facilitator.settle(p, r)));
app.get("/supported", (_, res) => res.json(facilitator.getSupported()));
listen(app);
