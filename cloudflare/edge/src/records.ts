// The query grammar of records.md: package dataset's query.go and sql.go are
// the reference, and testdata/vectors/records hold both to the same answers.
import { encode } from "./bytes";
import { Fault } from "./errors";
import { badValue, json, over, parseList, parseValue, plain, quoted, short, type Column, type Type, type Value } from "./values";
import { searchWords, type Word } from "./words";

/** Schema is what a query is read against. */
export interface Schema {
  version: string;
  rows: number;
  key: string; // "": the row number
  search: string[]; // columns that q looks into; none: every text column
  maxOffset: number;
  columns: Column[];
}

const OPS = ["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin", "null", "prefix", "contains"] as const;
export type Op = (typeof OPS)[number];
const CONTROLS = ["count", "cursor", "format", "limit", "offset", "q", "select", "sort", "version"];
const FORMATS = ["json", "ndjson", "csv"] as const;

const MAX_QUERY = 8 << 10;
const MAX_FILTERS = 20;
const MAX_LIMIT = 1000;
const DEFAULT_LIMIT = 100;
const MAX_SORT = 3;
const MAX_WORDS = 8;
const MAX_PATTERN = 256;

export interface Filter { col: number; op: Op; args: Value[] } // null has 1 for true
export interface SortKey { col: number; desc: boolean }

export interface Query {
  filters: Filter[];
  sort: SortKey[];
  select?: number[];
  words: Word[];
  limit: number;
  offset: number;
  count: boolean;
  format: (typeof FORMATS)[number];
  version: string;
  cursor: string;
}

const column = (s: Schema, name: string): number => s.columns.findIndex((c) => c.name === name);

/** unescape undoes form encoding; undefined if it is not UTF-8. */
export function unescape(s: string): string | undefined {
  if (/%(?![0-9a-fA-F]{2})/.test(s)) return undefined;
  try {
    return decodeURIComponent(s.replace(/\+/g, " "));
  } catch {
    return undefined;
  }
}

/** parseQuery reads the raw query of a URL. Every error is a 400 that names the parameter and, for an unknown one, the nearest column. */
export function parseQuery(s: Schema, raw: string): Query {
  const size = encode(raw).length;
  if (size > MAX_QUERY) throw new Fault("query_too_long", `the query has ${size} bytes, at most ${MAX_QUERY} are possible`, { fix: "ask for less" });
  const q: Query = { filters: [], sort: [], words: [], limit: DEFAULT_LIMIT, offset: 0, count: false, format: "json", version: "", cursor: "" };
  const seen: string[] = [];
  for (const piece of raw.split("&")) {
    if (piece === "") continue;
    const { name, value } = param(piece);
    if (seen.includes(name)) {
      throw new Fault("duplicate_parameter", `${short(name)} is given twice`, { param: name, fix: `give each parameter once; use ${short(name)}__in=a,b for several values` });
    }
    if (seen.length === MAX_FILTERS + 16) throw over("", "there are too many parameters");
    seen.push(name);
    if (CONTROLS.includes(name)) control(q, s, name, value);
    else filter(q, s, name, value);
  }
  if (q.cursor !== "" && q.offset > 0) {
    throw new Fault("invalid_cursor", "cursor and offset cannot stand together", { param: "offset", fix: "leave out offset: the cursor says where to go on" });
  }
  const by = (f: Filter): string => s.columns[f.col]!.name;
  q.filters.sort((a, b) => (by(a) < by(b) ? -1 : by(a) > by(b) ? 1 : OPS.indexOf(a.op) - OPS.indexOf(b.op)));
  return q;
}

function param(piece: string): { name: string; value: string } {
  const i = piece.indexOf("=");
  const n = unescape(i < 0 ? piece : piece.slice(0, i)), v = unescape(i < 0 ? "" : piece.slice(i + 1));
  if (n === undefined || v === undefined || v.includes("\0")) {
    throw badValue(short(n ?? ""), `${quoted(short(piece))} is not URL-encoded UTF-8`, "encode it as application/x-www-form-urlencoded");
  }
  if (i < 0) throw badValue(short(n), `${quoted(short(n))} has no value`, `write ${short(n)}=value`);
  return { name: n, value: v };
}

