// The fixed world of the vectors: a clock that stands still, randomness that
// repeats, and keys that exist for nothing else.
import { keccak256, toBytes } from "viem";
import { privateKeyToAccount } from "viem/accounts";

export const NOW = 1_800_000_000;
Date.now = () => NOW * 1000;

let draws = 0;
Object.defineProperty(globalThis.crypto, "getRandomValues", {
  value: (array) => {
    draws++;
    array.set(toBytes(keccak256(toBytes(`clawr vector randomness ${draws}`))).subarray(0, array.length));
    return array;
  },
});

export const keys = [1, 2, 3].map((n) => keccak256(toBytes(`clawr vector key ${n}`)));
export const accounts = keys.map((k) => privateKeyToAccount(k));

export const SELLER = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C";

const tokens = {
  "eip155:8453": ["0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", "USD Coin", "2"],
  "eip155:84532": ["0x036CbD53842c5426634e7929541eC2318f3dCF7e", "USDC", "2"],
  "eip155:1": ["0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48", "USD Coin", "2"],
  "eip155:31337": ["0x5fbdb2315678afecb367f032d93f642f64180aa3", "Dev “USD” Ünïcode $", "1"],
};

// offer is an entry of accepts on one of the networks above.
export function offer(network = "eip155:84532", over = {}) {
  const [asset, name, version] = tokens[network];
  return { scheme: "exact", network, amount: "1000", asset, payTo: SELLER, maxTimeoutSeconds: 90, extra: { name, version }, ...over };
}

export function challenge(accepts, over = {}) {
  return {
    x402Version: 2,
    error: "missing_payment_signature",
    resource: { url: "https://api.example.com/t/prices/v1/records?limit=1", description: "Prices — “daily”", mimeType: "application/json" },
    accepts,
    ...over,
  };
}

export const clone = (v) => JSON.parse(JSON.stringify(v));

// set returns a copy of value in which the member at a dotted path is changed,
// or deleted if to is undefined.
export function set(value, path, to) {
  const copy = clone(value);
  const parts = path.split(".");
  const last = parts.pop();
  const at = parts.reduce((o, k) => o[k], copy);
  if (to === undefined) delete at[last];
  else at[last] = to;
  return copy;
}

export const base64 = (s) => Buffer.from(s, "utf8").toString("base64");
