// The quote: what a challenge promises, MACed, as x402/quote.go makes it, byte
// for byte and with the same keys, so that either side honours the other's.
//
//	0 key id 4 | 4 version 8 | 12 units 8 | 20 expires 8 | 28 random 16 | 44 mac 16
//
// It is a bearer credential of the answer: never logged, stored only hashed,
// and never sent to a facilitator.
import { base64url, concat, encode, Hmac, unbase64url } from "./bytes";
import { refusal } from "./errors";

export interface Quote {
  version: number; // of the tenant: its price and data are promised
  units: bigint; // the price in the token's atomic units
  expires: number; // unix seconds
}

const BODY = 44;
const SIZE = 60;
const LENGTH = 80;

interface Key { id: Uint8Array; mac: Hmac }

/** Quotes mints with the first secret and honours those of all. */
export class Quotes {
  readonly #keys: Key[];
  constructor(secrets: Uint8Array[]) {
    for (const s of secrets) if (s.length < 32) throw new Error("a quote secret has fewer than 32 bytes");
    if (secrets.length === 0) throw new Error("there is no quote secret");
    this.#keys = secrets.map((s) => {
      const mac = new Hmac(s);
      return { mac, id: mac.sum(encode("clawr quote 1")).slice(0, 4) };
    });
  }

  mint(tenant: string, q: Quote): string {
    const k = this.#keys[0]!;
    const b = new Uint8Array(SIZE), v = new DataView(b.buffer);
    b.set(k.id);
    v.setBigUint64(4, BigInt(q.version));
    v.setBigUint64(12, q.units);
    v.setBigUint64(20, BigInt(q.expires));
    crypto.getRandomValues(b.subarray(28, BODY));
    b.set(k.mac.sum(concat(b.subarray(0, BODY), encode(tenant))).subarray(0, SIZE - BODY), BODY);
    return base64url(b);
  }

  /** open checks a quote that was given for tenant; it throws quote_malformed, quote_foreign or quote_expired. */
  open(tenant: string, s: string, now: number): Quote {
    if (encode(s).length !== LENGTH) throw refusal("quote_malformed", `the quote has ${encode(s).length} characters, not ${LENGTH}`);
    const b = unbase64url(s, false);
    if (!b) throw refusal("quote_malformed", "the quote is not base64");
    const v = new DataView(b.buffer);
    for (const k of this.#keys) {
      if (!k.id.every((x, i) => x === b[i])) continue;
      const mac = k.mac.sum(concat(b.subarray(0, BODY), encode(tenant)));
      let d = 0;
      for (let i = BODY; i < SIZE; i++) d |= b[i]! ^ mac[i - BODY]!;
      if (d !== 0) break;
      const q = { version: Number(v.getBigUint64(4)), units: v.getBigUint64(12), expires: Number(v.getBigUint64(20)) };
      if (now >= q.expires * 1000) throw refusal("quote_expired", `the quote ended ${Math.round(now / 1000 - q.expires)}s ago`);
      return q;
    }
    throw refusal("quote_foreign", "the quote was not made here for this API");
  }
}
