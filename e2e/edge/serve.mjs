// The built edge as a process, for tests that are not in JavaScript.
//
//	node serve.mjs CONFIG.json
//
// CONFIG: {dir, bundles, port, vars, tenants, directory}. dir keeps all state;
// bundles is what build.mjs wrote; vars are the dispatcher's variables and
// secrets; directory is what KV holds, by key. A tenant, by the name of its
// Worker, is {manifest, rows, sql, cursorKey} (texts; sql fills its database) or
// {script} (a Worker of its own), and null takes it away.
//
// Says "listening on HOST:PORT" and prints {"control": URL}. The control takes
// JSON: POST /tenants, /directory, /inject, /sql {binding, tenant?, sql}, GET /seen.
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";
import { Edge, modulesOf } from "./runtime.mjs";

const config = JSON.parse(readFileSync(process.argv[2], "utf8"));
const tenantModules = modulesOf(join(config.bundles, "tenant"));
const databases = new Map(); // Worker → SQL that is still to be run

function tenant(name, t) {
  if (t === null) return null;
  if (t.script) return { main: "tenant.js", modules: [{ name: "tenant.js", type: "ESModule", contents: t.script }] };
  if (t.sql) databases.set(name, t.sql);
  return {
    main: "tenant.js", bindings: { CURSOR_KEY: t.cursorKey }, d1: t.sql || t.database ? { DB: `data-${name}` } : {},
    modules: [...tenantModules, { name: "manifest.json", type: "Text", contents: t.manifest }, { name: "rows.ndjson", type: "Text", contents: t.rows ?? "" }],
  };
}

const tenants = (all) => Object.fromEntries(Object.entries(all ?? {}).map(([name, t]) => [name, tenant(name, t)]));

const dispatcher = (vars) => ({
  main: "dispatcher.js", modules: modulesOf(join(config.bundles, "dispatcher")), bindings: vars,
  objects: { LEDGER: "Ledger" }, namespaces: ["DISPATCHER"], kv: { DIRECTORY: "directory" }, d1: vars.CONTROL_PLANE_URL ? {} : { EVENTS: "events" },
});

const edge = new Edge({ dir: config.dir, port: config.port ?? 0, dispatcher: dispatcher(config.vars), tenants: tenants(config.tenants) });

async function fill() {
  for (const [name, sql] of databases) {
    const db = await edge.d1("DB", name);
    for (const statement of sql.split(/;\n/)) if (statement.trim() !== "") await db.prepare(statement).run();
    databases.delete(name);
  }
}

async function directory(entries) {
  const kv = await edge.kv();
  for (const [key, value] of Object.entries(entries ?? {})) value === null ? await kv.delete(key) : await kv.put(key, JSON.stringify(value));
}

const routes = {
  "/tenants": async (all) => {
    await edge.change(tenants(all));
    await fill();
  },
  "/vars": async (vars) => edge.change({}, dispatcher(vars)),
  "/directory": directory,
  "/inject": async ({ name, ...how }) => edge.inject(name, how),
  "/seen": async () => edge.seen.splice(0),
  "/sql": async ({ binding, tenant: of, sql }) => (await (await edge.d1(binding, of)).prepare(sql).all()).results,
};

const control = createServer(async (req, res) => {
  try {
    let body = "";
    for await (const part of req) body += part;
    const answer = await routes[req.url](body === "" ? undefined : JSON.parse(body));
    res.end(JSON.stringify(answer ?? {}));
  } catch (err) {
    res.statusCode = 500;
    res.end(String(err.stack ?? err));
  }
});

await edge.start();
await fill();
await directory(config.directory);
control.listen(0, "127.0.0.1", () => {
  console.log(JSON.stringify({ control: `http://127.0.0.1:${control.address().port}` }));
  console.error(`listening on ${new URL(edge.url).host}`);
});
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, async () => { await edge.stop(); process.exit(0); });
