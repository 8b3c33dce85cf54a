"use strict";
// page.py sets this into page.html.
const $ = id => document.getElementById(id);
const on = (target, type, act) => target.addEventListener(type, act);
const say = (id, text) => { $(id).textContent = text; };
const show = parts => Object.entries(parts).forEach(([id, is]) => { $(id).hidden = !is; });
let data;

// ---- SHA-256 (FIPS 180-4). Constants: bits of roots of primes.
const ROUND = [], START = [];
for (let n = 2, primes = []; ROUND.length < 64; n++) {
  if (primes.some(prime => n % prime === 0)) continue;
  primes.push(n);
  const bits = x => Math.floor((x - Math.floor(x)) * 2 ** 32) | 0;
  if (START.length < 8) START.push(bits(Math.sqrt(n)));
  ROUND.push(bits(Math.cbrt(n)));
}
function sha256(message) {
  const length = message.length, padded = new Uint8Array((length + 72) >> 6 << 6);
  padded.set(message);
  padded[length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setUint32(padded.length - 8, Math.floor(length / 2 ** 29));
  view.setUint32(padded.length - 4, length << 3);
  const state = START.slice(), w = new Int32Array(64), turn = (x, n) => x >>> n | x << 32 - n;
  for (let block = 0; block < padded.length; block += 64) {
    for (let t = 0; t < 64; t++) {
      if (t < 16) { w[t] = view.getInt32(block + 4 * t); continue; }
      const a = w[t - 15], b = w[t - 2];
      w[t] = w[t - 16] + w[t - 7] + (turn(a, 7) ^ turn(a, 18) ^ a >>> 3) + (turn(b, 17) ^ turn(b, 19) ^ b >>> 10);
    }
    let [a, b, c, d, e, f, g, h] = state;
    for (let t = 0; t < 64; t++) {
      const one = h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + (e & f ^ ~e & g) + ROUND[t] + w[t] | 0;
      const two = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + (a & b ^ a & c ^ b & c) | 0;
      [h, g, f, e, d, c, b, a] = [g, f, e, d + one | 0, c, b, a, one + two | 0];
    }
    [a, b, c, d, e, f, g, h].forEach((x, i) => { state[i] = state[i] + x | 0; });
  }
  const out = new Uint8Array(32), write = new DataView(out.buffer);
  state.forEach((x, i) => write.setInt32(4 * i, x));
  return out;
}
const hex = bytes => Array.from(bytes, b => b.toString(16).padStart(2, "0")).join("");
const unhex = text => Uint8Array.from(text.match(/../g), pair => parseInt(pair, 16));
const joined = (first, ...parts) => Uint8Array.from([first, ...parts.flatMap(part => [...part])]);
const utf8 = text => new TextEncoder().encode(text);
const leafHash = line => sha256(joined(0, utf8(line)));
const nodeHash = (left, right) => sha256(joined(1, left, right));

// ---- The tree of RFC 6962: the left half of n leaves has the largest power of two below n.
const hashes = new Map();
const half = n => 2 ** (31 - Math.clz32(n - 1));
function subtree(low, high) {
  const key = low + ":" + high, middle = low + half(high - low);
  if (!hashes.has(key)) hashes.set(key, high - low === 1 ? unhex(data.leaves[low]) :
    nodeHash(subtree(low, middle), subtree(middle, high)));
  return hashes.get(key);
}
function path(index) {  // from the leaf up: the sibling, and whether it is on the left
  const found = [];
  for (let low = 0, high = data.leaves.length; high - low > 1;) {
    const middle = low + half(high - low);
    if (index < middle) { found.push([subtree(middle, high), false]); high = middle; }
    else { found.push([subtree(low, middle), true]); low = middle; }
  }
  return found.reverse();
}
const head = root => data.leaves.length + ":" + hex(root);

// ---- What the lines say. All is read from the lines that are hashed.
let events = [], header, layers, heads, given, pieces, coins, perStep;
const problems = [];  // [step or -1, what is wrong]
const complain = (step, text) => problems.push([step, (step < 0 ? "" : "Step " + step + ": ") + text]);
const escape = c => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0");
const written = event => JSON.stringify(event).replace(/[\x7f-\uffff]/g, escape);  // as Python writes it
const blank = line => line.replace(/([:,[])[-+.e\d]+(?=[,}\]])/g, "$1#");  // Python writes 1.0, a script 1
function parsed(line, names) {
  try {
    const event = JSON.parse(line);
    return Object.keys(event).join() === names && blank(written(event)) === blank(line) ? event : undefined;
  } catch { }
}
function readLines() {
  const [line] = data.lines,
    names = "format,model,weights,config,tokenizer,arithmetic,rng,temperature,p_value,seed,steps,level,prompt,tokens";
  header = parsed(line, names) ?? parsed(line, names.replace("seed", "seed,nonce"));
  if (!header || header.format !== "llama2.py trace 2") throw new Error("its first line is no header");
  header.seed = line.match(/"seed":(\d+)/)[1];  // may exceed 2^53
  if (header.nonce && header.seed !== seedOf(line)) complain(-1, "Its seed does not follow from its nonce.");
  given = header.tokens.length;
  ({ n_layers: layers, n_heads: heads } = header.config);
  perStep = { step: 1, layer: layers + 1, op: 14 * layers + 3 }[header.level];
  events = data.lines.slice(1).map(line => parsed(line, "pos,token,next,text,logits"));
  if (!events.length || Math.floor((data.leaves.length - 1) / perStep) !== events.length)
    complain(-1, `The log has ${data.leaves.length} lines, which does not fit ${events.length} steps.`);
  data.lines.forEach((line, i) => {
    const leaf = data.leaves[i * perStep];
    if (leaf !== hex(leafHash(line))) complain(i - 1, (i ? "its" : "First") + " line is not what its leaf says.");
  });
  events.forEach(checkStep);
  events = events.map(event => event ?? { token: -1, next: -1, text: "?" });
  if (head(subtree(0, data.leaves.length)) !== data.head)
    complain(-1, "The lines do not lead to the head that this page states, " + data.head + ".");
}
function seedOf(line) {  // that follows from a header
  const hash = sha256(utf8(line.replace(/"seed":\d+/, '"seed":0')));
  return String(new DataView(hash.buffer).getBigUint64(0, true) || 1n);
}
function checkStep(event, i) {
  if (!event) return complain(i, "its line is not one of a log.");
  const before = i ? events[i - 1]?.next : header.tokens[0];
  if (event.pos !== i) complain(i, "its line says that it is step " + event.pos + ".");
  if (event.token !== (before ?? event.token)) complain(i, "it reads another token than was chosen before.");
  if (i + 1 < given && event.next !== header.tokens[i + 1]) complain(i, "its token is not the one that was given.");
  if (event.next >= header.config.vocab_size) complain(i, "its token is not in the vocabulary.");
  if (i && (header.config.eos ?? [1]).includes(before) || i >= header.steps) complain(i, "the run had ended before it.");
}
function bytesOf(text) {  // bytes that are no text stand as \xHH
  const parts = text.split(/\\x([89a-f][0-9a-f])/), out = [];
  parts.forEach((part, i) => {
    for (const byte of i % 2 ? [parseInt(part, 16)] : utf8(part)) out.push(byte);
  });
  return Uint8Array.from(out);
}
function readText() {  // a character stands where it is complete
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  pieces = events.map(event => decoder.decode(bytesOf(event.text), { stream: true }));
}
function readCoins() {  // xorshift64*
  const mask = 2n ** 64n - 1n;
  let state = BigInt(header.seed);
  coins = events.map((event, i) => {
    if (i + 1 < given || !Math.fround(header.temperature)) return;
    state ^= state >> 12n;
    state ^= state << 25n & mask;
    state ^= state >> 27n;
    return Number((state * 0x2545F4914F6CDD1Dn & mask) >> 40n) / 2 ** 24;
  });
}
const sorted = () => ![0, 1].includes(Math.fround(header.p_value));

