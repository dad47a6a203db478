// Compiles Foresee.sol into Foresee.json. Run it after every change:
//
//   npm --prefix e2e ci && node chain/contracts/compile.mjs
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const solc = createRequire(join(here, "../../e2e/package.json"))("solc");
const content = readFileSync(join(here, "Foresee.sol"), "utf8");
const output = JSON.parse(
  solc.compile(
    JSON.stringify({
      language: "Solidity",
      sources: { "Foresee.sol": { content } },
      settings: {
        evmVersion: "paris",
        optimizer: { enabled: true, runs: 10000 },
        metadata: { bytecodeHash: "none", appendCBOR: false },
        outputSelection: { "*": { "*": ["evm.bytecode.object"] } },
      },
    }),
  ),
);
const errors = (output.errors ?? []).filter((e) => e.severity !== "info");
if (errors.length > 0) {
  for (const e of errors) console.error(e.formattedMessage);
  process.exit(1);
}
const artifact = {
  sourceSha256: createHash("sha256").update(content).digest("hex"),
  compiler: solc.version(),
  bytecode: "0x" + output.contracts["Foresee.sol"].Foresee.evm.bytecode.object,
};
writeFileSync(join(here, "Foresee.json"), JSON.stringify(artifact, null, 1) + "\n");