/** badCursor is a cursor that cannot be used. */
export const badCursor = (why: string): Fault => new Fault("invalid_cursor", "the cursor cannot be used: " + why,
  { param: "cursor", fix: "take meta.next of the page before as it is, or begin without a cursor" });

function control(q: Query, s: Schema, name: string, value: string): void {
  const oneOf = (...of: readonly string[]): Fault => badValue(name, `${name} takes ${of.join(" or ")}, not ${quoted(short(value))}`, `write ${name}=${of[0]}`);
  switch (name) {
    case "limit": q.limit = number(name, value, 1, MAX_LIMIT); break;
    case "offset": q.offset = number(name, value, 0, s.maxOffset); break;
    case "cursor":
      if (value === "") throw badCursor("it is empty");
      q.cursor = value;
      break;
    case "sort": sort(q, s, value); break;
    case "select": q.select = choose(s, value); break;
    case "q": q.words = search(value); break;
    case "count":
      if (value !== "exact" && value !== "none") throw oneOf("exact", "none");
      q.count = value === "exact";
      break;
    case "format": {
      const f = FORMATS.find((x) => x === value);
      if (!f) throw oneOf(...FORMATS);
      q.format = f;
      break;
    }
    case "version":
      if (!isVersion(value)) throw badValue(name, `${quoted(short(value))} is not a version`, "use meta.version of an answer, 16 hex digits");
      q.version = value;
  }
}

/** isVersion is the form of a data version. */
export const isVersion = (s: string): boolean => /^[0-9a-f]{16}$/.test(s);

/** number reads a whole number as its canonical spelling. */
export function number(name: string, value: string, lo: number, hi: number): number {
  const n = /^(0|-?[1-9][0-9]{0,18})$/.test(value) ? Number(value) : NaN;
  if (Number.isNaN(n) || BigInt.asIntN(64, BigInt(value)) !== BigInt(value)) throw badValue(name, `${name} takes a whole number, not ${quoted(short(value))}`, `give ${lo} to ${hi}`);
  if (n < lo || n > hi) throw new Fault("over_limit", `${name} is ${value}, possible is ${lo} to ${hi}`, { param: name, fix: `give ${lo} to ${hi}` });
  return n;
}

function wanted(s: Schema, name: string, of: string): number {
  const c = column(s, name);
  if (c >= 0) return c;
  throw new Fault("unknown_column", `${of}: there is no column ${quoted(short(name))}`, { param: of, fix: `did you mean ${nearest(s, name).best}? All columns are in /v1/schema` });
}

function sort(q: Query, s: Schema, value: string): void {
  for (const key of value.split(",")) {
    const desc = key.startsWith("-"), name = desc ? key.slice(1) : key;
    const col = wanted(s, name, "sort");
    if (q.sort.some((k) => k.col === col)) throw badValue("sort", `sort names ${name} twice`, "name each column once");
    if (q.sort.length === MAX_SORT) throw over("sort", `sort takes at most ${MAX_SORT} columns`);
    q.sort.push({ col, desc });
  }
}

function choose(s: Schema, value: string): number[] {
  const cols: number[] = [];
  for (const name of value.split(",")) {
    const c = wanted(s, name, "select");
    if (cols.includes(c)) throw badValue("select", `select names ${name} twice`, "name each column once");
    cols.push(c);
  }
  return cols;
}

function search(value: string): Word[] {
  const size = encode(value).length;
  if (size > MAX_PATTERN) throw over("q", `q has ${size} bytes, at most ${MAX_PATTERN} are possible`);
  const list = searchWords(value);
  if (list.length === 0) throw badValue("q", "q contains no word", "give at least one letter or digit");
  if (list.length > MAX_WORDS) throw over("q", `q has ${list.length} words, at most ${MAX_WORDS} are possible`);
  return list;
}

