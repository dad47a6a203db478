// The Ledger's tables and its way of settling. Every move of a payment is one
// conditional statement: zero rows mean that somebody else moved it.
import { Chain, type Finding, type Transfer } from "./chain";
import type { Env } from "./env";
import { log } from "./errors";
import type { Event } from "./events";
import { order, settle, type Heard } from "./facilitator";
import type { Answer, Outcome, Row } from "./ledger";
import type { Counter } from "./limits";

export const SCHEMA = [
  `CREATE TABLE IF NOT EXISTS payments (id TEXT PRIMARY KEY, nonce TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL, version INTEGER NOT NULL, payer TEXT NOT NULL, pay_to TEXT NOT NULL,
    asset TEXT NOT NULL, network TEXT NOT NULL, amount TEXT NOT NULL, valid_before INTEGER NOT NULL, fingerprint TEXT NOT NULL, raw TEXT NOT NULL, signature TEXT NOT NULL, quote TEXT NOT NULL,
    client TEXT NOT NULL, message TEXT NOT NULL, work TEXT NOT NULL CHECK (work IN ('running','done','failed')), money TEXT NOT NULL CHECK (money IN ('held','released','signed','mined','dead')),
    epoch INTEGER NOT NULL, lease INTEGER NOT NULL, facilitator TEXT NOT NULL, tx TEXT NOT NULL, reason TEXT NOT NULL, mined INTEGER NOT NULL, created INTEGER NOT NULL,
    counters TEXT NOT NULL, ref TEXT, status INTEGER, headers TEXT, len INTEGER, event TEXT, next INTEGER, posts INTEGER NOT NULL DEFAULT 0, proof TEXT, expires INTEGER NOT NULL,
    CHECK (money NOT IN ('signed','mined','dead') OR work = 'done'), CHECK (money <> 'mined' OR tx <> ''), CHECK (money <> 'dead' OR proof <> ''))`,
  `CREATE UNIQUE INDEX IF NOT EXISTS named ON payments (tenant, ref)`,
  `CREATE INDEX IF NOT EXISTS open ON payments (next) WHERE money IN ('held','signed')`,
  `CREATE TABLE IF NOT EXISTS chunks (payment TEXT NOT NULL, n INTEGER NOT NULL, bytes BLOB NOT NULL, PRIMARY KEY (payment, n))`,
  `CREATE TABLE IF NOT EXISTS counters (scope TEXT NOT NULL, window INTEGER NOT NULL, ends INTEGER NOT NULL, used INTEGER NOT NULL, PRIMARY KEY (scope, window))`,
  `CREATE TABLE IF NOT EXISTS outbox (api TEXT NOT NULL, request_id TEXT NOT NULL, rev INTEGER NOT NULL, at INTEGER NOT NULL, event TEXT NOT NULL, PRIMARY KEY (api, request_id))`,
  `CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value TEXT NOT NULL)`,
];

/** ENDLESS is a time in unix seconds from which on an authorization is taken to have no end. */
export const ENDLESS = 2 ** 40;

const CHUNK = 1 << 20; // bytes of an answer in one row: a row may have 2 MB
const FIRST_REPEAT = 5_000; // ms before a payment is sent to its facilitator again
const LAST_REPEAT = 300_000;
const SETTLE_TIMEOUT = 25_000;
const FIRST_LOOK = 20;
const LAST_LOOK = 1_000;
const MIN_LIFE = 6; // s that an authorization must still be valid when it is submitted
const BATCH = 100; // events of one flush

const COLUMNS = "id, nonce, tenant, version, payer, pay_to AS payTo, asset, network, amount, valid_before AS validBefore, fingerprint, raw, signature, quote, client, message, work, money, epoch, lease, facilitator, tx, reason, mined, created, coalesce(ref, '') AS ref";

/** Pending is an event in the outbox. */
export interface Pending { api: string; requestId: string; rev: number; at: number; event: Event }

const pause = (ms: number): Promise<void> => new Promise((done) => setTimeout(done, ms));

export class Till {
  flushFailures = 0;
  readonly #sql: SqlStorage;
  readonly #bringing = new Map<string, Promise<Outcome>>();

  constructor(readonly ctx: DurableObjectState, readonly env: Env, readonly news: (id: string) => void, readonly wake: (at: number) => void) {
    this.#sql = ctx.storage.sql;
  }

