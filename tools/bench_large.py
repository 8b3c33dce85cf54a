#!/usr/bin/env python3
"""Measures models of the sizes that people ship, with random weights, in folders.

    python3 tools/bench_large.py [PYTHON ...]    # on this Python, or on those given

135M has SmolLM2-135M's shape, in float32 and in bfloat16; 1.1B that of TinyLlama, in bfloat16, with two processes. The
figures of 135M are interleaved, since machines are not equally fast all the time.
"""
import array
import contextlib
import json
import os
import random
import re
import statistics
import struct
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the project's folder
sys.path.insert(0, HERE)

import llama2  # noqa: E402

SHAPES = {
    "135M": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
             "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 2048,
             "tie_word_embeddings": True},
    "1.1B": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
             "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 2048,
             "tie_word_embeddings": False}}
SIZES = {"F32": 4, "BF16": 2}  # bytes of a number
BLOCK = 1 << 20                # random numbers that are made; the tensors are turns of them


def tensors_of(c):
    """The tensors of a config, as (name, shape)."""
    dim, hidden = c["hidden_size"], c["intermediate_size"]
    kv = dim // c["num_attention_heads"] * c["num_key_value_heads"]
    yield "model.embed_tokens.weight", [c["vocab_size"], dim]
    for l in range(c["num_hidden_layers"]):
        layer = f"model.layers.{l}."
        yield layer + "input_layernorm.weight", [dim]
        yield layer + "post_attention_layernorm.weight", [dim]
        for name, rows in ("q", dim), ("k", kv), ("v", kv), ("o", dim):
            yield f"{layer}self_attn.{name}_proj.weight", [rows, dim]
        for name, shape in ("gate", [hidden, dim]), ("up", [hidden, dim]), ("down", [dim, hidden]):
            yield f"{layer}mlp.{name}_proj.weight", shape
    yield "model.norm.weight", [dim]
    if not c["tie_word_embeddings"]:
        yield "lm_head.weight", [c["vocab_size"], dim]


