// Figures and ranking: package usage, number by number. It is exact, and its
// memory grows with the APIs, their callers and distinct latencies.
import type { Event } from "./events";

export type Window = "today" | "week" | "overall";
export const WINDOWS: readonly Window[] = ["today", "week", "overall"];

const DAY = 86_400_000;
const HOUR = 3_600_000;

/** startOf is when a window began that ends at now (ms, UTC); undefined for overall. */
export function startOf(w: Window, now: number): number | undefined {
  if (w === "overall") return undefined;
  const today = Math.floor(now / DAY) * DAY;
  return w === "week" ? today - 6 * DAY : today;
}

interface Sum {
  first: Event;
  calls: number;
  revenue: number; // µUSD
  price: number; // µUSD, over the calls
  errors: number;
  callers: Map<string, number>;
  hours: Map<number, number>;
  latencies: Map<number, number>; // µs, those above 0
}

interface DirectorySum { name: string; calls: number; revenue: number; apis: Set<string>; callers: Set<string> }

const micros = (usd: number): number => Math.round(usd * 1e6);
const bump = <K>(m: Map<K, number>, k: K): Map<K, number> => m.set(k, (m.get(k) ?? 0) + 1);

/** requestsOf is how many requests an event stands for. */
const requestsOf = (e: Event): number => (e.callerId === "*" && e.endpoint === "*" && !e.countable ? Math.max(e.units ?? 0, 1) : 1);

/** Report adds up events of one window that ends at now. Add every event once, in order of arrival. */
export class Report {
  readonly #start: number | undefined;
  readonly #apis = new Map<string, Sum>();
  readonly #directories = new Map<string, DirectorySum>();
  readonly #callers = new Set<string>();
  #received = 0;
  #considered = 0;

  constructor(readonly window: Window, readonly now: number) {
    this.#start = startOf(window, now);
  }

