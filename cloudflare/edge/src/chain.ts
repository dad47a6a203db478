// What the chain shows of a payment, if the operator has named a node: the
// edge's part of facilitator/onchain. Used is not failed, and a receipt's
// status is not success: paid is AuthorizationUsed and the Transfer of exactly
// the amount to payTo, from that token, in the same transaction.
import { isObject, parse, type Json, type JsonObject } from "./json";

export interface Transfer { asset: string; payer: string; payTo: string; amount: bigint; nonce: string; validBefore: bigint }

/** Finding is how an authorization stands: unused, paid by tx, or consumed by something else. proof says why it can never be charged. */
export interface Finding { state: "unused" | "paid" | "elsewhere"; tx: string; proof: string; final: boolean }

// keccak256 of AuthorizationUsed(address,bytes32), AuthorizationCanceled(address,bytes32), Transfer(address,address,uint256)
const USED = "0x98de503528ee59b575ef0c0a2576a82497bfc029a5685b209e9ec333479b10a5";
const CANCELED = "0x1cdd46ff242716cdaa72d159d339a485b3438398348d68f09d7c8c0a59353d81";
const TRANSFER = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef";
const STATE = "0xe94a0102"; // authorizationState(address,bytes32)
const SPAN = 2_000; // blocks that are searched backwards for a consumption whose transaction is not known

const word = (address: string): string => "0x" + address.slice(2).toLowerCase().padStart(64, "0");

/** Chain asks one node. One provider is the documented lower grade. */
export class Chain {
  constructor(readonly url: string, readonly timeout = 5_000) {}

  async #call(method: string, params: Json[]): Promise<Json> {
    const res = await fetch(this.url, {
      method: "POST", headers: { "Content-Type": "application/json" }, redirect: "manual",
      body: JSON.stringify({ jsonrpc: "2.0", id: 1, method, params }), signal: AbortSignal.timeout(this.timeout),
    });
    const v = parse(new Uint8Array(await res.arrayBuffer()));
    if (!isObject(v) || !("result" in v)) throw new Error(`${method}: the node answers ${res.status} without a result`);
    return v["result"]!;
  }

  /** receipt looks for the payment in one transaction. */
  async receipt(tx: string, t: Transfer): Promise<boolean> {
    const r = await this.#call("eth_getTransactionReceipt", [tx]);
    if (!isObject(r) || r["status"] !== "0x1" || !Array.isArray(r["logs"])) return false;
    const logs = r["logs"].filter(isObject).filter((l) => String(l["address"]).toLowerCase() === t.asset && l["removed"] !== true);
    return paid(logs, t);
  }

  /** look finds out how the authorization stands. That it was not charged is read in the finalized block itself. */
  async look(t: Transfer): Promise<Finding> {
    const final = await this.#call("eth_getBlockByNumber", ["finalized", false]);
    if (!isObject(final) || typeof final["number"] !== "string" || typeof final["timestamp"] !== "string") throw new Error("the node has no finalized block");
    const number = BigInt(final["number"]), time = BigInt(final["timestamp"]);
    const isUsed = async (at: Json): Promise<boolean> => {
      const state = await this.#call("eth_call", [{ to: t.asset, data: STATE + word(t.payer).slice(2) + t.nonce.slice(2) }, at]);
      if (typeof state !== "string" || !/^0x[0-9a-f]{64}$/i.test(state)) throw new Error("the token does not say authorizationState");
      return BigInt(state) !== 0n;
    };
    const proof = (why: string, tx: string): string => JSON.stringify({ why, tx: tx || undefined, finalized: Number(number), hash: final["hash"], time: Number(time) });
    if (!(await isUsed("latest"))) {
      if (time <= t.validBefore) return { state: "unused", tx: "", proof: "", final: false };
      // The head may be another node's, and older: only the finalized block's own state (EIP-1898) is proof.
      if (await isUsed({ blockHash: String(final["hash"]), requireCanonical: true })) throw new Error("the node's head is behind its finalized block");
      return { state: "unused", tx: "", proof: proof("expired unused", ""), final: false };
    }
    const head = BigInt(String(await this.#call("eth_blockNumber", [])));
    const from = head > BigInt(SPAN) ? head - BigInt(SPAN) : 0n;
    const logs = await this.#call("eth_getLogs", [{ address: t.asset, fromBlock: "0x" + from.toString(16), toBlock: "latest", topics: [[USED, CANCELED], word(t.payer), t.nonce] }]);
    const log = Array.isArray(logs) ? logs.find(isObject) : undefined;
    if (!isObject(log)) throw new Error("the authorization was consumed, but the node does not show by what");
    const tx = String(log["transactionHash"]).toLowerCase(), settled = BigInt(String(log["blockNumber"])) <= number;
    if (await this.receipt(tx, t)) return { state: "paid", tx, proof: "", final: settled };
    return { state: "elsewhere", tx, proof: settled ? proof("nonce used for another transfer, or cancelled", tx) : "", final: settled };
  }
}

interface Log { kind: "used" | "canceled" | "moved"; who: string; to: string; nonce: string; amount: bigint }

// paid holds a transaction's logs of the token against t. A token logs an
// authorization and its transfer next to each other, always in the same order:
// one order is chosen for the whole transaction, so that no transfer serves two
// authorizations, whatever a payer puts into one transaction.
function paid(raw: JsonObject[], t: Transfer): boolean {
  const logs: Log[] = [];
  for (const l of raw) {
    const [what = "", who = "", third = ""] = (Array.isArray(l["topics"]) ? l["topics"] : []).map((v) => String(v).toLowerCase());
    if (what === USED || what === CANCELED) logs.push({ kind: what === USED ? "used" : "canceled", who, to: "", nonce: third, amount: 0n });
    else if (what === TRANSFER) logs.push({ kind: "moved", who, to: third, nonce: "", amount: BigInt(String(l["data"])) });
  }
  const partner = (i: number, step: number): Log | undefined => {
    const p = logs[i + step];
    return p && p.kind === "moved" && p.who === logs[i]!.who ? p : undefined;
  };
  const used = logs.map((_, i) => i).filter((i) => logs[i]!.kind === "used");
  const step = [1, -1].find((s) => used.every((i) => partner(i, s)));
  if (step === undefined) return false;
  return used.some((i) => {
    const l = logs[i]!, p = partner(i, step)!;
    return l.who === word(t.payer) && l.nonce === t.nonce && p.to === word(t.payTo) && p.amount === t.amount && t.amount > 0n;
  });
}
