// solc's command line, as much of it as forge uses: --version and --standard-json.
import fs from "node:fs";
import path from "node:path";
import solc from "solc";

const given = process.argv.slice(2);

// forge leaves out sources beyond its root and counts on the compiler to read them.
function read(name) {
  const bases = given.flatMap((word, at) => (/^--(base|include)-path$/.test(word) ? [given[at + 1]] : []));
  for (const base of [...bases, process.cwd()]) {
    const file = path.resolve(base, name);
    if (fs.existsSync(file)) return { contents: fs.readFileSync(file, "utf8") };
  }
  return { error: `not found: ${name}` };
}

if (given.includes("--version")) {
  // forge reads the last line, and knows no compiler of Emscripten.
  console.log(`solc, the solidity compiler\nVersion: ${solc.version().replace("Emscripten.clang", "Linux.g++")}`);
} else if (given.includes("--standard-json")) {
  process.stdout.write(solc.compile(fs.readFileSync(0, "utf8"), { import: read }));
} else {
  console.error("tools/solc: knows --version and --standard-json only");
  process.exit(2);
}