  add(e: Event): void {
    this.#received += requestsOf(e);
    if (!e.countable || e.timestamp > this.now || (this.#start !== undefined && e.timestamp < this.#start)) return;
    this.#considered++;
    this.#callers.add(e.callerId);
    let a = this.#apis.get(e.apiId);
    if (!a) this.#apis.set(e.apiId, (a = { first: e, calls: 0, revenue: 0, price: 0, errors: 0, callers: new Map(), hours: new Map(), latencies: new Map() }));
    const billed = micros(e.billedUsd);
    a.calls++;
    a.revenue += billed;
    a.price += micros(e.priceUsd);
    if (e.status >= 500 || e.status === 408 || e.status === 429 || e.error) a.errors++;
    bump(a.callers, e.callerId);
    bump(a.hours, Math.floor(e.timestamp / HOUR));
    const us = Math.round(e.latencyMs * 1000);
    if (us > 0) bump(a.latencies, us);
    let d = this.#directories.get(e.directory);
    if (!d) this.#directories.set(e.directory, (d = { name: e.directory, calls: 0, revenue: 0, apis: new Set(), callers: new Set() }));
    d.calls++;
    d.revenue += billed;
    d.apis.add(e.apiId);
    d.callers.add(e.callerId);
  }

  /** snapshot is what has been added so far, with the first top APIs ranked. pub leaves out what only the operator sees. */
  snapshot(top: number, pub: boolean): Record<string, unknown> {
    const apis = [...this.#apis.values()].map(figures);
    const directories = [...this.#directories.values()].map((d) => ({
      shown: { directory: d.name, calls: d.calls, revenueUsd: decimal(d.revenue, 10_000, 2), apis: d.apis.size, uniqueCallers: d.callers.size }, cents: roundDiv(d.revenue, 10_000),
    }));
    const calls = apis.reduce((n, a) => n + a.shown.calls, 0), cents = apis.reduce((n, a) => n + a.cents, 0);
    apis.sort((a, b) => b.shown.score - a.shown.score || b.shown.calls - a.shown.calls || b.cents - a.cents || a.shown.errorRatePct - b.shown.errorRatePct || compare(a.shown.endpoint, b.shown.endpoint));
    directories.sort((a, b) => b.shown.calls - a.shown.calls || b.cents - a.cents || compare(a.shown.directory, b.shown.directory));
    const time = (ms: number): string => new Date(ms).toISOString();
    return {
      window: this.window, generatedAt: time(this.now), range: { startAt: this.#start === undefined ? null : time(this.#start), endAt: time(this.now) },
      heroStats: { activeAgents: this.#callers.size, publishedApis: apis.length, directories: directories.length, calls, revenueUsd: cents / 100 },
      topApis: apis.slice(0, top).map((a, i) => ({ rank: i + 1, ...a.shown })), allApis: apis.map((a) => a.shown), directories: directories.map((d) => d.shown),
      ...(pub ? {} : { debug: { eventsReceived: this.#received, eventsConsidered: this.#considered } }),
    };
  }
}

const compare = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);

// figures rounds what was added up, and only for show: the score is computed from unrounded inputs.
function figures(a: Sum) {
  const unique = a.callers.size, topCaller = Math.max(0, ...a.callers.values()), maxHour = Math.max(0, ...a.hours.values());
  const { avg, p95 } = latency(a.latencies);
  return {
    cents: roundDiv(a.revenue, 10_000),
    shown: {
      apiId: a.first.apiId, ...(a.first.tenantId ? { tenantId: a.first.tenantId } : {}), endpoint: a.first.endpoint, owner: a.first.owner, directory: a.first.directory,
      priceUsd: decimal(a.price, 10 * a.calls, 5), calls: a.calls, revenueUsd: decimal(a.revenue, 10_000, 2), uniqueCallers: unique, avgLatencyMs: avg, p95LatencyMs: roundDiv(p95, 1000),
      errors: a.errors, errorRatePct: decimal(10_000 * a.errors, a.calls, 2), uptimePct: decimal(10_000 * (a.calls - a.errors), a.calls, 2),
      topCallerShare: decimal(10_000 * topCaller, a.calls, 4), maxHourShare: decimal(10_000 * maxHour, a.calls, 4), diversityRatio: decimal(10_000 * unique, a.calls, 4),
      score: score({
        calls: a.calls, revenueUsd: a.revenue / 1e6, uniqueCallers: unique, errorRatePct: (100 * a.errors) / a.calls, topCallerShare: topCaller / a.calls, maxHourShare: maxHour / a.calls, p95LatencyMs: p95 / 1000,
      }),
    },
  };
}

/** score is product.md's formula, rounded half up to 2 places. */
export function score(i: { calls: number; revenueUsd: number; uniqueCallers: number; errorRatePct: number; topCallerShare: number; maxHourShare: number; p95LatencyMs: number }): number {
  const clamp = (x: number, most: number): number => Math.min(Math.max(x, 0), most);
  const diversity = i.calls > 0 ? i.uniqueCallers / i.calls : 0;
  const s = 40 * Math.log10(i.calls + 1) + 25 * Math.log10(100 * i.revenueUsd + 1) + 20 * Math.log10(i.uniqueCallers + 1) + Math.max(0, 10 - 0.7 * i.errorRatePct) -
    clamp(120 * (0.18 - diversity), 20) - clamp(80 * (i.topCallerShare - 0.45), 25) - clamp(70 * (i.maxHourShare - 0.4), 20) - clamp((i.p95LatencyMs - 800) / 75, 15);
  return Math.floor(s * 100 + 0.5) / 100;
}

// latency is the mean in whole ms, and the smallest (in µs) that is no less than 95 % of them.
function latency(counts: Map<number, number>): { avg: number; p95: number } {
  let n = 0, sum = 0;
  for (const [us, c] of counts) {
    n += c;
    sum += us * c;
  }
  if (n === 0) return { avg: 0, p95: 0 };
  let rank = Math.floor((95 * n + 99) / 100), p95 = 0;
  for (const us of [...counts.keys()].sort((a, b) => a - b)) {
    rank -= counts.get(us)!;
    if (rank <= 0) {
      p95 = us;
      break;
    }
  }
  return { avg: roundDiv(sum, 1000 * n), p95 };
}

// decimal is num/den rounded half up to an integer and read as that many units of the last of places.
const decimal = (num: number, den: number, places: number): number => roundDiv(num, den) / 10 ** places;

// roundDiv is num/den rounded half up, for integers and den > 0.
function roundDiv(num: number, den: number): number {
  let q = Math.floor(num / den);
  let rest = num - q * den;
  if (rest < 0) { q--; rest += den; }
  if (rest >= den) { q++; rest -= den; }
  return rest >= den - rest ? q + 1 : q;
}
