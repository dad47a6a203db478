// Usage events: one for each request, product.md's names. A paid call's is in
// the Ledger's outbox and delivered exactly once by its id; the others are
// gathered by the isolate for a second. Under a flood, challenges are counted
// rather than listed, as usage/recorder.go does.
import type { Env } from "./env";
import { log } from "./errors";
import { newRequestID } from "./request";
import type { Pending } from "./till";

/** Event is a request as the analytics see it. */
export interface Event {
  timestamp: number; // ms
  requestId: string;
  tenantId: string;
  paymentId?: string;
  apiId: string; // slug
  endpoint: string; // the path that the tenant sees
  owner: string;
  directory: string;
  callerId: string; // a hash
  status: number;
  latencyMs: number;
  billedUsd: number;
  priceUsd: number;
  units?: number;
  bytesOut?: number;
  lifecycle: string;
  billable: boolean;
  countable: boolean;
  error?: string;
}

const SQL_TABLE = `CREATE TABLE IF NOT EXISTS events (seq INTEGER PRIMARY KEY AUTOINCREMENT, api TEXT NOT NULL, request_id TEXT NOT NULL, at INTEGER NOT NULL, rev INTEGER NOT NULL, event TEXT NOT NULL, UNIQUE (api, request_id))`;
const SQL_INSERT = `INSERT INTO events (api, request_id, at, rev, event) VALUES (?, ?, ?, ?, ?)
  ON CONFLICT (api, request_id) DO UPDATE SET rev = excluded.rev, event = excluded.event WHERE excluded.rev > events.rev`;

/** deliver hands events to D1, or to a clawr's control plane. Both keep the first of each (api, request id): delivering twice is delivering once. It throws if none of it is sure. */
export async function deliver(env: Env, batch: Pending[]): Promise<void> {
  if (batch.length === 0) return;
  if (env.CONTROL_PLANE_URL) return toControlPlane(env, batch);
  if (!env.EVENTS) {
    for (const p of batch) console.log(JSON.stringify(p.event));
    return;
  }
  const db = env.EVENTS;
  const write = (): Promise<unknown> => db.batch(batch.map((p) => db.prepare(SQL_INSERT).bind(p.api, p.requestId, p.event.timestamp, p.rev, JSON.stringify(p.event))));
  try {
    await write();
  } catch (err) {
    if (!String(err).includes("no such table")) throw err;
    await db.exec(SQL_TABLE);
    await write();
  }
}

// The control plane never changes an event: those whose money may still move wait.
async function toControlPlane(env: Env, batch: Pending[]): Promise<void> {
  const final = batch.filter((p) => p.event.lifecycle !== "settlement_pending");
  if (final.length === 0) throw new Error("all events wait for their settlement");
  const res = await fetch(env.CONTROL_PLANE_URL!.replace(/\/+$/, "") + "/v1/events", {
    method: "POST", redirect: "manual", signal: AbortSignal.timeout(10_000), body: final.map((p) => JSON.stringify(p.event)).join("\n") + "\n",
    headers: { "Content-Type": "application/x-ndjson", Authorization: "Bearer " + (env.CONTROL_PLANE_TOKEN ?? "") },
  });
  await res.body?.cancel();
  if (!res.ok) throw new Error(`the control plane answers ${res.status}`);
  batch.splice(0, batch.length, ...final);
}

const GATHER = 1_000; // ms
const LISTED = 256; // challenges of one batch that are listed
const MOST = 10_000; // events that wait in an isolate

const waiting: Event[] = [];
const merged = new Map<string, Event>();
const clock = { listed: 0, asked: 0, dropped: 0 };

/** record takes the event of a request that no payment carries. */
export function record(env: Env, ctx: ExecutionContext, e: Event): void {
  if (!e.countable && (e.lifecycle === "payment_challenged" || e.lifecycle === "rate_limited") && ++clock.listed > LISTED) merge(e);
  else if (waiting.length < MOST) waiting.push(e);
  else clock.dropped++;
  const now = Date.now();
  if (now - clock.asked < GATHER && waiting.length < LISTED * 2) return;
  clock.asked = now;
  ctx.waitUntil(scheduler.wait(GATHER).then(() => flush(env)));
}

// merge counts an event into the one that stands for many of its kind.
function merge(e: Event): void {
  const key = `${e.apiId} ${e.lifecycle}`, m = merged.get(key);
  if (!m) {
    merged.set(key, { ...e, requestId: newRequestID(), endpoint: "*", callerId: "*", units: 1 });
    return;
  }
  m.latencyMs += e.latencyMs;
  m.bytesOut = (m.bytesOut ?? 0) + (e.bytesOut ?? 0);
  m.units = (m.units ?? 1) + 1;
  m.timestamp = Math.max(m.timestamp, e.timestamp);
}

/** flush delivers what the isolate has gathered. What cannot be delivered waits on. */
export async function flush(env: Env): Promise<void> {
  clock.listed = 0;
  for (const [key, m] of merged) {
    m.latencyMs = Math.round((m.latencyMs / (m.units ?? 1)) * 1000) / 1000;
    waiting.push(m);
    merged.delete(key);
  }
  while (waiting.length > 0) {
    const batch = waiting.splice(0, 100);
    try {
      await deliver(env, batch.map((event) => ({ api: event.apiId, requestId: event.requestId, rev: 1, at: event.timestamp, event })));
    } catch (err) {
      waiting.push(...batch);
      log("WARN", "usage events wait for their sink", { err, waiting: waiting.length });
      return;
    }
  }
}
