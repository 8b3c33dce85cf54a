// A Llama in float32, as a port to JavaScript may be: checkpoints and tokenizers of llama2.c. harness.js tests it.
"use strict";
const f = Math.fround;

function dot(a, b) { // left to right
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum = f(sum + f(a[i] * b[i]));
  return sum;
}

const matvec = (w, x) => w.map((row) => dot(row, x));
const residual = (x, change) => x.map((v, i) => f(v + change[i]));

function rmsnorm(x, weight) {
  const mean = f(dot(x, x) / x.length);
  const scale = f(1 / f(Math.sqrt(f(mean + f(1e-5)))));
  return x.map((v, i) => f(weight[i] * f(scale * v)));
}

function softmax(x) {
  const largest = x.reduce((a, b) => Math.max(a, b));
  const e = x.map((v) => f(Math.exp(f(v - largest))));
  const total = e.reduce((a, b) => f(a + b));
  return e.map((v) => f(v / total));
}

function frequency(i, headSize, theta, scaling) { // of pair i
  const own = f(1 / f(Math.pow(theta, f((2 * i) / headSize))));
  if (!scaling) return own;
  const slow = f(own / scaling.factor);
  if (scaling.low_freq_factor === undefined) return slow;
  const { low_freq_factor: low, high_freq_factor: high, original_max_position_embeddings: original } = scaling;
  const turns = f(original / f(f(2 * Math.PI) / own)); // in the original context
  if (turns > high) return own;
  if (turns < low) return slow;
  const s = f(f(turns - low) / f(high - low));
  return f(f(f(1 - s) * slow) + f(s * own));
}

function rope(x, pos, headSize, theta, scaling) {
  const y = x.slice();
  for (let i = 0; i < x.length; i += 2) {
    const angle = f(pos * frequency((i % headSize) / 2, headSize, theta, scaling));
    const c = f(Math.cos(angle)), s = f(Math.sin(angle));
    y[i] = f(f(x[i] * c) - f(x[i + 1] * s));
    y[i + 1] = f(f(x[i] * s) + f(x[i + 1] * c));
  }
  return y;
}

function attentionWeights(q, keys, heads, kvHeads) {
  const size = q.length / heads, group = heads / kvHeads, result = [];
  for (let h = 0; h < heads; h++) {
    const query = q.slice(h * size, (h + 1) * size), at = Math.floor(h / group) * size;
    const scores = keys.map((key) => f(dot(query, key.slice(at, at + size)) / f(Math.sqrt(size))));
    result.push(...softmax(scores));
  }
  return result;
}

function attentionMix(weights, values, heads, kvHeads) {
  const size = values[0].length / kvHeads, group = heads / kvHeads, n = values.length, result = [];
  for (let h = 0; h < heads; h++) {
    const mine = weights.slice(h * n, (h + 1) * n), at = Math.floor(h / group) * size;
    for (let j = 0; j < size; j++) result.push(dot(mine, values.map((value) => value[at + j])));
  }
  return result;
}

const swiglu = (gate, up) => gate.map((g, i) => f(f(g * f(1 / f(1 + f(Math.exp(-g))))) * up[i]));

function load(bytes) { // a checkpoint, version 0
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const head = [0, 1, 2, 3, 4, 5, 6].map((i) => view.getInt32(4 * i, true));
  const [dim, hidden, layers, heads, kvHeads, vocab, context] = head;
  const kv = (dim / heads) * kvHeads;
  let at = 28;
  const vector = (n) => Array.from({ length: n }, () => view.getFloat32((at += 4) - 4, true));
  const matrix = (rows, columns) => Array.from({ length: rows }, () => vector(columns));
  const each = (rows, columns) => Array.from({ length: layers }, () => matrix(rows, columns));
  const m = { dim, layers, heads, kvHeads, keys: [], values: [] };
  m.embedding = matrix(Math.abs(vocab), dim);
  m.rmsAtt = matrix(layers, dim);
  m.wq = each(dim, dim);
  m.wk = each(kv, dim);
  m.wv = each(kv, dim);
  m.wo = each(dim, dim);
  m.rmsFfn = matrix(layers, dim);
  m.w1 = each(hidden, dim);
  m.w2 = each(dim, hidden);
  m.w3 = each(hidden, dim);
  m.rmsFinal = vector(dim);
  vector((context * dim) / heads); // the tables of RoPE
  m.classifier = vocab < 0 ? matrix(-vocab, dim) : m.embedding;
  return m;
}

