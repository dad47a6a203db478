// Routes that cost nothing: the Worker is asked and its answer passed on.
import type { Call } from "./call";
import { MAX_BODY } from "./env";
import { Fault, facilitatorDown, log } from "./errors";
import { counters, exceeded, left } from "./limits";
import { planOf } from "./plan";
import { callerHash, ours, passed } from "./request";
import { bounded, call, told, TooLarge } from "./tenant_call";

/** free does the work of a route that costs nothing. */
export async function free(c: Call): Promise<Response> {
  const e = c.entry!;
  // What a worker alone knows is only asked for when something depends on it.
  if (!c.plan && e.kind === "dataset" && (e.limited || c.req.headers.has("if-none-match"))) c.plan = await planOf(c, e);
  if (c.plan?.error) throw c.plan.error;
  c.event.units = c.units(e) || undefined;
  if (e.limited) await quota(c);
  const same = c.notModified();
  if (same) return same;
  let body: Uint8Array;
  try {
    body = c.idempotent ? new Uint8Array() : await bounded(c.req, MAX_BODY);
  } catch (err) {
    if (err instanceof TooLarge) throw new Fault("body_too_large", `the body is over ${MAX_BODY} bytes; nothing was charged`, { fix: "send less" });
    throw err;
  }
  const dataset = e.kind === "dataset";
  const res = await call(c.env, e, { url: c.url(), method: dataset && c.method === "HEAD" ? "GET" : c.method, headers: passed(c.req.headers), body }, c.left(), c.id);
  if (dataset && res.status >= 400) throw await told(res, e, c.id);
  for (const [name, value] of res.headers) {
    if (name === "cache-control") c.set(name, value);
    else if (name === "set-cookie") c.headers.append(name, value);
    else if (!ours(name)) c.headers.append(name, value);
  }
  if (dataset) {
    try {
      return c.end(res.status, await bounded(res));
    } catch (err) {
      log("ERROR", "worker failed", { requestId: c.id, worker: e.workerName, err });
      throw new Fault("tenant_worker_failure", "the API failed; you were not charged", { fix: "try again later" });
    }
  }
  return c.end(res.status, res.body);
}

// quota counts a free call against its caller's quota.
async function quota(c: Call): Promise<void> {
  const e = c.entry!, caller = callerHash(c.cfg.salt, "addr:", c.addr);
  c.event.callerId = caller;
  const want = counters(e, caller, 0, 1, c.start);
  if (want.length === 0) return;
  let got: { counters: typeof want } | { exceeded: (typeof want)[number] };
  try {
    got = (await c.env.LEDGER.getByName(`free/${e.id}/${caller}`).take(want)) as typeof got;
  } catch (err) {
    throw facilitatorDown(err);
  }
  if ("exceeded" in got) {
    left([got.exceeded], c.start, c.set);
    throw exceeded(got.exceeded, c.start);
  }
  left(got.counters, c.start, c.set);
}
