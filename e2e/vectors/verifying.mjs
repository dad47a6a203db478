// What the SDK's facilitator says of payments, over a chain on which every
// asset is a contract, no payer has code, and every simulation succeeds: what
// is left is what can be judged without a chain.
import { ExactEvmScheme } from "@x402/evm/exact/facilitator";
import { ExactEvmSchemeV1 } from "@x402/evm/exact/v1/facilitator";
import { privateKeyToAccount } from "viem/accounts";
import { authorizationTypes } from "@x402/evm";
import { toHex } from "viem";
import { NOW, accounts, challenge, clone, keys, offer, set } from "./world.mjs";
import { payload } from "./payments.mjs";

const ORDER = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141n;

const chain = {
  getAddresses: () => [accounts[2].address],
  getCode: async ({ address }) => (accounts.some((a) => a.address.toLowerCase() === address.toLowerCase()) ? undefined : "0x60"),
  readContract: async () => true,
};
const v2 = new ExactEvmScheme(chain);
const v1 = new ExactEvmSchemeV1(chain);

async function judge(scheme, p, r) {
  try {
    const v = await scheme.verify(clone(p), clone(r));
    return v.isValid ? "valid" : v.invalidReason;
  } catch (e) {
    return `throws ${e.name}`;
  }
}

// resign signs the authorization that p has become.
async function resign(p, r, network = r.network) {
  const a = p.payload.authorization;
  const chains = { "base-sepolia": 84532, base: 8453 };
  p.payload.signature = await privateKeyToAccount(keys[0]).signTypedData({
    domain: { name: r.extra.name, version: r.extra.version, chainId: chains[network] ?? Number(network.split(":")[1]), verifyingContract: r.asset },
    types: authorizationTypes,
    primaryType: "TransferWithAuthorization",
    message: { ...a, value: BigInt(a.value), validAfter: BigInt(a.validAfter), validBefore: BigInt(a.validBefore) },
  });
  return p;
}

function highS(signature) {
  const s = ORDER - BigInt("0x" + signature.slice(66, 130));
  const v = signature.slice(130) === "1b" ? "1c" : "1b";
  return signature.slice(0, 66) + toHex(s, { size: 32 }).slice(2) + v;
}

function tampered(good) {
  const a = good.payload.authorization;
  const sig = good.payload.signature;
  const flip = (hex, at) => hex.slice(0, at) + ((parseInt(hex[at], 16) ^ 1).toString(16)) + hex.slice(at + 1);
  return [
    ["as signed", good],
    ["from another", set(good, "payload.authorization.from", accounts[1].address)],
    ["from in lower case", set(good, "payload.authorization.from", a.from.toLowerCase())],
    ["to another", set(good, "payload.authorization.to", accounts[1].address)],
    ["to in lower case", set(good, "payload.authorization.to", a.to.toLowerCase())],
    ["value less", set(good, "payload.authorization.value", "999")],
    ["value more", set(good, "payload.authorization.value", "1001")],
    ["validAfter changed", set(good, "payload.authorization.validAfter", "1")],
    ["validBefore later", set(good, "payload.authorization.validBefore", String(NOW + 1e6))],
    ["nonce changed", set(good, "payload.authorization.nonce", flip(a.nonce, 65))],
    ["r changed", set(good, "payload.signature", flip(sig, 10))],
    ["s changed", set(good, "payload.signature", flip(sig, 100))],
    ["v the other", set(good, "payload.signature", sig.slice(0, 130) + (sig.slice(130) === "1b" ? "1c" : "1b"))],
    ["v as 0 or 1", set(good, "payload.signature", sig.slice(0, 130) + (sig.slice(130) === "1b" ? "00" : "01"))],
    ["v 29", set(good, "payload.signature", sig.slice(0, 130) + "1d")],
    ["s high", set(good, "payload.signature", highS(sig)), "invalid_exact_evm_signature", "tokens refuse it, and one payment has one signature"],
    ["signature of 64 bytes", set(good, "payload.signature", sig.slice(0, 130))],
    ["signature of 66 bytes", set(good, "payload.signature", sig + "00")],
    ["signature empty", set(good, "payload.signature", "0x")],
    ["signature of zeros", set(good, "payload.signature", "0x" + "0".repeat(130))],
    ["signature without 0x", set(good, "payload.signature", sig.slice(2))],
    ["signature not hexadecimal", set(good, "payload.signature", "0x" + "z".repeat(130))],
    ["signature missing", set(good, "payload.signature", undefined), "invalid_exact_evm_signature", "the SDK throws"],
    ["undeployed wallet", set(good, "payload.signature", wrap(sig))],
    ["scheme", set(good, "accepted.scheme", "upto")],
    ["network", set(good, "accepted.network", "eip155:8453")],
    ["authorization missing", set(good, "payload.authorization", undefined), "unsupported_payload_type", "the SDK throws"],
    ["authorization null", set(good, "payload.authorization", null), "unsupported_payload_type", "the SDK throws"],
    ["value missing", set(good, "payload.authorization.value", undefined), "unsupported_payload_type", "the SDK throws"],
    ["value a number", set(good, "payload.authorization.value", 1000), "unsupported_payload_type", "amounts are strings"],
    ["value 0.01", set(good, "payload.authorization.value", "0.01"), "invalid_exact_evm_payload_authorization_value_mismatch", "the SDK throws"],
    ["value 1e3", set(good, "payload.authorization.value", "1e3"), "invalid_exact_evm_payload_authorization_value_mismatch", "the SDK throws"],
    ["value negative", set(good, "payload.authorization.value", "-1000"), "invalid_exact_evm_payload_authorization_value_mismatch", "it is judged before the signature"],
    ["value with a zero before", set(good, "payload.authorization.value", "01000"), "invalid_exact_evm_payload_authorization_value_mismatch", "one number has one spelling"],
    ["value hexadecimal", set(good, "payload.authorization.value", "0x3e8"), "invalid_exact_evm_payload_authorization_value_mismatch", "one number has one spelling"],
    ["value with white space", set(good, "payload.authorization.value", " 1000"), "invalid_exact_evm_payload_authorization_value_mismatch", "one number has one spelling"],
    ["value beyond 256 bits", set(good, "payload.authorization.value", (2n ** 256n).toString()), "invalid_exact_evm_payload_authorization_value_mismatch", "it is judged before the signature"],
    ["validBefore not a number", set(good, "payload.authorization.validBefore", "soon"), "invalid_exact_evm_payload_authorization_valid_before", "the SDK throws"],
    ["validAfter not a number", set(good, "payload.authorization.validAfter", "soon"), "invalid_exact_evm_payload_authorization_valid_after", "the SDK throws"],
    ["from not an address", set(good, "payload.authorization.from", "me")],
    ["to not an address", set(good, "payload.authorization.to", "you"), "invalid_exact_evm_recipient_mismatch", "it is judged before the signature"],
    ["nonce short", set(good, "payload.authorization.nonce", "0x01")],
  ];
}

