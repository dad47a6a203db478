// /__platform/*: the last events, the ranking, and what the control plane says
// of tenants, to tokens with the scope. Shapes and errors are package api's.
import { hex, same, sha256, encode } from "./bytes";
import { goString } from "./challenge";
import { forget } from "./directory";
import { config, type Env } from "./env";
import { Fault, log } from "./errors";
import { flush, type Event } from "./events";
import { newRequestID, type Target } from "./request";
import { bounded } from "./tenant_call";
import { Report, WINDOWS, type Window } from "./usage";

interface Token { sha256: string; scopes: string[] }

/** platform answers one request. */
export async function platform(req: Request, env: Env, ctx: ExecutionContext, t: Target): Promise<Response> {
  const id = newRequestID();
  const headers = new Headers({ "x-request-id": id });
  try {
    const method = req.method === "HEAD" ? "GET" : req.method;
    const value = await route(req, env, ctx, t, method, headers);
    return answer(req, headers, 200, JSON.stringify({ ok: true, requestId: id, ...value }));
  } catch (err) {
    let f = err instanceof Fault ? err : undefined;
    if (!f || f.code === "internal") {
      log("ERROR", "platform", { requestId: id, path: t.path, err });
      f = new Fault("internal", "internal error", { fix: "give the operator the request id " + id });
    }
    if (f.status === 401) headers.set("WWW-Authenticate", 'Bearer realm="clawr"');
    if (f.code === "scope_missing") headers.set("WWW-Authenticate", 'Bearer realm="clawr", error="insufficient_scope"');
    const member = (name: string, v: string | undefined): string => (v ? `,"${name}":${goString(v)}` : "");
    const at = config(env).docs;
    return answer(req, headers, f.status, `{"ok":false,"error":${goString(f.code)},"message":${goString(f.message)}${member("fix", f.more.fix)}${member("param", f.more.param)}` +
      `${member("docs", at && `${at}/errors.md#${f.code}`)},"requestId":"${id}"}`);
  }
}

function answer(req: Request, headers: Headers, status: number, body: string): Response {
  headers.set("Content-Type", "application/json");
  headers.set("Cache-Control", "no-store");
  headers.set("X-Content-Type-Options", "nosniff");
  return new Response(req.method === "HEAD" ? null : body + "\n", { status, headers });
}

async function route(req: Request, env: Env, ctx: ExecutionContext, t: Target, method: string, headers: Headers): Promise<Record<string, unknown>> {
  const only = (allowed: string): void => {
    if (method === allowed) return;
    headers.set("Allow", allowed);
    throw new Fault("method_not_allowed", `${printable(req.method)} is not a method of this path`, { fix: "use " + allowed });
  };
  switch (t.path) {
    case "/__platform/events":
      only("GET");
      admit(req, env, "events:read");
      return events(env, query(t));
    case "/__platform/analytics":
      only("GET");
      return analytics(req, env, query(t));
    case "/__platform/tenants":
      only("POST");
      admit(req, env, "tenants:write");
      return tenants(req, env);
  }
  void ctx;
  throw new Fault("not_found", "there is nothing at " + printable(t.path), { fix: "check the path" });
}

const query = (t: Target): URLSearchParams => new URLSearchParams(t.query);

const printable = (s: string): string => [...s.slice(0, 200)].filter((ch) => ch >= " " && ch !== "\x7f").join("");

/** scopes are those of the request's token; undefined if it has none that is known. */
function scopes(req: Request, env: Env): string[] | undefined {
  const m = /^bearer +(\S{1,200})$/i.exec((req.headers.get("authorization") ?? "").trim());
  if (!m || m[1]!.includes(",")) return undefined;
  const hash = hex(sha256(encode(m[1]!)));
  let found: string[] | undefined;
  for (const token of JSON.parse(env.PLATFORM_TOKENS || "[]") as Token[]) if (same(token.sha256, hash)) found = token.scopes;
  return found;
}

function admit(req: Request, env: Env, scope: string): void {
  const have = scopes(req, env);
  if (!have) {
    throw new Fault("token_missing", "this needs a token that is known, and neither expired nor revoked", { fix: "send Authorization: Bearer TOKEN; clawr token create makes one" });
  }
  if (!have.includes(scope)) throw new Fault("scope_missing", `this needs the scope ${scope}, which your token does not have`, { fix: "clawr token create --scope " + scope });
}

function number(q: URLSearchParams, name: string, otherwise: number, least: number, most: number): number {
  const s = q.get(name) ?? "";
  if (s === "") return otherwise;
  const n = /^[+-]?[0-9]{1,15}$/.test(s) ? Number(s) : NaN;
  if (!(n >= least && n <= most)) throw new Fault("invalid_request", `${name} is not a number from ${least} to ${most}`, { param: name, fix: `${name}=${otherwise}` });
  return n;
}

async function rows(env: Env, sql: string, ...args: number[]): Promise<Array<{ seq: number; event: Event }>> {
  if (!env.EVENTS) throw new Fault("not_found", "this edge keeps no events", { fix: "bind a D1 database as EVENTS, or ask the control plane that gets them" });
  try {
    const { results } = await env.EVENTS.prepare(sql).bind(...args).all<{ seq: number; event: string }>();
    return results.map((r) => ({ seq: r.seq, event: JSON.parse(r.event) as Event }));
  } catch (err) {
    if (String(err).includes("no such table")) return []; // nothing has happened yet
    throw err;
  }
}

async function events(env: Env, q: URLSearchParams): Promise<Record<string, unknown>> {
  const limit = number(q, "limit", 100, 1, 2000);
  await flush(env);
  const list = (await rows(env, "SELECT seq, event FROM events ORDER BY at DESC, seq DESC LIMIT ?", limit)).map((r) => r.event).reverse();
  return { returned: list.length, events: list };
}

const PAGE = 2_000;
const FRESH = 1_000; // ms that reports are kept: they read all events
const kept: { at: number; reports?: Map<Window, Report> } = { at: 0 };

async function analytics(req: Request, env: Env, q: URLSearchParams): Promise<Record<string, unknown>> {
  let pub = env.ANALYTICS_PUBLIC === "true";
  if (!pub) admit(req, env, "analytics:read");
  else if (req.headers.has("authorization")) pub = !scopes(req, env)?.includes("analytics:read");
  const top = number(q, "top", 25, 1, 100);
  let windows = WINDOWS;
  if (q.has("window")) {
    const w = q.get("window")!.toLowerCase() as Window;
    if (!WINDOWS.includes(w)) throw new Fault("invalid_window", `there is no window ${JSON.stringify(w)}`, { param: "window", fix: "use today, week or overall" });
    windows = [w];
  }
  const reports = await report(env);
  if (windows.length === 1) return reports.get(windows[0]!)!.snapshot(top, pub);
  const all = Object.fromEntries([...windows].sort().map((w) => [w, reports.get(w)!.snapshot(top, pub)]));
  return { generatedAt: all["overall"]!["generatedAt"], windows: all };
}

async function report(env: Env): Promise<Map<Window, Report>> {
  const now = Date.now();
  if (kept.reports && now - kept.at < FRESH) return kept.reports;
  await flush(env);
  const reports = new Map(WINDOWS.map((w) => [w, new Report(w, Date.now())]));
  for (let after = 0; ; ) {
    const page = await rows(env, "SELECT seq, event FROM events WHERE seq > ? ORDER BY seq LIMIT ?", after, PAGE);
    for (const r of page) for (const rep of reports.values()) rep.add(r.event);
    if (page.length < PAGE) break;
    after = page[page.length - 1]!.seq;
  }
  Object.assign(kept, { at: now, reports });
  return reports;
}

/** tenants keeps what the control plane says of a tenant, where paid calls ask for it. */
async function tenants(req: Request, env: Env): Promise<Record<string, unknown>> {
  const bad = (why: string): Fault => new Fault("invalid_request", "the body is not what this takes: " + why, { fix: 'send {"id","revision","status","ledgerHome"}' });
  let v: { id?: unknown; revision?: unknown; status?: unknown; ledgerHome?: unknown; slug?: unknown };
  try {
    v = JSON.parse(new TextDecoder().decode(await bounded(req, 64 << 10))) as typeof v;
  } catch {
    throw bad("it is not JSON");
  }
  if (typeof v !== "object" || v === null || typeof v.id !== "string" || !/^[A-Za-z0-9_-]{1,80}$/.test(v.id)) throw bad("id");
  if (typeof v.revision !== "number" || !Number.isSafeInteger(v.revision)) throw bad("revision");
  if (v.status !== "active" && v.status !== "paused" && v.status !== "removed") throw bad("status");
  if (v.ledgerHome !== "edge" && v.ledgerHome !== "native") throw bad("ledgerHome");
  const state = await env.LEDGER.getByName("tenant/" + v.id).setTenant({ revision: v.revision, status: v.status, ledgerHome: v.ledgerHome });
  if (typeof v.slug === "string") forget(v.slug);
  return { revision: state.revision };
}
