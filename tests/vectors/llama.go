// A Llama in float32, as a port to Go may be: checkpoints and tokenizers of llama2.c. harness.go tests it.
package main

import (
	"encoding/binary"
	"encoding/hex"
	"math"
	"sort"
	"strings"
)

type Scaling struct {
	Factor   float32 `json:"factor"`
	Low      float32 `json:"low_freq_factor"`
	High     float32 `json:"high_freq_factor"`
	Original float32 `json:"original_max_position_embeddings"`
}

func max[T int | float32 | float64](a, b T) T { // which older Go has not
	if a > b {
		return a
	}
	return b
}

func exp(x float32) float32 { return float32(math.Exp(float64(x))) }

func dot(a, b []float32) (sum float32) { // in four lanes
	var lanes [4]float32
	for i := range a {
		lanes[i%4] += a[i] * b[i]
	}
	return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3])
}

func matvec(w [][]float32, x []float32) []float32 {
	y := make([]float32, len(w))
	for i, row := range w {
		y[i] = dot(row, x)
	}
	return y
}

func residual(x, change []float32) []float32 {
	y := make([]float32, len(x))
	for i := range x {
		y[i] = x[i] + change[i]
	}
	return y
}

func rmsnorm(x, weight []float32) []float32 {
	s := 1 / float32(math.Sqrt(float64(dot(x, x)/float32(len(x))+1e-5)))
	y := make([]float32, len(x))
	for i := range x {
		y[i] = weight[i] * (s * x[i])
	}
	return y
}

func softmax(x []float32) []float32 {
	largest, total := x[0], float32(0)
	for _, v := range x {
		largest = max(largest, v)
	}
	y := make([]float32, len(x))
	for i, v := range x {
		y[i] = exp(v - largest)
		total += y[i]
	}
	for i := range y {
		y[i] /= total
	}
	return y
}

func frequency(i, hs int, theta float32, s *Scaling) float32 { // of pair i
	own := float32(1 / math.Pow(float64(theta), float64(2*i)/float64(hs)))
	if s == nil {
		return own
	}
	turns := s.Original * own / (2 * math.Pi) // in the original context
	if s.Low == 0 || turns < s.Low {
		return own / s.Factor
	}
	if turns > s.High {
		return own
	}
	part := (turns - s.Low) / (s.High - s.Low)
	return (1-part)*own/s.Factor + part*own
}

func rope(x []float32, pos, hs int, theta float32, scaling *Scaling) []float32 {
	y := make([]float32, len(x))
	for i := 0; i < len(x); i += 2 {
		s, c := math.Sincos(float64(float32(pos) * frequency(i%hs/2, hs, theta, scaling)))
		y[i] = x[i]*float32(c) - x[i+1]*float32(s)
		y[i+1] = x[i]*float32(s) + x[i+1]*float32(c)
	}
	return y
}

func attentionWeights(q []float32, keys [][]float32, heads, kvHeads int) (result []float32) {
	hs := len(q) / heads
	for h := 0; h < heads; h++ {
		at, scores := h/(heads/kvHeads)*hs, make([]float32, len(keys))
		for t, key := range keys {
			scores[t] = dot(q[h*hs:(h+1)*hs], key[at:at+hs]) * float32(1/math.Sqrt(float64(hs)))
		}
		result = append(result, softmax(scores)...)
	}
	return
}

func attentionMix(weights []float32, values [][]float32, heads, kvHeads int) []float32 {
	hs, n := len(values[0])/kvHeads, len(values)
	result := make([]float32, heads*hs)
	for i := range result {
		h := i / hs
		for t, value := range values {
			result[i] += weights[h*n+t] * value[h/(heads/kvHeads)*hs+i%hs]
		}
	}
	return result
}

func swiglu(gate, up []float32) []float32 {
	y := make([]float32, len(gate))
	for i, g := range gate {
		y[i] = g / (1 + exp(-g)) * up[i]
	}
	return y
}

type Model struct {
	dim, hidden, layers, heads, kvHeads          int
	embedding, classifier, rmsAtt, rmsFfn, final [][]float32
	wq, wk, wv, wo, w1, w2, w3                   [][][]float32
	keys, values                                 [][][]float32
}

func load(data []byte) *Model { // a checkpoint, version 0
	var head [7]int
	for i := range head {
		head[i] = int(int32(binary.LittleEndian.Uint32(data[4*i:])))
	}
	m := &Model{dim: head[0], hidden: head[1], layers: head[2], heads: head[3], kvHeads: head[4]}
	at, kv, vocab := 28, head[0]/head[3]*head[4], head[5]
	matrix := func(rows, columns int) [][]float32 {
		w := make([][]float32, rows)
		for i := range w {
			w[i] = make([]float32, columns)
			for j := range w[i] {
				w[i][j] = math.Float32frombits(binary.LittleEndian.Uint32(data[at:]))
				at += 4
			}
		}
		return w
	}
	each := func(rows, columns int) (w [][][]float32) {
		for l := 0; l < m.layers; l++ {
			w = append(w, matrix(rows, columns))
		}
		return
	}
	m.embedding = matrix(max(vocab, -vocab), m.dim)
	m.rmsAtt = matrix(m.layers, m.dim)
	m.wq, m.wk, m.wv, m.wo = each(m.dim, m.dim), each(kv, m.dim), each(kv, m.dim), each(m.dim, m.dim)
	m.rmsFfn = matrix(m.layers, m.dim)
	m.w1, m.w2, m.w3 = each(m.hidden, m.dim), each(m.dim, m.hidden), each(m.hidden, m.dim)
	m.final = matrix(1, m.dim)
	m.classifier = m.embedding
	if matrix(head[6], m.dim/m.heads); vocab < 0 { // the tables of RoPE come before
		m.classifier = matrix(-vocab, m.dim)
	}
	m.keys, m.values = make([][][]float32, m.layers), make([][][]float32, m.layers)
	return m
}

