// One request on its way through the dispatcher: what is known of it, the
// headers of its answer, and the event that it becomes.
import { docs, goString, challenge as render, address } from "./challenge";
import type { Entry, Version } from "./directory";
import { config, type Config, type Env } from "./env";
import { Fault, log, reasonFor } from "./errors";
import { record, type Event } from "./events";
import { admit } from "./limits";
import { callerHash, CORS, newRequestID, type Target } from "./request";
import { units as datasetUnits } from "./routes";
import { receiptHeader, v1Name, type Receipt } from "./x402";

/** Plan is what a tenant's Worker says a request is: pure, and asked for only when it matters. */
export interface Plan { canonical: string; units: number; etag: string; error?: Fault }

/** WORTH_KEEPING is for how long, in seconds, a payment is kept for another try. */
const WORTH_KEEPING = 30;

export class Call {
  readonly cfg: Config;
  readonly id = newRequestID();
  readonly start = Date.now();
  readonly headers = new Headers();
  entry?: Entry;
  path = ""; // escaped, as the tenant sees it
  byPath = false; // routed by /t/{slug}/
  plan?: Plan;
  event: Partial<Event> = {};
  booked = false; // the event is in the Ledger: do not record it again
  payment = false; // it carries one
  v1 = false;
  receipt?: Receipt; // what an error's PAYMENT-RESPONSE says

  constructor(readonly env: Env, readonly ctx: ExecutionContext, readonly req: Request, readonly target: Target, readonly addr: string) {
    this.cfg = config(env);
    for (const [k, v] of CORS) this.headers.set(k, v);
    this.headers.set("x-request-id", this.id);
  }

  get method(): string {
    return this.req.method;
  }

  get idempotent(): boolean {
    return this.method === "GET" || this.method === "HEAD";
  }

  set = (name: string, value: string): void => this.headers.set(name, value);

  /** left is what remains of the route's deadline, in ms. */
  left(): number {
    return this.cfg.deadline - (Date.now() - this.start);
  }

  /** identify says whose event this is. */
  identify(e: Entry | undefined): void {
    this.entry = e;
    if (!e) return;
    this.headers.set("x-tenant-id", e.id);
    Object.assign(this.event, { tenantId: e.id, apiId: e.slug, owner: e.owner, directory: e.directory, priceUsd: e.price / 1e6 });
  }

  /** units is what the request costs by v. Only a dataset's paths are free. */
  units(v: Version): number {
    return v.kind === "dataset" ? datasetUnits(this.method, this.path) : 1;
  }

  /** available throws why a tenant does not take new calls. */
  available(status = this.entry!.status): void {
    switch (status) {
      case "removed": throw new Fault("tenant_not_found", "this API was removed", { fix: "look for another one" });
      case "paused": throw new Fault("tenant_paused", "this API is paused by its owner; you were not charged", { fix: "try again later", retryAfter: 60 });
    }
  }

  /** admit takes the request from the rates of its caller and its tenant. */
  admit(): void {
    if (this.entry!.limited) admit(this.entry!, this.addr, this.start, this.set);
  }

  /** payer names the verified payer in the event. */
  payer(who: string): void {
    this.event.callerId = callerHash(this.cfg.salt, "payer:", who);
  }

  /** url is what the tenant sees. */
  url(): string {
    const t = this.target;
    return `${t.scheme}://${t.authority}${this.path}${t.query === "" ? "" : "?" + t.query}`;
  }

