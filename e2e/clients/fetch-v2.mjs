// Pays URL with @x402/fetch, as its documentation has it.
//
//	URL PRIVATE_KEY        what to pay, and with which key (0x…)
//	METHOD BODY            of the request; GET without a body
//	COUNT=1                how often to pay, one after the other, each with a payment of its own
//	REPLAY=0               how often to send the last payment's header again
//	ANY_ASSET=1            lifts the client's own limits: without it, it pays at
//	                       most $1 a call, and only in tokens it knows (on
//	                       eip155:84532 that is the USDC at 0x036C…CF7e)
//
// Prints {status, body, paymentResponse, paymentRequired, header, payments, replays, error}.
import { decodePaymentRequiredHeader, decodePaymentResponseHeader } from "@x402/core/http";
import { ExactEvmScheme } from "@x402/evm/exact/client";
import { wrapFetchWithPayment, x402Client } from "@x402/fetch";
import { privateKeyToAccount } from "viem/accounts";
import { print, seen } from "./common.mjs";

const { URL: url, PRIVATE_KEY, METHOD: method = "GET", BODY: body, COUNT = "1", REPLAY = "0", ANY_ASSET } = process.env;

const client = new x402Client().register("eip155:*", new ExactEvmScheme(privateKeyToAccount(PRIVATE_KEY)));
if (ANY_ASSET) client.setSpendControls(false);

const sent = { header: null, paymentRequired: null };
const pay = wrapFetchWithPayment(async (request) => {
  sent.header = request.headers.get("PAYMENT-SIGNATURE") ?? sent.header;
  const response = await fetch(request);
  const required = response.headers.get("PAYMENT-REQUIRED");
  if (required) sent.paymentRequired = decodePaymentRequiredHeader(required);
  return response;
}, client);

const answer = (r) => seen(r, r.headers.get("PAYMENT-RESPONSE"), decodePaymentResponseHeader);
const payments = [];
let error;
try {
  for (let i = 0; i < Number(COUNT); i++) payments.push(await answer(await pay(url, { method, body })));
} catch (e) {
  error = e.message;
}
const replays = [];
for (let i = 0; i < Number(REPLAY) && sent.header; i++) {
  replays.push(await answer(await fetch(url, { method, body, headers: { "PAYMENT-SIGNATURE": sent.header } })));
}
print({ ...payments.at(-1), ...sent, payments, replays, error });
