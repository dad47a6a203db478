// What an account has, kept in one file so that a look-alike that is started
// again goes on where it was.
import { mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";

export class State {
  constructor(dir, accounts) {
    mkdirSync(dir, { recursive: true });
    this.file = join(dir, "state.json");
    try {
      this.accounts = JSON.parse(readFileSync(this.file), (k, v) => (v && v.$b64 !== undefined ? Buffer.from(v.$b64, "base64") : v));
    } catch (e) {
      if (e.code !== "ENOENT") throw e;
      this.accounts = {};
    }
    for (const [id, a] of Object.entries(accounts)) {
      const had = (this.accounts[id] ??= { subdomain: a.subdomain ?? null, scripts: {}, namespaces: {}, kv: {}, d1: {}, zones: a.zones ?? {}, serial: 0 });
      for (const n of a.namespaces ?? []) had.namespaces[n] ??= { id: `ns-${n}`, scripts: {} };
      for (const [name, worker] of Object.entries(a.scripts ?? {})) had.scripts[name] ??= worker;
    }
  }

  save() {
    const text = JSON.stringify(this.accounts, (k, v) => (v?.type === "Buffer" ? { $b64: Buffer.from(v.data).toString("base64") } : v));
    writeFileSync(this.file + ".new", text);
    renameSync(this.file + ".new", this.file);
  }
}
