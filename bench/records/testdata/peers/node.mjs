// A plain JavaScript worker with its records inlined, as a tenant would write
// one by hand: it filters, sorts and stringifies what it has in memory.
//
//	node node.mjs ROWS.ndjson COUNT
//
// Prints the address it serves on and 0; ends with its standard input.
import { readFileSync } from "node:fs";
import { createServer } from "node:http";

const rows = readFileSync(process.argv[2], "utf8").split("\n", Number(process.argv[3])).filter(Boolean).map((line) => JSON.parse(line));
const by = (list, limit, offset = 0) => list.slice(offset, offset + limit);
const text = (r) => `${r.sku} ${r.name} ${r.brand} ${r.category} ${r.country} ${r.city} ${r.zip} ${r.notes}`.toLowerCase().split(/[^\p{L}\p{N}]+/u);
const shapes = {
  l1: () => ({ data: by(rows, 1) }),
  l100: () => ({ data: by(rows, 100) }),
  eq_high: () => ({ data: by(rows.filter((r) => r.brand === "brand 1234"), 20) }),
  eq_low: () => ({ data: by(rows.filter((r) => r.country === "DE"), 20) }),
  range_sort: () => ({ data: by(rows.filter((r) => r.price >= 100 && r.price < 500).sort((a, b) => b.price - a.price), 20) }),
  q: () => ({ data: by(rows.filter((r) => { const words = text(r); return words.includes("cobalt") && words.includes("lamp"); }), 20) }),
  offset: () => ({ data: by(rows, 20, rows.length / 2) }),
  keyset: () => ({ data: by(rows.filter((r) => r.price > 300).sort((a, b) => a.price - b.price), 20) }),
  count_eq: () => { const all = rows.filter((r) => r.country === "FR"); return { data: by(all, 1), count: all.length }; },
  count_range: () => { const all = rows.filter((r) => r.price >= 200 && r.price < 400); return { data: by(all, 1), count: all.length }; },
};
const server = createServer((request, response) => {
  const name = request.url.slice(1);
  if (name === "cpu") {
    const { user, system } = process.cpuUsage();
    return response.end(String((user + system) * 1000));
  }
  const { data, count } = shapes[name]();
  response.setHeader("Content-Type", "application/json");
  response.end(JSON.stringify({ data, meta: { version: "0123456789abcdef", limit: 20, count, next: null } }));
});
server.keepAliveTimeout = 60_000;
server.listen(0, "127.0.0.1", () => console.log(`127.0.0.1:${server.address().port} 0`));
process.stdin.resume().on("end", () => process.exit(0));