// ---- What the log does not commit to, beside what it says
const ROUNDED = 2e-3;  // more than roundings add up to
const sum = list => list.reduce((total, c) => total + c[1], 0);
function checkSeen(step, i) {
  const { next, text, token } = events[i], name = data.words[next];
  const all = [...step.top, ...step.lens], rows = 2 * layers * heads * (i + 1);
  if (!all.every(([t, p]) => Number.isInteger(t) && p >= 0 && p <= 1) || step.lens.length !== layers ||
      step.top.some((c, j) => j && c[1] > step.top[j - 1][1]) || sum(step.top) > 1 + ROUNDED ||
      step.weights.length !== rows || /[^0-9a-v]/.test(step.weights))
    complain(i, "its probabilities or its attention are none.");
  if (name !== text && !(token === 1 && name === " " + text))
    complain(i, "the name of its token is not its line's text.");
  if (i + 1 >= given && (coins[i] === undefined ? step.top[0][0] !== next : contradicts(step, next, coins[i])))
    complain(i, "its probabilities contradict its line's token.");
}
function contradicts({ top, kept, total }, next, coin) {
  const inside = top.filter(c => c[2]), at = inside.findIndex(c => c[0] === next);
  if (!(total > 0 && kept > 0) || at < 0 && (inside.length >= kept || top.some(c => c[0] === next))) return true;
  const before = sum(inside.filter((c, j) => sorted() ? at < 0 || j < at : c[0] < next));
  const after = sum(inside) - before - (at < 0 ? 0 : inside[at][1]);
  return coin * total < before - ROUNDED || coin * total > total - after + ROUNDED;
}
function showProblems() {
  $("alarm").hidden = !problems.length;
  say("wrong", problems.slice(0, 9).map(problem => problem[1]).join("\n") + (problems.length > 9 ? "\n.." : ""));
  for (const [step] of problems) tokens[step]?.classList.add("bad");
}

