// Pays URL with x402-fetch 1.2.0, version 1's client, as its documentation
// has it. It signs without asking a chain.
//
//	URL PRIVATE_KEY        what to pay, and with which key (0x…)
//	NETWORK=base-sepolia   it knows only version 1's names
//	MAX=100000             atomic units it pays at most, its own default
//	COUNT=1 REPLAY=0       as for fetch-v2.mjs
//
// Prints {status, body, paymentResponse, header, payments, replays, error}.
import { createSigner, decodeXPaymentResponse, wrapFetchWithPayment } from "x402-fetch";
import { print, seen } from "./common.mjs";

const { URL: url, PRIVATE_KEY, NETWORK = "base-sepolia", MAX = "100000", COUNT = "1", REPLAY = "0" } = process.env;

let header = null;
const pay = wrapFetchWithPayment(
  async (input, init) => {
    header = init?.headers?.["X-PAYMENT"] ?? header;
    return fetch(input, init);
  },
  await createSigner(NETWORK, PRIVATE_KEY),
  BigInt(MAX),
);

const answer = (r) => seen(r, r.headers.get("X-PAYMENT-RESPONSE"), decodeXPaymentResponse);
const payments = [];
let error;
try {
  for (let i = 0; i < Number(COUNT); i++) payments.push(await answer(await pay(url, {})));
} catch (e) {
  error = e.message;
}
const replays = [];
for (let i = 0; i < Number(REPLAY) && header; i++) {
  replays.push(await answer(await fetch(url, { headers: { "X-PAYMENT": header } })));
}
print({ ...payments.at(-1), header, payments, replays, error });
