// Finding rows: in memory for small datasets, by SQL on D1 for large ones. Both
// give a page of values and say whether more rows follow.
import { Fault } from "./errors";
import { after, count as countSQL, select as selectSQL, type Filter, type Place, type Query, type Schema } from "./records";
import { compare, compareText, parseValue, whole, type Value } from "./values";
import { words } from "./words";

/** Found is one row: its number from 1, and its values, or the whole row as it was rendered. */
export interface Found { row: number; text?: string; values?: Array<Value | null> }

export interface Page { rows: Found[]; more: boolean; count?: number; capped?: boolean }

export interface Engine {
  /** keysOf gives a row's values of the sort columns. */
  keysOf(q: Query, row: number): Promise<Array<Value | null>>;
  /** page gives the rows of a page; values are those of q.select, or of all columns. */
  page(q: Query, at: Place): Promise<Page>;
  /** lookup finds a record by its key, undefined if there is none. */
  lookup(key: string, q: Query): Promise<Found | undefined>;
}

const INDEX_FROM = 10_000; // rows beyond which only indexed columns are filtered and sorted by: a scan costs what a call does
const COUNT_CAP = 10_000;

/** D1 answers from the tables that dataset.WriteD1 makes. */
export class D1 implements Engine {
  readonly #large: boolean;
  constructor(readonly s: Schema, readonly db: D1Database) {
    this.#large = s.rows > INDEX_FROM;
  }

