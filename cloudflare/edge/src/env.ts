// What the dispatcher is bound to, and what its variables mean.
import { Fault } from "./errors";
import { unhex } from "./bytes";
import { Quotes } from "./quote";
import type { Ledger } from "./ledger";

/** Env is the dispatcher's bindings: see CONTRACT.md. */
export interface Env {
  DISPATCHER: DispatchNamespace;
  DIRECTORY: KVNamespace;
  LEDGER: DurableObjectNamespace<Ledger>;
  EVENTS?: D1Database;
  ASSET: string;
  FACILITATOR_URLS?: string;
  PUBLIC_URL?: string;
  DOCS_URL?: string;
  DEADLINE_SECONDS?: string;
  ANALYTICS_PUBLIC?: string;
  TENANT_DIRECTORY?: string;
  CONTROL_PLANE_URL?: string;
  CONTROL_PLANE_TOKEN?: string;
  QUOTE_SECRETS: string;
  CALLER_SALT: string;
  PLATFORM_TOKENS?: string;
  FACILITATOR_API_KEY?: string;
  CDP_API_KEY_ID?: string;
  CDP_API_KEY_SECRET?: string;
  RPC_URL?: string;
}

/** Asset is what prices are paid in: clawr.Asset. */
export interface Asset {
  network: string;
  address: string;
  name: string;
  version: string;
  decimals: number;
}

/** Config is Env read once for each isolate. */
export interface Config {
  asset: Asset;
  facilitators: string[];
  quotes: Quotes;
  salt: Uint8Array;
  publicURL: string;
  docs: string;
  deadline: number; // ms, of a route, settlement included
  maxTimeoutSeconds: number; // what challenges ask clients to sign for
}

/** The bounds and times that do not change (money.md, "Server defaults"). */
export const MAX_BODY = 1 << 20; // of a request, bytes
export const MAX_ANSWER = 16 << 20; // of an answer: an isolate has 128 MB
export const SLACK = 12; // s that a payment must live beyond the deadline: 10 s to settle, 2 s of clock difference
const SETTLE_TIME = 60; // s that clients are asked to sign beyond the deadline
const DOCS = "https://github.com/402claw/clawr/blob/main/docs";

const configs = new WeakMap<Env, Config>();

/** config reads env; a variable that cannot be used is the operator's fault, and told to the log alone. */
export function config(env: Env): Config {
  const known = configs.get(env);
  if (known) return known;
  const bad = (name: string): Fault => new Fault("internal", `the variable ${name} cannot be used`);
  let asset: Asset;
  try {
    asset = JSON.parse(env.ASSET) as Asset;
    asset.address = asset.address.toLowerCase();
    if (!asset.network || !asset.name || !asset.version || !Number.isInteger(asset.decimals)) throw bad("ASSET");
  } catch {
    throw bad("ASSET");
  }
  const secrets = (env.QUOTE_SECRETS ?? "").split(",").map((s) => unhex(s.trim()));
  const salt = unhex(env.CALLER_SALT ?? "");
  if (!secrets.every((s) => s !== undefined)) throw bad("QUOTE_SECRETS");
  if (!salt || salt.length === 0) throw bad("CALLER_SALT");
  const deadline = Number(env.DEADLINE_SECONDS || 30);
  if (!(deadline >= 1 && deadline <= 600)) throw bad("DEADLINE_SECONDS");
  const c: Config = {
    asset, salt, quotes: new Quotes(secrets),
    facilitators: (env.FACILITATOR_URLS ?? "").split(",").map((u) => u.trim().replace(/\/+$/, "")).filter((u) => u !== ""),
    publicURL: (env.PUBLIC_URL ?? "").replace(/\/+$/, ""),
    docs: (env.DOCS_URL ?? DOCS).replace(/\/+$/, ""),
    deadline: deadline * 1000, maxTimeoutSeconds: Math.floor(deadline) + SETTLE_TIME,
  };
  configs.set(env, c);
  return c;
}
