// A call that carries a payment: dispatch/paid.go and settle.go. It is answered
// by the row of its authorization, if that has one, and else by taking it. The
// row comes before everything that could refuse a new payment, because a
// settled payment would fail all of it.
import { hashHex, same } from "./bytes";
import type { Call, Plan } from "./call";
import { free } from "./free";
import { planOf, versionOf } from "./plan";
import { advertised, terms as termsOf } from "./challenge";
import type { Entry, Version } from "./directory";
import { MAX_BODY, SLACK } from "./env";
import { Fault, facilitatorDown, lookupFailed, log, reasonFor, refusal } from "./errors";
import { verify } from "./facilitator";
import type { Answer, NewRow, Outcome, Reserved, Row } from "./ledger";
import { counters, exceeded, left, MISSES, REPLAYS, spend, type Counter } from "./limits";
import { callerHash, fingerprint, newRequestID, ours, passed, type PaymentHeader } from "./request";
import { bounded, call, told, TooLarge } from "./tenant_call";
import { checkTerms, message, parsePayment, type Payment, type Requirements } from "./x402";

/** Book is the Ledger object of one payer. */
interface Book {
  find(nonce: string): Promise<Row | undefined>;
  reserve(p: NewRow, counters: Counter[], leaseMs: number): Promise<Reserved>;
  takeOver(id: string, epoch: number, leaseMs: number): Promise<Row | undefined>;
  done(id: string, epoch: number, answer: Answer, event: unknown, budgetMs: number): Promise<Outcome>;
  release(id: string, epoch: number, why: string, event: unknown): Promise<boolean>;
  follow(id: string, ms: number): Promise<Row | undefined>;
  answer(id: string): Promise<Answer | undefined>;
}

const ENDLESS = 2 ** 40; // s, see till.ts
const PUBLIC_FOR = 600_000; // ms that a payment without a quote answers the address that made it, once it is on the chain
const LEASE_SLACK = 5_000;

const noTenant = (): Fault => new Fault("tenant_not_found", "no tenant answers here", { fix: "check the host, or the name after /t/" });
const elsewhere = (): Fault => new Fault("payment_bound_elsewhere", "this payment bought another request", { fix: "send it to the request that it was made for, or sign a new one" });

/** Paid is one presentation of a payment. */
export class Paid {
  body: Uint8Array | undefined;
  book!: Book;
  p!: Payment;

  constructor(readonly c: Call, readonly header: PaymentHeader) {}

  /** answer answers the call, or throws what it is answered with. */
  async answer(): Promise<Response> {
    const { c } = this;
    c.payment = true;
    c.v1 = this.header.v1;
    this.p = await parsePayment(this.header.value, this.header.v1, c.cfg.asset);
    const { accepted, auth } = this.p;
    const name = `${accepted.network}/${accepted.asset.toLowerCase()}/${auth.from}`;
    if (name.length > 400) throw new Fault("invalid_payment_header", "the payment header cannot be read: its network or asset is too long", { fix: "send base64 of the JSON that the challenge asks for; nothing was charged" });
    // Only our own asset has a book: what is for another one cannot have been reserved here.
    this.book = c.env.LEDGER.getByName(name) as unknown as Book;
    const known = accepted.network === c.cfg.asset.network && accepted.asset.toLowerCase() === c.cfg.asset.address;
    const row = known ? await this.#find() : undefined;
    if (row) return this.standing(row);
    if (!c.entry) throw noTenant();
    return this.#buy();
  }

