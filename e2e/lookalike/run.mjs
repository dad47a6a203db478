// What was uploaded runs: in real workerd, with the namespaces, databases and
// objects that it is bound to, kept on disk.
import { createHash } from "node:crypto";
import { Miniflare } from "miniflare";
import { Edge } from "../edge/runtime.mjs";
import { no } from "./failure.mjs";

const STORAGE = "~storage"; // a Worker that is bound to everything, so that the API can get at it
const IDLE = { main: "idle.js", modules: [{ name: "idle.js", type: "ESModule", contents: `export default { fetch() { return new Response("There is nothing here yet", { status: 404 }); } };` }] };

const ready = (m) => ({ name: m.name, type: m.kind, contents: m.kind === "Data" || m.kind === "CompiledWasm" ? new Uint8Array(m.contents) : m.contents.toString("utf8") });

/** script turns an uploaded Worker into what the runtime takes. */
function script(worker, databases) {
  const out = { main: worker.main, modules: worker.modules.filter((m) => m.kind !== "SourceMap").map(ready), compatibilityDate: worker.date, bindings: {}, d1: {}, kv: {}, objects: {}, namespaces: [] };
  for (const b of worker.bindings) {
    if (b.type === "plain_text" || b.type === "secret_text") out.bindings[b.name] = b.text;
    if (b.type === "json") out.bindings[b.name] = b.json;
    if (b.type === "kv_namespace") out.kv[b.name] = b.namespace_id;
    if (b.type === "d1") out.d1[b.name] = databases[b.id]?.store ?? b.id;
    if (b.type === "durable_object_namespace") out.objects[b.name] = b.class_name;
    if (b.type === "dispatch_namespace") out.namespaces.push(b.name);
  }
  return out;
}

// What the dispatcher is run behind. Requests leave work behind (waitUntil),
// which Cloudflare lets go on for up to 30 s whatever is deployed meanwhile;
// this says which of it still does, by number.
const LEFT = "http://left.lookalike/", GRACE = 30_000; // ms
const front = (main) => `import * as worker from ${JSON.stringify("./" + main)};
  export * from ${JSON.stringify("./" + main)};
  const open = new Set();
  let n = 0;
  const fetch = (request, env, ctx) => {
    if (request.url === ${JSON.stringify(LEFT)}) return Response.json([...open]);
    const waitUntil = ctx.waitUntil.bind(ctx);
    ctx.waitUntil = (work) => {
      const id = n++, done = () => { open.delete(id); };
      open.add(id);
      waitUntil(Promise.resolve(work).finally(done));
    };
    return worker.default.fetch(request, env, ctx);
  };
  export default typeof worker.default?.fetch === "function" ? { ...worker.default, fetch } : worker.default;`;

/** fronted is the dispatcher's script with that in front. */
function fronted(s) {
  const main = "front.lookalike.js";
  return { ...s, main, modules: [{ name: main, type: "ESModule", contents: front(s.main) }, ...s.modules] };
}

/** Runtime runs one account: the dispatcher that was deployed last, and the Workers of its namespace. */
export class Runtime {
  #edge;
  #dirty = true;
  #readers = 0;
  #turn = Promise.resolve(); // changes stand in line
  #checked = new Map();

  constructor(dir, account, host = "127.0.0.1") {
    Object.assign(this, { dir, account, host });
  }

  /** changed says that Workers, databases or namespaces are others now. */
  changed() { this.#dirty = true; }

  #dispatcher() {
    return Object.values(this.account.scripts).filter((w) => w.bindings.some((b) => b.type === "dispatch_namespace")).sort((a, b) => b.at - a.at)[0];
  }

  async #reload() {
    const main = this.#dispatcher();
    const name = main?.bindings.find((b) => b.type === "dispatch_namespace").namespace;
    const tenants = {};
    for (const [n, w] of Object.entries(this.account.namespaces[name]?.scripts ?? {})) tenants[n] = script(w, this.account.d1);
    tenants[STORAGE] = { ...IDLE, d1: {}, kv: {} };
    for (const [id, d] of Object.entries(this.account.d1)) tenants[STORAGE].d1[`D_${id}`] = d.store;
    for (const id of Object.keys(this.account.kv)) tenants[STORAGE].kv[`K_${id}`] = id;
    const dispatcher = main ? fronted(script(main, this.account.d1)) : IDLE;
    if (!this.#edge) {
      this.#edge = new Edge({ dir: this.dir, dispatcher, tenants, host: this.host });
      await this.#edge.start();
      return;
    }
    for (const n of this.#edge.tenants.keys()) if (!(n in tenants)) tenants[n] = null;
    await this.#left();
    await this.#edge.change(tenants, dispatcher);
  }

