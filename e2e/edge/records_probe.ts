// A Worker that answers the vectors of records: what a query means, the SQL that
// it is compiled to, and what both engines answer.
import { Dataset, type Manifest } from "../../cloudflare/edge/src/dataset";
import { D1, Memory } from "../../cloudflare/edge/src/engine";
import { Fault } from "../../cloudflare/edge/src/errors";
import { count, select, type Place } from "../../cloudflare/edge/src/records";

interface Asked { manifest: Manifest; rows: string; cursorKey: string; engine: "d1" | "memory"; queries: string[] }

export default {
  async fetch(req: Request, env: { DB: D1Database }): Promise<Response> {
    const { manifest, rows, cursorKey, engine, queries } = (await req.json()) as Asked;
    const large = engine === "d1";
    const d = new Dataset({ ...manifest, large, pages: {}, id: manifest.version }, rows, new TextEncoder().encode(cursorKey), env.DB);
    if (d.engine instanceof D1 !== large || d.engine instanceof Memory === large) throw new Error("another engine was asked for");
    const out: unknown[] = [];
    for (const query of queries) {
      try {
        const p = d.plan("GET", "/v1/records", query), q = p.query!;
        const at: Place = p.row > 0 ? { row: p.row, keys: await d.engine.keysOf(q, p.row), offset: 0 } : { row: 0, keys: [], offset: q.offset };
        const st = select(q, manifest, at), ct = q.count ? count(q, manifest) : undefined;
        const a = await d.answer(p);
        out.push({ query, canonical: p.canonical, sql: st.sql, args: st.args, countSql: ct?.sql ?? "", countArgs: ct?.args ?? [], answer: a.body });
      } catch (err) {
        if (!(err instanceof Fault)) throw err;
        out.push({ query, error: err.code, param: err.more.param ?? "" });
      }
    }
    return Response.json(out);
  },
};