  async #find(): Promise<Row | undefined> {
    try {
      return await this.book.find(this.p.auth.nonce);
    } catch (err) {
      throw lookupFailed(err);
    }
  }

  /** standing answers a call whose payment is row. */
  async standing(row: Row): Promise<Response> {
    const { c } = this;
    c.event.lifecycle = undefined;
    if (!this.#mayHave(row)) throw new Fault("already_used", "this authorization was used already, in another payment", { fix: "ask without a payment and sign a new one" });
    // From here on it is the buyer who asks, and nobody else can use up what he may ask for.
    c.payer(row.payer);
    spend("replay/" + row.id, REPLAYS, c.start, c.set);
    await this.#readBody();
    const asked = c.entry;
    const v = asked?.id === row.tenant ? versionOf(asked, row.version) : undefined;
    if (asked?.id !== row.tenant) {
      // A host may be nobody's by now, or another tenant's. The fingerprint names host and path, and decides.
      c.identify(undefined);
      c.set("x-tenant-id", row.tenant);
    }
    if ((await this.#print(row.tenant, row.version, "?" + c.target.query)) !== row.raw) {
      // Not the very same request; perhaps the same question in other words.
      if (!v) {
        c.identify(asked);
        throw elsewhere();
      }
      let plan: Plan;
      try {
        plan = await planOf(c, v);
      } catch (err) {
        throw this.#stuck(row, err);
      }
      if (plan.error || (await this.#print(row.tenant, row.version, plan.canonical)) !== row.fingerprint) {
        c.identify(asked);
        throw elsewhere();
      }
    }
    return this.#follow(v, row);
  }

  // #mayHave: an authorization and its signature are public once they are
  // settled. The quote is what only the buyer has; a row without one answers
  // only the address that paid, for ten minutes.
  #mayHave(row: Row): boolean {
    const { c, p } = this;
    if (!same(p.signature, row.signature) || !same(p.quoteHash, row.quote)) return false;
    if (row.quote !== "") return true;
    if (!same(callerHash(c.cfg.salt, "addr:", c.addr), row.client)) return false;
    if (row.money !== "mined") return true;
    const over = row.validBefore < ENDLESS ? row.validBefore * 1000 : Infinity;
    return c.start < Math.min(row.mined, over) + PUBLIC_FOR;
  }

  // #follow brings row to its end, or to the deadline, and answers accordingly.
  async #follow(v: Version | undefined, row: Row): Promise<Response> {
    const { c } = this;
    for (;;) {
      if (row.money === "mined") return this.#replay(row);
      if (row.money === "released" || row.money === "dead") return this.#refuse(row.reason || "not_charged", "this payment was not charged and can not be used any more; sign a new one");
      if (row.work === "running" && row.lease < Date.now() && c.idempotent && v) {
        const taken = await this.book.takeOver(row.id, row.epoch, c.cfg.deadline + LEASE_SLACK).catch((err: unknown) => { throw this.#stuck(row, err); });
        if (taken) return this.#perform(v, taken);
      }
      const wait = c.left();
      if (wait <= 0) throw this.#pending(row, row.tx, "this payment's request is still being worked on", 1);
      const next: Row | undefined = await this.book.follow(row.id, wait).catch((err: unknown) => { throw this.#stuck(row, err); });
      if (!next) throw this.#stuck(row, new Error("a payment disappeared from the book"));
      if (next.work === "done" && (next.money === "signed" || next.money === "held")) throw this.#pending(next, next.tx);
      row = next;
    }
  }

  // #buy takes a new payment: everything that can be refused without cost first, then the reservation, then the work.
  async #buy(): Promise<Response> {
    const { c, p } = this;
    c.available();
    const e = c.entry!;
    const { v, amount, refused } = this.#quoted(e);
    c.plan = await planOf(c, v);
    c.admit();
    const units = c.units(v);
    if (units === 0 || !v.paid) return free(c);
    const same304 = c.notModified();
    if (same304) return same304;
    if (c.plan.error) throw c.plan.error;
    if (Number(c.req.headers.get("content-length") ?? 0) > MAX_BODY) throw tooLarge();
    if (e.named && p.ref === "") {
      throw new Fault("invalid_payment_header", "this API wants every payment to name itself; nothing was charged",
        { param: "payment-identifier", fix: "send the extension payment-identifier with an id of 16 to 128 letters, digits, - and _" });
    }
    if (refused) return this.#refuse(refused.code, refused.message);
    const terms = termsOf(c.cfg, v, units);
    if (amount !== undefined && String(amount) !== terms.amount) return this.#refuse("invalid_exact_evm_payload_authorization_value_mismatch", "the quote is for another amount");
    let facilitator: string;
    try {
      facilitator = await this.#verify(terms);
    } catch (err) {
      return this.#refusedButKnown(err);
    }
    c.payer(p.auth.from);
    await this.#check(v);
    await this.#readBody();
    await this.#current(e);
    return this.#reserve(v, terms, facilitator);
  }

  // #quoted finds the version that the quote promises, and its amount; without a quote it is the current one.
  #quoted(e: Entry): { v: Version; amount?: bigint; refused?: Fault } {
    const { c, p } = this;
    if (p.quote === "") return { v: e };
    try {
      const q = c.cfg.quotes.open(e.id, p.quote, c.start);
      const v = versionOf(e, q.version);
      if (!v) return { v: e, refused: refusal("quote_foreign", "the quote names a version that is gone") };
      return { v, amount: q.units };
    } catch (err) {
      if (err instanceof Fault && err.status === 402) return { v: e, refused: err };
      throw err;
    }
  }

  async #verify(terms: Requirements): Promise<string> {
    const { c, p } = this;
    checkTerms(p, terms, advertised(c.entry!), c.start, c.cfg.deadline / 1000 + SLACK);
    const verdict = await verify(c.env, c.cfg.facilitators, message(p, terms), p.auth.from);
    if (!verdict.valid) {
      throw refusal(verdict.reason, verdict.reason === "invalid_exact_evm_signature" ? "the signature is not the payer's for this authorization" : "the payment was refused: " + verdict.reason);
    }
    return verdict.facilitator;
  }

  // #refusedButKnown: a twin of the request may have paid meanwhile, and that is why verification failed.
  async #refusedButKnown(err: unknown): Promise<Response> {
    const row = await this.#find();
    if (row) return this.standing(row);
    if (err instanceof Fault && err.status === 402) return this.#refuse(err.code, err.message);
    throw err instanceof Fault ? err : facilitatorDown(err);
  }

  // #check asks whether the record exists. What does not is not charged, and has a budget for payer and address: wallets are free.
  async #check(v: Version): Promise<void> {
    const { c } = this;
    if (v.kind !== "dataset" || !c.path.startsWith("/v1/records/")) return;
    const res = await call(c.env, v, { url: c.url(), method: "GET", headers: new Headers(), ask: "check" }, c.left(), c.id);
    if (res.status < 400) {
      await res.body?.cancel();
      return;
    }
    const f = await told(res, v, c.id);
    if (f.code === "record_not_found") for (const who of [c.event.callerId, c.addr]) spend(`miss/${c.entry!.id}/${who}`, MISSES, c.start, c.set);
    throw f;
  }

  // #current holds the tenant against what the control plane last said of it: the directory lags, and this is about money.
  async #current(e: Entry): Promise<void> {
    const { c } = this;
    let state: { revision: number; status: string; ledgerHome: string } | undefined;
    try {
      state = await c.env.LEDGER.getByName("tenant/" + e.id).tenant();
    } catch (err) {
      throw facilitatorDown(err);
    }
    const counts = state && state.revision > e.revision ? state : { status: e.status, ledgerHome: e.home };
    if (counts.ledgerHome === "native") throw noTenant();
    c.available(counts.status as Entry["status"]);
  }

  async #readBody(): Promise<void> {
    const { c } = this;
    if (this.body) return;
    try {
      this.body = c.idempotent ? new Uint8Array() : await bounded(c.req, MAX_BODY);
    } catch (err) {
      if (err instanceof TooLarge) throw tooLarge();
      throw new Fault("invalid_request", "the body ended early", { fix: "send it again" });
    }
  }

  async #print(tenant: string, version: number, query: string): Promise<string> {
    const { c } = this;
    return fingerprint([tenant, String(version), c.method, c.target.host, c.target.path, query, await hashHex(this.body!)]);
  }

  // #reserve claims the authorization, and performs the work. Once it is reserved
  // the payment is spent on this request: whatever happens, the reservation ends
  // settled or released, also if the client hangs up.
  async #reserve(v: Version, terms: Requirements, facilitator: string): Promise<Response> {
    const { c, p } = this, e = c.entry!;
    const list = e.limited ? counters(e, c.event.callerId!, v.price, c.units(v), c.start) : [];
    const ended = (n: bigint): number => (n < BigInt(ENDLESS) ? Number(n) : ENDLESS);
    const row: NewRow = {
      id: newRequestID("pay_"), nonce: p.auth.nonce, tenant: e.id, version: v.version, payer: p.auth.from, payTo: v.payTo, asset: c.cfg.asset.address, network: c.cfg.asset.network,
      amount: terms.amount, validBefore: ended(p.auth.validBefore), fingerprint: await this.#print(e.id, v.version, c.plan!.canonical), raw: await this.#print(e.id, v.version, "?" + c.target.query),
      signature: p.signature, quote: p.quoteHash, client: callerHash(c.cfg.salt, "addr:", c.addr), message: message(p, terms), facilitator, ref: p.ref,
    };
    const work = (async (): Promise<Response> => {
      let got: Reserved;
      try {
        got = await this.book.reserve(row, list, c.cfg.deadline + LEASE_SLACK);
      } catch (err) {
        throw facilitatorDown(err);
      }
      if ("identifier" in got) {
        throw new Fault("payment_identifier_used", "another payment has this payment-identifier; this one was not charged",
          { param: "payment-identifier", fix: "send that payment's header again, or sign a new payment with a new id" });
      }
      if ("conflict" in got) return this.standing(got.conflict);
      if ("exceeded" in got) {
        left([got.exceeded], c.start, c.set);
        throw exceeded(got.exceeded, c.start);
      }
      left(got.counters, c.start, c.set);
      return this.#perform(v, got.row);
    })();
    c.ctx.waitUntil(work.catch(() => undefined));
    return work;
  }

  // #perform does the work that row reserved, stores the answer, and settles.
  async #perform(v: Version, row: Row): Promise<Response> {
    const { c } = this;
    Object.assign(c.event, { paymentId: row.id, units: c.units(v), priceUsd: (v.price * c.units(v)) / 1e6, countable: true, billable: false });
    let answer: Answer;
    try {
      answer = await this.#work(v);
    } catch (err) {
      throw await this.#giveUp(row, err);
    }
    c.event.lifecycle = "settlement_pending";
    let out: Outcome;
    try {
      out = await this.book.done(row.id, row.epoch, answer, c.finished(answer.status, answer.body.length), Math.max(c.left(), 1_000));
    } catch (err) {
      log("ERROR", "the end of a payment is not known", { payment: row.id, err });
      c.booked = true; // if it is stored, its event is
      throw this.#pending(row, "");
    }
    if (out.state === "fenced") {
      c.event.lifecycle = undefined;
      throw this.#pending(row, "");
    }
    c.booked = true;
    switch (out.state) {
      case "settled": return this.#respond({ ...row, tx: out.tx }, answer);
      case "notCharged":
        c.setReceipt({ success: false, errorReason: reasonFor(out.reason), transaction: "", network: row.network, payer: row.payer });
        return this.#refuse(reasonFor(out.reason), "the payment could not be settled; you were not charged");
    }
    throw this.#pending(row, out.tx);
  }

  // #work has the Worker answer. It gets what the deadline leaves when the settlement's share is taken off.
  async #work(v: Version): Promise<Answer> {
    const { c } = this;
    const res = await call(c.env, v, { url: c.url(), method: c.method === "HEAD" && v.kind === "dataset" ? "GET" : c.method, headers: passed(c.req.headers), body: this.body }, Math.min((c.cfg.deadline * 2) / 3, c.left()), c.id);
    if (res.status >= 400 || res.status < 200) throw await told(res, v, c.id);
    let body: Uint8Array;
    try {
      body = await bounded(res);
    } catch (err) {
      if (err instanceof TooLarge) throw new Fault("tenant_worker_failure", "the answer is too large; you were not charged", { fix: "ask for less" });
      log("ERROR", "worker failed", { requestId: c.id, worker: v.workerName, err });
      throw new Fault("tenant_worker_failure", "the API failed; you were not charged", { fix: "try again later" });
    }
    const headers: Array<[string, string]> = [];
    for (const [name, value] of res.headers) if (!ours(name)) headers.push([name, value]);
    // No cache that others use may keep what is paid for.
    headers.push(["cache-control", v.kind === "dataset" ? "private" : "private, no-store"]);
    return { status: res.status, headers, body };
  }

  // #giveUp releases row, whose work failed. Only then may the caller be told that it was not charged.
  async #giveUp(row: Row, err: unknown): Promise<Fault> {
    const { c } = this;
    const f = err instanceof Fault ? err : new Fault("internal", "internal error", { cause: err });
    if (f.code === "internal") log("ERROR", "internal error", { requestId: c.id, err });
    Object.assign(c.event, { lifecycle: "dispatch_failure", error: f.code });
    let released = false;
    try {
      released = await this.book.release(row.id, row.epoch, f.code, c.finished(f.status, 0));
    } catch (why) {
      log("ERROR", "not released", { payment: row.id, err: why });
    }
    if (!released) {
      c.event.lifecycle = undefined;
      return this.#pending(row, "");
    }
    c.booked = true;
    c.receipt = { success: false, errorReason: "not_charged", transaction: "", network: row.network, payer: row.payer };
    return f;
  }

  async #replay(row: Row): Promise<Response> {
    const { c } = this;
    let a: Answer | undefined;
    try {
      a = await this.book.answer(row.id);
    } catch (err) {
      throw this.#stuck(row, err);
    }
    if (!a) throw this.#stuck(row, new Error("a paid answer is not there"));
    Object.assign(c.event, { paymentId: row.id, units: 1, lifecycle: "replayed", billable: false, countable: false, billedUsd: 0 });
    c.set("X-Clawr-Replayed", "true");
    return this.#respond(row, a);
  }

  // #respond hands over an answer that is paid for.
  #respond(row: Row, a: Answer): Response {
    const { c } = this;
    for (const [name, value] of a.headers) c.headers.append(name, value);
    c.headers.append("Vary", "PAYMENT-SIGNATURE, X-PAYMENT");
    c.setReceipt({ success: true, transaction: row.tx, network: row.network, payer: row.payer });
    return c.end(a.status, a.body);
  }

  // #refuse answers 402 with a fresh challenge for the current version. It is never reached while the authorization may be charged.
  #refuse(reason: string, message: string): Response {
    const { c } = this;
    if (!c.entry) throw noTenant();
    c.available();
    if (c.units(c.entry) === 0 || !c.entry.paid) {
      throw new Fault("already_used", "this payment was not charged and can not be used any more, and this call is free now", { fix: "ask without a payment" });
    }
    c.event.lifecycle ??= "payment_invalid";
    return c.challenge(reason, message);
  }

  // #pending is what is said while the authorization may still be charged: never a 402, because clients answer those with a new payment.
  #pending(row: Row, tx: string, message = "the payment is being settled", retryAfter = 2): Fault {
    this.c.receipt = { success: false, errorReason: "settlement_pending", transaction: tx, network: row.network, payer: row.payer };
    return new Fault("settlement_pending", message, { fix: "send the same PAYMENT-SIGNATURE again; do not sign a new one", retryAfter });
  }

  // #stuck is what is said when something of ours keeps the answer from whoever may have it. It says nothing of charges.
  #stuck(row: Row, err: unknown): Fault {
    log("ERROR", "a payment's answer cannot be given", { payment: row.id, money: row.money, err });
    return this.#pending(row, row.tx, "the answer to this payment cannot be given right now");
  }
}

function tooLarge(): Fault {
  return new Fault("body_too_large", `the body is over ${MAX_BODY} bytes; nothing was charged`, { fix: "send less" });
}