function filter(q: Query, s: Schema, name: string, value: string): void {
  let col = name, op: Op = "eq", behind = "";
  const i = name.lastIndexOf("__");
  if (i > 0) {
    col = name.slice(0, i);
    behind = name.slice(i);
    const known = OPS.slice(1).find((o) => o === name.slice(i + 2));
    if (!known) {
      if (column(s, col) < 0) throw unknown(s, name, col, behind);
      throw new Fault("unknown_operator", `there is no operator ${quoted(short(name.slice(i + 2)))}`, { param: name, fix: `use one of ${OPS.slice(1).join(", ")}; ${col}=value is equality` });
    }
    op = known;
  }
  const c = column(s, col);
  if (c < 0) throw unknown(s, name, col, behind);
  if (q.filters.length === MAX_FILTERS) throw over(name, `there are more than ${MAX_FILTERS} filters`);
  q.filters.push({ col: c, op, args: args(s.columns[c]!, name, op, value) });
}

function unknown(s: Schema, name: string, col: string, op: string): Fault {
  let { best, dist } = nearest(s, col), kind = "column";
  if (op === "") {
    for (const c of CONTROLS) {
      const d = edits(col, c);
      if (d < dist) [best, dist, kind] = [c, d, "parameter"];
    }
  }
  return new Fault("unknown_parameter", `there is no column or parameter ${quoted(short(name))}`, { param: short(name), fix: `did you mean the ${kind} ${best + short(op)}? All columns are in /v1/schema` });
}

function args(c: Column, name: string, op: Op, value: string): Value[] {
  const bad = (why: string, fix: string): Fault => badValue(name, name + " " + why, fix);
  switch (op) {
    case "null":
      if (value !== "true" && value !== "false") throw bad("takes true or false", `write ${name}=true`);
      return [value === "true" ? 1 : 0];
    case "in": case "nin": return parseList(c, name, value);
    case "prefix": case "contains": {
      if (c.type !== "text") throw bad(`needs a text column, ${c.name} is ${c.type}`, "use gte and lt for ranges");
      const size = encode(value).length;
      if (size === 0 || size > MAX_PATTERN) throw over(name, `${name} takes 1 to ${MAX_PATTERN} bytes, not ${size}`);
      break;
    }
    case "gt": case "gte": case "lt": case "lte":
      if (c.type === "bool") throw bad("cannot order true and false", `write ${c.name}=true`);
  }
  return [parseValue(c, name, value)];
}

/** nearest is the column whose name takes the fewest edits to get to from name. */
function nearest(s: Schema, name: string): { best: string; dist: number } {
  let best = "", dist = 1 << 30;
  for (const c of s.columns) {
    const d = edits(name, c.name);
    if (d < dist) [best, dist] = [c.name, d];
  }
  return { best, dist };
}

// edits is the Levenshtein distance; a transposition of neighbours counts as one. Strings are cut to 64 bytes.
function edits(x: string, y: string): number {
  const a = encode(new TextDecoder().decode(encode(x).subarray(0, 64)).toLowerCase()), b = encode(y).subarray(0, 64);
  const rows = [0, 1, 2].map(() => new Uint32Array(b.length + 1));
  for (let j = 0; j <= b.length; j++) rows[0]![j] = j;
  for (let i = 1; i <= a.length; i++) {
    const cur = rows[i % 3]!, prev = rows[(i + 2) % 3]!, before = rows[(i + 1) % 3]!;
    cur[0] = i;
    for (let j = 1; j <= b.length; j++) {
      cur[j] = Math.min(prev[j]! + 1, cur[j - 1]! + 1, prev[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1));
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) cur[j] = Math.min(cur[j]!, before[j - 2]! + 1);
    }
  }
  return rows[a.length % 3]![b.length]!;
}

