// Values of columns, as SQLite stores them: dataset/value.go and infer.go.
// bools are 1 and 0, dates and datetimes text that orders as time does.
import { encode } from "./bytes";
import { Fault } from "./errors";

export type Type = "text" | "bool" | "int" | "float" | "date" | "datetime";
export type Value = string | number;

export interface Column { name: string; type: Type; nullable: boolean; indexed: boolean; fraction?: number }

const MAX_INT = Number.MAX_SAFE_INTEGER;
const NUMBER = /^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$/;

/** short cuts a stranger's value for a message, at 40 bytes. */
export function short(s: string): string {
  const b = encode(s);
  if (b.length <= 40) return s;
  let n = 40;
  while (n > 0 && (b[n]! & 0xc0) === 0x80) n--;
  return new TextDecoder().decode(b.subarray(0, n)) + "…";
}

/** quoted is s as Go's %q writes what is plain. */
export const quoted = (s: string): string => JSON.stringify(s);

/** badValue is a parameter that cannot be used. */
export const badValue = (param: string, message: string, fix: string): Fault => new Fault("invalid_value", message, { param, fix });

/** over is a limit of the grammar. */
export const over = (param: string, message: string): Fault => new Fault("over_limit", message, { param, fix: "ask for less" });

/** parseValue reads a filter's value as its column's type wants it. */
export function parseValue(c: Column, param: string, s: string): Value {
  const bad = (want: string): Fault => badValue(param, `${param} takes ${want}, not ${quoted(short(s))}`, `column ${c.name} is ${c.type}; see /v1/schema`);
  switch (c.type) {
    case "bool":
      if (s !== "true" && s !== "false") throw bad("true or false");
      return s === "true" ? 1 : 0;
    case "int": case "float": {
      if (!NUMBER.test(s)) throw bad("a number");
      const n = Number(s);
      if (!Number.isFinite(n)) throw bad("a number that a double can hold");
      return n === 0 ? 0 : n;
    }
    case "date":
      if (days(s) === undefined) throw bad("a date such as 2024-01-31");
      return s;
    case "datetime": {
      const day = days(s), fraction = c.fraction ?? 0;
      if (day !== undefined) return datetime(day * 86400, 0, fraction)!;
      const t = moment(s);
      if (!t) throw bad("a time such as 2024-01-31T12:00:00Z, or a date");
      const v = datetime(t.sec, t.nanos, fraction);
      if (v === undefined) throw bad(`a time with at most ${fraction} decimals`);
      return v;
    }
  }
  return s;
}

const LENGTHS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

// days counts days since 1970-01-01; undefined if s is no date.
function days(s: string): number | undefined {
  const m = /^([0-9]{4})-([0-9]{2})-([0-9]{2})$/.exec(s);
  if (!m) return undefined;
  const y = Number(m[1]), mo = Number(m[2]), d = Number(m[3]);
  const leap = y % 4 === 0 && (y % 100 !== 0 || y % 400 === 0);
  if (mo < 1 || mo > 12 || d < 1 || d > LENGTHS[mo - 1]! + (mo === 2 && leap ? 1 : 0)) return undefined;
  const t = new Date(0);
  t.setUTCFullYear(y, mo - 1, d);
  return t.getTime() / 86_400_000;
}

// moment reads RFC 3339 as seconds since 1970 and nanoseconds.
function moment(s: string): { sec: number; nanos: number } | undefined {
  const m = /^([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,9}))?(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))$/.exec(s);
  const day = m ? days(m[1]!) : undefined;
  if (!m || day === undefined) return undefined;
  const h = Number(m[2]), mi = Number(m[3]), se = Number(m[4]), oh = Number(m[7] ?? 0), om = Number(m[8] ?? 0);
  if (h > 23 || mi > 59 || se > 59 || oh > 23 || om > 59) return undefined;
  const sec = day * 86400 + h * 3600 + mi * 60 + se - (m[6] === "-" ? -1 : 1) * (oh * 3600 + om * 60);
  if (sec < -62167219200 || sec > 253402300799) return undefined;
  return { sec, nanos: Number((m[5] ?? "").padEnd(9, "0")) };
}

