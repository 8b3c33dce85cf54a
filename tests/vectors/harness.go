// Runs the vectors over llama.go: go run harness.go llama.go FOLDER. One line a file: its name, tests, failures, and
// the largest part of a bound that was used. Exit code 1 if anything fails.
package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
)

type Floats []float32 // read as decimals and rounded: encoding/json does it
type Rows [][]float32

type Operation struct {
	Pos, Layer      int
	Op              string
	Expected, Bound []float64
}

type Test struct {
	TcID                                      int `json:"tcId"`
	Comment, Result, Model, Text, Seed, State string
	X, Weight, Change, Gate, Up, Q            Floats
	W, Table, Keys, Values                    Rows
	Weights, Logits, Coins                    Floats
	Pos, Token                                int
	HeadSize                                  int `json:"head_size"`
	Heads                                     int `json:"n_heads"`
	KvHeads                                   int `json:"n_kv_heads"`
	Theta, Temperature, P, Coin               float32
	Scaling                                   *Scaling
	Tokens                                    []int
	Decoded                                   string `json:"decoded_hex"`
	Operations                                []Operation
	Expected, Bound                           json.RawMessage
}

type File struct {
	TestGroups []struct {
		Tokenizer string
		Vocab     int
		Tests     []Test
	}
}

var folder = os.Args[1]

func contents(name string) []byte {
	data, err := os.ReadFile(filepath.Join(folder, name))
	check(err)
	return data
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "harness:", err)
		os.Exit(2)
	}
}

func decoded[T any](text json.RawMessage) (value T) {
	check(json.Unmarshal(text, &value))
	return
}

func used(y []float32, expected, bound []float64) float64 { // the largest part of a bound
	worst := 0.0
	for i, v := range y {
		if len(y) != len(expected) || math.IsNaN(float64(v)) {
			return math.Inf(1)
		}
		worst = max(worst, math.Abs(float64(v)-expected[i])/bound[i])
	}
	return worst
}

func operation(name string, t *Test) []float32 {
	switch name {
	case "embedding":
		return t.Table[t.Token]
	case "rmsnorm":
		return rmsnorm(t.X, t.Weight)
	case "matvec":
		return matvec(t.W, t.X)
	case "rope", "rope_scaled":
		return rope(t.X, t.Pos, t.HeadSize, t.Theta, t.Scaling)
	case "attention_weights":
		return attentionWeights(t.Q, t.Keys, t.Heads, t.KvHeads)
	case "attention_mix":
		return attentionMix(t.Weights, t.Values, t.Heads, t.KvHeads)
	case "swiglu":
		return swiglu(t.Gate, t.Up)
	}
	return residual(t.X, t.Change)
}

func runModel(t *Test) float64 {
	m, worst := load(contents(t.Model)), 0.0
	expected, bound := decoded[[][]float64](t.Expected), decoded[[][]float64](t.Bound)
	for pos, token := range t.Tokens {
		see := func(l int, op string, values []float32) {
			for _, o := range t.Operations {
				if o.Pos == pos && o.Layer == l && o.Op == op {
					part := used(values, o.Expected, o.Bound)
					if part > 1 {
						fmt.Printf("  %s of layer %d, position %d: %g bounds\n", op, l, pos, part)
					}
					worst = max(worst, part)
				}
			}
		}
		worst = max(worst, used(m.forward(token, pos, see), expected[pos], bound[pos]))
	}
	return worst
}

func sameCoins(t *Test) bool {
	state, err := strconv.ParseUint(t.Seed, 10, 64)
	check(err)
	for _, coin := range t.Coins {
		var drawn float32
		if state, drawn = xorshift(state); drawn != coin {
			return false
		}
	}
	return strconv.FormatUint(state, 10) == t.State
}

func sameTokens(t *Test, data []byte, vocab int) bool {
	tokenizer, text := loadTokenizer(data, vocab), ""
	tokens := tokenizer.encode(t.Text)
	for i := 1; i < len(tokens); i++ {
		text += tokenizer.decode(tokens[i-1], tokens[i])
	}
	return reflect.DeepEqual(tokens, t.Tokens) && text == t.Decoded
}

func exactly(same bool) float64 {
	if same {
		return 0
	}
	return math.Inf(1)
}

func main() {
	failed := false
	for _, name := range []string{"embedding", "rmsnorm", "matvec", "rope", "rope_scaled", "attention_weights",
		"attention_mix", "swiglu", "residual", "model", "sampler", "xorshift", "tokenizer"} {
		tests, failures, worst := 0, 0, 0.0
		for _, group := range decoded[File](contents(name + ".json")).TestGroups {
			for _, t := range group.Tests {
				var part float64
				switch name {
				case "model":
					part = runModel(&t)
				case "sampler":
					part = exactly(sample(t.Logits, t.Temperature, t.P, t.Coin) == decoded[int](t.Expected))
				case "xorshift":
					part = exactly(sameCoins(&t))
				case "tokenizer":
					part = exactly(sameTokens(&t, contents(group.Tokenizer), group.Vocab))
				default:
					part = used(operation(name, &t), decoded[[]float64](t.Expected), decoded[[]float64](t.Bound))
				}
				tests++
				if part > 1 {
					fmt.Printf("  %s %d, %s: %g bounds (%s)\n", name, t.TcID, t.Comment, part, t.Result)
				}
				if t.Result != "acceptable" {
					worst = max(worst, part)
					failures += map[bool]int{true: 1}[part > 1]
				}
			}
		}
		fmt.Println(name, tests, failures, worst)
		failed = failed || failures > 0
	}
	if failed {
		os.Exit(1)
	}
}