def write_folder(folder, shape, dtype):
    """A folder with random weights of a shape, and a tokenizer with its vocabulary."""
    os.makedirs(folder)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5, "bos_token_id": 1,
              "eos_token_id": 2, **SHAPES[shape]}
    tensors, offset = {}, 0
    for name, dims in tensors_of(config):
        size = SIZES[dtype] * dims[0] * (dims[1] if len(dims) > 1 else 1)
        tensors[name] = {"dtype": dtype, "shape": dims, "data_offsets": [offset, offset + size]}
        offset += size
    header = json.dumps(tensors).encode()
    with open(os.path.join(folder, "model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        write_numbers(file, offset, dtype)
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file)
    vocab = {f"t{i}": i for i in range(config["vocab_size"])}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    with open(os.path.join(folder, "tokenizer.json"), "w") as file:
        json.dump({"version": "1.0", "added_tokens": [], "pre_tokenizer": byte_level, "decoder": byte_level,
                   "model": {"type": "BPE", "vocab": vocab, "merges": []}}, file)
    return folder


def write_numbers(file, size, dtype):
    """Normal random numbers, so many bytes of them."""
    rng = random.Random(1)
    numbers = array.array("f", [rng.gauss(0, 0.05) for _ in range(BLOCK)])
    block = numbers.tobytes()
    if dtype == "BF16":
        block = array.array("H", block)[1::2].tobytes()
    turn = 0
    while size:
        turn = (turn + 127 * SIZES[dtype]) % len(block)
        part = (block[turn:] + block[:turn])[:size]
        file.write(part)
        size -= len(part)


# ----------------------------------------------------------------------------
# Measuring, each figure in a process of its own


def peak_memory(pids):
    """The peak of the memory of processes, in GB."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as file:
            total += int(re.search(r"VmHWM:\s+(\d+)", file.read())[1])
    return total / 1e6


def measure(path, workers, positions, mapped):
    """Seconds to open a model and for each token, and the peak of the memory of all processes."""
    if mapped:
        llama2.free_memory = lambda: 0
    begin = time.perf_counter()
    with llama2.Transformer(path, workers=workers) as model:
        model.forward(1, 0)
        opened = time.perf_counter() - begin
        begin = time.perf_counter()
        for pos in range(1, positions):
            model.forward(7 * pos, pos)
        seconds = (time.perf_counter() - begin) / (positions - 1)
        pids = [os.getpid(), *[process.pid for process, _ in model.team.processes]]
        return {"seconds to the first logits": opened, "seconds a token": seconds, "peak memory, GB": peak_memory(pids)}


def verify(path, workers, positions, _):
    """A run with a trace, and its verification, by the command line: seconds."""
    with tempfile.TemporaryDirectory() as folder:
        trace = os.path.join(folder, "trace")
        program = [sys.executable, os.path.join(HERE, "llama2.py"), path, "--workers", str(workers)]
        run = [*program, "--tokens", "1,5,7", "-n", str(positions), "-s", "1", "--trace", trace]
        subprocess.run(run, check=True, capture_output=True)
        begin = time.perf_counter()
        done = subprocess.run([*program, "--verify", trace], check=True, capture_output=True, text=True)
        assert done.stdout.startswith(f"verified: {positions} steps"), done.stdout
        return {f"seconds to verify {positions} tokens": time.perf_counter() - begin}


PARTS = {"measure": measure, "verify": verify}


def tables(pythons, rounds=5):
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        columns = {}

        def take(name, python, part, path, *more):
            done = subprocess.run([python, __file__, "--part", part, path, *map(str, more)], stdout=subprocess.PIPE,
                                  check=True)
            for figure, value in json.loads(done.stdout).items():
                columns.setdefault(f"{name}, {python_version(python)}", {}).setdefault(figure, []).append(value)

        paths = {dtype: write_folder(os.path.join(folder, dtype), "135M", dtype) for dtype in ("F32", "BF16")}
        for turn in range(rounds):
            for python in pythons:
                for dtype, path in paths.items():
                    take(f"135M {dtype}", python, "measure", path, 1, 6, 0)
            print(f"round {turn + 1} of {rounds}", file=sys.stderr)
        large = write_folder(os.path.join(folder, "large"), "1.1B", "BF16")
        for python in pythons:
            take("1.1B BF16, two processes", python, "measure", large, 2, 4, 0)
            take("1.1B BF16, two processes", python, "verify", large, 2, 4, 0)
            take("1.1B BF16, mapped", python, "measure", large, 1, 2, 1)
        print_table(columns)
        for python in pythons:
            halves, floats = [columns[f"135M {dtype}, {python_version(python)}"]["seconds a token"]
                              for dtype in ("BF16", "F32")]
            ratios = sorted([b / a for a, b in zip(halves, floats, strict=True)])
            print(f"\n{python_version(python)}: bfloat16 is {statistics.median(ratios):.3g} times as fast as float32 "
                  f"({ratios[0]:.3g} to {ratios[-1]:.3g})")


def python_version(python):
    """The version of an interpreter, for the eye."""
    done = subprocess.run([python, "-c", "import platform; print(platform.python_version())"], stdout=subprocess.PIPE,
                          text=True)
    return done.stdout.strip()


def print_table(columns):
    """A row for each column of figures: the median and the extremes."""
    figures = list(dict.fromkeys(figure for column in columns.values() for figure in column))
    print("| | " + " | ".join(figures) + " |")
    print("|---" * (len(figures) + 1) + "|")
    for name, column in columns.items():
        cells = []
        for figure in figures:
            values = sorted(column.get(figure, []))
            spread = f" ({values[0]:.3g} to {values[-1]:.3g})" if len(values) > 1 else ""
            cells.append(f"{statistics.median(values):.3g}{spread}" if values else "")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        part, path, *more = sys.argv[2:]
        print(json.dumps(PARTS[part](path, *map(int, more))))
    else:
        tables(sys.argv[1:] or [sys.executable])
