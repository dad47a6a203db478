// The dispatcher at the edge: it finds the tenant, admits the caller, takes the
// payment, has the work done, settles, answers and records, in the order of
// architecture.md's "One paid request" and with the answers of package dispatch.
import { Call } from "./call";
import { lookup } from "./directory";
import type { Env } from "./env";
import { Fault, log } from "./errors";
import { free } from "./free";
import { Paid } from "./paid";
import { clientAddr, newRequestID, paymentHeader, PREFLIGHT, target } from "./request";
import { unescapePath } from "./routes";

export { Ledger } from "./ledger";

export default {
  async fetch(req: Request, env: Env, ctx: ExecutionContext): Promise<Response> {
    let c: Call;
    try {
      const t = target(req.url);
      if (t.path.startsWith("/__platform/")) return await (await import("./platform")).platform(req, env, ctx, t);
      c = new Call(env, ctx, req, t, clientAddr(req.headers));
    } catch (err) {
      return broken(err);
    }
    try {
      return await serve(c);
    } catch (err) {
      try {
        return c.fail(err);
      } catch (why) {
        return broken(why);
      }
    }
  },
} satisfies ExportedHandler<Env>;

// serve answers c, or throws what it is answered with.
async function serve(c: Call): Promise<Response> {
  if (c.method === "OPTIONS") {
    for (const [k, v] of PREFLIGHT) c.set(k, v);
    return c.end(204, null);
  }
  const { entry, rest } = await lookup(c.env, c.target.host, c.target.path, c.start);
  if (!entry && c.target.path === "/health") {
    return new Response(c.method === "HEAD" ? null : '{"ok":true}\n', { headers: { "Content-Type": "application/json", "Cache-Control": "no-store" } });
  }
  c.path = rest;
  c.byPath = rest !== c.target.path;
  c.identify(entry);
  if (c.byPath && unescapePath(rest) === undefined) throw new Fault("not_found", "no such path", { fix: "see /v1/schema" });
  const payment = paymentHeader(c.req.headers);
  if (payment) return new Paid(c, payment).answer();
  const nobody = new Fault("tenant_not_found", "no tenant answers here", { fix: "check the host, or the name after /t/" });
  if (!entry) throw nobody;
  c.available();
  c.admit();
  if (c.units(entry) === 0 || !entry.paid) return free(c);
  if (entry.home === "native") throw nobody;
  if (entry.kind === "dataset" && c.req.headers.has("if-none-match")) {
    const { planOf } = await import("./plan");
    c.plan = await planOf(c, entry);
    const same = c.notModified();
    if (same) return same;
  }
  return c.challenge("missing_payment_signature", "this call costs money");
}

// broken is said when not even a call could be made of a request: a variable of the operator's is wrong, or we are.
function broken(err: unknown): Response {
  const id = newRequestID();
  log("ERROR", "internal error", { requestId: id, err: err instanceof Error ? `${err.message} ${err.stack ?? ""}` : err });
  const body = `{"ok":false,"error":"internal","message":"internal error","fix":"try again later, and give the request id to the operator","requestId":"${id}"}`;
  return new Response(body, { status: 500, headers: { "Content-Type": "application/json", "Cache-Control": "no-store", "x-request-id": id } });
}

