// Runs the vectors over a port: node harness.js FOLDER [PORT]. One line a file: its name, tests, failures, and the
// largest part of a bound that was used. What fails is told, and of a file the mistakes that look like it. Exit
// code 1 if anything does.
"use strict";
const fs = require("fs"), path = require("path");
const folder = process.argv[2], port = require(path.resolve(process.argv[3] || path.join(__dirname, "llama.js")));

const round = (v) => (Array.isArray(v) ? v.map(round) : Math.fround(v)); // decimals are not float32 before this
const read = (name) => fs.readFileSync(path.join(folder, name));

const operations = { // name of the file: test -> result
  embedding: (t) => round(t.table)[t.token],
  rmsnorm: (t) => port.rmsnorm(round(t.x), round(t.weight)),
  matvec: (t) => port.matvec(round(t.w), round(t.x)),
  rope: (t) => port.rope(round(t.x), t.pos, t.head_size, t.theta),
  rope_scaled: (t) => port.rope(round(t.x), t.pos, t.head_size, t.theta, t.scaling),
  attention_weights: (t) => port.attentionWeights(round(t.q), round(t.keys), t.n_heads, t.n_kv_heads),
  attention_mix: (t) => port.attentionMix(round(t.weights), round(t.values), t.n_heads, t.n_kv_heads),
  swiglu: (t) => port.swiglu(round(t.gate), round(t.up)),
  residual: (t) => port.residual(round(t.x), round(t.change)),
};

function used(result, expected, bound) { // the largest part of a bound; Infinity for what is no number, or none
  if (result.length !== expected.length) return Infinity;
  const parts = result.map((v, i) => (v === expected[i] ? 0 : Math.abs(v - expected[i]) / bound[i]));
  return parts.every((v) => v >= 0) ? Math.max(...parts) : Infinity;
}

function runModel(t, notes) {
  const model = port.load(read(t.model)), seen = {};
  let worst = 0;
  t.tokens.forEach((token, pos) => {
    const see = (layer, op, values) => (seen[`${pos} ${layer} ${op}`] = values);
    const logits = port.forward(model, token, pos, see);
    worst = Math.max(worst, used(logits, t.expected[pos], t.bound[pos]));
  });
  let first = true;
  for (const o of t.operations) {
    const result = seen[`${o.pos} ${o.layer} ${o.op}`], part = used(result, o.expected, o.bound);
    worst = Math.max(worst, part);
    if (part <= 1 || !first) continue;
    first = false;
    console.log(`  ${t.model}: ${o.op} of layer ${o.layer}, position ${o.pos}, is wrong first: ${part} bounds`);
    console.log(`  ${t.model} looks like: ${told(o.first.filter((flag) => !refuted.has(flag)), notes)}`);
  }
  return worst;
}

function runXorshift(t) {
  let state = BigInt(t.seed), same = true;
  for (const coin of t.coins) {
    let drawn;
    [state, drawn] = port.xorshift(state);
    same = same && drawn === Math.fround(coin);
  }
  return same && String(state) === t.state ? 0 : Infinity;
}

function runTokenizer(t, group) {
  const tokenizer = port.loadTokenizer(read(group.tokenizer), group.vocab), tokens = port.encode(tokenizer, t.text);
  const decoded = tokens.slice(1).map((token, i) => port.decode(tokenizer, tokens[i], token)).join("");
  return String(tokens) === String(t.tokens) && decoded === t.decoded_hex ? 0 : Infinity;
}

function sampled(t) {
  return port.sample(round(t.logits), Math.fround(t.temperature), Math.fround(t.p), Math.fround(t.coin));
}

function run(name, t, group, notes) { // the part of the bound that is used
  if (name === "model") return runModel(t, notes);
  if (name === "sampler") return sampled(t) === t.expected ? 0 : Infinity;
  if (name === "xorshift") return runXorshift(t);
  if (name === "tokenizer") return runTokenizer(t, group);
  return used(operations[name](t), t.expected, t.bound);
}

function told(flags, notes) {
  if (!flags.length) return "no known mistake";
  const more = flags.length > TOLD ? `; and ${flags.length - TOLD} more` : "";
  return flags.slice(0, TOLD).map((flag) => notes[flag]).join("; ") + more;
}

function likeliest(fits) { // the flags that fit best; none, if all of them fit more passing tests than failing ones
  const best = Math.max(1, ...Object.values(fits));
  return Object.keys(fits).filter((flag) => fits[flag] === best);
}

const TOLD = 8, SHOWS = 2; // bounds: a mistake that is nearer in a test is not among its flags
const refuted = new Set(); // mistakes that show in an operation of which all tests pass
let failed = false;
for (const name of [...Object.keys(operations), "model", "sampler", "xorshift", "tokenizer"]) {
  const file = JSON.parse(read(`${name}.json`));
  const fits = {}; // flag: failing tests that have it, less passing ones
  let tests = 0, failures = 0, worst = 0;
  for (const group of file.testGroups) for (const t of group.tests) {
    const part = run(name, t, group, file.notes);
    tests++;
    const fails = !(part <= 1);
    if (fails) console.log(`  ${name} ${t.tcId}, ${t.comment}: ${part} bounds (${t.result})`);
    if (t.result === "acceptable") continue;
    if (!fails || !(part <= SHOWS)) for (const flag of t.flags) fits[flag] = (fits[flag] || 0) + (fails ? 1 : -1);
    failures += fails ? 1 : 0;
    worst = Math.max(worst, part);
  }
  if (failures && name !== "model") console.log(`  ${name} looks like: ${told(likeliest(fits), file.notes)}`);
  if (!failures) for (const flag of Object.keys(fits)) refuted.add(flag);
  console.log(`${name} ${tests} ${failures} ${worst}`);
  failed = failed || failures > 0;
}
process.exitCode = failed ? 1 : 0;
