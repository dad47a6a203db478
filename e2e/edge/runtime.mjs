// Cloudflare on this machine: real workerd, driven by miniflare, with KV, D1
// and Durable Objects kept on disk, and a dispatch namespace, which neither
// has. The namespace behaves as the production one is known to:
//
//   - get() never throws; for a Worker that is not there, fetch() rejects with
//     "Worker not found."
//   - what a tenant's Worker throws reaches the dispatcher as it is
//   - the limits given to get() are noted; exceeding them is injected, because
//     workerd enforces none.
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { Miniflare } from "miniflare";

const COMPATIBILITY_DATE = "2026-07-01";

// The code behind a dispatch_namespace binding. It runs in the dispatcher's
// isolate, as a wrapped binding; env holds a service for each tenant's Worker.
const NAMESPACE = `
export default function (env) {
  return {
    get(name, args, options) {
      const call = async (request) => {
        const answer = await env.WATCH.fetch("http://watch/", { method: "POST", body: JSON.stringify({ name, args, options, url: request.url, method: request.method, headers: [...request.headers] }) });
        const { error, service } = await answer.json();
        if (error) throw new Error(error);
        return env[service].fetch(request);
      };
      return { fetch: (input, init) => call(new Request(input, init)) };
    },
  };
}`;

/** modulesOf reads a directory of built modules: .js are ES modules, everything else is text. */
export function modulesOf(dir) {
  return readdirSync(dir).filter((f) => !f.endsWith(".map")).sort()
    .map((name) => ({ name, type: name.endsWith(".js") ? "ESModule" : "Text", contents: readFileSync(join(dir, name), "utf8") }));
}

function withMain(main, modules) {
  const i = modules.findIndex((m) => m.name === main);
  if (i < 0) throw new Error(`no module ${main} among ${modules.map((m) => m.name)}`);
  const ordered = [modules[i], ...modules.slice(0, i), ...modules.slice(i + 1)];
  return ordered.map((m) => ({ type: m.type, path: m.name, contents: m.contents }));
}

/**
 * Edge is a dispatcher with its namespace.
 *
 * A script is {main, modules: [{name, type, contents}], bindings}: bindings are
 * {name: string} for plain and secret text, and d1: {NAME: databaseId},
 * kv: {NAME: namespaceId}, objects: {NAME: className}, namespaces: [NAME],
 * queues and the like there are none.
 */
export class Edge {
  /** options: {dir, port?, host?, dispatcher: script, tenants?: {name: script}} */
  constructor(options) {
    this.options = { host: "127.0.0.1", port: 0, ...options };
    this.tenants = new Map(Object.entries(options.tenants ?? {}));
    this.services = new Map();
    this.seen = []; // what was asked of the namespace, in order
    this.injected = new Map();
  }

  #watch = async (request) => {
    const call = await request.json();
    this.seen.push(call);
    if (this.seen.length > 10_000) this.seen.splice(0, 5_000);
    const inject = this.injected.get(call.name);
    if (inject && inject.times > 0 && (inject.work === undefined || inject.work === !call.headers.some(([k]) => k === "x-clawr-do"))) {
      inject.times--;
      if (inject.delayMs) await new Promise((done) => setTimeout(done, inject.delayMs));
      if (inject.error) return Response.json({ error: inject.error });
    }
    const service = this.services.get(call.name);
    return Response.json(service ? { service } : { error: "Worker not found." });
  };

  /** inject makes the next `times` calls of a tenant's Worker fail with an error, or wait. work: true only for the work itself, false only for internal questions. */
  inject(name, { error, times = 1, delayMs = 0, work } = {}) {
    this.injected.set(name, { error, times, delayMs, work });
  }

  #worker(name, script) {
    return {
      name, modules: withMain(script.main, script.modules), compatibilityDate: script.compatibilityDate ?? COMPATIBILITY_DATE,
      bindings: script.bindings ?? {}, d1Databases: script.d1 ?? {}, kvNamespaces: script.kv ?? {},
    };
  }

  #config() {
    const { dir, host, port, dispatcher } = this.options;
    this.services.clear();
    const services = {}, workers = [];
    let n = 0;
    for (const [name, script] of this.tenants) {
      const service = `T${n++}`;
      this.services.set(name, service);
      services[service] = `tenant:${name}`;
      workers.push(this.#worker(`tenant:${name}`, script));
    }
    const main = this.#worker("dispatcher", dispatcher);
    main.durableObjects = {};
    for (const [binding, className] of Object.entries(dispatcher.objects ?? {})) main.durableObjects[binding] = { className, useSQLite: true };
    main.wrappedBindings = {};
    for (const binding of dispatcher.namespaces ?? []) main.wrappedBindings[binding] = { scriptName: "namespace" };
    // Callers come straight to the dispatcher: what miniflare's own front would
    // make of their URLs is not what Cloudflare does.
    main.unsafeDirectSockets = [{ host, port }];
    return {
      workers: [main, ...workers, { name: "namespace", modules: true, script: NAMESPACE, serviceBindings: { ...services, WATCH: this.#watch } }],
      host: "127.0.0.1", port: 0,
      kvPersist: join(dir, "kv"), d1Persist: join(dir, "d1"), durableObjectsPersist: join(dir, "do"), defaultPersistRoot: dir,
      log: undefined, handleRuntimeStdio: this.options.stdio,
    };
  }

  async start() {
    this.mf = new Miniflare(this.#config());
    await this.#ready();
    return this;
  }

  async #ready() {
    await this.mf.ready;
    this.url = (await this.mf.unsafeGetDirectURL("dispatcher")).origin;
    this.options.port = Number(new URL(this.url).port);
  }

  /** change adds, replaces and (null) removes tenants' Workers; the dispatcher and all storage stay. */
  async change(tenants, dispatcher) {
    for (const [name, script] of Object.entries(tenants)) script ? this.tenants.set(name, script) : this.tenants.delete(name);
    if (dispatcher) this.options.dispatcher = dispatcher;
    await this.mf.setOptions(this.#config());
    await this.#ready();
  }

  /** kv is a namespace of the dispatcher; d1 a database, of the dispatcher or of a tenant's Worker. */
  async kv(binding = "DIRECTORY") { return this.mf.getKVNamespace(binding, "dispatcher"); }
  async d1(binding, tenant) { return this.mf.getD1Database(binding, tenant ? `tenant:${tenant}` : "dispatcher"); }

  async stop() { await this.mf?.dispose(); }
}