// ---- Elements. Text from the log is only ever set as text.
function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
}
// What is invisible or turns other text is escaped; but emoji need U+200D between them
const codes = c => Array.from({ length: c.length }, (_, i) => escape(c[i])).join("");
const visible = text => text.replace(/(?! |\n|\u200d)[\p{C}\p{Z}]/gu, codes);
const lineEnds = text => visible(text).replace(/\n/g, "\u23ce");
const shown = text => /^(\\x[89a-f][0-9a-f])+$/.test(text) ? "byte" + text.replaceAll("\\x", " ") :
  lineEnds(text).replace(/^ | $/g, "\u2423");
const word = token => data.words[token] ?? "token " + token;
const named = i => (shown(events[i].text) || "no text") + (["", events[i].text].includes(pieces[i]) ? "" :
  " of " + lineEnds(pieces[i]));
const isBOS = token => token === (header.config.bos ?? 1);
const nameAt = pos => pos ? named(pos - 1) : isBOS(header.tokens[0]) ? "BOS" : "token " + header.tokens[0];
const percent = p => (100 * p).toFixed(p < 0.0995 ? 2 : 1) + " %";
let chosen = 0, layer = 0, headNumber = 0, tokens = [];

function drawText() {
  tokens = events.map((event, i) => {
    const button = element("span", lineEnds(pieces[i]), (i + 1 < given ? "given " : "") + (pieces[i] ? "" : "byte"));
    button.dataset.byte = button.ariaLabel = named(i);
    button.tabIndex = -1;
    button.role = "button";
    button.ariaPressed = "false";
    on(button, "click", () => choose(i));
    const [, p] = data.steps?.[i].top.find(c => c[0] === events[i].next) ?? [0, +!data.steps];
    button.style.setProperty("--surprise", 1 - p);
    $("text").append(button);
    if (pieces[i].endsWith("\n")) $("text").append(element("br"));
    return button;
  });
}
const press = is => Object.assign(tokens[chosen], { ariaPressed: is, tabIndex: is - 1 });
function choose(i) {
  const focused = document.activeElement === tokens[chosen];
  press(false);
  chosen = Math.max(0, Math.min(events.length - 1, +i));
  press(true);
  if (focused) tokens[chosen].focus();
  say("now", `Step ${chosen}: after ${nameAt(chosen)} ${chosen + 1 < given ? "was given" : "came"} ${named(chosen)} ` +
    `(token ${events[chosen].next})`);
  $("back").disabled = !chosen;
  $("on").disabled = chosen === events.length - 1;
  if (data.steps) { drawNet(); drawCandidates(); drawLens(); drawMap(); }
  $("line").value = data.lines[chosen + 1];
  prove();
  try { history.replaceState(null, "", "#" + chosen); } catch { }
}

