// A look-alike of Cloudflare's API, as far as Workers for Platforms goes, and
// of what stands behind it: it is strict about what the real one rejects, keeps
// what it was given, and runs it in real workerd.
//
//   node server.mjs '{"dir": …, "port": 0, "edgePort": 0, "accounts": {ID: {"subdomain": …, "namespaces": […], "zones": {ID: {"name": …}}}},
//                     "tokens": {TOKEN: {"accounts": [ID], "write": ["scripts", "kv", "d1", "routes"]}}, "rate": 1200}'
//
// It prints {"api": URL, "edge": URL}. At /__lookalike/faults a test says what
// shall go wrong (faults.mjs); /__lookalike/log has the calls; at
// /__lookalike/edge it injects what tenants' Workers do (runtime.mjs).
import { createServer, request as send } from "node:http";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Databases } from "./d1.mjs";
import { Faults } from "./faults.mjs";
import { envelope, Failure, no, refusal } from "./failure.mjs";
import { Runtime } from "./run.mjs";
import { routes } from "./api.mjs";
import { State } from "./state.mjs";

const PREFIX = "/client/v4";
const MAX_BODY = 128 << 20;

const config = JSON.parse(process.argv[2] ?? "{}");
const dir = config.dir ?? mkdtempSync(join(tmpdir(), "lookalike-"));
const state = new State(dir, config.accounts);
const faults = new Faults();
const log = [];
const calls = new Map(); // token → times of its calls
const compiled = routes.map(([method, path, write, handle]) => [method, new RegExp("^" + path.replace(/:(\w+)/g, "(?<$1>[^/]+)") + "$"), write, handle]);

const [main] = Object.keys(state.accounts);
const runtime = new Runtime(join(dir, "storage"), state.accounts[main]);
const others = Object.fromEntries(Object.keys(state.accounts).filter((a) => a !== main).map((a) => [a, { changed() {}, check: async () => {}, kv: () => no(500, 0, "only the first account is run"), d1: () => no(500, 0, "only the first account is run") }]));

const api = createServer(async (req, res) => {
  const url = new URL(req.url, "http://api");
  try {
    if (url.pathname.startsWith("/__upload/")) {
      const fault = faults.next(`${req.method} ${url.pathname}`);
      log.push({ line: `${req.method} ${url.pathname}`, fault: fault?.kind });
      if (fault?.kind === "500") return void res.writeHead(500).end("<Error><Code>InternalError</Code></Error>");
      if (fault?.kind === "cut") return void req.once("data", () => req.socket.destroy()); // in the middle
      if (fault?.kind === "cut-after") res.end = () => req.socket.destroy();
      return await databases.upload(req, res, url);
    }
    if (url.pathname.startsWith("/__lookalike/")) return await control(req, res, url);
    await serve(req, res, url);
  } catch (e) {
    if (!(e instanceof Failure)) console.error(e);
    const f = e instanceof Failure ? e : new Failure(500, 10001, "internal error");
    if (!res.headersSent) answer(res, f.status, refusal(f));
    else res.destroy();
  }
});

async function serve(req, res, url) {
  if (!url.pathname.startsWith(PREFIX + "/")) no(404, 7000, "No route for that URI");
  const path = url.pathname.slice(PREFIX.length);
  const line = `${req.method} ${path}`;
  const fault = faults.next(line);
  log.push({ line, fault: fault?.kind });
  switch (fault?.kind) {
    case "cut": return req.socket.destroy();
    case "429": return answer(res, 429, refusal(new Failure(429, 971, "Please wait and consider throttling your request speed")), fault.retryAfter === undefined ? {} : { "retry-after": String(fault.retryAfter) });
    case "500": return answer(res, 500, refusal(new Failure(500, 10013, "An unknown error has occurred")));
    case "html": return void res.writeHead(502, { "content-type": "text/html" }).end("<html><head><title>502 Bad Gateway</title></head></html>");
    case "hold": await new Promise((r) => setTimeout(r, fault.ms));
  }
  const body = await read(req);
  const token = authorize(req);
  for (const [method, pattern, write, handle] of compiled) {
    const m = method === req.method && pattern.exec(path);
    if (!m) continue;
    const params = Object.fromEntries(Object.entries(m.groups ?? {}).map(([k, v]) => [k, decodeURIComponent(v)]));
    if (params.a !== undefined) {
      if (!/^[0-9a-f]{32}$/.test(params.a)) no(404, 7003, `Could not route to ${url.pathname}, perhaps your object identifier is invalid?`);
      if (!token.accounts.includes(params.a)) no(403, 10000, "Authentication error");
    }
    if (write && !token.write.includes(write)) no(403, 10000, "Authentication error");
    const result = await handle({ account: state.accounts[params.a], accounts: state.accounts, allowed: token.accounts, params, query: url.searchParams, body, type: req.headers["content-type"],
      runtime: params.a === undefined || params.a === main ? runtime : others[params.a], databases });
    if (req.method !== "GET") state.save();
    if (fault?.kind === "cut-after") return req.socket.destroy();
    if (result?.$raw !== undefined) return void res.writeHead(200, { "content-type": "application/octet-stream" }).end(result.$raw);
    return answer(res, 200, result?.$envelope ?? envelope(result));
  }
  no(404, 7000, "No route for that URI");
}

