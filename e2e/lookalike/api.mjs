// The endpoints of the API that clawr and wrangler use.
import { randomBytes } from "node:crypto";
import { envelope, no } from "./failure.mjs";
import { check, migrate, parse, shown } from "./upload.mjs";

const json = (body) => {
  try {
    return JSON.parse(body.toString("utf8") || "{}");
  } catch {
    no(400, 10026, "The body is not JSON");
  }
};

const NAME = /^[a-z0-9_][a-z0-9-_]{0,254}$/;

/** routes are [method, pattern, scope or null for reading, handler]. Handlers get {account, id, params, query, body, type, runtime, databases, save}. */
export const routes = [
  ["GET", "/user/tokens/verify", null, () => ({ id: "tok", status: "active" })],
  ["GET", "/memberships", null, ({ allowed }) => allowed.map((id) => ({ id, account: { id, name: id } }))],
  ["GET", "/accounts", null, ({ allowed }) => allowed.map((id) => ({ id, name: id }))],

  ["GET", "/accounts/:a/workers/subdomain", null, ({ account }) => (account.subdomain ? { subdomain: account.subdomain } : no(404, 10007, "There is no subdomain for this account"))],
  ["GET", "/accounts/:a/workers/services/:s", null, (c) => service(c, c.account.scripts, 10090, "workers.api.error.service_not_found")],
  ["PUT", "/accounts/:a/workers/scripts/:s", "scripts", (c) => put(c, c.account.scripts, "")],
  ["DELETE", "/accounts/:a/workers/scripts/:s", "scripts", (c) => remove(c, c.account.scripts, 10007)],
  ["GET", "/accounts/:a/workers/scripts/:s/settings", null, (c) => settings(of(c.account.scripts, c.params.s, 10007))],
  ["GET", "/accounts/:a/workers/scripts/:s/subdomain", null, (c) => ({ enabled: of(c.account.scripts, c.params.s, 10007).dev === true, previews_enabled: false })],
  ["POST", "/accounts/:a/workers/scripts/:s/subdomain", "scripts", (c) => {
    const w = of(c.account.scripts, c.params.s, 10007), b = json(c.body);
    if (!c.account.subdomain) no(403, 10063, "You need a workers.dev subdomain in order to proceed.");
    if (typeof b.enabled !== "boolean") no(400, 10026, "enabled is missing");
    w.dev = b.enabled;
    return { enabled: w.dev, previews_enabled: b.previews_enabled === true };
  }],
  ["GET", "/accounts/:a/workers/scripts/:s/secrets", null, (c) => secrets(of(c.account.scripts, c.params.s, 10007))],
  ["PUT", "/accounts/:a/workers/scripts/:s/secrets", "scripts", (c) => secret(c, of(c.account.scripts, c.params.s, 10007))],

  ["GET", "/accounts/:a/workers/dispatch/namespaces", null, ({ account }) => Object.keys(account.namespaces).map((n) => showNamespace(account, n))],
  ["POST", "/accounts/:a/workers/dispatch/namespaces", "scripts", (c) => {
    const { name, ...rest } = json(c.body);
    if (typeof name !== "string" || !NAME.test(name)) no(400, 10016, "The name of the namespace is not possible");
    if (Object.keys(rest).length) no(400, 10026, "A namespace has a name and nothing else");
    if (c.account.namespaces[name]) no(409, 100120, "workers.api.error.dispatch_namespace_already_exists");
    c.account.namespaces[name] = { id: hex(16), scripts: {} };
    return showNamespace(c.account, name);
  }],
  ["GET", "/accounts/:a/workers/dispatch/namespaces/:n", null, (c) => (ns(c), showNamespace(c.account, c.params.n))],
  ["GET", "/accounts/:a/workers/dispatch/namespaces/:n/scripts", null, (c) => {
    const all = Object.entries(ns(c).scripts), tags = c.query.get("tags");
    const wanted = tags ? tags.split(",").map((t) => /^(.*):(yes|no)$/.exec(t) ?? no(400, 10021, `${t} is no filter by tag`)) : [];
    return all.filter(([, w]) => wanted.every(([, tag, yes]) => w.tags.includes(tag) === (yes === "yes"))).map(([id, w]) => ({ id, tags: w.tags, created_on: iso(w.created), modified_on: iso(w.at) }));
  }],
  ["PUT", "/accounts/:a/workers/dispatch/namespaces/:n/scripts/:s", "scripts", (c) => put(c, ns(c).scripts, c.params.n)],
  ["GET", "/accounts/:a/workers/dispatch/namespaces/:n/scripts/:s", null, (c) => {
    const w = of(ns(c).scripts, c.params.s, 10092);
    return { created_on: iso(w.created), dispatch_namespace: c.params.n, modified_on: iso(w.at), script: { id: c.params.s, etag: w.etag, tags: w.tags, migration_tag: w.tag ?? undefined } };
  }],
  ["DELETE", "/accounts/:a/workers/dispatch/namespaces/:n/scripts/:s", "scripts", (c) => remove(c, ns(c).scripts, 10092)],
  ["GET", "/accounts/:a/workers/dispatch/namespaces/:n/scripts/:s/settings", null, (c) => settings(of(ns(c).scripts, c.params.s, 10092))],
  ["GET", "/accounts/:a/workers/dispatch/namespaces/:n/scripts/:s/secrets", null, (c) => secrets(of(ns(c).scripts, c.params.s, 10092))],
  ["PUT", "/accounts/:a/workers/dispatch/namespaces/:n/scripts/:s/secrets", "scripts", (c) => secret(c, of(ns(c).scripts, c.params.s, 10092))],

  ["GET", "/accounts/:a/storage/kv/namespaces", null, (c) => paged(c, Object.entries(c.account.kv).map(([id, n]) => ({ id, title: n.title, supports_url_encoding: true })))],
  ["POST", "/accounts/:a/storage/kv/namespaces", "kv", (c) => {
    const { title } = json(c.body);
    if (typeof title !== "string" || !title || title.length > 512) no(400, 10019, "The title is not possible");
    if (Object.values(c.account.kv).some((n) => n.title === title)) no(400, 10014, "a namespace with this account ID and title already exists");
    const id = hex(16);
    c.account.kv[id] = { title };
    c.runtime.changed();
    return { id, title, supports_url_encoding: true };
  }],
  ["GET", "/accounts/:a/storage/kv/namespaces/:k/keys", null, async (c) => {
    const got = await c.runtime.kv(kv(c), (n) => n.list({ prefix: c.query.get("prefix") ?? undefined, limit: Number(c.query.get("limit") ?? 1000), cursor: c.query.get("cursor") ?? undefined }));
    return { $envelope: envelope(got.keys.map(({ name, expiration }) => ({ name, ...(expiration ? { expiration } : {}) })), { count: got.keys.length, cursor: got.list_complete ? "" : got.cursor }) };
  }],
  ["GET", "/accounts/:a/storage/kv/namespaces/:k/values/:key", null, async (c) => {
    const v = await c.runtime.kv(kv(c), (n) => n.get(c.params.key));
    return { $raw: v ?? no(404, 10009, "get: 'key not found'") };
  }],
  ["PUT", "/accounts/:a/storage/kv/namespaces/:k/bulk", "kv", async (c) => {
    const pairs = json(c.body);
    if (!Array.isArray(pairs) || pairs.length === 0 || pairs.length > 10_000) no(400, 10030, "1 to 10,000 pairs can be written at once");
    if (c.body.length > 100e6) no(413, 10031, "At most 100 MB can be written at once");
    for (const p of pairs) {
      for (const k of Object.keys(p)) if (!["key", "value", "base64", "expiration", "expiration_ttl", "metadata"].includes(k)) no(400, 10012, `Unknown member ${k}`);
      if (typeof p.key !== "string" || p.key === "" || p.key === "." || p.key === ".." || Buffer.byteLength(p.key) > 512) no(400, 10029, "A key is empty or longer than 512 bytes");
      if (typeof p.value !== "string" || Buffer.byteLength(p.value) > 25 << 20) no(400, 10047, "A value is no text, or larger than 25 MiB");
      if (p.expiration_ttl !== undefined && !(p.expiration_ttl >= 60)) no(400, 10020, "expiration_ttl is below 60");
    }
    await c.runtime.kv(kv(c), async (n) => {
      for (const p of pairs) await n.put(p.key, p.value, p.expiration_ttl ? { expirationTtl: p.expiration_ttl } : undefined);
    });
    return { successful_key_count: pairs.length, unsuccessful_keys: [] };
  }],
  ["POST", "/accounts/:a/storage/kv/namespaces/:k/bulk/delete", "kv", async (c) => {
    const keys = json(c.body);
    if (!Array.isArray(keys) || keys.length === 0 || keys.length > 10_000 || keys.some((k) => typeof k !== "string")) no(400, 10030, "1 to 10,000 keys can be deleted at once");
    await c.runtime.kv(kv(c), async (n) => {
      for (const k of keys) await n.delete(k);
    });
    return { successful_key_count: keys.length, unsuccessful_keys: [] };
  }],

  ["GET", "/accounts/:a/d1/database", null, (c) => paged(c, Object.entries(c.account.d1).filter(([, d]) => d.name.includes(c.query.get("name") ?? "")).map(([id, d]) => c.databases.show(id, d)))],
  ["POST", "/accounts/:a/d1/database", "d1", (c) => (c.runtime.changed(), c.databases.create(c.account, json(c.body)))],
  ["GET", "/accounts/:a/d1/database/:d", null, (c) => c.databases.show(c.params.d, d1(c))],
  ["DELETE", "/accounts/:a/d1/database/:d", "d1", (c) => {
    d1(c);
    delete c.account.d1[c.params.d];
    c.runtime.changed();
    return null;
  }],
  ["POST", "/accounts/:a/d1/database/:d/query", "d1", (c) => (d1(c), c.databases.query(c.runtime, c.params.d, json(c.body)))],
  ["POST", "/accounts/:a/d1/database/:d/import", "d1", (c) => (d1(c), c.databases.import(c.account, c.runtime, c.params.d, json(c.body)))],

  ["GET", "/zones", null, (c) => c.allowed.flatMap((a) => Object.entries(c.accounts[a].zones)).filter(([, z]) => z.name === c.query.get("name")).map(([id, z]) => ({ id, name: z.name }))],
  ["GET", "/zones/:z/workers/routes", null, (c) => zone(c).routes ?? []],
  ["POST", "/zones/:z/workers/routes", "routes", (c) => {
    const z = zone(c), { pattern, script } = json(c.body);
    const host = /^(?:\*\.?)?([^/*:]+)\/[^*]*\*?$/.exec(pattern)?.[1] ?? no(400, 10022, "workers.api.error.invalid_route_pattern");
    if (host !== z.name && !host.endsWith("." + z.name)) no(400, 10022, "workers.api.error.route_pattern_not_in_zone");
    if (!c.allowed.some((a) => script in c.accounts[a].scripts)) no(400, 10019, "workers.api.error.route_script_missing");
    if ((z.routes ??= []).some((r) => r.pattern === pattern)) no(409, 10020, "A route with the same pattern already exists");
    const r = { id: hex(16), pattern, script };
    z.routes.push(r);
    return r;
  }],
];

const hex = (n) => randomBytes(n).toString("hex");
const iso = (ms) => new Date(ms).toISOString();
const of = (scripts, name, code) => scripts[name] ?? no(404, code, code === 10092 ? "workers.api.error.script_not_found" : "This Worker does not exist on your account.");
const ns = (c) => c.account.namespaces[c.params.n] ?? no(404, 100119, "workers.api.error.dispatch_namespace_not_found");
const kv = (c) => (c.account.kv[c.params.k] ? c.params.k : no(404, 10013, "namespace not found"));
const d1 = (c) => c.account.d1[c.params.d] ?? no(404, 7404, "The database could not be found");
const zone = (c) => c.allowed.map((a) => c.accounts[a].zones[c.params.z]).find(Boolean) ?? no(404, 7003, "Could not route to the zone");
const showNamespace = (account, n) => ({ namespace_id: account.namespaces[n].id, namespace_name: n, trusted_workers: false, script_count: Object.keys(account.namespaces[n].scripts).length });

function paged(c, all) {
  const per = Number(c.query.get("per_page") ?? 20), page = Number(c.query.get("page") ?? 1);
  if (!(per >= 1 && per <= 1000) || !(page >= 1)) no(400, 10028, "page or per_page is not possible");
  return { $envelope: envelope(all.slice((page - 1) * per, page * per), { page, per_page: per, count: Math.min(per, all.length), total_count: all.length, total_pages: Math.ceil(all.length / per) }) };
}

function settings(w) {
  return { bindings: w.bindings.map(shown), compatibility_date: w.date, compatibility_flags: w.flags, tags: w.tags, limits: w.limits, observability: w.observability ?? { enabled: false }, usage_model: "standard" };
}

function service(c, scripts, code, message) {
  const w = scripts[c.params.s] ?? no(404, code, message);
  return { id: c.params.s, default_environment: { environment: "production", script: { id: c.params.s, etag: w.etag, tag: c.params.s, migration_tag: w.tag ?? undefined, last_deployed_from: "api" } } };
}

// put uploads a Worker: all of it, or nothing.
async function put(c, scripts, namespace) {
  const name = c.params.s, old = scripts[name];
  if (!NAME.test(name) || (!namespace && name.length > 63)) no(400, 10016, "The name of the Worker is not possible");
  const form = await parse(c.body, c.type);
  const bindings = check(form, { account: c.account, old, strict: c.query.get("bindings_inherit") === "strict", namespace });
  const { tag, classes } = migrate(form.metadata, bindings, old);
  const worker = { main: form.metadata.main_module, date: form.metadata.compatibility_date, flags: form.metadata.compatibility_flags ?? [], modules: form.modules, bindings, tag, classes,
    tags: form.metadata.tags ?? [], limits: form.metadata.limits, observability: form.metadata.observability, dev: old?.dev ?? false, etag: hex(16), at: ++c.account.serial && Date.now(), created: old?.created ?? Date.now() };
  await c.runtime.check(worker);
  scripts[name] = worker;
  c.runtime.changed();
  return { id: name, etag: worker.etag, tag: name, handlers: ["fetch"], migration_tag: tag ?? undefined, startup_time_ms: 1, modified_on: iso(worker.at), created_on: iso(worker.created), has_modules: true, deployment_id: hex(16) };
}

function remove(c, scripts, code) {
  of(scripts, c.params.s, code);
  delete scripts[c.params.s];
  c.runtime.changed();
  return null;
}

const secrets = (w) => w.bindings.filter((b) => b.type === "secret_text").map(shown);

function secret(c, w) {
  const { name, text, type } = json(c.body);
  if (type !== "secret_text" || typeof name !== "string" || typeof text !== "string") no(400, 10021, "A secret has a name, a text and the type secret_text");
  w.bindings = [...w.bindings.filter((b) => b.name !== name), { type, name, text }];
  c.runtime.changed();
  return { name, type };
}
