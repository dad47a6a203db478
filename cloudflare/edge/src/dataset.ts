// A dataset's answers: dataset/handler.go. They are pure functions of (version,
// cursor key, canonical query), byte for byte those that clawr gives natively.
import { base64url, concat, encode, hex, Hmac, unbase64url, unhex } from "./bytes";
import { D1, Memory, type Engine, type Found } from "./engine";
import { Fault } from "./errors";
import { badCursor, canonical, escape, isVersion, parseQuery, question, single, unescape, type Place, type Query, type Schema } from "./records";
import { routeOf, units, type Route } from "./routes";
import { json, plain, quoted, short, type Value } from "./values";

/** Manifest is what dataset.EdgeManifest writes. */
export interface Manifest extends Schema {
  id: string; // of the segment: 64 hex
  large: boolean; // the rows are in D1
  pages: Record<string, { body: string; etag: string }>; // the free ones, by path
}

/** Planned is a request that was understood. */
export interface Planned { route: Route; path: string; key: string; canonical: string; query?: Query; row: number } // row: that a cursor names, from 1

export interface Answered { body: string; type: string; etag: string; link?: string; cache: string }

const RECORDS = "/v1/records";
const LABEL = encode("clawr cursor\0");

export class Dataset {
  readonly engine: Engine;
  readonly #mac: Hmac;

  constructor(readonly m: Manifest, rows: string, cursorKey: Uint8Array, db?: D1Database) {
    if (m.large && !db) throw new Error("the dataset's database is not bound");
    this.engine = m.large ? new D1(m, db!) : new Memory(m, rows);
    this.#mac = new Hmac(cursorKey);
  }

  /** plan understands a request; it is pure and touches no rows. */
  plan(method: string, path: string, rawQuery: string): Planned {
    const { route, key } = routeOf(path);
    const p: Planned = { route, path, key, canonical: path, row: 0 };
    if (route === "nothing") {
      throw new Fault("not_found", "there is nothing at " + quoted(short(path)), { fix: "ask for /v1/records, /v1/records/{key}, /v1/schema, /v1/preview, /openapi.json, /pricing or /health" });
    }
    if (method !== "GET" && method !== "HEAD") throw new Fault("method_not_allowed", short(method) + " is not possible here", { fix: "use GET" });
    if (units(method, path) === 0) return p;
    this.#pin(rawQuery);
    const q = (p.query = parseQuery(this.m, rawQuery));
    if (q.version === this.m.version) q.version = "";
    if (this.engine instanceof D1) this.engine.check(q);
    if (route === "record") {
      single(q);
      p.canonical = tidy(`${RECORDS}/${escape(key)}?${canonical(q, this.m, true)}`).replace(/\+/g, "%20");
      return p;
    }
    if (q.cursor !== "") {
      const c = this.#open(q.cursor);
      if (c.version !== this.m.version) throw badCursor("it belongs to version " + c.version);
      if (c.question !== hex(fnv(question(q, this.m))) || c.row >= this.m.rows) throw badCursor("it belongs to another query");
      p.row = c.row + 1;
    }
    p.canonical = tidy(`${RECORDS}?${canonical(q, this.m, true)}`);
    return p;
  }

