// Hashes, hexadecimal and base64. SHA-256 is written out because WebCrypto's is
// asynchronous, and the most frequent answer of all needs one HMAC.

const K = new Uint32Array(64);
const H0 = new Uint32Array(8);
{
  // The fractional parts of roots of the first primes (FIPS 180-4, 4.2.2): a
  // double has 47 bits of them and more, of which 32 are wanted.
  const fraction = (root: number): number => ((root - Math.floor(root)) * 2 ** 32) >>> 0;
  let n = 0;
  for (let p = 2; n < 64; p++) {
    let prime = true;
    for (let d = 2; d * d <= p; d++) if (p % d === 0) prime = false;
    if (!prime) continue;
    if (n < 8) H0[n] = fraction(Math.sqrt(p));
    K[n++] = fraction(Math.cbrt(p));
  }
}

const W = new Uint32Array(64);

function compress(h: Uint32Array, b: Uint8Array, at: number): void {
  for (let i = 0; i < 16; i++, at += 4) W[i] = (b[at]! << 24) | (b[at + 1]! << 16) | (b[at + 2]! << 8) | b[at + 3]!;
  for (let i = 16; i < 64; i++) {
    const x = W[i - 15]!, y = W[i - 2]!;
    W[i] = W[i - 16]! + W[i - 7]! + (((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3)) +
      (((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10));
  }
  let [a, c1, c2, c3, e, f, g, hh] = h as unknown as [number, number, number, number, number, number, number, number];
  let bb = c1, cc = c2, d = c3;
  for (let i = 0; i < 64; i++) {
    const t1 = (hh + (((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7))) + ((e & f) ^ (~e & g)) + K[i]! + W[i]!) | 0;
    const t2 = ((((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10))) + ((a & bb) ^ (a & cc) ^ (bb & cc))) | 0;
    hh = g; g = f; f = e; e = (d + t1) | 0; d = cc; cc = bb; bb = a; a = (t1 + t2) | 0;
  }
  h[0]! += a; h[1]! += bb; h[2]! += cc; h[3]! += d; h[4]! += e; h[5]! += f; h[6]! += g; h[7]! += hh;
}

// finish hashes data behind `before` bytes that are in h already.
function finish(h: Uint32Array, data: Uint8Array, before: number): Uint8Array {
  const whole = data.length & ~63;
  for (let i = 0; i < whole; i += 64) compress(h, data, i);
  const rest = data.length - whole;
  const tail = new Uint8Array(rest < 56 ? 64 : 128);
  tail.set(data.subarray(whole));
  tail[rest] = 0x80;
  const bits = (before + data.length) * 8;
  const view = new DataView(tail.buffer);
  view.setUint32(tail.length - 8, Math.floor(bits / 2 ** 32));
  view.setUint32(tail.length - 4, bits >>> 0);
  for (let i = 0; i < tail.length; i += 64) compress(h, tail, i);
  const out = new Uint8Array(32), o = new DataView(out.buffer);
  for (let i = 0; i < 8; i++) o.setUint32(4 * i, h[i]!);
  return out;
}

/** sha256 hashes little data; large bodies go to WebCrypto. */
export function sha256(data: Uint8Array): Uint8Array {
  return finish(H0.slice(), data, 0);
}

/** Hmac is HMAC-SHA-256 (RFC 2104) under one key, with both pads hashed beforehand. */
export class Hmac {
  readonly #inner = H0.slice();
  readonly #outer = H0.slice();
  constructor(key: Uint8Array) {
    const k = key.length > 64 ? sha256(key) : key;
    const pad = new Uint8Array(64);
    for (let i = 0; i < 64; i++) pad[i] = (k[i] ?? 0) ^ 0x36;
    compress(this.#inner, pad, 0);
    for (let i = 0; i < 64; i++) pad[i] = (k[i] ?? 0) ^ 0x5c;
    compress(this.#outer, pad, 0);
  }
  sum(data: Uint8Array): Uint8Array {
    return finish(this.#outer.slice(), finish(this.#inner.slice(), data, 64), 64);
  }
}

const utf8 = new TextEncoder();

/** encode is s in UTF-8. */
export const encode = (s: string): Uint8Array => utf8.encode(s);

/** concat joins pieces. */
export function concat(...parts: Uint8Array[]): Uint8Array {
  const out = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const p of parts) {
    out.set(p, at);
    at += p.length;
  }
  return out;
}

const DIGITS = "0123456789abcdef";

/** hex writes bytes in lower case. */
export function hex(b: Uint8Array): string {
  let s = "";
  for (let i = 0; i < b.length; i++) s += DIGITS[b[i]! >> 4]! + DIGITS[b[i]! & 15]!;
  return s;
}

/** unhex reads what hex wrote, in any case; undefined if it is not that. */
export function unhex(s: string): Uint8Array | undefined {
  if (s.length % 2 !== 0 || !/^[0-9a-fA-F]*$/.test(s)) return undefined;
  const b = new Uint8Array(s.length / 2);
  for (let i = 0; i < b.length; i++) b[i] = parseInt(s.slice(2 * i, 2 * i + 2), 16);
  return b;
}

/** hashHex is SHA-256 in hexadecimal, of bodies of any size. */
export async function hashHex(b: Uint8Array | ArrayBuffer): Promise<string> {
  return hex(new Uint8Array(await crypto.subtle.digest("SHA-256", b)));
}

/** binary is bytes as a string with a character for each, which is what btoa takes. */
export function binary(b: Uint8Array): string {
  let s = "";
  for (let i = 0; i < b.length; i += 8192) s += String.fromCharCode(...b.subarray(i, i + 8192));
  return s;
}

/** unbase64 reads base64 of the standard alphabet, padded and canonical: what is signed and replayed must have one spelling. */
export function unbase64(s: string): Uint8Array | undefined {
  if (s.length % 4 !== 0 || !/^[A-Za-z0-9+/]*={0,2}$/.test(s)) return undefined;
  const raw = atob(s);
  if (btoa(raw) !== s) return undefined;
  const b = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) b[i] = raw.charCodeAt(i);
  return b;
}

/** base64url writes bytes url-safe and unpadded. */
export function base64url(b: Uint8Array): string {
  return btoa(binary(b)).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
}

/** unbase64url reads what base64url wrote. strict refuses bits that mean nothing, as Go's Strict does. */
export function unbase64url(s: string, strict: boolean): Uint8Array | undefined {
  if (s.length % 4 === 1 || !/^[A-Za-z0-9_-]*$/.test(s)) return undefined;
  const raw = atob(s.replace(/-/g, "+").replace(/_/g, "/"));
  const b = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) b[i] = raw.charCodeAt(i);
  return strict && base64url(b) !== s ? undefined : b;
}

/** same compares strings in a time that depends on their lengths alone. */
export function same(a: string, b: string): boolean {
  if (a.length !== b.length) return false;
  let d = 0;
  for (let i = 0; i < a.length; i++) d |= a.charCodeAt(i) ^ b.charCodeAt(i);
  return d === 0;
}