/** escape percent-encodes what is not plain in the value of a parameter. */
export function escape(s: string): string {
  if (/^[A-Za-z0-9\-._~:,]*$/.test(s)) return s;
  let out = "";
  for (const c of encode(s)) {
    const ch = String.fromCharCode(c);
    out += /[A-Za-z0-9\-._~:,]/.test(ch) ? ch : ch === " " ? "+" : "%" + c.toString(16).toUpperCase().padStart(2, "0");
  }
  return out;
}

/** question is what decides which rows an answer has and in what order, in canonical form. */
export function question(q: Query, s: Schema): string {
  let b = "";
  for (const f of q.filters) {
    const c = s.columns[f.col]!;
    const value = f.op === "null" ? (f.args[0] === 1 ? "true" : "false")
      : f.op === "in" || f.op === "nin" ? escape(`[${f.args.map((v) => json(v, c.type)).join(",")}]`) : escape(plain(f.args[0]!, c.type));
    b += `${c.name}${f.op === "eq" ? "" : "__" + f.op}=${value}&`;
  }
  if (q.words.length > 0) b += `q=${q.words.map((w) => escape(w.text) + (w.prefix ? "*" : "")).join("+")}&`;
  if (q.select) b += `select=${q.select.map((c) => s.columns[c]!.name).join(",")}&`;
  if (q.sort.length > 0) b += `sort=${q.sort.map((k) => (k.desc ? "-" : "") + s.columns[k.col]!.name).join(",")}&`;
  return b;
}

/** canonical is equal for equal questions. Without place it leaves out where in the rows to begin, for the next page's address. */
export function canonical(q: Query, s: Schema, place: boolean): string {
  let b = question(q, s);
  if (q.count) b += "count=exact&";
  if (place && q.cursor !== "") b += `cursor=${escape(q.cursor)}&`;
  if (q.format !== "json") b += `format=${q.format}&`;
  if (q.limit !== DEFAULT_LIMIT) b += `limit=${q.limit}&`;
  if (place && q.offset > 0) b += `offset=${q.offset}&`;
  if (q.version !== "") b += `version=${q.version}&`;
  return b.slice(0, -1);
}

/** single refuses what makes no sense for one record. */
export function single(q: Query): void {
  if (q.filters.length + q.words.length + q.sort.length + q.offset > 0 || q.cursor !== "" || q.count || q.format !== "json" || q.limit !== DEFAULT_LIMIT) {
    throw new Fault("unknown_parameter", "a single record takes only select and version", { fix: "ask /v1/records for lists" });
  }
}

/** Place is where a page begins: behind a row (from 1) whose values of the sort columns are keys, or at an offset. */
export interface Place { row: number; keys: Array<Value | null>; offset: number }

export interface Statement { sql: string; args: Value[] }

/** select compiles q for the tables of a dataset. It asks for one row more than the limit, which tells whether there is a next page; the first column is _row. */
export function select(q: Query, s: Schema, at: Place): Statement {
  const w = where(q, s, at);
  const cols = (q.select ?? s.columns.map((_, i) => i)).map((c) => ", " + s.columns[c]!.name).join("");
  const desc = q.sort.at(-1)?.desc ?? false;
  const order = q.sort.map((k) => `${s.columns[k.col]!.name}${k.desc ? " DESC" : ""}, `).join("") + `_row${desc ? " DESC" : ""}`;
  return { sql: `SELECT _row${cols} FROM records${w.sql} ORDER BY ${order} LIMIT ${q.limit + 1}${at.row === 0 && at.offset > 0 ? ` OFFSET ${at.offset}` : ""}`, args: w.args };
}

/** count compiles count=exact; with a cap no more than that many rows are counted, and one. */
export function count(q: Query, s: Schema, cap = 0): Statement {
  const w = where(q, s, { row: 0, keys: [], offset: 0 });
  return { sql: cap > 0 ? `SELECT count(*) FROM (SELECT 1 FROM records${w.sql} LIMIT ${cap + 1})` : `SELECT count(*) FROM records${w.sql}`, args: w.args };
}

