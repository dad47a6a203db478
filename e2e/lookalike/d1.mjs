// D1 as its REST API shows it, and its import protocol: init, upload, ingest,
// poll. An import happens as a whole, or the database is as it was before.
import { createHash, randomUUID } from "node:crypto";
import { createReadStream, createWriteStream, existsSync, mkdirSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { envelope, no } from "./failure.mjs";

const MAX_STATEMENT = 100_000; // bytes of SQL
const MAX_ROW = 2_000_000; // bytes of a statement's result or row: what is bound to it

export class Databases {
  constructor(dir, url) {
    this.dir = join(dir, "imports");
    this.url = url; // of this server, for uploads
    mkdirSync(this.dir, { recursive: true });
    this.running = new Map(); // bookmark → {status, error}
  }

  create(account, { name, ...rest }) {
    if (typeof name !== "string" || !/^[a-z0-9][a-z0-9-_]{0,63}$/i.test(name)) no(400, 7400, "The database's name is not possible");
    for (const k of Object.keys(rest)) if (k !== "primary_location_hint" && k !== "jurisdiction" && k !== "read_replication") no(400, 7400, `Unknown member ${k}`);
    if (Object.values(account.d1).some((d) => d.name === name)) no(409, 7502, `Database with name '${name}' already exists`);
    const uuid = randomUUID();
    account.d1[uuid] = { name, store: uuid, imports: [], at: Date.now() };
    return this.show(uuid, account.d1[uuid]);
  }

  show(uuid, d) { return { uuid, name: d.name, version: "production", created_at: new Date(d.at).toISOString(), num_tables: 0, file_size: 0 }; }

  async query(runtime, id, body) {
    const batch = body.batch ?? [body];
    const results = [];
    for (const { sql, params = [] } of batch) {
      if (typeof sql !== "string" || sql === "") no(400, 7400, "There is no sql");
      if (Buffer.byteLength(sql) > MAX_STATEMENT) no(400, 7500, "statement too long: SQLITE_TOOBIG");
      if (!Array.isArray(params) || params.length > 100 || params.some((p) => typeof p !== "string")) no(400, 7400, "params are at most 100 texts");
      try {
        results.push(await runtime.d1(id, (db) => db.prepare(sql).bind(...params).all()));
      } catch (e) {
        no(400, 7500, e.message.replace(/^D1_ERROR: /, ""));
      }
    }
    return results.map((r) => ({ results: r.results, success: true, meta: r.meta }));
  }

  async import(account, runtime, id, body) {
    const d = account.d1[id];
    const etag = () => (/^[0-9a-f]{32}$/.test(body.etag ?? "") ? body.etag : no(400, 7400, "The etag is no MD5 in hex"));
    switch (body.action) {
      case "init": {
        const file = join(this.dir, `${id}.${etag()}.sql`);
        if (existsSync(file)) return this.#start(account, runtime, id, body.etag); // it is known: nothing to upload
        const filename = `${id}.${body.etag}.sql`;
        return { success: true, filename, upload_url: `${this.url}/__upload/${filename}?X-Signature=${createHash("sha256").update("signed " + filename).digest("hex")}` };
      }
      case "ingest":
        if (body.filename !== `${id}.${etag()}.sql`) no(400, 7400, "The file name is not what init gave");
        if (!existsSync(join(this.dir, body.filename))) no(400, 7400, "The file was not uploaded");
        return this.#start(account, runtime, id, body.etag);
      case "poll": {
        const job = this.running.get(body.current_bookmark);
        if (!job || job.id !== id) return { success: false, error: "Not currently importing anything.", type: "import" };
        return job.state;
      }
    }
    no(400, 7400, `There is no action ${JSON.stringify(body.action)}`);
  }

  // start imports a file once: whoever asks again hears of the same import,
  // unless it failed.
  #start(account, runtime, id, etag) {
    const known = [...this.running.values()].find((j) => j.id === id && j.etag === etag && j.state.status !== "error");
    if (known) return known.state;
    const bookmark = `${Date.now().toString(16).padStart(8, "0")}-${randomUUID()}`;
    const job = { id, etag, state: { success: true, type: "import", at_bookmark: bookmark, status: "active", messages: ["Started import"], errors: [] } };
    this.running.set(bookmark, job);
    const d = account.d1[id];
    const before = [...d.imports];
    d.imports.push(etag);
    this.done = this.#run(runtime, id, [etag]).then(
      (n) => { job.state = { ...job.state, status: "complete", result: { success: true, final_bookmark: bookmark, num_queries: n, meta: {} } }; },
      async (e) => {
        // As it was before: what was imported earlier, into a new store.
        d.imports = before;
        d.store = randomUUID();
        runtime.changed();
        await this.#run(runtime, id, before).catch(() => {});
        job.state = { ...job.state, success: true, status: "error", errors: [e.message.replace(/^D1_ERROR: /, "")] };
      },
    );
    return job.state;
  }

  async #run(runtime, id, etags) {
    let n = 0;
    for (const etag of etags) {
      await runtime.d1(id, async (db) => {
        for await (const statement of statements(join(this.dir, `${id}.${etag}.sql`))) {
          if (Buffer.byteLength(statement) > MAX_STATEMENT) throw new Error("statement too long: SQLITE_TOOBIG");
          if (/^\s*(BEGIN|COMMIT|ROLLBACK)\b/i.test(statement)) throw new Error("cannot start a transaction within a transaction: SQLITE_ERROR");
          if (/^\s*CREATE TABLE [^(]*\(/i.test(statement) && statement.split(",").length > 100) throw new Error("too many columns on table: SQLITE_ERROR");
          await db.prepare(statement).run();
          n++;
        }
      });
    }
    return n;
  }

  /** upload takes what is put to a signed URL: no token, a length, and it answers with the MD5 that arrived. */
  async upload(req, res, url) {
    const name = url.pathname.slice("/__upload/".length);
    const signed = createHash("sha256").update("signed " + name).digest("hex");
    if (!/^[0-9a-f-]{36}\.[0-9a-f]{32}\.sql$/.test(name) || url.searchParams.get("X-Signature") !== signed) return void res.writeHead(403).end("<Error><Code>SignatureDoesNotMatch</Code></Error>");
    if (req.headers.authorization) return void res.writeHead(400).end("<Error><Code>InvalidArgument</Code><Message>Only one auth mechanism allowed</Message></Error>");
    if (!req.headers["content-length"]) return void res.writeHead(411).end("<Error><Code>MissingContentLength</Code></Error>");
    const file = join(this.dir, name), part = `${file}.${randomUUID()}`;
    const md5 = createHash("md5");
    try {
      await pipeline(req, async function* (source) {
        for await (const b of source) {
          md5.update(b);
          yield b;
        }
      }, createWriteStream(part));
    } catch {
      rmSync(part, { force: true });
      return res.destroy();
    }
    const etag = md5.digest("hex");
    if (`${etag}.sql` === name.slice(37)) renameSync(part, file);
    else rmSync(part, { force: true });
    res.writeHead(200, { etag: `"${etag}"` }).end();
  }
}

/** statements reads SQL and gives its statements one by one. */
export async function* statements(file) {
  let rest = "", quoted = false, from = 0;
  for await (const chunk of createReadStream(file, { encoding: "utf8", highWaterMark: 1 << 20 })) {
    rest += chunk;
    let start = 0;
    for (let i = from; i < rest.length; i++) {
      const c = rest.charCodeAt(i);
      if (c === 39) quoted = !quoted; // a doubled quote ends and begins again
      else if (c === 59 && !quoted) {
        const s = rest.slice(start, i).trim();
        start = i + 1;
        if (s) yield s;
      }
    }
    rest = rest.slice(start);
    from = rest.length;
  }
  if (rest.trim()) yield rest.trim();
}

export { envelope, MAX_ROW };
