// What a request is, as its tenant's Worker understands it.
import type { Call, Plan } from "./call";
import type { Entry, Version } from "./directory";
import { Fault } from "./errors";
import { bounded, call, told } from "./tenant_call";

/** versionOf is a version of e whose Worker is still there. */
export function versionOf(e: Entry, version: number): Version | undefined {
  return e.version === version ? e : e.previous.find((p) => p.version === version);
}

/** planOf asks a version's Worker what a request is. Other kinds than datasets are not asked: each of their requests is its own question. */
export async function planOf(c: Call, v: Version): Promise<Plan> {
  if (v.kind !== "dataset") return { canonical: "?" + c.target.query, units: 1, etag: "" };
  const res = await call(c.env, v, { url: c.url(), method: c.method === "HEAD" ? "GET" : c.method, headers: new Headers(), ask: "plan" }, c.left(), c.id);
  if (res.status !== 200) throw await told(res, v, c.id);
  const said = JSON.parse(new TextDecoder().decode(await bounded(res, 64 << 10))) as {
    canonical?: string; units?: number; etag?: string; error?: { code: string; message: string; fix?: string; param?: string };
  };
  const plan: Plan = { canonical: String(said.canonical ?? ""), units: Number(said.units ?? 0), etag: String(said.etag ?? "") };
  if (said.error) plan.error = new Fault(said.error.code, said.error.message, { fix: said.error.fix, param: said.error.param });
  return plan;
}
