// The way to a tenant's Worker, under its limits. What it throws is logged and
// never echoed: the message is the tenant's own.
import { MAX_ANSWER } from "./env";
import type { Env } from "./env";
import type { Version } from "./directory";
import { Fault, log } from "./errors";

/** Limits are what dispatch takes. Other spellings are dropped without an error, and then there is no limit at all: hence the type, and a test on what was passed. */
interface Options { limits: { cpuMs: number; subRequests: number } }

const strikes = new Map<string, number>();
const ALERT = 5; // limit errors in a row that an operator should hear of

/** Call is a question to a tenant's Worker, or its work. */
export interface Call { url: string; method: string; headers: Headers; body?: Uint8Array; ask?: "plan" | "check" }

/** call sends a request to a version's Worker and gives what it answers, or throws what the caller is told. */
export async function call(env: Env, v: Version, c: Call, timeout: number, requestID: string): Promise<Response> {
  const headers = new Headers(c.headers);
  if (c.ask) headers.set("x-clawr-do", c.ask);
  const options: Options = { limits: { cpuMs: v.limits.cpuMs, subRequests: v.limits.subRequests } };
  const abort = new AbortController();
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, fail) => {
    timer = setTimeout(() => {
      fail(new Fault("tenant_worker_timeout", "the API took too long; you were not charged", { fix: "ask for less, or try again later" }));
      abort.abort();
    }, Math.max(1, timeout));
  });
  try {
    const stub = env.DISPATCHER.get(v.workerName, {}, options);
    // redirect "manual": else a redirect is followed through this tenant, wherever it leads.
    const req = new Request(c.url, { method: c.method, headers, body: c.body && c.body.length > 0 ? c.body : null, redirect: "manual", signal: abort.signal });
    const res = await Promise.race([stub.fetch(req), late]);
    strikes.delete(v.workerName);
    return res;
  } catch (err) {
    throw failure(err, v, requestID);
  } finally {
    if (timer !== undefined) clearTimeout(timer);
  }
}

function failure(err: unknown, v: Version, requestID: string): Fault {
  if (err instanceof Fault) return err;
  const message = err instanceof Error ? err.message : String(err);
  const cpu = message.includes("CPU time limit") || message.includes("exceeded CPU"), sub = /too many subrequests|subrequest limit/i.test(message);
  if (cpu || sub) {
    const n = (strikes.get(v.workerName) ?? 0) + 1;
    strikes.set(v.workerName, n);
    log(n >= ALERT ? "ERROR" : "WARN", n >= ALERT ? "a tenant's Worker keeps exceeding its limits; upload it again if it does not recover" : "a tenant's Worker exceeded its limits",
      { requestId: requestID, worker: v.workerName, limit: cpu ? "cpuMs" : "subRequests", inARow: n });
    return cpu
      ? new Fault("cpu_limit", `the query needs more than the ${v.limits.cpuMs}ms of CPU time that this API's plan allows; you were not charged`,
        { fix: "filter by an indexed column, ask for fewer rows, or leave out count=exact", retryAfter: 1 })
      : new Fault("subrequest_limit", `the call needs more than the ${v.limits.subRequests} requests that this API's plan allows; you were not charged`, { fix: "ask for less", retryAfter: 1 });
  }
  log("ERROR", message.startsWith("Worker not found") ? "a tenant's Worker is not there" : "worker failed", { requestId: requestID, worker: v.workerName, err });
  return new Fault("tenant_worker_failure", "the API failed; you were not charged", { fix: "try again later" });
}

/** told is what a tenant's Worker says itself, if it is an error in our shape; else it failed, and only the log learns how. */
export async function told(res: Response, v: Version, requestID: string): Promise<Fault> {
  let said: { error?: unknown; message?: unknown; fix?: unknown; param?: unknown; retryAfter?: unknown } = {};
  const text = new TextDecoder().decode(await bounded(res, 64 << 10).catch(() => new Uint8Array()));
  try {
    said = JSON.parse(text) as typeof said;
  } catch {
    // Not in our shape.
  }
  const str = (s: unknown): string | undefined => (typeof s === "string" && s !== "" ? s.slice(0, 500) : undefined);
  if (v.kind === "dataset" && res.status < 500 && typeof said.error === "string" && /^[a-z0-9_]{1,64}$/.test(said.error)) {
    return new Fault(said.error, str(said.message) ?? "", { status: res.status, fix: str(said.fix), param: str(said.param), retryAfter: typeof said.retryAfter === "number" ? said.retryAfter : 0 });
  }
  log("ERROR", "worker failed", { requestId: requestID, worker: v.workerName, status: res.status, said: text.slice(0, 200) });
  return new Fault("tenant_worker_failure", "the API failed; you were not charged", { fix: "try again later" });
}

/** bounded reads a body of at most `most` bytes. */
export async function bounded(res: Response | Request, most = MAX_ANSWER): Promise<Uint8Array> {
  if (!res.body) return new Uint8Array();
  const reader = res.body.getReader() as ReadableStreamDefaultReader<Uint8Array>;
  const parts: Uint8Array[] = [];
  let n = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    n += value.length;
    if (n > most) {
      await reader.cancel();
      throw new TooLarge();
    }
    parts.push(value);
  }
  if (parts.length === 1) return parts[0]!;
  const all = new Uint8Array(n);
  let at = 0;
  for (const p of parts) {
    all.set(p, at);
    at += p.length;
  }
  return all;
}

/** TooLarge says that a body is over its bound. */
export class TooLarge extends Error {}
