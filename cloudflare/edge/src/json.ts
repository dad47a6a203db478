// JSON from strangers, read as strictly as x402/json.go does: valid UTF-8, one
// value, at most 64 levels, and no member twice in what is taken apart.

export type Json = null | boolean | number | string | Json[] | JsonObject;
export interface JsonObject { [name: string]: Json }

/** The bounds on what is read. */
const MAX_DEPTH = 64;
const MAX_MEMBERS = 64;

/** doubled are the objects that have a member twice: which of the two counts is where parsers differ. */
const doubled = new WeakMap<object, string>();

class Syntax extends Error {
  constructor(at: number, why: string) {
    super(`${why} at byte ${at}`);
  }
}

/** parse reads exactly one value from bytes; it throws what is wrong. */
export function parse(bytes: Uint8Array): Json {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw new Syntax(0, "invalid UTF-8");
  }
  const p = new Parser(text);
  p.space();
  const v = p.value(MAX_DEPTH);
  p.space();
  if (p.at !== text.length) throw new Syntax(p.at, "unexpected data after the value");
  return v;
}

const NUMBER = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y;
// eslint-disable-next-line no-control-regex
const STRING = /"(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"/y;

class Parser {
  at = 0;
  constructor(readonly text: string) {}

  space(): void {
    while (" \t\n\r".includes(this.text[this.at] ?? "x")) this.at++;
  }

  value(levels: number): Json {
    const c = this.text[this.at];
    switch (c) {
      case undefined: throw new Syntax(this.at, "unexpected end");
      case '"': return this.string();
      case "{": case "[":
        if (levels === 0) throw new Syntax(this.at, "nested too deeply");
        return c === "{" ? this.object(levels - 1) : this.array(levels - 1);
    }
    for (const [word, v] of [["true", true], ["false", false], ["null", null]] as const) {
      if (this.text.startsWith(word, this.at)) {
        this.at += word.length;
        return v;
      }
    }
    if (c !== "-" && !(c >= "0" && c <= "9")) throw new Syntax(this.at, "unexpected character");
    NUMBER.lastIndex = this.at;
    const m = NUMBER.exec(this.text);
    if (!m) throw new Syntax(this.at, "a bad number");
    this.at = NUMBER.lastIndex;
    return Number(m[0]);
  }

  string(): string {
    STRING.lastIndex = this.at;
    const m = STRING.exec(this.text);
    if (!m) throw new Syntax(this.at, "a bad string");
    this.at = STRING.lastIndex;
    return m[0].includes("\\") ? (JSON.parse(m[0]) as string).toWellFormed() : m[0].slice(1, -1);
  }

  object(levels: number): JsonObject {
    const o: JsonObject = Object.create(null) as JsonObject;
    this.at++;
    this.space();
    if (this.text[this.at] === "}") return this.at++, o;
    for (;;) {
      if (this.text[this.at] !== '"') throw new Syntax(this.at, "a member's name is missing");
      const name = this.string();
      this.space();
      if (this.text[this.at] !== ":") throw new Syntax(this.at, "a colon is missing");
      this.at++;
      this.space();
      if (name in o) doubled.set(o, name);
      o[name] = this.value(levels);
      if (!this.more("}")) return o;
    }
  }

  array(levels: number): Json[] {
    const a: Json[] = [];
    this.at++;
    this.space();
    if (this.text[this.at] === "]") return this.at++, a;
    for (;;) {
      a.push(this.value(levels));
      if (!this.more("]")) return a;
    }
  }

  more(end: string): boolean {
    this.space();
    const c = this.text[this.at++];
    if (c === end) return false;
    if (c !== ",") throw new Syntax(this.at - 1, "a comma or the closing bracket is missing");
    this.space();
    return true;
  }
}

/** isObject is for values that are JSON objects. */
export function isObject(v: Json | undefined): v is JsonObject {
  return typeof v === "object" && v !== null && !Array.isArray(v);
}

/** Fields takes the members of an object out one by one and remembers the first thing that was wrong. */
export class Fields {
  readonly left: Map<string, Json>;
  wrong = "";
  constructor(readonly of: string, v: Json | undefined) {
    this.left = new Map(isObject(v) ? Object.entries(v) : []);
    if (!isObject(v)) this.wrong = `${of} is not an object`;
    else if (doubled.has(v)) this.wrong = `${of} has the member ${JSON.stringify(clip(doubled.get(v)!))} twice`;
    else if (this.left.size > MAX_MEMBERS) this.wrong = `${of} has more than ${MAX_MEMBERS} members`;
  }
  fail(name: string, why: string): void {
    this.wrong ||= `${this.of}: ${name} ${why}`;
  }
  /** take is a member's value and removes it; undefined if it is absent or null, which the protocol does not distinguish. */
  take(name: string): Json | undefined {
    const v = this.left.get(name);
    this.left.delete(name);
    return v ?? undefined;
  }
  optional(name: string): string {
    const v = this.take(name);
    if (v === undefined) return "";
    if (typeof v === "string") return v;
    this.fail(name, "is not a string");
    return "";
  }
  required(name: string): string {
    const s = this.optional(name);
    if (s === "") this.fail(name, "is missing");
    return s;
  }
  integer(name: string): number {
    const v = this.take(name);
    if (v === undefined) this.fail(name, "is missing");
    else if (typeof v === "number" && Number.isInteger(v) && Math.abs(v) <= 2 ** 53) return v;
    else this.fail(name, "is not a whole number");
    return 0;
  }
  /** empty is a string that must be there but may be empty. */
  empty(name: string): string {
    if (typeof this.left.get(name) !== "string") this.fail(name, "is not a string");
    return this.optional(name);
  }
  /** boolean must be one: facilitators were seen to send "false", which is not false. */
  boolean(name: string): boolean {
    const v = this.take(name);
    if (v !== true && v !== false) this.fail(name, "is not true or false");
    return v === true;
  }
  /** members is an object that is kept as it is. */
  members(name: string): JsonObject | undefined {
    const v = this.take(name);
    if (v === undefined) return undefined;
    const f = new Fields("it", v);
    if (f.wrong) this.fail(name, f.wrong.slice(3));
    return isObject(v) ? v : undefined;
  }
}

/** clip shortens what a stranger wrote for a message. */
export function clip(s: string): string {
  return s.length <= 40 ? s : s.slice(0, 40) + "…";
}

/** equal compares values as the protocol does: the order of members does not matter. */
export function equal(a: Json | undefined, b: Json | undefined): boolean {
  if (Array.isArray(a)) return Array.isArray(b) && a.length === b.length && a.every((v, i) => equal(v, b[i]));
  if (!isObject(a)) return a === b;
  if (!isObject(b)) return false;
  const names = Object.keys(a);
  return names.length === Object.keys(b).length && names.every((n) => n in b && equal(a[n], b[n]));
}

/** contains reports whether got has everything that want has: objects may have more members, at any depth. */
export function contains(want: Json | undefined, got: Json | undefined): boolean {
  if (!isObject(want)) return equal(want, got);
  return isObject(got) && Object.keys(want).every((n) => n in got && contains(want[n], got[n]));
}
