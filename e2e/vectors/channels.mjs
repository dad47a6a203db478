// What the official client signs for batch-settlement, and what its server
// signs to claim and to refund.
import { BatchSettlementEvmScheme, InMemoryClientChannelStorage, computeChannelId } from "@x402/evm/batch-settlement/client";
import { BATCH_SETTLEMENT_ADDRESS, BATCH_SETTLEMENT_DOMAIN, claimBatchTypes, refundTypes, voucherTypes } from "@x402/evm";
import { hashTypedData } from "viem";
import { SELLER, accounts, clone, keys, offer, set } from "./world.mjs";

const salt = `0x${"5a".repeat(32)}`;

function terms(network, over = {}) {
  const base = offer(network);
  return { ...base, scheme: "batch-settlement", ...over, extra: { ...base.extra, receiverAuthorizer: accounts[2].address, withdrawDelay: 900, ...over.extra } };
}

function typed(network, types, primaryType, message) {
  const domain = { ...BATCH_SETTLEMENT_DOMAIN, chainId: Number(network.split(":")[1]), verifyingContract: BATCH_SETTLEMENT_ADDRESS };
  return { domain, types, primaryType, message };
}

// A payload of a buyer who has a channel of such a state, or none.
async function payload(n, accepted, state, options = {}) {
  const storage = new InMemoryClientChannelStorage();
  const scheme = new BatchSettlementEvmScheme(accounts[n], { storage, salt, ...options });
  const config = scheme.buildChannelConfig(accepted);
  if (state) await storage.set(computeChannelId(config, accepted.network), state);
  const made = await scheme.createPaymentPayload(2, clone(accepted));
  return { x402Version: 2, accepted, payload: clone(made.payload) };
}

async function buyers() {
  const open = { balance: "50000", chargedCumulativeAmount: "7000", totalClaimed: "2000" };
  const all = {
    "a first deposit": [0, terms("eip155:84532")],
    "a deposit of the announced minimum": [1, terms("eip155:8453", { extra: { minDeposit: "123456" } })],
    "a voucher": [0, terms("eip155:84532"), open],
    "a voucher, thirty days": [1, terms("eip155:31337", { extra: { withdrawDelay: 2592000 } }), open],
    "a voucher by another key": [0, terms("eip155:84532"), open, { voucherSigner: accounts[1] }],
    "a top-up": [0, terms("eip155:84532"), { ...open, balance: "7500" }],
  };
  const out = [];
  for (const [name, [n, accepted, state, options]] of Object.entries(all)) {
    const p = await payload(n, accepted, state, options);
    const { channelId, maxClaimableAmount } = p.payload.voucher;
    out.push({
      name,
      key: keys[n],
      voucherKey: keys[options?.voucherSigner ? 1 : n],
      network: accepted.network,
      channelId,
      digest: hashTypedData(typed(accepted.network, voucherTypes, "Voucher", { channelId, maxClaimableAmount: BigInt(maxClaimableAmount) })),
      payload: p,
    });
  }
  return out;
}

async function servers() {
  const network = "eip155:84532";
  const out = [];
  for (const n of [1, 3]) {
    const claims = [];
    for (let i = 0; i < n; i++) {
      const { payload: p } = await payload(i % 2, terms(network), { balance: "50000", chargedCumulativeAmount: String(1000 * i) });
      claims.push({ voucher: { channel: p.channelConfig, maxClaimableAmount: p.voucher.maxClaimableAmount }, signature: p.voucher.signature, totalClaimed: String(1000 * i + 500) });
    }
    const entries = claims.map((c) => ({
      channelId: computeChannelId(c.voucher.channel, network),
      maxClaimableAmount: BigInt(c.voucher.maxClaimableAmount),
      totalClaimed: BigInt(c.totalClaimed),
    }));
    const claimAuthorizerSignature = await accounts[2].signTypedData(typed(network, claimBatchTypes, "ClaimBatch", { claims: entries }));
    out.push({ name: `a claim of ${n}`, key: keys[2], network, payload: { type: "claim", claims, claimAuthorizerSignature } });
  }
  const { payload: p } = await payload(0, terms(network), { balance: "50000", chargedCumulativeAmount: "7000" });
  const refund = { channelId: p.voucher.channelId, nonce: 3n, amount: 1500n };
  out.push({
    name: "a refund",
    key: keys[2],
    network,
    payload: {
      ...p,
      type: "refund",
      amount: "1500",
      refundNonce: "3",
      claims: [],
      refundAuthorizerSignature: await accounts[2].signTypedData(typed(network, refundTypes, "Refund", refund)),
    },
  });
  out.push({ name: "a settle", key: keys[2], network, payload: { type: "settle", receiver: SELLER, token: offer(network).asset } });
  return out;
}