  /** change runs a statement and says how many rows it changed. */
  change(sql: string, ...args: Array<string | number | null>): number {
    let n = 0;
    for (const _ of this.#sql.exec(sql + " RETURNING 1", ...args)) n++;
    return n;
  }

  byNonce(nonce: string): Row | undefined {
    return this.#one(`SELECT ${COLUMNS} FROM payments WHERE nonce = ?`, nonce);
  }

  /** named reports whether a payment of that tenant has that identifier. */
  named(tenant: string, ref: string): boolean {
    return this.#sql.exec("SELECT 1 FROM payments WHERE tenant = ? AND ref = ?", tenant, ref).toArray().length > 0;
  }

  byID(id: string): Row | undefined {
    return this.#one(`SELECT ${COLUMNS} FROM payments WHERE id = ?`, id);
  }

  #one(sql: string, arg: string): Row | undefined {
    for (const r of this.#sql.exec(sql, arg)) return { ...r } as unknown as Row;
    return undefined;
  }

  /** take takes from all counters; the first that refuses is returned, and then the caller's transaction has to end without a change. */
  take(counters: Counter[]): Counter[] | Counter {
    const used = (c: Counter): number => {
      for (const r of this.#sql.exec("SELECT used FROM counters WHERE scope = ? AND window = ?", c.scope, c.window)) return Number(r["used"]);
      return 0;
    };
    for (const c of counters) {
      const have = used(c);
      if (have + c.cost > c.cap) return { ...c, used: have };
    }
    return counters.map((c) => {
      this.#sql.exec(`INSERT INTO counters (scope, window, ends, used) VALUES (?, ?, ?, ?) ON CONFLICT (scope, window) DO UPDATE SET used = counters.used + excluded.used WHERE counters.used + excluded.used <= ?`,
        c.scope, c.window, c.end, c.cost, c.cap);
      return { ...c, used: used(c) };
    });
  }

  insert(r: Row, counters: Counter[]): void {
    this.#sql.exec(`INSERT INTO payments (id, nonce, tenant, version, payer, pay_to, asset, network, amount, valid_before, fingerprint, raw, signature, quote, client, message, work, money, epoch, lease, facilitator, tx, reason, mined, created, counters, expires, ref)
      VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)`,
      r.id, r.nonce, r.tenant, r.version, r.payer, r.payTo, r.asset, r.network, r.amount, r.validBefore, r.fingerprint, r.raw, r.signature, r.quote, r.client, r.message, r.work, r.money, r.epoch, r.lease,
      r.facilitator, r.tx, r.reason, r.mined, r.created, JSON.stringify(counters), 0, r.ref || null);
  }

  /** keep stores the bytes of an answer. */
  keep(id: string, body: Uint8Array): void {
    for (let n = 0; n * CHUNK < body.length; n++) {
      const part = body.slice(n * CHUNK, (n + 1) * CHUNK);
      this.#sql.exec("INSERT INTO chunks (payment, n, bytes) VALUES (?, ?, ?)", id, n, part.buffer as ArrayBuffer);
    }
  }

  answer(id: string): Answer | undefined {
    for (const r of this.#sql.exec("SELECT status, headers, len FROM payments WHERE id = ? AND work = 'done'", id)) {
      const body = new Uint8Array(Number(r["len"]));
      let at = 0;
      for (const c of this.#sql.exec("SELECT bytes FROM chunks WHERE payment = ? ORDER BY n", id)) {
        const part = new Uint8Array(c["bytes"] as ArrayBuffer);
        body.set(part, at);
        at += part.length;
      }
      if (at !== body.length) throw new Error(`the answer to ${id} has ${at} of ${body.length} bytes`);
      return { status: Number(r["status"]), headers: JSON.parse(String(r["headers"])) as Array<[string, string]>, body };
    }
    return undefined;
  }

  /** append puts an event into the outbox, or replaces it by a later state of the same request. */
  append(e: Event, rev: number, at: number): void {
    this.#sql.exec(`INSERT INTO outbox (api, request_id, rev, at, event) VALUES (?, ?, ?, ?, ?)
      ON CONFLICT (api, request_id) DO UPDATE SET rev = excluded.rev, at = excluded.at, event = excluded.event WHERE excluded.rev > outbox.rev`, e.apiId, e.requestId, rev, at, JSON.stringify(e));
  }

  /** release gives up what was never submitted, and gives its counters back. */
  release(id: string, epoch: number, why: string, event: Event | undefined): boolean {
    const ok = this.ctx.storage.transactionSync(() => {
      const now = Date.now();
      const n = this.change(`UPDATE payments SET money = 'released', work = CASE work WHEN 'done' THEN 'done' ELSE 'failed' END, reason = ?, next = NULL,
        expires = MAX(?, CASE WHEN valid_before < ? THEN valid_before * 1000 + 3600000 ELSE 0 END) WHERE id = ? AND epoch = ? AND money = 'held'`, why, now + 86400_000, ENDLESS, id, epoch);
      if (n === 0) return false;
      for (const r of this.#sql.exec("SELECT counters FROM payments WHERE id = ?", id).toArray()) {
        for (const c of JSON.parse(String(r["counters"])) as Counter[]) {
          this.#sql.exec("UPDATE counters SET used = MAX(used - ?, 0) WHERE scope = ? AND window = ?", c.cost, c.scope, c.window);
        }
      }
      if (event) this.append(event, 1, now);
      else this.#complete(id, { status: 402, lifecycle: "settlement_failed", countable: false, billable: false, error: why }, now);
      return true;
    });
    if (ok) this.news(id);
    return ok;
  }

  // #complete brings the event that an answer was stored with to its end. It is part of its caller's transaction.
  #complete(id: string, change: Partial<Event>, now: number): void {
    for (const r of this.#sql.exec("SELECT event FROM payments WHERE id = ? AND event IS NOT NULL", id).toArray()) {
      this.append({ ...(JSON.parse(String(r["event"])) as Event), ...change }, 1, now);
    }
  }

  /** bring settles a payment whose answer is stored, or finds out what became of it, until `until`. Whoever asks at the same time shares it. */
  bring(id: string, until: number): Promise<Outcome> {
    let p = this.#bringing.get(id);
    if (!p) {
      p = this.#bring(id, until).finally(() => this.#bringing.delete(id));
      this.#bringing.set(id, p);
    }
    return p;
  }

  async #bring(id: string, until: number): Promise<Outcome> {
    const row = this.byID(id);
    const ended = row && outcome(row);
    if (!row || row.work !== "done") return { state: "unknown", tx: "", reason: "settlement_pending" };
    if (ended) return ended;
    const chain = this.env.RPC_URL ? new Chain(this.env.RPC_URL) : undefined;
    const t: Transfer = { asset: row.asset, payer: row.payer, payTo: row.payTo, amount: BigInt(row.amount), nonce: row.nonce, validBefore: BigInt(row.validBefore) };
    let heard: Heard | undefined;
    if (row.money === "held") {
      const refused = await this.#preflight(row, chain, t);
      if (refused) return refused;
      heard = await this.#post(row, until);
    } else if (this.#due(id)) {
      const now = await this.#look(row, chain, t, row.tx);
      if (now) return now;
      heard = await this.#post(row, until);
    }
    return this.#await(row, chain, t, heard ?? { said: "nothing", tx: row.tx, reason: row.reason }, until);
  }

  // #preflight is the last moment at which nothing was submitted: what cannot be
  // charged any more is released, and everything else is signed from here on.
  async #preflight(row: Row, chain: Chain | undefined, t: Transfer): Promise<Outcome | undefined> {
    const urls = (this.env.FACILITATOR_URLS ?? "").split(",").map((u) => u.trim().replace(/\/+$/, "")).filter((u) => u !== "");
    const facilitator = urls.includes(row.facilitator) ? row.facilitator : order(urls, Date.now())[0];
    if (!facilitator) return { state: "unknown", tx: "", reason: "settlement_pending" };
    if (row.validBefore < Math.floor(Date.now() / 1000) + MIN_LIFE) return this.#giveUp(row, "invalid_exact_evm_payload_authorization_valid_before");
    if (chain) {
      let f: Finding;
      try {
        f = await chain.look(t);
      } catch (err) {
        log("WARN", "the chain cannot be asked", { payment: row.id, err });
        return { state: "unknown", tx: "", reason: "settlement_pending" };
      }
      if (f.state === "elsewhere") return this.#giveUp(row, "invalid_exact_evm_nonce_already_used");
      if (f.state === "paid") {
        // Somebody submitted it before we did: it may have bought something from
        // another server of the same payTo. Neither answer nor challenge: an
        // operator has to look.
        log("ERROR", "an authorization was consumed before it was submitted here", { payment: row.id, payTo: row.payTo, tx: f.tx });
        this.change("UPDATE payments SET next = ? WHERE id = ?", Date.now() + LAST_REPEAT, row.id);
        return { state: "unknown", tx: f.tx, reason: "invalid_exact_evm_nonce_already_used" };
      }
    }
    const n = this.change("UPDATE payments SET money = 'signed', facilitator = ?, next = ?, posts = 1 WHERE id = ? AND epoch = ? AND money = 'held' AND work = 'done'", facilitator, Date.now() + FIRST_REPEAT, row.id, row.epoch);
    if (n === 0) {
      const now = this.byID(row.id);
      return (now && outcome(now)) ?? { state: "unknown", tx: "", reason: "settlement_pending" };
    }
    row.facilitator = facilitator;
    row.money = "signed";
    // The book must know before the facilitator does.
    this.wake(Date.now() + FIRST_REPEAT);
    await this.ctx.storage.sync();
    return undefined;
  }

  #giveUp(row: Row, reason: string): Outcome {
    if (this.release(row.id, row.epoch, reason, undefined)) return { state: "notCharged", tx: "", reason };
    const now = this.byID(row.id);
    return (now && outcome(now)) ?? { state: "unknown", tx: "", reason: "settlement_pending" };
  }

  // #due reports whether a payment may be sent to its facilitator again now, and counts it as sent.
  #due(id: string): boolean {
    const now = Date.now();
    return this.change("UPDATE payments SET posts = posts + 1, next = ? + MIN(?, ? * (1 << MIN(posts, 10))) WHERE id = ? AND money = 'signed' AND (next IS NULL OR next <= ?)", now, LAST_REPEAT, FIRST_REPEAT, id, now) > 0;
  }

  // #post sends a payment to the one facilitator that may have it: the same bytes, whenever it is.
  async #post(row: Row, until: number): Promise<Heard> {
    const left = until - Date.now();
    return settle(this.env, row.facilitator, row.message, row.network, Math.max(1_000, Math.min(SETTLE_TIMEOUT, left - Math.min(2_000, left / 4))));
  }

  // #await brings what was heard to an end, until the time is over. A complete
  // success is one if the chain shows it, or if there is no chain to ask. A
  // rejection is a hint: the facilitator has the signature all the same, and
  // only the chain can prove it right.
  async #await(row: Row, chain: Chain | undefined, t: Transfer, h: Heard, until: number): Promise<Outcome> {
    let repeated = false;
    this.#note(row, h);
    for (let wait = FIRST_LOOK; ; wait = Math.min(2 * wait, LAST_LOOK)) {
      if (h.said === "paid" && !chain) return this.#paid(row.id, h.tx);
      const end = await this.#look(row, chain, t, h.tx);
      if (end) return end;
      if (h.said === "rejected" || Date.now() + wait >= until) {
        this.wake(this.next(1_000, 0));
        return { state: "unknown", tx: h.tx, reason: h.reason || "settlement_pending" };
      }
      await pause(wait);
      const soon = h.said === "pending" && !repeated && wait >= 4 * FIRST_LOOK;
      if (soon || ((h.said === "nothing" || h.said === "pending") && this.#due(row.id))) {
        repeated = true;
        const more = await this.#post(row, until);
        if (more.said === "nothing") continue;
        h = { ...more, tx: more.tx || h.tx };
        this.#note(row, h);
      }
    }
  }

  #note(row: Row, h: Heard): void {
    row.reason = h.reason;
    this.change("UPDATE payments SET reason = ?, tx = CASE WHEN ? <> '' THEN ? ELSE tx END WHERE id = ? AND money = 'signed'", h.reason, h.tx, h.tx, row.id);
  }

  // #look asks the chain, if there is one to ask, whether the payment has ended, and books it.
  async #look(row: Row, chain: Chain | undefined, t: Transfer, tx: string): Promise<Outcome | undefined> {
    if (!chain) return undefined;
    try {
      if (tx !== "" && (await chain.receipt(tx, t))) return this.#paid(row.id, tx);
      const f = await chain.look(t);
      if (f.state === "paid") return this.#paid(row.id, f.tx);
      if (f.proof !== "") return this.#dead(row.id, f.proof, row.reason || "invalid_exact_evm_transaction_failed");
    } catch (err) {
      log("WARN", "a payment's end is not known", { payment: row.id, err });
    }
    return undefined;
  }

  #paid(id: string, tx: string): Outcome {
    this.ctx.storage.transactionSync(() => {
      const now = Date.now();
      const n = this.change("UPDATE payments SET money = 'mined', tx = ?, mined = ?, next = NULL WHERE id = ? AND money = 'signed'", tx, now, id);
      if (n === 0) return;
      for (const r of this.#sql.exec("SELECT event FROM payments WHERE id = ?", id).toArray()) {
        const e = JSON.parse(String(r["event"])) as Event;
        this.#complete(id, { lifecycle: "dispatch_success", billable: true, billedUsd: e.priceUsd }, now);
      }
    });
    this.news(id);
    this.wake(Date.now() + 1_000);
    const row = this.byID(id);
    return (row && outcome(row)) ?? { state: "unknown", tx, reason: "settlement_pending" };
  }

  #dead(id: string, proof: string, reason: string): Outcome {
    this.ctx.storage.transactionSync(() => {
      const now = Date.now();
      if (this.change("UPDATE payments SET money = 'dead', proof = ?, reason = ?, next = NULL WHERE id = ? AND money = 'signed'", proof, reason, id) > 0) {
        this.#complete(id, { status: 402, lifecycle: "settlement_failed", countable: false, billable: false, error: reason }, now);
      }
    });
    this.news(id);
    const row = this.byID(id);
    return (row && outcome(row)) ?? { state: "unknown", tx: "", reason: "settlement_pending" };
  }

  /** abandoned are reservations that nobody works on any more. */
  abandoned(before: number): Row[] {
    return [...this.#sql.exec(`SELECT ${COLUMNS} FROM payments WHERE money = 'held' AND work = 'running' AND lease < ? LIMIT 100`, before)].map((r) => ({ ...r }) as unknown as Row);
  }

  /** due are payments that are answered and not settled, and whose turn it is; oldest expiry first. */
  due(now: number): string[] {
    return [...this.#sql.exec("SELECT id FROM payments WHERE money IN ('held','signed') AND work = 'done' AND next <= ? ORDER BY valid_before LIMIT 16", now)].map((r) => String(r["id"]));
  }

  outbox(): Pending[] {
    return [...this.#sql.exec("SELECT api, request_id, rev, at, event FROM outbox ORDER BY at LIMIT ?", BATCH)].map((r) => ({
      api: String(r["api"]), requestId: String(r["request_id"]), rev: Number(r["rev"]), at: Number(r["at"]), event: JSON.parse(String(r["event"])) as Event,
    }));
  }

  /** sent takes delivered events out of the outbox, but none that has changed since. */
  sent(batch: Pending[]): void {
    this.ctx.storage.transactionSync(() => {
      for (const p of batch) this.#sql.exec("DELETE FROM outbox WHERE api = ? AND request_id = ? AND rev = ?", p.api, p.requestId, p.rev);
    });
  }

  /** forget drops answers that need not be kept any more, and counters of windows that are over. */
  forget(now: number): void {
    this.ctx.storage.transactionSync(() => {
      const old = [...this.#sql.exec("SELECT id FROM payments WHERE money IN ('mined','released','dead') AND expires < ? AND valid_before < ? LIMIT 100", now, now / 1000)].map((r) => String(r["id"]));
      for (const id of old) {
        this.#sql.exec("DELETE FROM chunks WHERE payment = ?", id);
        this.#sql.exec("DELETE FROM payments WHERE id = ?", id);
      }
      this.#sql.exec("DELETE FROM counters WHERE ends < ?", now / 1000 - 86400);
    });
  }

  /** next is when the alarm has something to do; Infinity if never. */
  next(flush: number, abandoned: number): number {
    let at = Infinity;
    const see = (v: SqlStorageValue | undefined, plus = 0): void => {
      if (v !== null && v !== undefined) at = Math.min(at, Number(v) + plus);
    };
    for (const r of this.#sql.exec("SELECT min(next) AS n FROM payments WHERE money IN ('held','signed') AND work = 'done'")) see(r["n"]);
    for (const r of this.#sql.exec("SELECT min(lease) AS n FROM payments WHERE money = 'held' AND work = 'running'")) see(r["n"], abandoned);
    for (const r of this.#sql.exec("SELECT min(expires) AS n FROM payments WHERE money IN ('mined','released','dead') AND valid_before < ?", ENDLESS)) see(r["n"], 1_000);
    for (const r of this.#sql.exec("SELECT count(*) AS n FROM outbox")) if (Number(r["n"]) > 0) see(Date.now(), flush * 2 ** Math.min(this.flushFailures, 8));
    return at;
  }
}

// outcome is how a payment stands if that is the end of it.
function outcome(row: Row): Outcome | undefined {
  if (row.money === "mined") return { state: "settled", tx: row.tx, reason: "" };
  if (row.money === "released" || row.money === "dead") return { state: "notCharged", tx: "", reason: row.reason };
  return undefined;
}
