// What the official clients send for a challenge.
import { x402Client } from "@x402/core/client";
import { encodePaymentRequiredHeader, encodePaymentSignatureHeader } from "@x402/core/http";
import { ExactEvmScheme } from "@x402/evm/exact/client";
import { appendPaymentIdentifierToExtensions, declarePaymentIdentifierExtension } from "@x402/extensions/payment-identifier";
import { wrapFetchWithPayment } from "x402-fetch";
import { createWalletClient, hashTypedData, http } from "viem";
import { baseSepolia } from "viem/chains";
import { authorizationTypes } from "@x402/evm";
import { accounts, challenge, clone, keys, offer } from "./world.mjs";

export function client(account) {
  return new x402Client().setSpendControls(false).register("eip155:*", new ExactEvmScheme(account));
}

export async function payload(n, required) {
  return clone(await client(accounts[n]).createPaymentPayload(clone(required)));
}

export function digest(p, r) {
  const a = p.payload.authorization;
  return hashTypedData({
    domain: { name: r.extra.name, version: r.extra.version, chainId: Number(r.network.split(":")[1]), verifyingContract: r.asset },
    types: authorizationTypes,
    primaryType: "TransferWithAuthorization",
    message: { ...a, value: BigInt(a.value), validAfter: BigInt(a.validAfter), validBefore: BigInt(a.validBefore) },
  });
}

async function v2() {
  const identifier = { "payment-identifier": declarePaymentIdentifierExtension(false) };
  const challenges = {
    "base sepolia": challenge([offer()]),
    base: challenge([offer("eip155:8453")]),
    "ethereum, one unit": challenge([offer("eip155:1", { amount: "1" })]),
    "dev chain, lower-case addresses, token named in unicode": challenge([offer("eip155:31337", { payTo: "0x209693bc6afc0c5328ba36faf03c514ef312287c" })]),
    "the largest amount": challenge([offer("eip155:84532", { amount: "9223372036854775807" })]),
    "an hour": challenge([offer("eip155:84532", { maxTimeoutSeconds: 3600 })]),
    "a quote": challenge([offer("eip155:84532", { extra: { name: "USDC", version: "2", quote: "q".repeat(80) } })]),
    "members nobody knows": challenge([offer("eip155:84532", { extra: { name: "USDC", version: "2", "": 1, nested: { a: [1, null, { b: "é" }] } } })]),
    "two offers, the first is taken": challenge([offer("eip155:8453"), offer()]),
    "payment-identifier": challenge([offer()], { extensions: identifier }),
    "all of resource": challenge([offer()], {
      resource: { url: "https://x.example/?q=\"<é>\"", description: "d\\e\u0001", mimeType: "text/csv", serviceName: "Prices", tags: ["a", "b"], iconUrl: "https://x.example/i.png" },
    }),
  };
  const out = [];
  let n = 0;
  for (const [name, required] of Object.entries(challenges)) {
    const who = n++ % keys.length;
    let p = await payload(who, required);
    if (required.extensions) {
      p = { ...p, extensions: appendPaymentIdentifierToExtensions(clone(p.extensions), "order_0123456789-abcdef") };
    }
    out.push({
      name,
      key: keys[who],
      payer: accounts[who].address,
      challenge: encodePaymentRequiredHeader(required),
      required,
      header: encodePaymentSignatureHeader(p),
      payload: p,
      digest: digest(p, p.accepted),
    });
  }
  return out;
}

// v1 is what x402-fetch answers to the body of a 402: the body says version 2,
// because the same answer serves both versions' clients.
async function v1() {
  const out = [];
  for (const [name, x402Version, network, over] of [
    ["body of version 1", 1, "eip155:84532", {}],
    ["body of version 2", 2, "eip155:84532", {}],
    ["two networks", 2, "eip155:84532", { also: "eip155:8453" }],
  ]) {
    const required = challenge([offer(network), ...(over.also ? [offer(over.also)] : [])]);
    const { url, description, mimeType } = required.resource;
    const names = { "eip155:84532": "base-sepolia", "eip155:8453": "base" };
    const accepts = required.accepts.map(({ scheme, network, amount, ...rest }) => ({
      scheme, network: names[network], amount, maxAmountRequired: amount, resource: url, description, mimeType, ...rest,
    }));
    let sent;
    const wallet = createWalletClient({ account: accounts[0], chain: baseSepolia, transport: http("http://127.0.0.1:1") });
    const pay = wrapFetchWithPayment(async (_, init) => {
      sent = init?.headers?.["X-PAYMENT"];
      return sent ? new Response("{}") : new Response(JSON.stringify({ x402Version, error: "missing_payment_signature", accepts }), { status: 402 });
    }, wallet);
    await pay(url, {});
    out.push({ name, payer: accounts[0].address, required, accepts, header: sent });
  }
  return out;
}

export const make = async () => ({ v2: await v2(), v1: await v1() });
