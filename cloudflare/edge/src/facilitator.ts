// Other people's facilitators: facilitator/client.go and answer.go. They verify
// and settle; what they say is normalised, and none of it is believed further
// than money.md allows.
import type { Env } from "./env";
import { Fault, log, reasonFor } from "./errors";
import { Fields, isObject, parse, type Json } from "./json";
import { bearerFor } from "./jwt";
import { fromV1 } from "./x402";

const VERIFY_TIMEOUT = 5_000;
const DOWN_FOR = 5_000; // ms that a facilitator that failed is asked last
const MAX_MESSAGE = 64 << 10;

const failedAt = new Map<string, number>();

/** order is the facilitators as they are to be asked: those that failed lately last. */
export function order(urls: string[], now: number): string[] {
  const down = (u: string): number => (now - (failedAt.get(u) ?? -Infinity) < DOWN_FOR ? 1 : 0);
  return [...urls].sort((a, b) => down(a) - down(b));
}

interface Answer { status: number; body: Uint8Array }

/** post sends a message and reads a bounded answer. No redirect is followed: it would take the signature somewhere else. */
async function post(env: Env, base: string, path: string, body: string, timeout: number): Promise<Answer> {
  const url = base + path;
  const headers = new Headers({ "Content-Type": "application/json", Accept: "application/json" });
  const bearer = await bearerFor(env, base, "POST", url);
  if (bearer) headers.set("Authorization", "Bearer " + bearer);
  const res = await fetch(url, { method: "POST", headers, body, redirect: "manual", signal: AbortSignal.timeout(timeout) });
  const chunks: Uint8Array[] = [];
  let n = 0;
  if (res.body) {
    const reader = res.body.getReader() as ReadableStreamDefaultReader<Uint8Array>;
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      n += value.length;
      if (n > MAX_MESSAGE) {
        await reader.cancel();
        throw new Error(`${url}: the answer is too long`);
      }
      chunks.push(value);
    }
  }
  const all = new Uint8Array(n);
  let at = 0;
  for (const c of chunks) {
    all.set(c, at);
    at += c.length;
  }
  return { status: res.status, body: all };
}

const json = (b: Uint8Array): Json | undefined => {
  try {
    return parse(b);
  } catch {
    return undefined;
  }
};

/** Verdict is what a facilitator says of a payment that nobody has submitted. */
export interface Verdict { valid: boolean; reason: string; facilitator: string }

/** readVerify reads an answer to /verify; undefined means that it is no verdict, and another facilitator has to be asked. */
export function readVerify(status: number, body: Uint8Array, payer: string): Omit<Verdict, "facilitator"> | undefined {
  const f = new Fields("verify response", json(body));
  const valid = f.boolean("isValid"), reason = f.optional("invalidReason");
  f.optional("invalidMessage");
  const who = f.optional("payer");
  f.members("extensions");
  f.members("extra");
  if (f.wrong) return undefined;
  const success = status >= 200 && status <= 299;
  if (valid) return success && (who === "" || who.toLowerCase() === payer) ? { valid: true, reason: "" } : undefined;
  return success || status === 400 || status === 402 || status === 412 || status === 422 ? { valid: false, reason: reasonFor(reason) } : undefined;
}

const noVerdict = (cause: unknown): Fault => new Fault("facilitator_unavailable", "no facilitator gives a verdict", { fix: "send the same request again", retryAfter: 2, cause });

/** verify asks the facilitators in order. One that does not answer with a verdict is passed over; if all are, that is no verdict on the payment. */
export async function verify(env: Env, urls: string[], message: string, payer: string): Promise<Verdict> {
  const until = Date.now() + 2 * VERIFY_TIMEOUT;
  let last: Fault | undefined;
  for (const url of order(urls, Date.now())) {
    const timeout = Math.min(VERIFY_TIMEOUT, until - Date.now());
    if (timeout <= 0) break;
    try {
      const a = await post(env, url, "/verify", message, timeout);
      const v = readVerify(a.status, a.body, payer);
      if (v) {
        failedAt.delete(url);
        return { ...v, facilitator: url };
      }
      throw new Error(`${url}: no verdict, but HTTP ${a.status}`);
    } catch (err) {
      failedAt.set(url, Date.now());
      last = noVerdict(err);
      log("WARN", "a facilitator gives no verdict", { url, err });
    }
  }
  throw last ?? noVerdict(undefined);
}

/** Heard is an answer to /settle, made of the forms in which facilitators give it. */
export interface Heard {
  said: "paid" | "pending" | "rejected" | "nothing";
  tx: string; // a transaction hash, lower case; "": none
  reason: string;
}

const txHash = (v: unknown): string => {
  const s = typeof v === "string" ? v.toLowerCase() : "";
  return /^0x[0-9a-f]{64}$/.test(s) && !/^0x0+$/.test(s) ? s : "";
};

/**
 * readSettle reads an answer to /settle. Pending comes in three forms: the
 * reference's errorReason settlement_pending, with status 200 or 500; success
 * false with a paymentId; and status 202. A success without a transaction, or
 * for another network, is no success.
 */
export function readSettle(status: number, body: Uint8Array, network: string): Heard {
  const v = json(body);
  const hint = isObject(v) ? v : undefined;
  const f = new Fields("settle response", v);
  const success = f.boolean("success"), reason = f.optional("errorReason");
  f.optional("errorMessage");
  f.optional("payer");
  const tx = f.empty("transaction"), on = f.empty("network");
  f.optional("amount");
  f.members("extensions");
  f.members("extra");
  if (status === 202 || (hint && typeof hint["paymentId"] === "string" && hint["paymentId"] !== "" && hint["success"] !== true)) {
    return { said: "pending", tx: txHash(hint?.["transaction"]), reason: "settlement_pending" };
  }
  if (f.wrong) return { said: "nothing", tx: txHash(hint?.["transaction"]), reason: "settlement_pending" };
  const h: Heard = { said: "nothing", tx: txHash(tx), reason: success ? "settlement_pending" : reasonFor(reason) };
  const ok = status >= 200 && status <= 299;
  if (success) {
    if (ok && h.tx !== "" && (on === network || fromV1(on) === network)) h.said = "paid";
  } else if (reason === "settlement_pending") h.said = "pending";
  else if (ok || (status >= 400 && status <= 499)) h.said = "rejected";
  return h;
}

/** settle posts a payment to one facilitator. Whatever goes wrong is an answer that says nothing: it may have the signature by then. */
export async function settle(env: Env, url: string, message: string, network: string, timeout: number): Promise<Heard> {
  try {
    const a = await post(env, url, "/settle", message, timeout);
    const h = readSettle(a.status, a.body, network);
    if (h.said === "nothing") log("WARN", "a facilitator's answer to a settlement is not understood", { url, status: a.status });
    return h;
  } catch (err) {
    failedAt.set(url, Date.now());
    log("WARN", "a facilitator did not answer a settlement", { url, err });
    return { said: "nothing", tx: "", reason: "settlement_pending" };
  }
}