// ---- The map of the network
function buildNet() {
  for (let l = 0; l < layers; l++) {
    const column = $("layer-map").content.cloneNode(true).firstElementChild;
    column.firstElementChild.textContent = "layer " + l;
    column.querySelector("button").dataset.layer = l;
    $("layer").append(element("option", l));
    for (let h = 0; h < heads; h++) {
      column.querySelector(".heads").append(Object.assign(element("i"), { id: l + "." + h }));
      if (!l) $("head").append(element("option", h));
    }
    $("net").lastElementChild.before(column);
    $("names").append(element("span", "layer " + l));
  }
  on($("net"), "click", event => {
    const { to, layer: l } = event.target.closest("button")?.dataset ?? {};
    if (!to) return;
    if (l) look(+l, +(event.target.id.split(".")[1] ?? headNumber));
    $(to).scrollIntoView();
    $(to).focus({ preventScroll: true });
  });
}
function drawNet() {
  const { top, lens } = data.steps[chosen], guess = ([token, p]) => shown(word(token)) + " " + percent(p);
  say("reads", nameAt(chosen));
  say("says", guess(top[0]));
  document.querySelectorAll(".lens").forEach((button, l) => { button.textContent = "lens: " + guess(lens[l]); });
}
function markNet() {
  $("net").querySelectorAll("i").forEach((square, row) => {
    square.className = row === layer * heads + headNumber ? "own" : "";
  });
}
function look(l, h) {
  [layer, headNumber] = [l, h];
  drawMap();
}
function bar(name, p, className) {
  const item = element("li", "", className), track = element("span"), fill = element("div", "", "bar");
  fill.style.width = 100 * p + "%";
  track.append(fill);
  item.append(element("span", name, "name"), track, element("span", percent(p), "number"));
  return item;
}
function drawCandidates() {
  const step = data.steps[chosen], coin = coins[chosen], next = events[chosen].next, drawn = coin !== undefined;
  const strip = drawn && sorted(), wasGiven = chosen + 1 < given;
  show({ "why-given": wasGiven, "why-likeliest": !drawn && !wasGiven, "why-drawn": drawn,
    paler: step.top.some(c => !c[2]), fell: drawn, coin: strip, strip, order: !strip });
  $("bars").replaceChildren(...step.top.map(([token, p, kept]) => bar(shown(word(token)), p, (kept ? "" : "cut ") +
    (token === next ? "chosen" : ""))));
  if (!drawn) return;
  say("kept", step.kept + (step.kept === 1 ? " candidate" : " candidates"));
  say("heat", header.temperature);
  say("fallen", coin.toFixed(4));
  $("coin").replaceChildren(...step.top.filter(c => c[2]).map(([token, p]) => {
    const piece = element("div", "", token === next ? "chosen" : "");
    piece.style.width = 100 * p / step.total + "%";
    return piece;
  }), element("i"));
  $("coin").lastChild.style.left = 100 * coin + "%";
  $("coin").ariaLabel = "The coin fell on " + shown(word(next));
}
function drawLens() {
  $("lens").replaceChildren(...data.steps[chosen].lens.map(([token, p], l) => {
    const row = element("tr");
    row.append(element("th", "layer " + l), element("td", shown(word(token)), "name"), element("td", percent(p)));
    return row;
  }));
}