function where(q: Query, s: Schema, at: Place): Statement {
  const conds: string[] = [], bound: Value[] = [];
  const cond = (text: string, ...v: Value[]): void => {
    conds.push(text);
    bound.push(...v);
  };
  for (const f of q.filters) condition(f, s.columns[f.col]!, cond);
  if (q.words.length > 0) cond("_row IN (SELECT rowid FROM fts WHERE fts MATCH ?)", q.words.map((w) => `"${w.text}"${w.prefix ? "*" : ""}`).join(" "));
  if (at.row > 0) behind(q, s, at, cond);
  return { sql: conds.length > 0 ? " WHERE " + conds.join(" AND ") : "", args: bound };
}

const SIGNS: Partial<Record<Op, string>> = { eq: "=", ne: "<>", gt: ">", gte: ">=", lt: "<", lte: "<=" };

// listed writes the list of in and nin; a float without a point would be compared as an integer, exactly, with a rounded double.
function listed(list: Value[], t: Type): string {
  return `[${list.map((v) => {
    const text = json(v, t === "bool" ? "int" : t);
    return t === "bool" ? (v === 1 ? "true" : "false") : t === "float" && !/[.e]/.test(text) ? text + ".0" : text;
  }).join(",")}]`;
}

function condition(f: Filter, c: Column, cond: (text: string, ...v: Value[]) => void): void {
  const n = c.name, arg = f.args[0]!;
  switch (f.op) {
    case "null": return cond(`${n} IS ${arg === 1 ? "" : "NOT "}NULL`);
    case "in": return cond(`${n} IN (SELECT value FROM json_each(?))`, listed(f.args, c.type));
    case "nin": return cond(`(${n} IS NOT NULL AND ${n} NOT IN (SELECT value FROM json_each(?)))`, listed(f.args, c.type));
    case "prefix": {
      const end = after(String(arg));
      return end !== "" ? cond(`(${n} >= ? AND ${n} < ?)`, arg, end) : cond(`${n} >= ?`, arg);
    }
    case "contains": return cond(`instr(${n}, ?) > 0`, arg);
  }
  cond(`${n} ${SIGNS[f.op]} ?`, arg);
}

// behind adds the condition of a cursor: everything after a row in the order of the sort keys, null being smallest, then of the row number.
function behind(q: Query, s: Schema, at: Place, cond: (text: string, ...v: Value[]) => void): void {
  const alts: string[] = [], bound: Value[] = [], sameArgs: Value[] = [];
  let same = "", desc = false;
  q.sort.forEach((k, i) => {
    const c = s.columns[k.col]!, n = c.name, v = at.keys[i] ?? null;
    desc = k.desc;
    if (!desc) {
      alts.push(same + n + (v === null ? " IS NOT NULL" : " > ?"));
      bound.push(...sameArgs, ...(v === null ? [] : [v]));
    } else if (v !== null) {
      alts.push(same + (c.nullable ? `(${n} < ? OR ${n} IS NULL)` : `${n} < ?`));
      bound.push(...sameArgs, v);
    }
    same += n + (v === null ? " IS NULL AND " : " = ? AND ");
    if (v !== null) sameArgs.push(v);
  });
  alts.push(`${same}_row ${desc ? "<" : ">"} ?`);
  bound.push(...sameArgs, at.row);
  cond(alts.length === 1 ? alts[0]! : `(${alts.join(" OR ")})`, ...bound);
}

/** after is the first string above all that begin with s; "" if there is none. */
export function after(s: string): string {
  const chars = [...s];
  for (; chars.length > 0; ) {
    let c = chars.pop()!.codePointAt(0)! + 1;
    if (c === 0xd800) c = 0xe000;
    if (c <= 0x10ffff) return chars.join("") + String.fromCodePoint(c);
  }
  return "";
}

