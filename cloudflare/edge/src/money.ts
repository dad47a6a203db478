// Amounts: micro-USD for prices and caps, the token's atomic units for payments.

/** decimal reads US dollars, a decimal string or a plain number, as µUSD; 0 for what is none. */
export function decimal(v: unknown): number {
  const m = /^([0-9]{1,9})(?:\.([0-9]{1,6}))?$/.exec(typeof v === "number" ? String(v) : typeof v === "string" ? v : "");
  return m ? Number(m[1]) * 1e6 + Number((m[2] ?? "").padEnd(6, "0")) : 0;
}

/** dollars writes µUSD as clawr.Amount does: no more places than it needs. */
export function dollars(micros: number): string {
  const whole = Math.floor(micros / 1e6), rest = String(micros % 1e6).padStart(6, "0").replace(/0+$/, "");
  return rest === "" ? String(whole) : `${whole}.${rest}`;
}

/** atomic is an amount in the smallest units of a token; undefined if that is no whole positive number below 2^63. */
export function atomic(micros: number, decimals: number): bigint | undefined {
  let n = BigInt(micros);
  if (decimals >= 6) n *= 10n ** BigInt(decimals - 6);
  else {
    const per = 10n ** BigInt(6 - decimals);
    if (n % per !== 0n) return undefined;
    n /= per;
  }
  return n > 0n && n < 2n ** 63n ? n : undefined;
}