function authorize(req) {
  const header = req.headers.authorization;
  if (!header && !req.headers["x-auth-key"]) no(400, 9106, "Missing X-Auth-Key, X-Auth-Email or Authorization headers");
  const secret = /^Bearer (\S+)$/.exec(header ?? "")?.[1] ?? no(400, 6111, "Invalid format for Authorization header");
  const token = config.tokens[secret] ?? no(401, 10000, "Authentication error");
  const now = Date.now(), window = 300_000;
  const times = (calls.get(secret) ?? []).filter((t) => now - t < window);
  times.push(now);
  calls.set(secret, times);
  if (times.length > (config.rate ?? 1200)) no(429, 971, "Please wait and consider throttling your request speed");
  return token;
}

async function read(req) {
  const parts = [];
  let n = 0;
  for await (const b of req) {
    if ((n += b.length) > MAX_BODY) no(413, 10027, "The request is too large");
    parts.push(b);
  }
  return Buffer.concat(parts);
}

function answer(res, status, body, headers = {}) {
  res.writeHead(status, { "content-type": "application/json", "cf-ray": "0000000000000000-LOC", ...headers }).end(JSON.stringify(body));
}

async function control(req, res, url) {
  const body = await read(req);
  switch (url.pathname) {
    case "/__lookalike/faults":
      faults.set(JSON.parse(body));
      return answer(res, 200, {});
    case "/__lookalike/log":
      return answer(res, 200, log);
    case "/__lookalike/edge": {
      const { name, ...what } = JSON.parse(body);
      await runtime.use((e) => e.inject(name, what));
      return answer(res, 200, {});
    }
    case "/__lookalike/seen":
      return answer(res, 200, await runtime.use((e) => e.seen));
    case "/__lookalike/account":
      return answer(res, 200, state.accounts[main]);
  }
  answer(res, 404, {});
}

// The edge: requests for the account's Workers, as they come from the Internet.
const edge = createServer((req, res) => {
  runtime.use((e) => new Promise((done) => {
    const to = new URL(e.url);
    // A proxy's request line has the whole URL; its host is what counts.
    const whole = /^https?:\/\/([^/]+)(\/.*)?$/.exec(req.url);
    const headers = [];
    for (let i = 0; i < req.rawHeaders.length; i += 2) {
      const name = req.rawHeaders[i].toLowerCase();
      if (!["host", "connection", "proxy-connection", "cf-connecting-ip", "cf-ray", "x-forwarded-proto"].includes(name)) headers.push(req.rawHeaders[i], req.rawHeaders[i + 1]);
    }
    headers.push("Host", whole ? whole[1] : (req.headers.host ?? to.host), "CF-Connecting-IP", req.socket.remoteAddress.replace("::ffff:", ""), "CF-Ray", "0000000000000000-LOC");
    const up = send({ host: to.hostname, port: to.port, method: req.method, path: whole ? (whole[2] ?? "/") : req.url, headers, setHost: false }, (from) => {
      res.writeHead(from.statusCode, from.statusMessage, from.rawHeaders);
      from.pipe(res);
    });
    up.on("error", () => (res.headersSent ? res.destroy() : res.writeHead(502).end("error code: 1101")));
    res.on("close", () => {
      up.destroy();
      done();
    });
    req.pipe(up);
  })).catch((e) => {
    console.error(e);
    if (!res.headersSent) res.writeHead(500).end("error code: 1104");
  });
});

const listen = (server, port) => new Promise((r) => server.listen(port ?? 0, "127.0.0.1", () => r(`http://127.0.0.1:${server.address().port}`)));
api.requestTimeout = edge.requestTimeout = 0;
const apiURL = await listen(api, config.port);
const databases = new Databases(dir, apiURL);
const edgeURL = await listen(edge, config.edgePort);
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => runtime.stop().finally(() => process.exit(0)));
console.log(JSON.stringify({ listening: true, api: apiURL + PREFIX, edge: edgeURL }));
