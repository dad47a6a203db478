// What the edge costs, in plain workerd, without miniflare around it:
//
//	bundle_gzip_kb       the dispatcher's modules, gzipped one by one
//	cold_start_extra_ms  from the start of workerd to its first answer, over an empty Worker's (medians)
//	challenge_cpu_ratio  CPU time of workerd over 20,000 challenges, by that of an empty Worker that answers as
//	                     many bytes; events are gathered and delivered meanwhile
//	paid_overhead_ms     a paid call without the time in the facilitator (median)
//
// ROUNDS, REQUESTS and PAID make it shorter. Progress goes to stderr; the last line of stdout is JSON.
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import http from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { buildEdge } from "./build.mjs";

const ROUNDS = Number(process.env.ROUNDS ?? 9), REQUESTS = Number(process.env.REQUESTS ?? 20_000), PAID = Number(process.env.PAID ?? 200);
const workerd = fileURLToPath(new URL("../node_modules/@cloudflare/workerd-linux-64/bin/workerd", import.meta.url));
const root = mkdtempSync(join(tmpdir(), "clawr-bench-edge-"));
const agent = new http.Agent({ keepAlive: true, maxSockets: 32 });
const note = (...all) => console.error(...all);
const median = (list) => [...list].sort((a, b) => a - b)[list.length >> 1];

function listen(handler) {
  return new Promise((done) => {
    const server = http.createServer(handler);
    server.listen(0, "127.0.0.1", () => done({ server, url: `http://127.0.0.1:${server.address().port}` }));
  });
}

function ask(port, path, headers = {}) {
  return new Promise((done, fail) => {
    const req = http.request({ host: "127.0.0.1", port, path, headers, agent }, (res) => {
      const parts = [];
      res.on("data", (p) => parts.push(p));
      res.on("end", () => done({ status: res.statusCode, headers: res.headers, rawHeaders: res.rawHeaders, body: Buffer.concat(parts) }));
    });
    req.on("error", fail);
    req.end();
  });
}

const text = (s) => JSON.stringify(s); // capnp's strings are close enough to JSON's for what is written here

/** config writes a directory that `workerd serve` takes. */
function config(name, port, { modules, bindings = [], services = "", extensions = "", objects = "" }) {
  const dir = join(root, name);
  mkdirSync(join(dir, "do"), { recursive: true });
  const list = modules.map((m, i) => {
    writeFileSync(join(dir, `m${i}`), m.contents);
    return `(name = ${text(m.name)}, ${m.type} = embed "m${i}")`;
  });
  writeFileSync(join(dir, "config.capnp"), `using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [
    (name = "main", worker = (modules = [${list.join(", ")}], compatibilityDate = "2026-07-01", bindings = [${bindings.join(", ")}], ${objects})),
    (name = "internet", network = (allow = ["public", "private"])),
    (name = "do", disk = (path = ${text(join(dir, "do"))}, writable = true)),
    ${services}
  ],
  sockets = [(name = "http", address = "127.0.0.1:${port}", http = (), service = "main")],
  ${extensions}
);`);
  return join(dir, "config.capnp");
}

/** start runs workerd until its first answer; it gives the process and how long that took, in ms. */
async function start(file, port, path) {
  const began = process.hrtime.bigint();
  const child = spawn(workerd, ["serve", "--experimental", file], { stdio: ["ignore", "inherit", "inherit"] });
  let gone = false;
  child.on("exit", () => { gone = true; });
  for (;;) {
    try {
      const first = await ask(port, path);
      return { child, ms: Number(process.hrtime.bigint() - began) / 1e6, first };
    } catch {
      if (gone) throw new Error("workerd ended early");
      await new Promise((done) => setTimeout(done, 1));
    }
  }
}

const stop = (child) => new Promise((done) => { child.on("exit", done); child.kill("SIGKILL"); });

/** cpu is what a process has used of CPU time, in ms. */
function cpu(pid) {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) * 10;
}

async function load(port, path, n, expect) {
  let left = n;
  await Promise.all(Array.from({ length: 16 }, async () => {
    while (left-- > 0) {
      const a = await ask(port, path);
      if (a.status !== expect) throw new Error(`answered ${a.status} ${a.body}`);
    }
  }));
}

