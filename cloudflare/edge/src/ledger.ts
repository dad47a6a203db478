// The Ledger: a Durable Object for each payer of a token, in which payments are
// reserved, answers kept, and settlements brought to their end, by the rules of
// money.md. Everything that must not be lost is in its SQLite before anything
// is sent; its alarm goes on where a crash left it.
//
// The machine is ledger/step.go's for settle_before_response with a remote
// facilitator:
//
//	work : running -> done | failed
//	money: held -> released            nothing was ever submitted
//	       held -> signed -> mined     a facilitator has it -> it is paid
//	               signed -> dead      the chain proves that it never will be
import { DurableObject } from "cloudflare:workers";
import type { Env } from "./env";
import { log } from "./errors";
import { deliver, type Event } from "./events";
import { ENDLESS, SCHEMA, Till } from "./till";
import type { Counter } from "./limits";

/** Row is a payment: an authorization, the one request that it buys, and how far both are. Times are ms unless said. */
export interface Row {
  id: string; // pay_ + 16 hex
  nonce: string;
  tenant: string;
  version: number;
  payer: string;
  payTo: string;
  asset: string;
  network: string;
  amount: string; // atomic units
  validBefore: number; // unix seconds, at most ENDLESS
  fingerprint: string; // by the canonical query
  raw: string; // the same by the query as it was sent: a resend is known without its worker
  signature: string; // SHA-256, hex
  quote: string; // SHA-256, hex; "": reserved without one
  client: string; // hash of the address that paid
  message: string; // what a facilitator is sent, without a quote
  ref: string; // its payment-identifier; "": none
  work: "running" | "done" | "failed";
  money: "held" | "released" | "signed" | "mined" | "dead";
  epoch: number;
  lease: number;
  facilitator: string; // that may have it; before that, the one that verified it
  tx: string;
  reason: string;
  mined: number;
  created: number;
}

/** NewRow is what is given to reserve. */
export type NewRow = Omit<Row, "work" | "money" | "epoch" | "lease" | "tx" | "reason" | "mined" | "created">;

/** Answer is a stored answer. */
export interface Answer { status: number; headers: Array<[string, string]>; body: Uint8Array }

/** Outcome is what is known of a settlement. unknown means that it may still be charged: say 503, never 402. */
export interface Outcome { state: "settled" | "notCharged" | "unknown" | "fenced"; tx: string; reason: string }

/** Reserved is how a reservation ended: taken, known already, known by its identifier alone, or refused by a counter. */
export type Reserved = { row: Row; counters: Counter[] } | { conflict: Row } | { identifier: string } | { exceeded: Counter };

/** TenantState is what the control plane last said of a tenant. */
export interface TenantState { revision: number; status: string; ledgerHome: string }

const DAY = 24 * 3600_000;
const ABANDONED = 120_000; // ms after a lease's end that a reservation is kept for its buyer to come back
const FLUSH = 1_000; // ms that events are gathered
const RETRY = 5_000; // ms until an alarm that failed is tried again
const LOOK_AGAIN = 2_000; // ms until a reservation whose lease is over is looked at again
const OPEN_WAIT = 5_000; // ms that a payment from earlier is waited for