  /** notModified answers 304 if the caller holds this very answer; it is free, and "*" never matches. */
  notModified(): Response | undefined {
    const match = this.req.headers.get("if-none-match");
    if (match === null || !this.plan || this.plan.error || this.plan.etag === "" || !this.idempotent) return undefined;
    if (!match.split(",").some((t) => t.trim().replace(/^W\//, "") === this.plan!.etag)) return undefined;
    this.set("Etag", this.plan.etag);
    this.set("Cache-Control", "private");
    this.set("Vary", "PAYMENT-SIGNATURE, X-PAYMENT");
    return this.end(304, null);
  }

  /** challenge answers 402 with what is to be paid, for the current version, and why. */
  challenge(code: string, message: string): Response {
    const e = this.entry!, reason = reasonFor(code);
    const { header, body } = render(this.cfg, e, this.units(e), reason, message, address(this.cfg, this.target, this.byPath), this.path, this.id, this.start);
    this.set("PAYMENT-REQUIRED", header);
    this.set("Cache-Control", "no-store");
    this.set("Content-Type", "application/json");
    if (reason === "missing_payment_signature") this.event.lifecycle = "payment_challenged";
    this.event.error = reason;
    return this.end(402, body);
  }

  /** setReceipt puts r into PAYMENT-RESPONSE, and into version 1's header for those who paid with that. */
  setReceipt(r: Receipt): void {
    this.set("PAYMENT-RESPONSE", receiptHeader(r));
    if (this.v1) this.set("X-PAYMENT-RESPONSE", receiptHeader({ ...r, network: v1Name(r.network) || r.network }));
  }

  /** fail answers with err and notes it in the event. What is not for strangers is logged, and they read "internal". */
  fail(err: unknown): Response {
    let f = err instanceof Fault ? err : undefined;
    if (!f || f.code === "internal") {
      log("ERROR", "internal error", { requestId: this.id, path: this.path, err });
      f = new Fault("internal", "internal error", { fix: "try again later, and give the request id to the operator" });
    } else if (f.more.cause) log("WARN", f.message, { requestId: this.id, err: f.more.cause });
    if (!this.booked) {
      this.event.error = f.code;
      if (this.event.lifecycle === undefined) Object.assign(this.event, lifecycleOf(f.code, f.status));
    }
    if (this.receipt) this.setReceipt(this.receipt);
    if (f.retryAfter > 0) this.set("Retry-After", String(Math.max(f.retryAfter, 1)));
    if (f.status === 405) this.set("Allow", "GET, HEAD, OPTIONS");
    for (const h of ["Etag", "Link", "Content-Encoding", "Vary"]) this.headers.delete(h);
    this.set("Content-Type", "application/json");
    this.set("Cache-Control", "no-store");
    this.set("X-Content-Type-Options", "nosniff");
    const at = docs(this.cfg, f.code), a = this.#advice(f);
    const member = (name: string, v: string | undefined): string => (v ? `,"${name}":${goString(v)}` : "");
    const body = `{"ok":false,"error":${goString(f.code)},"message":${goString(f.message)}${member("fix", f.more.fix)}${member("param", f.more.param)}${member("docs", at)}` +
      `,"requestId":"${this.id}","clawr":{"retry":"${a.retry}"${a.retryAfter > 0 ? `,"retryAfter":${a.retryAfter}` : ""}${member("hint", a.hint)}}}`;
    return this.end(f.status, body);
  }

  // #advice is what whoever got f should do next: what may have been charged is sent again, what was given up is not.
  #advice(f: Fault): { retry: string; retryAfter: number; hint: string } {
    const a = { retry: "never", retryAfter: f.retryAfter, hint: "" };
    if (this.receipt?.errorReason === "not_charged") {
      if (f.status >= 500) a.retry = "after";
      a.hint = "this payment was not charged and is given up; sign a new one to ask again";
    } else if (f.code === "already_used" || f.code === "payment_identifier_used" || f.code === "version_gone") a.retry = "new_payment";
    else if ((f.status === 429 && f.retryAfter > 0) || f.status >= 500) {
      a.retry = "after";
      if (this.payment && f.retryAfter <= WORTH_KEEPING) Object.assign(a, { retry: "same_payment", hint: "send the same payment header again; do not sign a new one" });
    }
    return a;
  }

  /** end makes the answer, and records what the request was, unless the Ledger has its event. */
  end(status: number, body: string | Uint8Array | null | ReadableStream): Response {
    if (this.entry && !this.booked) record(this.env, this.ctx, this.finished(status, typeof body === "string" ? body.length : body instanceof Uint8Array ? body.length : 0));
    const bare = this.method === "HEAD" || status === 204 || status === 304;
    return new Response(bare ? null : body, { status, headers: this.headers });
  }

  /** finished is the event with everything that it needs. */
  finished(status: number, bytesOut: number): Event {
    const e = this.event, lifecycle = e.lifecycle ?? "dispatch_success";
    return {
      timestamp: this.start, requestId: this.id, tenantId: e.tenantId ?? "", paymentId: e.paymentId, apiId: e.apiId ?? "", endpoint: this.path.slice(0, 512), owner: e.owner ?? "",
      directory: e.directory ?? "", callerId: e.callerId ?? callerHash(this.cfg.salt, "addr:", this.addr), status, latencyMs: Math.max(Date.now() - this.start, 0), billedUsd: e.billedUsd ?? 0,
      priceUsd: e.priceUsd ?? 0, units: e.units || undefined, bytesOut: this.method === "HEAD" ? undefined : bytesOut || undefined, lifecycle,
      billable: e.billable ?? false, countable: e.countable ?? lifecycle === "dispatch_success", error: e.error || undefined,
    };
  }
}

/** lifecycleOf sorts a refusal or failure for the analytics, and says whether it counts as a call. */
export function lifecycleOf(code: string, status: number): { lifecycle: string; countable: boolean } {
  switch (code) {
    case "rate_limited": return { lifecycle: "rate_limited", countable: false };
    case "usage_quota_exceeded": return { lifecycle: "usage_quota_exceeded", countable: false };
    case "cap_exceeded": return { lifecycle: "spend_cap_exceeded", countable: false };
    case "settlement_pending": return { lifecycle: "settlement_pending", countable: false };
    case "tenant_paused": case "overloaded": case "facilitator_unavailable": return { lifecycle: "dispatch_failure", countable: false };
  }
  return status < 500 && status !== 429 ? { lifecycle: "payment_invalid", countable: false } : { lifecycle: "dispatch_failure", countable: true };
}
