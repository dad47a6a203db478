// Bundles the edge's Workers, with the options of cloudflare/edge/CONTRACT.md.
//   node build.mjs OUTDIR   writes OUTDIR/dispatcher and OUTDIR/tenant
import { fileURLToPath } from "node:url";
import { join } from "node:path";
import { build } from "esbuild";

const src = fileURLToPath(new URL("../../cloudflare/edge/src/", import.meta.url));

const common = {
  bundle: true, format: "esm", splitting: true, target: "es2022", minify: true, sourcemap: "external", charset: "utf8", legalComments: "none",
  entryNames: "[name]", chunkNames: "[name]-[hash]", external: ["cloudflare:*", "node:*", "./manifest.json", "./rows.ndjson"], logLevel: "error",
};

/** buildEdge writes both bundles below dir. */
export async function buildEdge(dir) {
  await build({ ...common, entryPoints: ["dispatcher.ts", "ledger.ts", "platform.ts"].map((f) => join(src, f)), outdir: join(dir, "dispatcher") });
  await build({ ...common, entryPoints: [join(src, "tenant.ts")], outdir: join(dir, "tenant") });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await buildEdge(process.argv[2]);
