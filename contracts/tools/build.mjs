// Compiles contracts/src and writes contracts/artifacts/NAME.json; with --check it compares.
//
// The compiler is given the sources under the names that forge gives them (src/NAME.sol, and
// node_modules/... through a remapping), the same settings and no other path: so the bytecode is
// forge's to the last byte, wherever the checkout lies. What is given is the sources that the
// contracts need and no others: their list is in the metadata, whose hash ends the bytecode.
import crypto from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import solc from "solc";

const NAMES = ["ComputeRental", "DevToken", "PromptMarketplace", "WorkPool"];
const ROOT = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const OUT = path.join(ROOT, "artifacts");
const SETTINGS = {
  evmVersion: "cancun",
  metadata: { appendCBOR: true, bytecodeHash: "ipfs", useLiteralContent: false },
  optimizer: { enabled: true, runs: 200 },
  remappings: ["@openzeppelin/=node_modules/@openzeppelin/"],
  viaIR: false,
};
const OUTPUT = ["abi", "evm.bytecode.object", "evm.deployedBytecode.object", "evm.deployedBytecode.immutableReferences", "metadata"];

const read = (name) => fs.readFileSync(path.join(ROOT, name), "utf8");
const sha256 = (text) => crypto.createHash("sha256").update(text).digest("hex");

// Keys sorted at every depth; lists stay in their order.
function sorted(value) {
  if (Array.isArray(value)) return value.map(sorted);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.keys(value).sort().map((key) => [key, sorted(value[key])]));
}

function compile(name) {
  const file = `src/${name}.sol`;
  const input = {
    language: "Solidity",
    sources: { [file]: { content: read(file) } },
    settings: { ...SETTINGS, outputSelection: { [file]: { [name]: OUTPUT } } },
  };
  const find = (asked) =>
    fs.existsSync(path.join(ROOT, asked)) ? { contents: read(asked) } : { error: `not found: ${asked}` };
  const output = JSON.parse(solc.compile(JSON.stringify(input), { import: find }));
  const told = (output.errors ?? []).filter((error) => error.severity === "error");
  if (told.length) fail(told.map((error) => error.formattedMessage).join("\n"));
  const made = output.contracts[file][name];
  const metadata = JSON.parse(made.metadata);
  const ranges = Object.values(made.evm.deployedBytecode.immutableReferences).flat();
  const artifact = {
    abi: made.abi,
    bytecode: `0x${made.evm.bytecode.object}`,
    compiler: metadata.compiler.version,
    deployed: `0x${made.evm.deployedBytecode.object}`,
    immutables: ranges.map(({ start, length }) => [start, length]).sort((one, other) => one[0] - other[0]),
    settings: SETTINGS,
    sources: Object.fromEntries(Object.keys(metadata.sources).map((source) => [source, sha256(read(source))])),
  };
  return `${JSON.stringify(sorted(artifact), null, 1)}\n`;
}

function fail(told) {
  console.error(told);
  process.exit(1);
}

// What differs between an artifact that is there and the one that was made, by field.
function differences(name, made) {
  const file = path.join(OUT, `${name}.json`);
  if (!fs.existsSync(file)) return [`artifacts/${name}.json is not there`];
  const before = fs.readFileSync(file, "utf8");
  if (before === made) return [];
  let old;
  try {
    old = JSON.parse(before);
  } catch {
    return [`artifacts/${name}.json is no JSON`];
  }
  const now = JSON.parse(made);
  const differ = [...new Set([...Object.keys(old), ...Object.keys(now)])]
    .sort()
    .filter((key) => JSON.stringify(old[key]) !== JSON.stringify(now[key]));
  const sources = Object.keys({ ...old.sources, ...now.sources }).filter((source) => old.sources?.[source] !== now.sources[source]);
  const fields = differ.map((key) => (key === "sources" ? `sources (${sources.join(", ")})` : key));
  return [`artifacts/${name}.json differs: ${fields.join(", ") || "its text, not its content"}`];
}

const given = process.argv.slice(2);
if (given.some((word) => word !== "--check")) fail("usage: node contracts/tools/build.mjs [--check]");
const isChecking = given.includes("--check");
const found = [];
for (const name of NAMES) {
  const made = compile(name);
  if (isChecking) found.push(...differences(name, made));
  else {
    fs.mkdirSync(OUT, { recursive: true });
    fs.writeFileSync(path.join(OUT, `${name}.json`), made);
    console.log(`artifacts/${name}.json`);
  }
}
if (isChecking) {
  const strange = fs.existsSync(OUT) ? fs.readdirSync(OUT).filter((file) => !NAMES.includes(path.parse(file).name)) : [];
  found.push(...strange.map((file) => `artifacts/${file} is no contract's`));
  if (found.length) fail(`${found.join("\n")}\nnext: node contracts/tools/build.mjs`);
  console.log(`${NAMES.length} artifacts are what contracts/src compiles to`);
}
