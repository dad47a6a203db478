// The directory: whose a request is. It is read from KV, which lags, and kept
// for 30 s by each isolate; what decides about money is asked of the Ledger.
import type { Env } from "./env";
import { decimal } from "./money";
import { log } from "./errors";
import type { Json } from "./json";

/** Rate, Version and Entry are clawr.Tenant as the directory spells it: see CONTRACT.md. */
export interface Rate { requests: number; windowSeconds: number; burst?: number }

export interface Version {
  version: number;
  kind: "dataset" | "proxy" | "function";
  workerName: string;
  limits: { cpuMs: number; subRequests: number }; // in effect: the plan's, with overrides
  price: number; // µUSD of one unit
  paid: boolean;
  payTo: string;
  network: string;
  description: string;
}

export interface Entry extends Version {
  id: string;
  slug: string;
  status: "active" | "paused" | "removed";
  hosts: string[];
  owner: string; // "@name"
  directory: string;
  rate: { perCaller?: Rate; global?: Rate };
  quota: { daily: number; monthly: number };
  caps: { daily: number; monthly: number }; // µUSD
  limited: boolean;
  revision: number;
  home: "edge" | "native";
  previous: Version[];
  named: boolean; // payments must name themselves (payment-identifier)
  discovery?: { path: string; bazaar: Json }; // how a path is asked, for those who list APIs
  rendered?: unknown; // the challenge's
}

const PLANS: Record<string, { cpuMs: number; subRequests: number }> = {
  free: { cpuMs: 50, subRequests: 10 }, pro: { cpuMs: 200, subRequests: 50 }, business: { cpuMs: 350, subRequests: 100 },
  enterprise: { cpuMs: 600, subRequests: 250 }, quarantine: { cpuMs: 25, subRequests: 3 },
};

type Raw = Record<string, unknown>;
const obj = (v: unknown): Raw => (typeof v === "object" && v !== null ? (v as Raw) : {});
const str = (v: unknown): string => (typeof v === "string" ? v : "");
const num = (v: unknown): number => (typeof v === "number" && Number.isFinite(v) ? v : 0);

function rate(v: unknown): Rate | undefined {
  const r = obj(v);
  if (num(r["requests"]) <= 0 || num(r["windowSeconds"]) <= 0) return undefined;
  return { requests: num(r["requests"]), windowSeconds: num(r["windowSeconds"]), burst: num(r["burst"]) };
}

function version(raw: Raw): Version {
  const plan = PLANS[str(raw["plan"])] ?? PLANS["quarantine"]!;
  const own = obj(raw["limits"]);
  const price = decimal(raw["priceUsd"]);
  const kind = str(raw["kind"]) || "dataset";
  return {
    version: num(raw["version"]), kind: kind as Version["kind"], workerName: str(raw["workerName"]),
    limits: { cpuMs: num(own["cpuMs"]) > 0 ? num(own["cpuMs"]) : plan.cpuMs, subRequests: num(own["subRequests"]) > 0 ? num(own["subRequests"]) : plan.subRequests },
    price, paid: raw["x402Enabled"] === true && price > 0, payTo: str(raw["payTo"]).toLowerCase(), network: str(raw["network"]), description: str(raw["description"]),
  };
}

function discovery(v: unknown): Entry["discovery"] {
  const d = obj(v);
  return typeof d["path"] === "string" && typeof d["bazaar"] === "object" && d["bazaar"] !== null ? { path: d["path"], bazaar: d["bazaar"] as Json } : undefined;
}

