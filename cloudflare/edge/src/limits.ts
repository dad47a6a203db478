// Rates, quotas and caps: package meter. Buckets are an isolate's own; the
// exact counters are the Ledger's.
import type { Entry, Rate } from "./directory";
import { Fault, seconds } from "./errors";
import { dollars } from "./money";

export interface Decision { ok: boolean; limit: number; remaining: number; reset: number; retryAfter: number } // ms

const MAX_SPAN = 1e12; // ms

/** take spends from a bucket that will be full at `full`: the generic cell rate algorithm. Times are in ms. */
export function take(r: Rate, full: number, now: number, cost: number): { d: Decision; full: number } {
  const interval = (r.windowSeconds * 1000) / r.requests;
  const limit = r.burst && r.burst > 0 ? r.burst : r.requests;
  const size = Math.min(limit * interval, MAX_SPAN);
  let owed = Math.min(Math.max(full - now, 0), MAX_SPAN);
  const d: Decision = { ok: false, limit, remaining: 0, reset: 0, retryAfter: 0 };
  const after = owed + cost * interval;
  if (cost > limit) {
    // It can never fit; waiting does not help.
  } else if (after > size + 1e-6) d.retryAfter = after - size;
  else {
    d.ok = true;
    owed = after;
    full = now + after;
  }
  d.reset = owed;
  d.remaining = Math.min(Math.floor(Math.max(size - owed, 0) / interval + 1e-9), limit);
  return { d, full };
}

const MOST = 100_000;
const buckets = new Map<string, number>();

function allow(key: string, r: Rate, now: number): Decision {
  const { d, full } = take(r, buckets.get(key) ?? 0, now, 1);
  if (buckets.size >= MOST && !buckets.has(key)) {
    for (const [k, v] of buckets) if (v <= now) buckets.delete(k);
    if (buckets.size >= MOST) buckets.clear();
  }
  buckets.set(key, full);
  return d;
}

type Set = (name: string, value: string) => void;

function report(d: Decision, set: Set): void {
  set("X-RateLimit-Limit", String(d.limit));
  set("X-RateLimit-Remaining", String(d.remaining));
  set("X-RateLimit-Reset", String(seconds(d.reset)));
  if (!d.ok && d.retryAfter > 0) set("Retry-After", String(seconds(d.retryAfter)));
}

function refuse(d: Decision): void {
  if (d.ok) return;
  throw new Fault("rate_limited", `too many requests: at most ${d.limit} at once`, {
    retryAfter: seconds(d.retryAfter),
    fix: d.retryAfter > 0 ? `wait ${seconds(d.retryAfter)} s and send the same request again; nothing was charged` : "ask for less at once; nothing was charged",
  });
}

/** admit takes a request from the rates of its caller and its tenant, one from each or none from either, and says in headers what is left. */
export function admit(e: Entry, caller: string, now: number, set: Set): void {
  let d: Decision | undefined;
  const own = `caller/${e.id}/${caller}`;
  const before = buckets.get(own);
  if (e.rate.perCaller) d = allow(own, e.rate.perCaller, now);
  if (e.rate.global && (!d || d.ok)) {
    const g = allow(`tenant/${e.id}`, e.rate.global, now);
    if (!g.ok && d) {
      if (before === undefined) buckets.delete(own);
      else buckets.set(own, before);
    }
    if (!g.ok || !d || g.remaining < d.remaining) d = g;
  }
  if (!d) return;
  report(d, set);
  refuse(d);
}

/** The budgets that are the dispatcher's own: replays of one authorization, and records that do not exist. */
export const REPLAYS: Rate = { requests: 120, windowSeconds: 60, burst: 60 };
export const MISSES: Rate = { requests: 20, windowSeconds: 60, burst: 20 };

/** spend takes one from a budget of our own; it throws when there is none. */
export function spend(key: string, r: Rate, now: number, set: Set): void {
  const d = allow(key, r, now);
  if (d.ok) return;
  report(d, set);
  refuse(d);
}

/** Counter is one exact limit, as the Ledger counts it: it may be taken from while used + cost <= cap. */
export interface Counter {
  scope: string;
  window: number; // its start, unix seconds
  end: number;
  cost: number;
  cap: number;
  code: string;
  name: "Usage-Day" | "Usage-Month" | "Spend-Day" | "Spend-Month";
  used: number; // filled in by the Ledger
}

/** counters are the quotas and caps that a call takes from; price is µUSD of one unit, 0 for a free call. */
export function counters(e: Entry, caller: string, price: number, units: number, now: number): Counter[] {
  const t = new Date(now), y = t.getUTCFullYear(), m = t.getUTCMonth(), d = t.getUTCDate();
  const day = [Date.UTC(y, m, d) / 1000, Date.UTC(y, m, d + 1) / 1000] as const;
  const month = [Date.UTC(y, m, 1) / 1000, Date.UTC(y, m + 1, 1) / 1000] as const;
  const cost = Math.min(Math.max(price * units, 0), 2 ** 52);
  const all: Array<[string, Counter["name"], readonly [number, number], number, number, string]> = [
    ["usage-day", "Usage-Day", day, 1, e.quota.daily, "usage_quota_exceeded"],
    ["usage-month", "Usage-Month", month, 1, e.quota.monthly, "usage_quota_exceeded"],
    ["spend-day", "Spend-Day", day, cost, cost > 0 ? e.caps.daily : 0, "cap_exceeded"],
    ["spend-month", "Spend-Month", month, cost, cost > 0 ? e.caps.monthly : 0, "cap_exceeded"],
  ];
  return all.filter(([, , , , cap]) => cap > 0)
    .map(([scope, name, w, c, cap, code]) => ({ scope: `${scope}/${e.id}/${caller}`, name, window: w[0], end: w[1], cost: c, cap, code, used: 0 }));
}

/** left says in headers what is left of quotas and caps. */
export function left(list: Counter[], now: number, set: Set): void {
  for (const c of list) {
    const show = c.name.startsWith("Spend") ? dollars : String;
    set(`X-${c.name}-Limit`, show(c.cap));
    set(`X-${c.name}-Remaining`, show(Math.max(c.cap - c.used, 0)));
    set(`X-${c.name}-Reset`, String(seconds(c.end * 1000 - now)));
  }
}

/** exceeded is what the caller is told of a counter that refused. */
export function exceeded(c: Counter, now: number): Fault {
  const spends = c.name.startsWith("Spend"), period = c.name.endsWith("Day") ? "today" : "this month";
  const never = c.cost > c.cap;
  const message = spends
    ? `this call costs $${dollars(c.cost)}, and $${dollars(Math.max(c.cap - c.used, 0))} of the $${dollars(c.cap)} that you may spend here ${period} is left`
    : `all of the ${c.cap} requests that you may make here ${period} are used`;
  return new Fault(c.code, message, {
    retryAfter: never ? 0 : seconds(c.end * 1000 - now),
    fix: never ? "the call costs more than this API lets a caller spend; ask for less; nothing was charged"
      : `try again after ${new Date(c.end * 1000).toISOString().replace(".000Z", "Z")}, when the window ends; nothing was charged`,
  });
}