  /** check refuses what would scan. */
  check(q: Query): void {
    if (!this.#large) return;
    const refuse = (param: string, name: string): Fault => new Fault("not_indexed", `this dataset is large, and ${name} is not indexed`,
      { param, fix: `use one of ${this.s.columns.filter((c) => c.indexed).map((c) => c.name).join(", ") || "cursor and limit"}; see /v1/schema` });
    for (const f of q.filters) {
      const c = this.s.columns[f.col]!;
      if (!c.indexed) throw refuse(c.name + (f.op === "eq" ? "" : "__" + f.op), c.name);
      if (f.op === "contains") throw new Fault("not_indexed", "this dataset is large, and no index helps contains", { param: c.name + "__contains", fix: "use prefix, or q" });
    }
    for (const k of q.sort) if (!this.s.columns[k.col]!.indexed) throw refuse("sort", this.s.columns[k.col]!.name);
    if (q.words.length > 0 && this.s.search.length === 0) throw new Fault("not_indexed", "this dataset is large, and its words are not indexed", { param: "q", fix: "filter by an indexed column" });
  }

  async keysOf(q: Query, row: number): Promise<Array<Value | null>> {
    if (q.sort.length === 0) return [];
    const cols = q.sort.map((k) => this.s.columns[k.col]!.name).join(", ");
    const [values] = await this.db.prepare(`SELECT ${cols} FROM records WHERE _row = ?`).bind(row).raw<Array<Value | null>>();
    return values ?? [];
  }

  async page(q: Query, at: Place): Promise<Page> {
    const st = selectSQL(q, this.s, at);
    const list = [this.db.prepare(st.sql).bind(...st.args)];
    if (q.count) {
      const ct = countSQL(q, this.s, this.#large ? COUNT_CAP : 0);
      list.push(this.db.prepare(ct.sql).bind(...ct.args));
    }
    const rows = await list[0]!.raw<Array<Value | null>>();
    const page: Page = { rows: rows.slice(0, q.limit).map((r) => ({ row: Number(r[0]), values: r.slice(1) })), more: rows.length > q.limit };
    if (list[1]) {
      const n = Number((await list[1].raw<[number]>())[0]![0]);
      page.count = this.#large ? Math.min(n, COUNT_CAP) : n;
      page.capped = this.#large && n > COUNT_CAP;
    }
    return page;
  }

  async lookup(key: string, q: Query): Promise<Found | undefined> {
    const cols = (q.select ?? this.s.columns.map((_, i) => i)).map((c) => ", " + this.s.columns[c]!.name).join("");
    const by = keyOf(this.s, key);
    if (!by) return undefined;
    const [r] = await this.db.prepare(`SELECT _row${cols} FROM records WHERE ${by.col} = ? ORDER BY _row LIMIT 1`).bind(by.value).raw<Array<Value | null>>();
    return r && { row: Number(r[0]), values: r.slice(1) };
  }
}

// keyOf is the column and the value that a key means; undefined if no record can have it.
function keyOf(s: Schema, key: string): { col: string; value: Value } | undefined {
  if (s.key === "") return /^[1-9][0-9]{0,9}$/.test(key) ? { col: "_row", value: Number(key) } : undefined;
  const c = s.columns.find((x) => x.name === s.key)!;
  try {
    const value = parseValue(c, "key", key);
    return c.type === "int" && !whole(value) ? undefined : { col: c.name, value };
  } catch {
    return undefined;
  }
}

/** Memory answers from rendered rows, one a line. They are taken apart when a query first needs their values. */
export class Memory implements Engine {
  readonly #lines: string[];
  #values?: Array<Array<Value | null>>;
  #postings?: Map<string, number[]>;

  constructor(readonly s: Schema, text: string) {
    this.#lines = text === "" ? [] : text.replace(/\n$/, "").split("\n");
    if (this.#lines.length !== s.rows) throw new Error(`the dataset has ${this.#lines.length} of ${s.rows} rows`);
  }

  #row(i: number): Array<Value | null> {
    this.#values ??= [];
    let v = this.#values[i];
    if (!v) {
      const o = JSON.parse(this.#lines[i]!) as Record<string, string | number | boolean | null>;
      v = this.#values[i] = this.s.columns.map((c) => {
        const x = o[c.name];
        return typeof x === "boolean" ? (x ? 1 : 0) : (x ?? null);
      });
    }
    return v;
  }

  keysOf(q: Query, row: number): Promise<Array<Value | null>> {
    return Promise.resolve(q.sort.map((k) => this.#row(row - 1)[k.col] ?? null));
  }

  #found(i: number, q: Query): Found {
    if (!q.select) return { row: i + 1, text: this.#lines[i]!, values: q.format === "csv" ? this.#row(i) : undefined };
    const v = this.#row(i);
    return { row: i + 1, values: q.select.map((c) => v[c] ?? null) };
  }

  page(q: Query, at: Place): Promise<Page> {
    let rows = this.#matching(q);
    const count = q.count ? rows.length : undefined;
    const before = this.#order(q);
    if (q.sort.length > 0) rows = rows.sort(before);
    let from = at.offset;
    if (at.row > 0) {
      // The first row that stands behind the cursor's.
      let hi = rows.length;
      from = 0;
      while (from < hi) {
        const mid = (from + hi) >> 1;
        if (before(rows[mid]!, at.row - 1) > 0) hi = mid;
        else from = mid + 1;
      }
    }
    return Promise.resolve({ rows: rows.slice(from, from + q.limit).map((i) => this.#found(i, q)), more: rows.length > from + q.limit, count });
  }

  #order(q: Query): (a: number, b: number) => number {
    const last = q.sort.at(-1)?.desc ?? false;
    return (a, b) => {
      for (const k of q.sort) {
        const d = compare(this.#row(a)[k.col] ?? null, this.#row(b)[k.col] ?? null);
        if (d !== 0) return k.desc ? -d : d;
      }
      return last ? b - a : a - b;
    };
  }

  #matching(q: Query): number[] {
    const tests = q.filters.map((f) => test(f));
    const found: Array<Set<number>> = q.words.map((w) => this.#withWord(w.text, w.prefix));
    const rows: number[] = [];
    for (let i = 0; i < this.#lines.length; i++) {
      if (!found.every((set) => set.has(i))) continue;
      if (tests.length === 0 || q.filters.every((f, k) => tests[k]!(this.#row(i)[f.col] ?? null))) rows.push(i);
    }
    return rows;
  }

  #withWord(word: string, prefix: boolean): Set<number> {
    if (!this.#postings) {
      const all = (this.#postings = new Map<string, number[]>());
      const cols = this.s.columns.map((c, i) => [c, i] as const).filter(([c]) => c.type === "text" && (this.s.search.length === 0 || this.s.search.includes(c.name))).map(([, i]) => i);
      for (let i = 0; i < this.#lines.length; i++) {
        for (const c of cols) {
          words(String(this.#row(i)[c] ?? ""), (w) => {
            const list = all.get(w);
            if (!list) all.set(w, [i]);
            else if (list.at(-1) !== i) list.push(i);
          });
        }
      }
    }
    if (!prefix) return new Set(this.#postings.get(word));
    const rows = new Set<number>();
    for (const [w, list] of this.#postings) if (w.startsWith(word)) for (const i of list) rows.add(i);
    return rows;
  }

  lookup(key: string, q: Query): Promise<Found | undefined> {
    const by = keyOf(this.s, key);
    if (!by) return Promise.resolve(undefined);
    if (by.col === "_row") return Promise.resolve(Number(by.value) <= this.#lines.length ? this.#found(Number(by.value) - 1, q) : undefined);
    const c = this.s.columns.findIndex((x) => x.name === by.col);
    for (let i = 0; i < this.#lines.length; i++) if (this.#row(i)[c] === by.value) return Promise.resolve(this.#found(i, q));
    return Promise.resolve(undefined);
  }
}

// test makes a filter ready; null meets none but the one that asks for it.
function test(f: Filter): (v: Value | null) => boolean {
  const arg = f.args[0]!;
  switch (f.op) {
    case "null": return (v) => (v === null) === (arg === 1);
    case "in": case "nin": {
      const set = new Set(f.args);
      return (v) => v !== null && set.has(v) === (f.op === "in");
    }
    case "prefix": {
      const end = after(String(arg));
      return (v) => v !== null && compareText(String(v), String(arg)) >= 0 && (end === "" || compareText(String(v), end) < 0);
    }
    case "contains": return (v) => v !== null && String(v).includes(String(arg));
    case "eq": return (v) => v !== null && v === arg;
    case "ne": return (v) => v !== null && v !== arg;
    case "gt": return (v) => v !== null && compare(v, arg) > 0;
    case "gte": return (v) => v !== null && compare(v, arg) >= 0;
    case "lt": return (v) => v !== null && compare(v, arg) < 0;
    case "lte": return (v) => v !== null && compare(v, arg) <= 0;
  }
}
