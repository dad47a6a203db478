// Compiles the contracts of the development chain and writes one artifact per
// contract beside its source. Run it after every change of a .sol file:
//
//   npm --prefix e2e ci && node chain/devchain/contracts/compile.mjs
//
// solc is the one pinned in e2e/package.json. The EVM target is paris, so that
// the same bytecode runs on every chain and on every version of anvil.
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const require = createRequire(join(here, "../../../e2e/package.json"));
const solc = require("solc");

const contracts = {
  "TestUSD.sol": ["TestUSD"],
  "Multicall.sol": ["Multicall"],
  "Channels.sol": ["Channels", "ERC3009Collector"],
  "Fixtures.sol": ["ContractWallet", "QuietUSD", "NoopUSD"],
};

const settings = {
  evmVersion: "paris",
  optimizer: { enabled: true, runs: 10000 },
  metadata: { bytecodeHash: "none", appendCBOR: false },
  outputSelection: { "*": { "*": ["abi", "evm.bytecode.object", "evm.deployedBytecode.object"] } },
};

for (const [file, names] of Object.entries(contracts)) {
  const content = readFileSync(join(here, file), "utf8");
  const input = { language: "Solidity", sources: { [file]: { content } }, settings };
  const output = JSON.parse(solc.compile(JSON.stringify(input)));
  const errors = (output.errors ?? []).filter((e) => e.severity !== "info");
  if (errors.length > 0) {
    for (const e of errors) console.error(e.formattedMessage);
    process.exit(1);
  }
  for (const name of names) {
    const c = output.contracts[file][name];
    const artifact = {
      contract: name,
      source: file,
      sourceSha256: createHash("sha256").update(content).digest("hex"),
      compiler: solc.version(),
      settings: { evmVersion: settings.evmVersion, optimizer: settings.optimizer, metadata: settings.metadata },
      abi: c.abi,
      bytecode: "0x" + c.evm.bytecode.object,
      runtime: "0x" + c.evm.deployedBytecode.object,
    };
    writeFileSync(join(here, `${name}.json`), JSON.stringify(artifact, null, 1) + "\n");
    console.log(`${name}: ${artifact.runtime.length / 2 - 1} bytes`);
  }
}