  // #pin refuses other versions than this one: theirs are other Workers, or gone.
  #pin(rawQuery: string): void {
    let want = "";
    for (const piece of rawQuery.split("&")) {
      if (piece.startsWith("version=") && isVersion(piece.slice(8))) want = piece.slice(8);
      if (piece.startsWith("cursor=")) {
        const { version } = this.#open(unescape(piece.slice(7)) ?? "");
        if (want !== "" && want !== version) throw badCursor("it belongs to version " + version);
        want = version;
      }
    }
    if (want === "" || want === this.m.version) return;
    throw new Fault("version_gone", `version ${want} of the data is not kept any more`, { param: "version", fix: "begin again without version and cursor" });
  }

  /** etag is the strong validator of the answer to a canonical query. */
  etag(canon: string): string {
    const page = Object.hasOwn(this.m.pages, canon) ? this.m.pages[canon] : undefined;
    if (page) return page.etag;
    return `"${hex(fnv(this.m.id, canon))}${hex(fnv("again", canon, this.m.id))}"`;
  }

  /** check throws record_not_found if the record that is asked for does not exist. */
  async check(p: Planned): Promise<void> {
    if (p.route === "record" && !(await this.engine.lookup(p.key, { ...p.query!, select: [] }))) throw missing(p.key);
  }

  async answer(p: Planned): Promise<Answered> {
    const etag = this.etag(p.canonical);
    if (p.route === "record") {
      const row = await this.engine.lookup(p.key, p.query!);
      if (!row) throw missing(p.key);
      return { body: `{"data":${this.#row(row, p.query!)},"meta":{"version":"${this.m.version}"}}`, type: "application/json", etag, cache: "private" };
    }
    if (p.route === "records") return this.#list(p, etag);
    const page = this.m.pages[p.path];
    if (!page) throw new Error(`the manifest has no page ${p.path}`);
    return { body: page.body, type: "application/json", etag, cache: "public, max-age=60" };
  }

  async #list(p: Planned, etag: string): Promise<Answered> {
    const q = p.query!;
    const at: Place = p.row > 0 ? { row: p.row, keys: await this.engine.keysOf(q, p.row), offset: 0 } : { row: 0, keys: [], offset: q.offset };
    const r = await this.engine.page(q, at);
    const next = r.more ? this.#next(q, r.rows.at(-1)!.row) : undefined;
    const link = next && q.format !== "json" ? `<${next}>; rel="next"` : undefined;
    switch (q.format) {
      case "ndjson":
        return { body: r.rows.map((x) => this.#row(x, q) + "\n").join(""), type: "application/x-ndjson", etag, link, cache: "private" };
      case "csv":
        return { body: this.#csv(r.rows, q), type: "text/csv; charset=utf-8", etag, link, cache: "private" };
    }
    const count = r.count === undefined ? "" : `,"count":${r.count}${r.capped ? ',"count_capped":true' : ""}`;
    return {
      body: `{"data":[${r.rows.map((x) => this.#row(x, q)).join(",")}],"meta":{"version":"${this.m.version}","limit":${q.limit}${count},"next":${next ? JSON.stringify(next) : "null"}}}`,
      type: "application/json", etag, cache: "private",
    };
  }

  #row(r: Found, q: Query): string {
    if (r.text !== undefined && !q.select) return r.text;
    const cols = q.select ?? this.m.columns.map((_, i) => i);
    return `{${cols.map((c, i) => `"${this.m.columns[c]!.name}":${json(r.values![i] ?? null, this.m.columns[c]!.type)}`).join(",")}}`;
  }

  // #csv writes rows by RFC 4180 with a header of column names. null is an empty cell and "" a quoted one.
  #csv(rows: Found[], q: Query): string {
    const cols = q.select ?? this.m.columns.map((_, i) => i);
    const cell = (v: Value | null, c: number): string => {
      const t = this.m.columns[c]!.type;
      if (v === null) return "";
      if (t !== "text") return plain(v, t);
      return v !== "" && !/[",\n\r]/.test(String(v)) ? String(v) : `"${String(v).replace(/"/g, '""')}"`;
    };
    return [cols.map((c) => this.m.columns[c]!.name).join(","), ...rows.map((r) => cols.map((c, i) => cell(r.values![i] ?? null, c)).join(","))].map((l) => l + "\r\n").join("");
  }

  // A cursor is base64url of version 8 | hash of the question 8 | last row 4 | MAC 12.
  #next(q: Query, row: number): string {
    const body = concat(unhex(this.m.version)!, fnv(question(q, this.m)), new Uint8Array(4));
    new DataView(body.buffer).setUint32(16, row - 1);
    const token = base64url(concat(body, this.#mac.sum(concat(LABEL, body)).subarray(0, 12)));
    const rest = canonical(q, this.m, false);
    return `${RECORDS}?${rest === "" ? "" : rest + "&"}cursor=${token}`;
  }

  #open(token: string): { version: string; question: string; row: number } {
    const raw = unbase64url(token, true);
    if (!raw || raw.length !== 32) throw badCursor("it is not one of ours");
    const mac = this.#mac.sum(concat(LABEL, raw.subarray(0, 20)));
    let d = 0;
    for (let i = 0; i < 12; i++) d |= mac[i]! ^ raw[20 + i]!;
    if (d !== 0) throw badCursor("it is not one of ours");
    return { version: hex(raw.subarray(0, 8)), question: hex(raw.subarray(8, 16)), row: new DataView(raw.buffer).getUint32(16) };
  }
}

const tidy = (s: string): string => s.replace(/\?$/, "");

function missing(key: string): Fault {
  return new Fault("record_not_found", "there is no record " + short(key), { fix: "search with /v1/records; you were not charged" });
}

// fnv is the 64-bit FNV-1a hash of texts one after the other, big-endian.
function fnv(...texts: string[]): Uint8Array {
  let hi = 0xcbf29ce4, lo = 0x84222325;
  for (const t of texts) {
    for (const c of encode(t)) {
      lo = (lo ^ c) >>> 0;
      // times 2^40 + 0x1b3
      const l = lo * 0x1b3, h = hi * 0x1b3 + Math.floor(l / 2 ** 32) + lo * 0x100;
      lo = l >>> 0;
      hi = h % 2 ** 32;
    }
  }
  const out = new Uint8Array(8), v = new DataView(out.buffer);
  v.setUint32(0, hi);
  v.setUint32(4, lo);
  return out;
}
