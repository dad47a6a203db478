// Holds what the edge takes for proof that a payment was never charged against
// nodes whose head and finalized block say this and that.
import { createServer } from "node:http";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const { outputFiles } = await build({ entryPoints: [fileURLToPath(new URL("../../cloudflare/edge/src/chain.ts", import.meta.url))], bundle: true, format: "esm", target: "es2022", write: false });
const { Chain } = await import("data:text/javascript;base64," + Buffer.from(outputFiles[0].text).toString("base64"));

const HASH = "0x" + "ab".repeat(32), flag = (used) => "0x" + (used ? 1n : 0n).toString(16).padStart(64, "0");
const t = { asset: "0x" + "11".repeat(20), payer: "0x" + "22".repeat(20), payTo: "0x" + "33".repeat(20), amount: 1000n, nonce: "0x" + "44".repeat(32), validBefore: 1000n };

/** ask has look ask a node. head and final say whether the authorization is used there; final undefined: that state is gone. */
async function ask({ time, head, final }) {
  const node = createServer(async (req, res) => {
    let body = "";
    for await (const chunk of req) body += chunk;
    const { method, params } = JSON.parse(body);
    const at = params[1];
    let answer = { error: { code: -32000, message: "no such state" } };
    if (method === "eth_getBlockByNumber") answer = { result: { number: "0x10", hash: HASH, timestamp: "0x" + time.toString(16) } };
    else if (method === "eth_call" && at === "latest") answer = { result: flag(head) };
    else if (method === "eth_call" && at.blockHash === HASH && at.requireCanonical === true && final !== undefined) answer = { result: flag(final) };
    res.end(JSON.stringify({ jsonrpc: "2.0", id: 1, ...answer }));
  });
  await new Promise((ok) => node.listen(0, "127.0.0.1", ok));
  try {
    const f = await new Chain(`http://127.0.0.1:${node.address().port}`).look(t);
    return f.proof === "" ? f.state : "dead";
  } catch {
    return "unknown";
  } finally {
    node.close();
  }
}

const cases = [
  ["unused and over", { time: 1001, head: false, final: false }, "dead"],
  ["unused, not over", { time: 1000, head: false, final: false }, "unused"],
  ["unused, not over, no state", { time: 1000, head: false }, "unused"],
  ["the head is behind", { time: 1001, head: false, final: true }, "unknown"],
  ["over, no state", { time: 1001, head: false }, "unknown"],
];
const wrong = [];
for (const [name, node, want] of cases) {
  const got = await ask(node);
  if (got !== want) wrong.push(`${name}: ${got}, want ${want}`);
}
console.log(JSON.stringify({ checked: cases.length, wrong }));
