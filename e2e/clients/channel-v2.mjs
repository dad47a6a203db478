// Pays URL by vouchers with @x402/fetch: one channel, opened by the first call.
//
//	URL PRIVATE_KEY RPC_URL   what to pay, with which key, and a node of the network
//	COUNT=1                   how often to pay, one call after the other
//	REPLAY=0                  how often to send the last payment's header again
//	REFUND=                   afterwards, have this much given back; "all": what is left
//	FORGET=1                  before the last call forget the channel, as a client does that was restarted
//
// Prints {payments, transactions, replays, refund, error}: statuses and receipts, but bodies only of the last.
import { x402HTTPClient } from "@x402/core/client";
import { decodePaymentResponseHeader } from "@x402/core/http";
import { BatchSettlementEvmScheme, InMemoryClientChannelStorage } from "@x402/evm/batch-settlement/client";
import { toClientEvmSigner } from "@x402/evm";
import { wrapFetchWithPayment, x402Client } from "@x402/fetch";
import { createPublicClient, http } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { print, seen } from "./common.mjs";

const { URL: url, PRIVATE_KEY, RPC_URL, COUNT = "1", REPLAY = "0", REFUND, FORGET } = process.env;

let storage = new InMemoryClientChannelStorage();
// forgetful is a storage that can be emptied.
const forgetful = { get: (k) => storage.get(k), set: (k, v) => storage.set(k, v), delete: (k) => storage.delete(k) };
const signer = toClientEvmSigner(privateKeyToAccount(PRIVATE_KEY), createPublicClient({ transport: http(RPC_URL) }));
const scheme = new BatchSettlementEvmScheme(signer, { storage: forgetful });
const client = new x402Client((_, accepts) => accepts.find((a) => a.scheme === "batch-settlement") ?? accepts[0]).register("eip155:*", scheme).setSpendControls(false);
let header;
const pay = wrapFetchWithPayment(async (request) => {
  header = request.headers.get("PAYMENT-SIGNATURE") ?? header;
  return fetch(request);
}, client);

const answer = (r) => seen(r, r.headers.get("PAYMENT-RESPONSE"), decodePaymentResponseHeader);
const payments = [];
const transactions = [];
let last, error, refund;
const replays = [];
const start = performance.now();
try {
  for (let i = 0; i < Number(COUNT); i++) {
    if (FORGET && i === Number(COUNT) - 1) storage = new InMemoryClientChannelStorage();
    last = await answer(await pay(url));
    if (last.status !== 200) throw new Error(`call ${i} was answered ${last.status}: ${JSON.stringify(last.body)}`);
    payments.push(last.paymentResponse);
    if (last.paymentResponse.transaction) transactions.push(last.paymentResponse.transaction);
  }
  for (let i = 0; i < Number(REPLAY); i++) replays.push(await answer(await fetch(url, { headers: { "PAYMENT-SIGNATURE": header } })));
  if (REFUND) refund = await scheme.refund(url, REFUND === "all" ? {} : { amount: REFUND });
} catch (e) {
  error = e.stack;
}
print({ calls: payments.length, last, first: payments[0], transactions, replays, refund, error, seconds: (performance.now() - start) / 1000 });
