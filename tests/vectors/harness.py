"""Runs the vectors over llama.py: python3 harness.py FOLDER [ORDER [flush]]. One line a file: its name, tests,
failures, and the largest part of a bound that was used. ORDER is one of llama.SUMS, or `all`. Exit code 1 if anything
fails."""
import json
import sys
from pathlib import Path

import numpy as np

import llama
from llama import F

OPERATIONS = {  # name of the file: the port's function, the fields that are float32, the others
    "rmsnorm": (llama.rmsnorm, ["x", "weight"], []),
    "matvec": (llama.matvec, ["w", "x"], []),
    "rope": (llama.rope, ["x"], ["pos", "head_size", "theta"]),
    "rope_scaled": (llama.rope, ["x"], ["pos", "head_size", "theta", "scaling"]),
    "attention_weights": (llama.attention_weights, ["q", "keys"], ["n_heads", "n_kv_heads"]),
    "attention_mix": (llama.attention_mix, ["weights", "values"], ["n_heads", "n_kv_heads"]),
    "swiglu": (llama.swiglu, ["gate", "up"], []),
    "residual": (llama.residual, ["x", "change"], []),
}
NAMES = ["embedding", *OPERATIONS, "model", "sampler", "xorshift", "tokenizer"]


def used(result, expected, bound):
    """The largest part of a bound; infinite for what is no number."""
    if len(result) != len(expected):
        return np.inf
    off = np.abs(np.asarray(result, float) - expected) / bound
    return float(np.max(off)) if np.isfinite(off).all() else np.inf


def run_operation(name, t):
    if name == "embedding":
        return used(np.array(t["table"], F)[t["token"]], t["expected"], t["bound"])
    function, arrays, others = OPERATIONS[name]
    result = function(*[np.array(t[field], F) for field in arrays], *[t[field] for field in others])
    return used(result, t["expected"], t["bound"])


def run_model(folder, t):
    model, seen, worst = llama.Model(folder / t["model"]), {}, 0.0
    for pos, token in enumerate(t["tokens"]):
        def see(layer, op, values, pos=pos):
            seen[pos, layer, op] = values
            return values
        worst = max(worst, used(model.forward(token, pos, see), t["expected"][pos], t["bound"][pos]))
    for o in t["operations"]:
        part = used(seen[o["pos"], o["layer"], o["op"]], o["expected"], o["bound"])
        if part > 1:
            print(f"  {o['op']} of layer {o['layer']}, position {o['pos']}: {part} bounds")
        worst = max(worst, part)
    return worst


def same_coins(t):
    state, drawn = int(t["seed"]), []
    for _ in t["coins"]:
        state, coin = llama.xorshift(state)
        drawn.append(coin)
    return drawn == [float(F(coin)) for coin in t["coins"]] and str(state) == t["state"]


def same_tokens(folder, t, group):
    tokenizer = llama.Tokenizer((folder / group["tokenizer"]).read_bytes(), group["vocab"])
    tokens = tokenizer.encode(t["text"])
    decoded = b"".join(map(tokenizer.decode, tokens, tokens[1:]))
    return tokens == t["tokens"] and decoded.hex() == t["decoded_hex"]


def run(folder, name, t, group):
    """The part of the bound that is used."""
    if name == "model":
        return run_model(folder, t)
    if name == "sampler":
        token = llama.sample(np.array(t["logits"], F), F(t["temperature"]), F(t["p"]), F(t["coin"]))
        return 0.0 if token == t["expected"] else np.inf
    if name == "xorshift":
        return 0.0 if same_coins(t) else np.inf
    if name == "tokenizer":
        return 0.0 if same_tokens(folder, t, group) else np.inf
    return run_operation(name, t)


def run_file(folder, name):
    """Run a file -> its failures."""
    tests, failures, worst = 0, 0, 0.0
    for group in json.loads((folder / f"{name}.json").read_text())["testGroups"]:
        for t in group["tests"]:
            part = run(folder, name, t, group)
            tests += 1
            if not part <= 1:
                print(f"  {name} {t['tcId']}, {t['comment']}: {part} bounds ({t['result']})")
            if t["result"] != "acceptable":
                failures += not part <= 1
                worst = max(worst, part)
    print(name, tests, failures, worst)
    return failures


def main(folder, order="forward", flush=""):
    llama.flush = flush == "flush"
    failures = 0
    for name in llama.SUMS if order == "all" else [order]:
        llama.total = llama.SUMS[name]
        failures += sum([run_file(Path(folder), file) for file in NAMES])
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