// ---- Attention
const NAMES = 76, CELL = 10, GAP = 5;  // pixels: the names above, a row, between layers
function weightsOf(l, h) {  // of the chosen step: two digits of base 32 each, in thousandths
  const n = chosen + 1, text = data.steps[chosen].weights, from = 2 * n * (l * heads + h);
  return Array.from({ length: n }, (_, t) => parseInt(text.substr(from + 2 * t, 2), 32) / 999);
}
const rowTop = (l, h) => NAMES + (l * heads + h) * CELL + l * GAP;
const columnWidth = () => Math.max(10, Math.min(22, $("scroll").clientWidth / (chosen + 1) | 0));
function drawMap() {
  const n = chosen + 1, canvas = $("map"), wide = columnWidth(), ratio = devicePixelRatio;
  const high = rowTop(layers - 1, heads), style = getComputedStyle(canvas);
  const [fill, fire, orange, ink] = ["fill", "fire", "orange", "ink"].map(name => style.getPropertyValue("--" + name));
  canvas.width = n * wide * ratio;
  canvas.height = high * ratio;
  canvas.style.width = n * wide + "px";
  canvas.style.height = high + "px";
  const draw = canvas.getContext("2d");
  draw.scale(ratio, ratio);
  for (let l = 0; l < layers; l++) for (let h = 0; h < heads; h++) {
    const own = l === layer && h === headNumber;
    weightsOf(l, h).forEach((w, t) => {
      draw.fillStyle = `rgba(${own ? fire : fill},${0.05 + 0.95 * Math.sqrt(w)})`;
      draw.fillRect(t * wide, rowTop(l, h) + 1, wide - 1, CELL - 2);
    });
  }
  draw.strokeStyle = orange;
  draw.lineWidth = 2;
  draw.strokeRect(1, rowTop(layer, headNumber), n * wide - 2, CELL);
  draw.fillStyle = ink;
  draw.font = "11px system-ui, sans-serif";
  for (let t = 0; t < n; t++) {
    draw.setTransform(0, -ratio, ratio, 0, ratio * (t * wide + wide / 2 + 4), ratio * (NAMES - 4));
    draw.fillText(nameAt(t), 0, 0, NAMES - 8);
  }
  drawHead(weightsOf(layer, headNumber));
}
function drawHead(own) {
  const order = [...own.keys()].sort((a, b) => own[b] - own[a]);  // stable
  tokens.forEach((button, i) => {  // the button shows the token that position i + 1 reads
    button.style.boxShadow = i < chosen ? `0 .2em 0 rgba(var(--fill),${Math.sqrt(own[i + 1])})` : "";
  });
  $("cells").replaceChildren(...order.map(t => bar(t + " " + nameAt(t), own[t])));
  $("layer").value = layer;
  $("head").value = headNumber;
  markNet();
}
function under(event) {  // what is under the pointer
  const y = Math.max(0, event.offsetY - NAMES), block = heads * CELL + GAP;
  const l = Math.min(layers - 1, y / block | 0), h = Math.min(heads - 1, (y - l * block) / CELL | 0);
  return [l, h, Math.min(chosen, event.offsetX / columnWidth() | 0)];
}
function tellCell(event) {
  const [l, h, t] = under(event);
  say("cell", `layer ${l}, head ${h}: ${percent(weightsOf(l, h)[t])} at position ${t}, ${nameAt(t)}`);
}
function listenToMap() {
  on($("map"), "click", event => { look(...under(event)); tellCell(event); });
  on($("map"), "mousemove", tellCell);
  on($("map"), "keydown", event => {
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key], rows = layers * heads;
    if (!by) return;
    event.preventDefault();
    const row = (layer * heads + headNumber + by + rows) % rows;
    look(row / heads | 0, row % heads);
  });
  for (const id of ["layer", "head"]) on($(id), "change", () => look(+$("layer").value, +$("head").value));
  on(matchMedia("(prefers-color-scheme: dark)"), "change", drawMap);
  on(window, "resize", drawMap);
}

// ---- The proof
function prove() {
  const line = $("line").value, index = (chosen + 1) * perStep, changed = line !== data.lines[chosen + 1];
  let own = leafHash(line), boxes = [];
  const mine = changed ? "own changed" : "own", box = (label, hash, kind) => {
    const node = element("div", "", "node hash " + kind);
    node.append(element("span", label + " ", "soft"), element("span", hex(hash)));
    return node;
  };
  boxes.push([box("leaf " + index, own, mine)]);
  for (const [sibling, left] of path(index)) {
    boxes.at(-1)[left ? "unshift" : "push"](box("sibling", sibling, ""));
    own = left ? nodeHash(sibling, own) : nodeHash(own, sibling);
    boxes.push([box("SHA256(01, left, right)", own, mine)]);
  }
  $("tree").replaceChildren(...boxes.reverse().flatMap((pair, i) => {
    const row = element("div", "", "pair");
    row.append(...pair);
    return i ? [element("div", "\u2191", "up"), row] : [row];
  }));
  const now = $("tree").dataset.head = head(own);
  say("state", changed ? `Changed: the head would be ${now}, not ${data.head}.` : `The line leads to the head ${now}` +
    (now === data.head ? "." : `, not to ${data.head}, which this page states.`));
  $("state").className = changed ? "changed hash" : now === data.head ? "hash" : "hash alarm";
}
function headIn(text) {  // any form of a head -> [size or undefined, root]
  const plain = text.match(/^(?:[^:]*root[^:]*: *)?(?:(\d+):)?([0-9a-f]{64})(?:,.*)?$/i) ||
    text.match(/^\{"size":(\d+),"root":"([0-9a-f]{64})"\}$/);
  if (plain) return [plain[1], plain[2].toLowerCase()];
  const note = text.match(/^\S+\n(\d+)\n([A-Za-z0-9+/]{43}=)(?:\n|$)/);  // C2SP tlog-checkpoint
  return note && [note[1], hex(Uint8Array.from(atob(note[2]), c => c.charCodeAt(0)))];
}
function compare() {
  const text = $("published").value.trim(), found = headIn(text);
  const [lines, root] = head(subtree(0, data.leaves.length)).split(":");
  const wrong = !found ? "That is not a head: SIZE:HEX or HEX." :
    (found[0] ?? lines) !== lines ? `ALARM: another head: of ${found[0]} lines; this log has ${lines}.` :
    found[1] !== root ? "ALARM: another head: its root is not this log's." : "";
  $("agrees").className = text && wrong ? "alarm" : "";
  say("agrees", text && (wrong || (found[0] ? "That is the head of this log: size and root agree." :
    "That is the root of this log; no size was given.")));
}

