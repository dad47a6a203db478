// Writes testdata/vectors/x402/*.json with the official SDK: what its client
// signs, what its codecs and schemas take, what its server matches and what
// its facilitator says. Every run writes the same bytes.
//
//	npm ci && node vectors/generate.mjs [DIR]
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { NOW } from "./world.mjs";
import * as payments from "./payments.mjs";
import * as headers from "./headers.mjs";
import * as matching from "./matching.mjs";
import * as verifying from "./verifying.mjs";
import * as answers from "./answers.mjs";
import * as channels from "./channels.mjs";

const dir = process.argv[2] ?? fileURLToPath(new URL("../../testdata/vectors/x402/", import.meta.url));
mkdirSync(dir, { recursive: true });
const sdk = { "@x402/core": "2.27.0", "@x402/evm": "2.27.0", "@x402/extensions": "2.27.0", "x402-fetch": "1.2.0" };
for (const [name, make] of Object.entries({
  payments: payments.make,
  headers: headers.make,
  matching: matching.make,
  verifying: verifying.make,
  answers: answers.make,
  channels: channels.make,
})) {
  const cases = await make();
  const lists = Object.entries(cases).map(([list, of]) => `${JSON.stringify(list)}: [\n${of.map((c) => JSON.stringify(c)).join(",\n")}\n]`);
  writeFileSync(join(dir, `${name}.json`), `{"sdk": ${JSON.stringify(sdk)},\n"now": ${NOW},\n${lists.join(",\n")}}\n`);
  console.error(`${name}: ${Object.values(cases).map((c) => c.length).join(" + ")} cases`);
}