// wrap is an EIP-6492 signature: (factory, calldata, signature) and the magic.
function wrap(signature) {
  const word = (n) => BigInt(n).toString(16).padStart(64, "0");
  const inner = signature.slice(2);
  return "0x" + word(accounts[2].address) + word(96) + word(160) + word(1) + "ab".padEnd(64, "0") + word(inner.length / 2) + inner.padEnd(192, "0") + "6492".repeat(16);
}

async function signed(good, r, version) {
  const make = async (path, to) => resign(set(good, path, to), r, good.network);
  const later = (s) => String(NOW + s);
  const out = [
    ["ends in 6 s", await make("payload.authorization.validBefore", later(6))],
    ["ends in 5 s", await make("payload.authorization.validBefore", later(5))],
    ["ended", await make("payload.authorization.validBefore", later(-1))],
    ["never ends", await make("payload.authorization.validBefore", (2n ** 256n - 1n).toString())],
    ["begins now", await make("payload.authorization.validAfter", later(0))],
    ["begins in 1 s", await make("payload.authorization.validAfter", later(1))],
    ["pays one less", await make("payload.authorization.value", "999")],
    ["pays one more", await make("payload.authorization.value", "1001")],
    ["pays 2^64 more", await make("payload.authorization.value", (2n ** 64n + 1000n).toString())],
    ["pays nothing", await make("payload.authorization.value", "0")],
    ["pays somebody else", await make("payload.authorization.to", accounts[1].address)],
  ];
  const amount = version === 1 ? "maxAmountRequired" : "amount";
  const terms = [
    ["price less", set(r, amount, "999")],
    ["price in hexadecimal", set(r, amount, "0x3e8"), true],
    ["price with a zero before", set(r, amount, "01000"), true],
    ["another recipient", set(r, "payTo", accounts[1].address)],
    ["recipient in lower case", set(r, "payTo", r.payTo.toLowerCase())],
    ["another token", set(r, "asset", accounts[1].address)],
    ["token in lower case", set(r, "asset", r.asset.toLowerCase())],
    ["another name", set(r, "extra.name", "USD Coin")],
    ["another version", set(r, "extra.version", "1")],
    ["no name", set(r, "extra.name", undefined)],
    ["no version", set(r, "extra.version", undefined)],
    ["no extra", set(r, "extra", undefined)],
    ["another network", set(r, "network", version === 1 ? "base" : "eip155:8453")],
    ["another scheme", set(r, "scheme", "upto")],
    ["more in extra", set(r, "extra.more", { a: 1 })],
  ];
  return { out, terms };
}

async function all(version) {
  const scheme = version === 1 ? v1 : v2;
  let r = offer();
  let good = await payload(0, challenge([r]));
  if (version === 1) {
    const { network, amount, ...rest } = r;
    r = { ...rest, network: "base-sepolia", maxAmountRequired: amount, resource: "https://api.example.com/a", description: "", mimeType: "application/json" };
    good = { x402Version: 1, scheme: "exact", network: "base-sepolia", payload: good.payload };
  }
  const out = [];
  const add = async (name, p, req, clawr, why) => {
    const sdk = await judge(scheme, p, req);
    out.push({ name, request: { x402Version: version, paymentPayload: p, paymentRequirements: req }, sdk, ...(clawr && { clawr, why }) });
  };
  for (const [name, p, clawr, why] of tampered(version === 1 ? set(good, "accepted", {}) : good)) {
    if (version === 1) {
      delete p.accepted;
      if (name === "scheme") p.scheme = "upto";
      if (name === "network") p.network = "base";
    }
    await add(name, p, r, clawr, why);
  }
  const { out: more, terms } = await signed(good, r, version);
  for (const [name, p] of more) await add(name, p, r);
  const value = version === 1 ? "invalid_exact_evm_authorization_value" : "invalid_exact_evm_payload_authorization_value_mismatch";
  for (const [name, req, strict] of terms) await add(name, good, req, strict && value, "one number has one spelling");
  const free = set(r, version === 1 ? "maxAmountRequired" : "amount", "0");
  await add("a price of nothing", await resign(set(good, "payload.authorization.value", "0"), free, good.network), free, value, "there is nothing to settle");
  const huge = set(r, version === 1 ? "maxAmountRequired" : "amount", (2n ** 63n).toString());
  await add("a price of 2^63", await resign(set(good, "payload.authorization.value", (2n ** 63n).toString()), huge, good.network), huge, value, "payments are stored in 63 bits");
  return out;
}

export const make = async () => ({ v2: await all(2), v1: await all(1) });