async function bad() {
  const network = "eip155:84532";
  const voucher = (await payload(0, terms(network), { balance: "50000", chargedCumulativeAmount: "7000" })).payload;
  const deposit = (await payload(0, terms(network))).payload;
  const e = (s) => `invalid_batch_settlement_evm_${s}`;
  const auth = "deposit.authorization.erc3009Authorization";
  return [
    ["no type", set(voucher, "type", undefined), e("payload_type")],
    ["another type", set(voucher, "type", "upto"), e("payload_type")],
    ["no config", set(voucher, "channelConfig", undefined), e("payload_type")],
    ["no voucher", set(voucher, "voucher", undefined), e("payload_type")],
    ["a payer that is no address", set(voucher, "channelConfig.payer", "0x12"), e("payload_type")],
    ["a delay of a second", set(voucher, "channelConfig.withdrawDelay", 1), e("withdraw_delay_out_of_range")],
    ["a delay in a string", set(voucher, "channelConfig.withdrawDelay", "900"), e("payload_type")],
    ["another salt", set(voucher, "channelConfig.salt", `0x${"00".repeat(32)}`), e("channel_id_mismatch")],
    ["another channel", set(voucher, "voucher.channelId", `0x${"11".repeat(32)}`), e("channel_id_mismatch")],
    ["a short channel", set(voucher, "voucher.channelId", "0x11"), e("channel_id_invalid")],
    ["a negative voucher", set(voucher, "voucher.maxClaimableAmount", "-1"), e("cumulative_amount_mismatch")],
    ["a voucher of 2^128", set(voucher, "voucher.maxClaimableAmount", (1n << 128n).toString()), e("cumulative_amount_mismatch")],
    ["a voucher with zeros in front", set(voucher, "voucher.maxClaimableAmount", "08000"), e("cumulative_amount_mismatch")],
    ["a signature that is none", set(voucher, "voucher.signature", "nothing"), e("voucher_signature")],
    ["a deposit of nothing", set(deposit, "deposit.amount", "0"), e("deposit_below_min_deposit")],
    ["a deposit without authorization", set(deposit, "deposit.authorization", {}), e("erc3009_authorization_required")],
    ["a deposit without end", set(deposit, `${auth}.validBefore`, "soon"), e("payload_authorization_valid_before")],
    ["a deposit without salt", set(deposit, `${auth}.salt`, "0x"), e("erc3009_authorization_required")],
    ["a refund of nothing", { ...set(voucher, "type", "refund"), amount: "0" }, e("refund_amount_invalid")],
    ["a refund in a number", { ...set(voucher, "type", "refund"), amount: 5 }, e("refund_amount_invalid")],
    ["a claim of nothing", { type: "claim", claims: [] }, e("payload_type")],
    ["a settle of nobody", { type: "settle", receiver: "", token: SELLER }, e("payload_type")],
  ].map(([name, p, reason]) => ({ name, network, payload: p, reason }));
}

export async function make() {
  return { buyers: await buyers(), servers: await servers(), bad: await bad() };
}