function forward(m, token, pos, see) {
  const size = m.dim / m.heads;
  let x = see(-1, "embedding", m.embedding[token]);
  for (let l = 0; l < m.layers; l++) {
    if (pos === 0) m.keys[l] = [], m.values[l] = [];
    let n = see(l, "attention_norm", rmsnorm(x, m.rmsAtt[l]));
    const q = see(l, "q", rope(matvec(m.wq[l], n), pos, size, 10000));
    m.keys[l][pos] = see(l, "k", rope(matvec(m.wk[l], n), pos, size, 10000));
    m.values[l][pos] = see(l, "v", matvec(m.wv[l], n));
    const weights = see(l, "weights", attentionWeights(q, m.keys[l], m.heads, m.kvHeads));
    const mix = see(l, "attention", attentionMix(weights, m.values[l], m.heads, m.kvHeads));
    x = see(l, "attention_residual", residual(x, see(l, "attention_out", matvec(m.wo[l], mix))));
    n = see(l, "ffn_norm", rmsnorm(x, m.rmsFfn[l]));
    const gate = see(l, "gate", matvec(m.w1[l], n)), up = see(l, "up", matvec(m.w3[l], n));
    const out = see(l, "ffn_out", matvec(m.w2[l], see(l, "swiglu", swiglu(gate, up))));
    x = see(l, "ffn_residual", residual(x, out));
  }
  return matvec(m.classifier, see(-1, "final_norm", rmsnorm(x, m.rmsFinal)));
}

function pick(tokens, probabilities, coin) {
  let sum = 0;
  for (const token of tokens) {
    sum = f(sum + probabilities[token]);
    if (coin < sum) return token;
  }
  return tokens[tokens.length - 1];
}

function sample(logits, temperature, p, coin) {
  if (temperature === 0) return logits.indexOf(Math.max(...logits));
  const probabilities = softmax(logits.map((v) => f(v / temperature))), all = [...logits.keys()];
  if (p <= 0 || p >= 1) return pick(all, probabilities, coin);
  const cutoff = f(f(1 - p) / Math.max(1, logits.length - 1));
  const sorted = all.filter((t) => probabilities[t] >= cutoff).sort((a, b) => probabilities[b] - probabilities[a]);
  const top = [];
  let sum = 0;
  for (const token of sorted) {
    top.push(token);
    sum = f(sum + probabilities[token]);
    if (sum > p) break;
  }
  return pick(top, probabilities, f(coin * sum));
}

function xorshift(state) { // a BigInt -> the next one, and a coin
  state ^= state >> 12n;
  state ^= (state << 25n) & 0xffffffffffffffffn;
  state ^= state >> 27n;
  return [state, Number(((state * 0x2545f4914f6cdd1dn) & 0xffffffffffffffffn) >> 40n) / 16777216];
}

function loadTokenizer(bytes, vocab) {
  const pieces = [], scores = [];
  for (let i = 0, at = 4; i < vocab; i++) {
    const length = bytes.readInt32LE(at + 4);
    scores.push(bytes.readFloatLE(at));
    pieces.push(bytes.subarray(at + 8, at + 8 + length).toString("latin1"));
    at += 8 + length;
  }
  return { pieces, scores };
}

function encode({ pieces, scores }, text) {
  const tokens = text ? [pieces.indexOf(" ")] : [];
  for (const character of text) {
    const bytes = Buffer.from(character), known = pieces.indexOf(bytes.toString("latin1"));
    tokens.push(...(known >= 0 ? [known] : [...bytes].map((byte) => byte + 3)));
  }
  for (;;) {
    let best = -1e10, at = -1, merged = -1;
    for (let i = 0; i + 1 < tokens.length; i++) {
      const pair = pieces.indexOf(pieces[tokens[i]] + pieces[tokens[i + 1]]);
      if (pair >= 0 && scores[pair] > best) [best, at, merged] = [scores[pair], i, pair];
    }
    if (at < 0) return [1, ...tokens];
    tokens.splice(at, 2, merged);
  }
}

function decode({ pieces }, previous, token) { // as hexadecimal digits
  let piece = pieces[token];
  if (previous === 1 && piece[0] === " ") piece = piece.slice(1);
  const byte = /^<0x(..)>$/.exec(piece);
  return byte ? byte[1].toLowerCase() : Buffer.from(piece, "latin1").toString("hex");
}

module.exports = { matvec, residual, rmsnorm, rope, attentionWeights, attentionMix, swiglu, load, forward, sample,
  xorshift, loadTokenizer, encode, decode };