  // left waits for the work that requests have left behind: a change starts
  // workerd anew, which would end it. No request is under way meanwhile.
  async #left() {
    if (this.#edge.options.dispatcher === IDLE) return;
    const worker = await this.#edge.mf.getWorker("dispatcher");
    for (const end = Date.now() + GRACE; Date.now() < end; await new Promise((r) => setTimeout(r, 20))) {
      if ((await (await worker.fetch(LEFT)).json()).length === 0) return;
    }
  }

  /** use runs fn with the runtime as it should be; nothing is changed below it meanwhile. */
  async use(fn) {
    if (this.#dirty) {
      this.#turn = this.#turn.then(async () => {
        if (!this.#dirty) return;
        while (this.#readers > 0) await new Promise((r) => setTimeout(r, 5));
        this.#dirty = false;
        try {
          await this.#reload();
        } catch (e) {
          this.#dirty = true;
          throw e;
        }
      });
    }
    const turn = this.#turn;
    try {
      await turn;
    } catch (e) {
      if (this.#turn === turn) this.#turn = Promise.resolve();
      throw e;
    }
    this.#readers++;
    try {
      return await fn(this.#edge);
    } finally {
      this.#readers--;
    }
  }

  kv(id, fn) { return this.use(async (e) => fn(await e.mf.getKVNamespace(`K_${id}`, `tenant:${STORAGE}`))); }
  d1(id, fn) { return this.use(async (e) => fn(await e.mf.getD1Database(`D_${id}`, `tenant:${STORAGE}`))); }

  /** check starts a Worker alone, and refuses it as the API does when it cannot be started or answers nothing. */
  async check(worker) {
    const hash = createHash("sha256");
    for (const m of worker.modules) hash.update(m.name + "\0" + m.kind + "\0").update(m.contents);
    const key = hash.update(worker.main + worker.date).digest("hex");
    if (!this.#checked.has(key)) this.#checked.set(key, await exportsOf(worker));
    const found = this.#checked.get(key);
    if (found.error) no(400, 10021, found.error);
    if (!found.handlers.some((h) => ["fetch", "scheduled", "queue", "tail", "email", "class"].includes(h))) no(400, 10068, "The uploaded script has no registered event handlers.");
    for (const b of worker.bindings) {
      if (b.type === "durable_object_namespace" && !b.script_name && !found.classes.includes(b.class_name)) no(400, 10070, `The class ${b.class_name} is not exported by the Worker`);
    }
  }

  async stop() { await this.#turn.catch(() => {}); await this.#edge?.stop(); }
}

// exportsOf starts a Worker in a workerd of its own and asks what it exports.
async function exportsOf(worker) {
  const asks = `import * as worker from ${JSON.stringify("./" + worker.main)};
    export default { fetch() {
      const d = worker.default;
      return Response.json({ handlers: typeof d === "function" ? ["class"] : Object.keys(d ?? {}), classes: Object.keys(worker).filter((k) => typeof worker[k] === "function") });
    } };`;
  const modules = worker.modules.filter((m) => m.kind !== "SourceMap").map(ready);
  const said = [];
  const mf = new Miniflare({
    modules: [{ type: "ESModule", path: "check.lookalike.js", contents: asks }, ...modules.map((m) => ({ type: m.type, path: m.name, contents: m.contents }))],
    compatibilityDate: worker.date, log: undefined, handleRuntimeStdio: (out, err) => { out.resume(); err.on("data", (b) => said.push(b)); },
  });
  try {
    return await (await mf.dispatchFetch("http://check/")).json();
  } catch (e) {
    const text = Buffer.concat(said).toString();
    return { error: /Uncaught [^\n]*/.exec(text)?.[0] ?? /(?:error|failed)[^\n]*/i.exec(text)?.[0] ?? e.message };
  } finally {
    await mf.dispose().catch(() => {});
  }
}
