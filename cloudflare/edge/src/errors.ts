// What callers are told when something is not done: the codes, statuses and
// the one JSON shape of clawr's error.go and dispatch/fail.go.

/** Fault is an error that may be shown. Whatever else is thrown is "internal" to strangers. */
export class Fault extends Error {
  constructor(
    readonly code: string,
    message: string,
    readonly more: { fix?: string; param?: string; status?: number; retryAfter?: number; cause?: unknown } = {},
  ) {
    super(message);
  }
  get status(): number {
    return this.more.status ?? statusOf(this.code);
  }
  /** retryAfter is in seconds, rounded up; 0 if it is not said. */
  get retryAfter(): number {
    return this.more.retryAfter ?? 0;
  }
}

const STATUSES: Record<string, number> = {
  internal: 500, token_missing: 401, missing_payment_signature: 402, settlement_failed: 402, scope_missing: 403,
  not_found: 404, tenant_not_found: 404, record_not_found: 404, method_not_allowed: 405,
  payment_bound_elsewhere: 409, payment_identifier_used: 409, already_used: 409, conflict: 409, version_gone: 410, body_too_large: 413,
  rate_limited: 429, usage_quota_exceeded: 429, cap_exceeded: 429, cpu_limit: 429, subrequest_limit: 429, headers_too_large: 431,
  tenant_worker_failure: 502, settlement_pending: 503, facilitator_unavailable: 503, tenant_paused: 503, overloaded: 503,
  tenant_worker_timeout: 504,
};

/** statusOf is the HTTP status of a code; those that it does not know are bad input. */
export function statusOf(code: string): number {
  return STATUSES[code] ?? 400;
}

/** reasonFor keeps of a stranger's reason what looks like one: it is put into headers that agents read. */
export function reasonFor(reason: unknown): string {
  return typeof reason === "string" && /^[a-z0-9_]{1,80}$/.test(reason) ? reason : "payment_rejected";
}

/** refusal is a reason of the protocol, which is answered with 402. */
export function refusal(reason: string, message: string): Fault {
  return new Fault(reason, message, { status: 402 });
}

/** facilitatorDown says that a payment could not be checked, and was left untouched. */
export function facilitatorDown(cause?: unknown): Fault {
  return new Fault("facilitator_unavailable", "the payment cannot be checked right now; you were not charged",
    { fix: "send the same request again", retryAfter: 2, cause });
}

/** lookupFailed is said when it is not known whether a payment was made before: nothing about charges. */
export function lookupFailed(cause?: unknown): Fault {
  return new Fault("facilitator_unavailable", "payments cannot be looked up right now",
    { fix: "send the same PAYMENT-SIGNATURE again; do not sign a new one", retryAfter: 2, cause });
}

/** seconds is a duration in milliseconds as Retry-After wants it: whole, rounded up. */
export function seconds(ms: number): number {
  return ms <= 0 ? 0 : Math.ceil(ms / 1000);
}

/** log writes one line of JSON, as slog does natively. Never a signature, a token or a body. */
export function log(level: "INFO" | "WARN" | "ERROR", msg: string, fields: Record<string, unknown> = {}): void {
  const line: Record<string, unknown> = { time: new Date().toISOString(), level, msg };
  for (const [k, v] of Object.entries(fields)) line[k] = v instanceof Error ? `${v.name}: ${v.message}` : v;
  const text = JSON.stringify(line);
  if (level === "ERROR") console.error(text);
  else console.log(text);
}