export class Ledger extends DurableObject<Env> {
  readonly #till: Till;
  readonly #waiting = new Map<string, Set<() => void>>();
  #alarmAt = Infinity; // as it is set

  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env);
    this.#till = new Till(ctx, env, (id) => this.#news(id), (at) => this.#wake(at));
    void ctx.blockConcurrencyWhile(async () => {
      for (const sql of SCHEMA) ctx.storage.sql.exec(sql);
      this.#alarmAt = (await ctx.storage.getAlarm()) ?? Infinity;
      // Should an alarm have gone astray, what is open gets one again.
      const next = this.#next();
      if (next < Infinity) this.#wake(Math.max(next, Date.now() + FLUSH));
    });
  }

  /** find gives the payment of an authorization, undefined if it has none. */
  find(nonce: string): Row | undefined {
    return this.#till.byNonce(nonce);
  }

  /** reserve claims the authorization and takes every counter, or nothing. (T1) */
  reserve(p: NewRow, counters: Counter[], leaseMs: number): Reserved {
    const now = Date.now();
    return this.ctx.storage.transactionSync((): Reserved => {
      const known = this.#till.byNonce(p.nonce);
      if (known) return { conflict: known };
      if (p.ref !== "" && this.#till.named(p.tenant, p.ref)) return { identifier: p.ref };
      const taken = this.#till.take(counters);
      if (!Array.isArray(taken)) return { exceeded: taken };
      const row: Row = { ...p, work: "running", money: "held", epoch: 1, lease: now + leaseMs, tx: "", reason: "", mined: 0, created: now };
      this.#till.insert(row, taken);
      this.#wake(row.lease + ABANDONED);
      return { row, counters: taken };
    });
  }

  /** takeOver raises the epoch of a reservation whose lease has expired; undefined if somebody else moved it. */
  takeOver(id: string, epoch: number, leaseMs: number): Row | undefined {
    const now = Date.now();
    const n = this.#till.change("UPDATE payments SET epoch = epoch + 1, lease = ? WHERE id = ? AND epoch = ? AND work = 'running' AND money = 'held' AND lease < ?", now + leaseMs, id, epoch, now);
    if (n > 0) this.#wake(now + leaseMs + ABANDONED);
    return n > 0 ? this.#till.byID(id) : undefined;
  }

  /** done stores the answer and the event (T2), and settles. The payment is spent on this answer from here on: it is delivered to whoever paid, whenever it is paid. */
  async done(id: string, epoch: number, answer: Answer, event: Event, budgetMs: number): Promise<Outcome> {
    const stored = this.ctx.storage.transactionSync(() => {
      const now = Date.now();
      const n = this.#till.change(`UPDATE payments SET work = 'done', status = ?, headers = ?, len = ?, event = ?, next = ?, expires = MAX(?, CASE WHEN valid_before < ? THEN valid_before * 1000 + 3600000 ELSE 0 END)
        WHERE id = ? AND epoch = ? AND work = 'running' AND money = 'held'`,
        answer.status, JSON.stringify(answer.headers), answer.body.length, JSON.stringify(event), now, now + DAY, ENDLESS, id, epoch);
      if (n === 0) return false;
      this.#till.keep(id, answer.body);
      this.#till.append(event, 0, now);
      return true;
    });
    if (!stored) return { state: "fenced", tx: "", reason: "" };
    this.#wake(Date.now() + FLUSH);
    this.#news(id);
    return this.#till.bring(id, Date.now() + budgetMs);
  }

  /** release ends a reservation that was never submitted; false if somebody else moved it. */
  release(id: string, epoch: number, why: string, event: Event): boolean {
    const ok = this.#till.release(id, epoch, why, event);
    if (ok) this.#wake(Date.now() + FLUSH);
    return ok;
  }

  /** follow waits until there is news of a payment's work, and brings what is answered to its end, for ms at most. */
  async follow(id: string, ms: number): Promise<Row | undefined> {
    const until = Date.now() + ms;
    let row = this.#till.byID(id);
    if (row?.work === "running" && row.money === "held") {
      await this.#newsOf(id, Math.min(ms, row.lease > Date.now() ? row.lease - Date.now() + 50 : LOOK_AGAIN));
      row = this.#till.byID(id);
    }
    if (row?.work === "done" && (row.money === "held" || row.money === "signed")) {
      await this.#till.bring(id, row.money === "signed" ? Math.min(until, Date.now() + OPEN_WAIT) : until);
      row = this.#till.byID(id);
    }
    return row;
  }

  #newsOf(id: string, ms: number): Promise<void> {
    return new Promise((done) => {
      const set = this.#waiting.get(id) ?? new Set();
      this.#waiting.set(id, set.add(done));
      setTimeout(() => {
        set.delete(done);
        done();
      }, ms);
    });
  }

  /** answer gives a payment's stored answer, byte for byte. */
  answer(id: string): Answer | undefined {
    return this.#till.answer(id);
  }

  /** take takes from counters outside of a payment: the quota of a free call. */
  take(counters: Counter[]): { counters: Counter[] } | { exceeded: Counter } {
    const taken = this.ctx.storage.transactionSync(() => this.#till.take(counters));
    return Array.isArray(taken) ? { counters: taken } : { exceeded: taken };
  }

  /** tenant gives what the control plane last said of a tenant, in that tenant's own object. */
  tenant(): TenantState | undefined {
    for (const r of this.ctx.storage.sql.exec("SELECT value FROM state WHERE name = 'tenant'")) return JSON.parse(String(r["value"])) as TenantState;
    return undefined;
  }

  /** setTenant keeps a tenant's state, unless a later revision is known; it gives the one that counts. */
  setTenant(s: TenantState): TenantState {
    const known = this.tenant();
    if (known && known.revision >= s.revision) return known;
    this.ctx.storage.sql.exec("INSERT INTO state (name, value) VALUES ('tenant', ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", JSON.stringify(s));
    return s;
  }

  /** alarm goes on with what is open. It always sets the next one, whatever happens in it. */
  override async alarm(): Promise<void> {
    this.#alarmAt = Infinity;
    let next = Date.now() + RETRY;
    try {
      await this.#tend();
      next = Math.max(this.#next(), Date.now() + 250);
    } catch (err) {
      log("ERROR", "the ledger's alarm failed", { err });
    }
    if (next < Infinity) this.#wake(next);
  }

  async #tend(): Promise<void> {
    const now = Date.now();
    for (const row of this.#till.abandoned(now - ABANDONED)) {
      log("INFO", "an abandoned reservation is released", { payment: row.id });
      this.#till.release(row.id, row.epoch, "not_charged", undefined);
    }
    await Promise.all(this.#till.due(now).map((id) => this.#till.bring(id, now + 5_000)));
    const batch = this.#till.outbox();
    if (batch.length > 0) {
      try {
        await deliver(this.env, batch);
        this.#till.sent(batch);
        this.#till.flushFailures = 0;
      } catch (err) {
        this.#till.flushFailures++;
        log("WARN", "usage events wait for their sink", { err, waiting: batch.length });
      }
    }
    this.#till.forget(now);
  }

  /** #next is when the alarm has something to do; Infinity if never. */
  #next(): number {
    return this.#till.next(FLUSH, ABANDONED);
  }

  // #wake makes sure that the alarm rings at `at` or before. Nothing is awaited in
  // between: the alarm is stored together with what it is for.
  #wake(at: number): void {
    if (at >= this.#alarmAt) return;
    this.#alarmAt = at;
    void this.ctx.storage.setAlarm(at);
  }

  #news(id: string): void {
    const set = this.#waiting.get(id);
    this.#waiting.delete(id);
    for (const done of set ?? []) done();
  }
}
