// Holds the edge's records against testdata/vectors/records, in workerd: what a
// query means, the SQL on D1, and the answers of D1 and of memory, byte for byte.
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { isDeepStrictEqual } from "node:util";
import { build } from "esbuild";
import { Miniflare } from "miniflare";

const here = fileURLToPath(new URL(".", import.meta.url));
const dir = mkdtempSync(join(tmpdir(), "clawr-records-"));
const { outputFiles } = await build({ entryPoints: [join(here, "records_probe.ts")], bundle: true, format: "esm", target: "es2022", charset: "utf8", write: false });
const mf = new Miniflare({
  modules: [{ type: "ESModule", path: "probe.js", contents: outputFiles[0].text }], compatibilityDate: "2026-07-01", d1Databases: ["DB"], d1Persist: join(dir, "d1"),
});
const differences = [];
let cases = 0;
try {
  for (const name of ["people", "generated"]) {
    const file = JSON.parse(readFileSync(join(here, `../../testdata/vectors/records/${name}.json`), "utf8"));
    const s = file.schema;
    const manifest = { version: s.version, rows: s.rows, key: s.key, search: s.search, maxOffset: s.max_offset, columns: s.columns };
    const db = await mf.getD1Database("DB");
    for (const table of ["records", "fts"]) await db.prepare(`DROP TABLE IF EXISTS ${table}`).run();
    // Statements are cut where a line ends with a semicolon, as no cell's does.
    for (const sql of file.setup.split(/;\n/)) if (sql.trim() !== "") await db.prepare(sql).run();
    const ask = async (engine, rows, queries) => {
      const res = await mf.dispatchFetch("http://probe/", { method: "POST", body: JSON.stringify({ manifest, rows, cursorKey: file.cursorKey, engine, queries }) });
      if (!res.ok) throw new Error(await res.text());
      return res.json();
    };
    const [all] = await ask("d1", "", ["limit=1000&format=ndjson"]);
    for (const engine of ["d1", "memory"]) {
      const got = await ask(engine, all.answer, file.cases.map((c) => c.query));
      file.cases.forEach((want, i) => {
        cases++;
        const expect = want.error ? { query: want.query, error: want.error, param: want.param ?? "" }
          : { query: want.query, canonical: want.canonical, sql: want.sql, args: want.args ?? [], countSql: want.countSql ?? "", countArgs: want.countArgs ?? [], answer: want.answer };
        if (!isDeepStrictEqual(got[i], expect)) differences.push({ engine, want: expect, got: got[i] });
      });
    }
  }
} finally {
  await mf.dispose();
  rmSync(dir, { recursive: true, force: true });
}
for (const d of differences.slice(0, 5)) console.error(JSON.stringify(d, null, 1));
console.log(JSON.stringify({ cases, differences: differences.length }));