/** entryOf reads one entry of the directory; undefined if it names no tenant. */
export function entryOf(value: unknown): Entry | undefined {
  const raw = obj(value);
  const slug = str(raw["slug"]);
  if (slug === "") return undefined;
  const usage = obj(raw["usageLimit"]), spend = obj(raw["spendLimit"]), rates = obj(raw["rateLimit"]);
  const e: Entry = {
    ...version(raw), id: str(raw["id"]) || str(raw["tenantId"]) || slug, slug, status: (str(raw["status"]) || "active") as Entry["status"],
    hosts: Array.isArray(raw["hosts"]) ? raw["hosts"].map(str) : [], owner: "@" + str(raw["owner"]).replace(/^@/, ""), directory: str(raw["directory"]) || "APIs",
    rate: { perCaller: rate(rates["perCaller"]), global: rate(rates["global"]) },
    quota: { daily: num(usage["dailyRequests"]), monthly: num(usage["monthlyRequests"]) },
    caps: { daily: decimal(spend["dailySpendUsd"]), monthly: decimal(spend["monthlySpendUsd"]) },
    named: raw["requirePaymentId"] === true, discovery: discovery(raw["discovery"]), limited: false, revision: num(raw["revision"]), home: raw["ledgerHome"] === "native" ? "native" : "edge",
    previous: Array.isArray(raw["previous"]) ? raw["previous"].map((p) => version({ ...raw, ...obj(p) })) : [],
  };
  e.limited = e.rate.perCaller !== undefined || e.rate.global !== undefined || e.quota.daily > 0 || e.quota.monthly > 0 || e.caps.daily > 0 || e.caps.monthly > 0;
  return e;
}

/** fixed reads a directory that is a variable, in either of its two forms. */
export function fixed(text: string): Map<string, Entry> {
  const out = new Map<string, Entry>();
  const add = (v: unknown): void => {
    const e = entryOf(v);
    if (!e) return;
    out.set("slug:" + e.slug, e);
    for (const h of e.hosts) out.set("host:" + h, e);
  };
  const d = obj(JSON.parse(text));
  if (Array.isArray(d["tenants"])) d["tenants"].forEach(add);
  for (const [slug, v] of Object.entries(obj(d["bySlug"]))) add({ slug, ...obj(v) });
  for (const [host, v] of Object.entries(obj(d["byHost"]))) {
    const named = typeof v === "string" ? out.get("slug:" + v) : entryOf(v);
    if (named) out.set("host:" + host.toLowerCase(), named);
  }
  return out;
}

const FRESH = 30_000; // ms that an isolate keeps an entry
const MOST = 10_000; // entries that it keeps

const cache = new Map<string, { until: number; entry: Entry | undefined }>();
const variable: { text?: string; entries?: Map<string, Entry> } = {};

/** read gives the entry under a key of KV, or of the variable. */
export async function read(env: Env, key: string, now: number): Promise<Entry | undefined> {
  const known = cache.get(key);
  if (known && now < known.until) return known.entry;
  let entry: Entry | undefined;
  try {
    entry = entryOf(await env.DIRECTORY.get(key, "json"));
  } catch (err) {
    // A directory that does not answer leaves us with what we knew.
    if (known?.entry) return known.entry;
    log("ERROR", "the directory cannot be read", { key, err });
    throw err;
  }
  if (!entry && env.TENANT_DIRECTORY) {
    if (variable.text !== env.TENANT_DIRECTORY) Object.assign(variable, { text: env.TENANT_DIRECTORY, entries: fixed(env.TENANT_DIRECTORY) });
    entry = variable.entries?.get(key);
  }
  if (known?.entry && entry && entry.revision === known.entry.revision && entry.version === known.entry.version) entry.rendered = known.entry.rendered;
  if (cache.size >= MOST) cache.clear();
  cache.set(key, { until: now + FRESH, entry });
  return entry;
}

/** forget drops what the isolate keeps of a tenant, of which it has just heard. */
export function forget(slug: string): void {
  for (const [key, v] of cache) if (v.entry?.slug === slug || key === "slug:" + slug) cache.delete(key);
}

/** lookup finds the tenant that host and path (escaped) mean, and the path that it sees. A host that belongs to a tenant is all the tenant's. */
export async function lookup(env: Env, host: string, path: string, now: number): Promise<{ entry?: Entry; rest: string }> {
  const bare = path.startsWith("/t/");
  const byHost = /^[a-z0-9.-]{1,253}$/.test(host) && host.includes(".") && !/^[0-9.]+$/.test(host) ? await read(env, "host:" + host, now) : undefined;
  if (byHost && byHost.status !== "removed") return { entry: byHost, rest: path };
  if (!bare) return { rest: path };
  const end = path.indexOf("/", 3);
  const slug = end < 0 ? path.slice(3) : path.slice(3, end);
  if (!/^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/.test(slug)) return { rest: path };
  const entry = await read(env, "slug:" + slug, now);
  if (!entry) return { rest: path };
  return { entry, rest: end < 0 ? "/" : path.slice(end) };
}