func (m *Model) forward(token, pos int, see func(l int, op string, values []float32)) []float32 {
	hs, x := m.dim/m.heads, m.embedding[token]
	see(-1, "embedding", x)
	for l := 0; l < m.layers; l++ {
		shown := func(op string, values []float32) []float32 {
			see(l, op, values)
			return values
		}
		n := shown("attention_norm", rmsnorm(x, m.rmsAtt[l]))
		q := shown("q", rope(matvec(m.wq[l], n), pos, hs, 10000, nil))
		m.keys[l] = append(m.keys[l], shown("k", rope(matvec(m.wk[l], n), pos, hs, 10000, nil)))
		m.values[l] = append(m.values[l], shown("v", matvec(m.wv[l], n)))
		weights := shown("weights", attentionWeights(q, m.keys[l], m.heads, m.kvHeads))
		mix := shown("attention", attentionMix(weights, m.values[l], m.heads, m.kvHeads))
		x = shown("attention_residual", residual(x, shown("attention_out", matvec(m.wo[l], mix))))
		n = shown("ffn_norm", rmsnorm(x, m.rmsFfn[l]))
		hidden := shown("swiglu", swiglu(shown("gate", matvec(m.w1[l], n)), shown("up", matvec(m.w3[l], n))))
		x = shown("ffn_residual", residual(x, shown("ffn_out", matvec(m.w2[l], hidden))))
	}
	n := rmsnorm(x, m.final[0])
	see(-1, "final_norm", n)
	return matvec(m.classifier, n)
}

func sample(logits []float32, temperature, p, coin float32) int {
	all, scaled := make([]int, len(logits)), make([]float32, len(logits))
	for i, v := range logits {
		all[i], scaled[i] = i, v/temperature
	}
	if temperature == 0 {
		sort.SliceStable(all, func(a, b int) bool { return logits[all[a]] > logits[all[b]] })
		return all[0]
	}
	probabilities := softmax(scaled)
	if p > 0 && p < 1 {
		sort.SliceStable(all, func(a, b int) bool { return probabilities[all[a]] > probabilities[all[b]] })
		var sum float32
		taken := 0
		for taken < len(all) && sum <= p {
			sum += probabilities[all[taken]]
			taken++
		}
		all, coin = all[:taken], coin*sum
	}
	var sum float32
	for _, token := range all {
		if sum += probabilities[token]; coin < sum {
			return token
		}
	}
	return all[len(all)-1]
}

func xorshift(state uint64) (uint64, float32) {
	state ^= state >> 12
	state ^= state << 25
	state ^= state >> 27
	return state, float32(state*0x2545F4914F6CDD1D>>40) / 16777216
}

type Tokenizer struct {
	pieces []string
	scores []float32
	known  map[string]int
}

func loadTokenizer(data []byte, vocab int) *Tokenizer {
	t := &Tokenizer{known: map[string]int{}}
	for i, at := 0, 4; i < vocab; i++ {
		length := int(binary.LittleEndian.Uint32(data[at+4:]))
		t.scores = append(t.scores, math.Float32frombits(binary.LittleEndian.Uint32(data[at:])))
		t.pieces = append(t.pieces, string(data[at+8:at+8+length]))
		t.known[t.pieces[i]] = i
		at += 8 + length
	}
	return t
}

func (t *Tokenizer) encode(text string) []int {
	var tokens []int
	if text != "" {
		tokens = append(tokens, t.known[" "])
	}
	for _, character := range text {
		if token, ok := t.known[string(character)]; ok {
			tokens = append(tokens, token)
			continue
		}
		for _, b := range []byte(string(character)) {
			tokens = append(tokens, int(b)+3)
		}
	}
	for {
		best, at, merged := float32(-1e10), -1, 0
		for i := 0; i+1 < len(tokens); i++ {
			pair, ok := t.known[t.pieces[tokens[i]]+t.pieces[tokens[i+1]]]
			if ok && t.scores[pair] > best {
				best, at, merged = t.scores[pair], i, pair
			}
		}
		if at < 0 {
			return append([]int{1}, tokens...)
		}
		tokens[at] = merged
		tokens = append(tokens[:at+1], tokens[at+2:]...)
	}
}

func (t *Tokenizer) decode(previous, token int) string { // as hexadecimal digits
	piece := t.pieces[token]
	if previous == 1 {
		piece = strings.TrimPrefix(piece, " ")
	}
	if len(piece) == 6 && strings.HasPrefix(piece, "<0x") {
		return strings.ToLower(piece[3:5])
	}
	return hex.EncodeToString([]byte(piece))
}