// ---- The beginning
function drawHeader() {
  const { temperature, prompt, tokens: first, level, steps, model, p_value, seed, nonce, arithmetic } = header;
  say("h-model", model);
  say("h-steps", steps);
  say("h-begun", prompt ? "after the prompt " + visible(JSON.stringify([...prompt].slice(0, 200).join(""))) :
    first.length === 1 && isBOS(first[0]) ? "without a prompt" : "after tokens that were given as numbers: " +
    first.slice(0, 50) + (first.length > 50 ? ",.." : ""));
  say("h-how", temperature ? `drawing at temperature ${temperature}, top-p ${p_value}, seed ${seed}` +
    (nonce ? ", by nonce " + nonce : "") :
    "taking the likeliest token");
  say("h-numbers", arithmetic === "exact" ? "exact arithmetic" : "dialect c of the arithmetic");
  say("h-level", level === "op" ? "operation" : level);
  say("h-done", events.length);
  show({ cut: events.length < steps && events.at(-1).next !== 1 });
}
function interest(step, i) {  // bits of the draw, opinions of the layers, positions
  const kept = step.top.filter(c => c[2] && c[1]), share = c => c[1] / (step.total ?? 1);
  const entropy = kept.reduce((bits, c) => bits - share(c) * Math.log2(share(c)), 0);
  return entropy + new Set(step.lens.map(c => c[0])).size + Math.min(i, 16) / 8;
}
function opening() {  // the chosen token with the most to see
  const first = Math.min(given, events.length) - 1;
  if (!data.steps) return first;
  const scores = data.steps.map((step, i) => i < first ? -1 : interest(step, i));
  return scores.indexOf(Math.max(...scores));
}
function sharpest() {  // the head that looks hardest at one position
  let best = [0, 0], most = 0;
  for (let row = 0; row < layers * heads; row++) {
    const at = [row / heads | 0, row % heads], hardest = Math.max(...weightsOf(...at).slice(1, -1));
    if (hardest > most) [best, most] = [at, hardest];
  }
  return best;
}
const inHash = () => location.hash.match(/^#(\d+)$/)?.[1];
function walk(event) {
  if (event.target.matches?.("textarea, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  const to = { ArrowLeft: chosen - 1, ArrowRight: chosen + 1, Home: 0, End: events.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  choose(to);
}
function begin() {
  data = JSON.parse($("data").textContent);
  readLines();
  readText();
  readCoins();
  if ((data.steps ?? events).length !== events.length) throw new Error("steps are missing");
  data.steps?.forEach(checkSeen);
  say("about", `${events.length} steps of a model with ${layers} layers and ${heads} heads`);
  if (!data.steps) document.title = document.querySelector("h1").textContent = "A Llama's log";
  show({ model: data.steps, seen: data.steps, intro: data.steps });
  drawHeader();
  drawText();
  if (data.steps) { buildNet(); listenToMap(); }
  on(document, "keydown", walk);
  on(window, "hashchange", () => choose(inHash() ?? chosen));
  on($("line"), "input", prove);
  on($("published"), "input", compare);
  on($("reset"), "click", () => choose(chosen));
  on($("back"), "click", () => choose(chosen - 1));
  on($("on"), "click", () => choose(chosen + 1));
  choose(inHash() ?? opening());
  if (data.steps) look(...sharpest());
}
on(document, "DOMContentLoaded", () => {
  try { begin(); } catch (error) { complain(-1, "Its data cannot be read: " + error.message); }
  showProblems();
});