// datetime writes a moment in UTC with a fixed number of decimals; undefined if it has more.
function datetime(sec: number, nanos: number, decimals: number): string | undefined {
  if (nanos % 10 ** (9 - decimals) !== 0) return undefined;
  // 19 digits of ticks are what fits 63 bits natively.
  if (decimals === 9 && (sec > 9223372035 || sec < -9223372035)) return undefined;
  const iso = new Date(sec * 1000).toISOString().replace(/^[+-]00/, "").slice(0, 19);
  return iso + (decimals > 0 ? "." + String(nanos).padStart(9, "0").slice(0, decimals) : "") + "Z";
}

/** whole reports whether a value of an int column is an int, and not a number to compare with. */
export const whole = (v: Value): boolean => typeof v === "number" && Number.isInteger(v) && Math.abs(v) <= MAX_INT;

/** json writes a value of a column. */
export function json(v: Value | null, t: Type): string {
  if (v === null) return "null";
  if (t === "bool") return v === 1 ? "true" : "false";
  return typeof v === "number" ? String(v) : JSON.stringify(v);
}

/** plain writes a value as that of a parameter, before escaping. */
export const plain = (v: Value, t: Type): string => (t === "bool" ? (v === 1 ? "true" : "false") : String(v));

/** compareText orders by code points, which is the order of UTF-8's bytes. */
export function compareText(a: string, b: string): number {
  const n = Math.min(a.length, b.length);
  for (let i = 0; i < n; i++) {
    const x = a.charCodeAt(i), y = b.charCodeAt(i);
    if (x === y) continue;
    const sx = x >= 0xd800 && x <= 0xdfff, sy = y >= 0xd800 && y <= 0xdfff;
    return sx === sy ? x - y : sx ? 1 : -1;
  }
  return a.length - b.length;
}

/** compare orders values of one column; null is smallest. */
export function compare(a: Value | null, b: Value | null): number {
  if (a === null || b === null) return a === b ? 0 : a === null ? -1 : 1;
  if (typeof a === "number" && typeof b === "number") return a - b;
  return compareText(String(a), String(b));
}

/** parseList reads the value of in and nin: items between commas, or a JSON array. They are put in order and doubled ones dropped. */
export function parseList(c: Column, param: string, s: string): Value[] {
  const items = s.startsWith("[") ? arrayItems(c, param, s) : s.split(",");
  if (items.length > 100) throw over(param, `${param} has ${items.length} items, at most 100 are possible`);
  const list = items.map((it) => parseValue(c, param, it)).sort(compare);
  return list.filter((v, i) => i === 0 || compare(v, list[i - 1]!) !== 0);
}

function arrayItems(c: Column, param: string, s: string): string[] {
  const bad = (why: string): Fault => badValue(param, `${param}: ${why}`, 'write a,b,c or a JSON array such as ["a","b"]');
  let raw: unknown;
  try {
    raw = JSON.parse(s);
  } catch {
    throw bad(`${quoted(short(s))} is not a JSON array`);
  }
  if (!Array.isArray(raw)) throw bad(`${quoted(short(s))} is not a JSON array`);
  // Numbers are taken as they are written: what JSON.parse makes of them is a double already.
  const written = raw.some((v) => typeof v === "number") ? numbers(s) : [];
  return raw.map((v: unknown, i) => {
    switch (typeof v) {
      case "string":
        if (c.type !== "text" && c.type !== "date" && c.type !== "datetime") throw bad(`element ${i + 1} is a string, the column is ${c.type}`);
        return v;
      case "number":
        if (c.type !== "int" && c.type !== "float") throw bad(`element ${i + 1} is a number, the column is ${c.type}`);
        return written[i] ?? String(v);
      case "boolean":
        if (c.type !== "bool") throw bad(`element ${i + 1} is a bool, the column is ${c.type}`);
        return String(v);
    }
    throw bad(`element ${i + 1} is not a value`);
  });
}

// numbers gives the text of each element of a JSON array of plain values.
function numbers(s: string): string[] {
  return [...s.matchAll(/"(?:[^"\\]|\\.)*"|[^\s,[\]"]+/g)].map((m) => m[0]);
}
