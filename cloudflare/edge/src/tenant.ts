// A dataset tenant's Worker. The dispatcher asks it what a request is (plan),
// whether a record exists (check), and for the work; nobody else can reach it.
import manifestText from "./manifest.json";
import rowsText from "./rows.ndjson";
import { unhex } from "./bytes";
import { Dataset, type Manifest } from "./dataset";
import { Fault, log } from "./errors";
import { target } from "./request";
import { units } from "./routes";

interface TenantEnv { CURSOR_KEY: string; DB?: D1Database }

const opened: { dataset?: Dataset } = {};

// open takes the dataset apart at the first request: the time to start is short.
function open(env: TenantEnv): Dataset {
  if (!opened.dataset) {
    const key = unhex(env.CURSOR_KEY ?? "");
    if (!key || key.length === 0) throw new Error("CURSOR_KEY is not hexadecimal");
    opened.dataset = new Dataset(JSON.parse(manifestText) as Manifest, rowsText, key, env.DB);
  }
  return opened.dataset;
}

export default {
  async fetch(req: Request, env: TenantEnv): Promise<Response> {
    try {
      const d = open(env), t = target(req.url);
      switch (req.headers.get("x-clawr-do")) {
        case "plan": return plan(d, req.method, t.path, t.query);
        case "check":
          await d.check(d.plan(req.method, t.path, t.query));
          return new Response(null, { status: 204 });
      }
      const a = await d.answer(d.plan(req.method, t.path, t.query));
      const headers = new Headers({ "Content-Type": a.type, "Cache-Control": a.cache, Etag: a.etag });
      if (a.link) headers.set("Link", a.link);
      return new Response(a.body, { headers });
    } catch (err) {
      return problem(err);
    }
  },
} satisfies ExportedHandler<TenantEnv>;

// plan says what a request is; its error is part of the answer, as it is told only once a payment is there.
function plan(d: Dataset, method: string, path: string, query: string): Response {
  try {
    const p = d.plan(method, path, query);
    return Response.json({ canonical: p.canonical, units: units(method, path), etag: d.etag(p.canonical) });
  } catch (err) {
    if (!(err instanceof Fault)) throw err;
    return Response.json({ canonical: path, units: units(method, path), etag: "", error: { code: err.code, message: err.message, fix: err.more.fix, param: err.more.param } });
  }
}

function problem(err: unknown): Response {
  const f = err instanceof Fault ? err : new Fault("internal", "the dataset failed", { fix: "try again later" });
  if (f.code === "internal") log("ERROR", "the dataset failed", { err: err instanceof Error ? `${err.message} ${err.stack ?? ""}` : err });
  return Response.json({ ok: false, error: f.code, message: f.message, fix: f.more.fix, param: f.more.param }, { status: f.status });
}