async function main() {
  const bundles = join(root, "bundles");
  await buildEdge(bundles);
  const built = (kind) => readdirSync(join(bundles, kind)).filter((f) => f.endsWith(".js")).sort().map((f) => ({ name: f, type: "esModule", contents: readFileSync(join(bundles, kind, f), "utf8") }));
  const first = (name, list) => [...list.filter((m) => m.name === name), ...list.filter((m) => m.name !== name)];
  const bundle = built("dispatcher").reduce((n, m) => n + gzipSync(m.contents, { level: 9 }).length, 0) / 1024;
  note(`bundle: ${bundle.toFixed(1)} KB gzipped, ${built("dispatcher").length} modules`);

  // Around the edge: a sink of events, and a facilitator that takes no time.
  let events = 0;
  const sink = await listen((req, res) => {
    let body = "";
    req.on("data", (p) => { body += p; });
    req.on("end", () => { events += body.split("\n").length - 1; res.end("{}"); });
  });
  const facilitator = await listen((req, res) => {
    req.resume().on("end", () => res.end(req.url === "/verify" ? '{"isValid":true}' : JSON.stringify({ success: true, transaction: "0x" + randomBytes(32).toString("hex"), network: "eip155:84532" })));
  });

  const rows = Array.from({ length: 100 }, (_, i) => `{"id":${i + 1},"name":"name ${i + 1}"}`).join("\n") + "\n";
  const manifest = JSON.stringify({ id: "0".repeat(64), version: "0123456789abcdef", large: false, rows: 100, key: "id", search: [], maxOffset: 100, columns: [{ name: "id", type: "int", nullable: false, indexed: true }, { name: "name", type: "text", nullable: false, indexed: true }], pages: {} });
  const entry = { id: "tnt_0123456789abcdef", slug: "bench", status: "active", version: 1, kind: "dataset", owner: "codex", plan: "pro", priceUsd: "0.001", x402Enabled: true, payTo: "0x" + "11".repeat(20), workerName: "tenant-bench-v1", hosts: [] };
  const vars = { ASSET: JSON.stringify({ network: "eip155:84532", address: "0x036cbd53842c5426634e7929541ec2318f3dcf7e", name: "USDC", version: "2", decimals: 6 }), FACILITATOR_URLS: facilitator.url, QUOTE_SECRETS: "ab".repeat(32), CALLER_SALT: "cd".repeat(16),
    TENANT_DIRECTORY: JSON.stringify({ tenants: [entry] }), CONTROL_PLANE_URL: sink.url, CONTROL_PLANE_TOKEN: "bench" };
  const tenant = [...first("tenant.js", built("tenant")), { name: "manifest.json", type: "text", contents: manifest }, { name: "rows.ndjson", type: "text", contents: rows }];
  const port = 20_000 + (process.pid % 20_000);
  // The services around it are in the empty Worker's workerd too: it is the
  // dispatcher's isolate that is compared, and not the number of them.
  const around = (name) => {
    mkdirSync(join(root, name), { recursive: true });
    const list = tenant.map((m, i) => {
      writeFileSync(join(root, name, `t${i}`), m.contents);
      return `(name = ${text(m.name)}, ${m.type} = embed "t${i}")`;
    });
    return `(name = "kv", worker = (modules = [(name = "kv.js", esModule = "export default { fetch() { return new Response(null, { status: 404 }) } }")], compatibilityDate = "2026-07-01")),
    (name = "tenant", worker = (modules = [${list.join(", ")}], compatibilityDate = "2026-07-01", bindings = [(name = "CURSOR_KEY", text = "ef")]))`;
  };
  const edgeFile = config("edge", port, {
    modules: first("dispatcher.js", built("dispatcher")),
    bindings: [...Object.entries(vars).map(([k, v]) => `(name = ${text(k)}, text = ${text(v)})`), '(name = "DIRECTORY", kvNamespace = "kv")', '(name = "LEDGER", durableObjectNamespace = "Ledger")',
      '(name = "DISPATCHER", wrapped = (moduleName = "bench:namespace", innerBindings = [(name = "TENANT", service = "tenant")]))'],
    objects: 'durableObjectNamespaces = [(className = "Ledger", uniqueKey = "ledger", enableSql = true)], durableObjectStorage = (localDisk = "do")',
    services: around("edge"),
    extensions: 'extensions = [(modules = [(name = "bench:namespace", internal = true, esModule = "export default (env) => ({ get: () => env.TENANT })")])]',
  });
  const path = "/t/bench/v1/records?limit=1";

  // What an empty Worker has to answer: the same body, and as many bytes of headers.
  const probe = await start(edgeFile, port, path);
  if (probe.first.status !== 402) throw new Error(`the edge answers ${probe.first.status} ${probe.first.body}`);
  const challenge = probe.first;
  const headers = {};
  for (let i = 0; i < challenge.rawHeaders.length; i += 2) if (!/^(content-length|date|connection|keep-alive)$/i.test(challenge.rawHeaders[i])) headers[challenge.rawHeaders[i]] = challenge.rawHeaders[i + 1];
  await stop(probe.child);
  const emptyFile = config("empty", port, { services: around("empty"), modules: [{ name: "empty.js", type: "esModule",
    contents: `const body = ${JSON.stringify(challenge.body.toString())}, headers = ${JSON.stringify(headers)};\nexport default { fetch() { return new Response(body, { status: 402, headers }) } };` }] });

  const cold = { edge: [], empty: [] };
  for (let i = 0; i < ROUNDS; i++) {
    for (const [name, file] of [["empty", emptyFile], ["edge", edgeFile]]) {
      const s = await start(file, port, path);
      cold[name].push(s.ms);
      await stop(s.child);
    }
  }
  note(`cold start: edge ${median(cold.edge).toFixed(1)} ms, empty ${median(cold.empty).toFixed(1)} ms`);

  const used = { edge: 0, empty: 0 };
  for (const [name, file] of [["empty", emptyFile], ["edge", edgeFile]]) {
    const s = await start(file, port, path);
    await load(port, path, REQUESTS / 10, 402); // warm
    const before = cpu(s.child.pid);
    await load(port, path, REQUESTS, 402);
    used[name] = cpu(s.child.pid) - before;
    await stop(s.child);
  }
  note(`challenge: edge ${((used.edge * 1000) / REQUESTS).toFixed(1)} µs of CPU, empty ${((used.empty * 1000) / REQUESTS).toFixed(1)} µs; ${events} events delivered`);

  const s = await start(edgeFile, port, path);
  const times = [];
  for (let i = 0; i < PAID + 20; i++) {
    const required = JSON.parse(Buffer.from((await ask(port, path)).headers["payment-required"], "base64"));
    const accepted = required.accepts[0], until = Math.floor(Date.now() / 1000) + accepted.maxTimeoutSeconds;
    const payment = { x402Version: 2, accepted, payload: { signature: "0x" + randomBytes(65).toString("hex"), // the facilitator's to check
      authorization: { from: "0x" + "22".repeat(20), to: accepted.payTo, value: accepted.amount, validAfter: "0", validBefore: String(until), nonce: "0x" + randomBytes(32).toString("hex") } } };
    const began = process.hrtime.bigint();
    const a = await ask(port, path, { "payment-signature": Buffer.from(JSON.stringify(payment)).toString("base64") });
    if (a.status !== 200) throw new Error(`a paid call is answered ${a.status} ${a.body}`);
    if (i >= 20) times.push(Number(process.hrtime.bigint() - began) / 1e6);
  }
  await stop(s.child);
  note(`paid: median ${median(times).toFixed(2)} ms with a facilitator that takes none`);
  sink.server.close();
  facilitator.server.close();
  agent.destroy();
  const round = (n, places) => Math.round(n * 10 ** places) / 10 ** places;
  console.log(JSON.stringify({ bundle_gzip_kb: round(bundle, 1), cold_start_extra_ms: round(Math.max(0, median(cold.edge) - median(cold.empty)), 1), challenge_cpu_ratio: round(used.edge / used.empty, 2), paid_overhead_ms: round(median(times), 2) }));
}

try {
  await main();
} finally {
  rmSync(root, { recursive: true, force: true });
}
