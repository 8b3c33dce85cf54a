#!/usr/bin/env python3
"""Measures this program, and prints a table for docs/benchmarks.md.

    python3 tools/bench.py [PYTHON ...]            # on this Python, or on those given
    python3 tools/bench.py --audit [PYTHON ...]    # of an audit, and of a verification beside it
"""
import contextlib
import hashlib
import json
import math
import os
import pickle
import random
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from array import array
from itertools import chain, repeat

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the project's folder
sys.path.insert(0, HERE)

import llama2  # noqa: E402
import merkle  # noqa: E402
from llama2_py.engine.rows import Rows  # noqa: E402
from llama2_py.engine.arithmetic import Exact, from_bytes, to_bytes  # noqa: E402
from llama2_py.log import events, formats, writing  # noqa: E402
from llama2_py.log.weights import Leaves, Row  # noqa: E402
from llama2_py.referee.dispute import LoggedEvent, compute  # noqa: E402
from llama2_py.referee.messages import base64_of, write_values  # noqa: E402

MODEL = os.path.join(HERE, "llama2_py", "stories", "model.bin")
# ----------------------------------------------------------------------------
# Measuring. Every figure comes from a process of its own; the processes take turns, round by round, since machines
# are not equally fast all the time.


def measure_speed(path, arithmetic, positions):
    """Steps, each beside the bare primitive over the same rows and beside the index loop over some of them."""
    with llama2.Transformer(path, arithmetic) as model:
        c, shard = model.config, model.shard
        matrices = [rows for layer in shard.layers for rows in vars(layer).values() if isinstance(rows, Rows)]
        blocks = list(chain(*[rows.blocks for rows in [*matrices, shard.classifier]]))
        weights = sum(rows * columns * (1 if name == "classifier" else c.n_layers) for name, (_, rows, columns)
                      in model.checkpoint.tensors.items() if name == "classifier" or name.startswith("w"))
        flat, x = array("f", model.checkpoint.rows("w2")[0] * 64), [math.sin(i) for i in range(c.hidden_dim)]

        def index_loop():
            n, out = c.hidden_dim, []
            for i in range(64):
                val = 0.0
                for j in range(n):
                    val += flat[i * n + j] * x[j]
                out.append(val)

        def primitive(pos):
            vectors = {d: tuple(math.sin(i) for i in range(d)) for d in (c.dim, c.hidden_dim, c.head_size, pos + 1)}
            cached = chain(*[matrices for cache in shard.caches for matrices in (cache.keys, cache.values)])
            begin = time.perf_counter()
            for matrix in [*blocks, *cached]:
                list(map(math.dist, matrix.rows, repeat(vectors[len(matrix.rows[0])])))
            return time.perf_counter() - begin

        forward = bound = loop = 0.0
        loops = 0
        for pos in range(positions):
            begin = time.perf_counter()
            model.forward(1 + pos * 7 % 400, pos)
            forward += time.perf_counter() - begin
            if arithmetic == Exact.name:
                bound += primitive(pos)
            if pos % max(1, positions // 8) == 0:
                begin = time.perf_counter()
                index_loop()
                loop, loops = loop + time.perf_counter() - begin, loops + 1
        second = forward / positions
        result = {"tok/s": 1 / second, "million multiply-adds/s": weights / second / 1e6,
                  "times the index loop's speed": loop / loops / (64 * c.hidden_dim) * weights / second}
        if bound:
            result["% of the bare math.dist"] = 100 * bound / forward
        return {**result, "peak memory, MB": peak_memory()}


def peak_memory():
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\s+(\d+)", file.read())[1]) / 1000
    return math.nan


def measure_mapped(path, arithmetic, positions):
    """Steps with the weights in the map, one by one and, as verification makes them, sixteen together."""
    llama2.free_memory = lambda: 0
    with llama2.Transformer(path, arithmetic) as model:
        model.forward(1, 0)  # which also takes the squares of the rows
        begin = time.perf_counter()
        for pos in range(1, positions):
            model.forward(1, pos)
        alone, peak = (time.perf_counter() - begin) / (positions - 1), peak_memory()
        begin = time.perf_counter()
        model.forward_chunk([1] * llama2.CHUNK, positions)
        together = (time.perf_counter() - begin) / llama2.CHUNK
    return {"tok/s, mapped": 1 / alone, "tok/s, mapped, tokens known": 1 / together, "peak memory, mapped, MB": peak}


def measure_trace(path, arithmetic, positions, level):
    """The part of a run's processor time that its trace takes."""
    spent = 0.0

    def timed(function):
        def call(*args):
            nonlocal spent
            begin = time.process_time()
            function(*args)
            spent += time.process_time() - begin
        return call

    with llama2.Transformer(path, arithmetic) as model, tempfile.TemporaryDirectory() as folder:
        header = {"model": "", "tokenizer": "", "level": level}
        begin = time.process_time()
        writer = writing.Writer(os.path.join(folder, "trace"), header)
        operation, step = timed(writer.operation), timed(writer.step)
        for pos in range(positions):
            logits = model.forward(1, pos, None if level == "step" else operation)
            step(llama2.Step(pos, 1, 1, b" story", logits))
        total = time.process_time() - begin
        writer.close()
    return {f"% for a trace, {level}": 100 * spent / total}


def measure_workers(path, arithmetic, positions):
    """Two workers' speed against that of two independent runs at the same time, and what they say to each other."""
    def start(workers):
        process = subprocess.Popen([sys.executable, __file__, "--part", "worker", path, arithmetic, str(positions),
                                    str(workers)],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        return process

    def finish(processes):
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        return [json.loads(process.communicate()[0]) for process in processes]

    alone = finish([start(1), start(1)])
    (together,) = finish([start(2)])
    return {"2 workers: % of two runs side by side": 100 * together["rate"] / sum(run["rate"] for run in alone),
            "2 workers: round trips a token": together["trips"], "2 workers: KB a token": together["bytes"] / 1000}


def measure_worker(path, arithmetic, positions, workers):
    with llama2.Transformer(path, arithmetic, int(workers)) as model:
        trips = size = 0
        send, receive = model.team._send, model.team.answers

        def counted_send(message):
            nonlocal size
            size += len(pickle.dumps(message)) * len(model.team.processes)
            send(message)

        def counted_receive():
            nonlocal trips, size
            answers = receive()
            trips += len(answers)
            size += sum(len(pickle.dumps(answer)) for answer in answers)
            return answers

        model.team._send, model.team.answers = counted_send, counted_receive
        model.forward(1, 0)
        model.team._send, model.team.answers = send, receive
        print("ready", flush=True)
        sys.stdin.readline()
        begin = time.perf_counter()
        for pos in range(1, positions + 1):
            model.forward(1, pos)
        return {"rate": positions / (time.perf_counter() - begin), "trips": trips, "bytes": size}


def measure_referee(path, arithmetic, op, pos):
    """A dispute over one operation of a model of 7B's shape: bytes of all messages, seconds and memory of the judge.

    The logs are made up: their hashes are of nothing, but for those of what is opened. So are the weights, but their
    tree has all of its 1,425,474 leaves.
    """
    config = {"dim": 4096, "hidden_dim": 11008, "n_layers": 32, "n_heads": 32, "n_kv_heads": 32, "vocab_size": 32000,
              "seq_len": 2048, "shared_classifier": False}
    rng, leaves = random.Random(1), Leaves(config)

    def vector(n):
        return struct.pack(f"<{n}f", *[rng.gauss(0, 1) for _ in range(n)])

    row, tree = vector(11008), merkle.MerkleTree()
    opened = {0: events.encode(config), leaves.index(Row("w2", 31, 17)): row}
    for i in range(leaves.size):
        tree.append(merkle.leaf_hash(opened.get(i, i.to_bytes(4, "big"))))
    header = {"format": events.FORMAT, "model": "0" * 64, "weights": tree.root().hex(), "config": config,
              "tokenizer": "0" * 64, "arithmetic": "exact", "rng": "xorshift64*", "temperature": 0.0, "p_value": 0.9,
              "seed": 1, "steps": 200, "level": "op", "prompt": "", "tokens": [1]}
    layout = events.Layout(header)
    said = [header, *[layout.place(i) for i in range(1, layout.step(pos) + 1)]]
    for event in said[1:]:
        event.update({"sha256": "0" * 64} if "op" in event else {"token": 5 if event["pos"] else 1, "next": 5,
                                                                  "text": "", "logits": "0" * 64})
    index = said.index({"pos": pos, "layer": 31, "op": op, "sha256": "0" * 64})

    def log(name, claims):
        with open(name, "wb") as file:
            for i, event in enumerate(said):
                file.write(events.encode({**event, "sha256": claims[i]} if i in claims else event) + b"\n")
        return name

    with tempfile.TemporaryDirectory() as folder:
        a, b = (os.path.join(folder, name) for name in "ab")
        task = LoggedEvent(formats.read(log(a, {})), index).task
        inputs = [vector(wanted.n) for wanted in task.inputs]
        claims = {wanted.event: hashlib.sha256(data).hexdigest()
                  for wanted, data in zip(task.inputs, inputs, strict=True)}
        dispute = LoggedEvent(formats.read(log(a, claims)), index)
        result = vector(task.n)
        if task.is_product:
            own = Exact.dot(from_bytes(inputs[0]), from_bytes(row))
            result = result[:68] + struct.pack("<f", own) + result[72:]
        else:
            result = to_bytes(compute(Exact, dispute.config, op, pos, list(map(from_bytes, inputs))))
        false = result[:68] + struct.pack("<f", 0.0) + result[72:]
        log(a, {**claims, index: hashlib.sha256(result).hexdigest()})
        log(b, {**claims, index: hashlib.sha256(false).hexdigest()})
        messages = [write_values(index, inputs, result if task.is_product else b"")]
        if task.is_product:
            messages.append(write_values(index, [], false))
            paths = [[h.hex() for h in tree.inclusion_proof(i)] for i in opened]
            messages.append(events.encode({"format": "llama2.py rows 1", "config": paths[0], "rows": [
                {"tensor": "w2", "layer": 31, "row": 17, "values": base64_of(row), "path": paths[1]}]}) + b"\n")
        for i, message in enumerate(messages):
            with open(os.path.join(folder, f"message{i}"), "wb") as file:
                file.write(message)
        code = ("import sys, time; begin = time.perf_counter(); from llama2_py import trace_command\n"
                "from tools import bench; trace_command.main(sys.argv[1:])\n"
                "print(time.perf_counter() - begin, bench.peak_memory())")
        done = subprocess.run([sys.executable, "-c", code, "judge", a, b, *[
            os.path.join(folder, f"message{i}") for i in range(len(messages))]], stdout=subprocess.PIPE, text=True,
            check=True, env={**os.environ, "PYTHONPATH": HERE})
        *_, verdict, figures = done.stdout.splitlines()
        assert verdict in ("A is right", "B is wrong"), done.stdout
        seconds, megabytes = map(float, figures.split())
    name = f"{op} at position {pos}"
    return {f"7B, {name}: KB revealed": sum(map(len, messages)) / 1000, f"7B, {name}: seconds to judge": seconds,
            f"7B, {name}: MB to judge": megabytes}


def measure_start(path, arithmetic):
    """From the command to its first word."""
    like = [] if arithmetic == "exact" else ["--like", "llama2.c"]
    begin = time.perf_counter()
    command = [sys.executable, os.path.join(HERE, "llama2.py"), path, "-s", "1", "-n", "1", *like, "-i", "A"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout.read(1)
    seconds = time.perf_counter() - begin
    process.communicate()
    return {"seconds to the first word": seconds}


# dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len
SHAPES = {"15M": (288, 768, 6, 6, 6, 32000, 256),        # of stories15M.bin
          "135M": (576, 1536, 30, 9, 3, 49152, 2048),    # of SmolLM2-135M
          "7B, one layer": (4096, 11008, 1, 32, 32, 512, 2048)}


def write_model(path, dim, hidden, layers, heads, kv_heads, vocab, context, norm=None):
    """Random weights in a shape, and a tokenizer of its vocabulary beside them. norm: the weights of the norms, if they
    are not random, too."""
    kv_dim = dim // heads * kv_heads
    sizes = [(vocab * dim, False), (layers * dim, True), (layers * dim * (2 * dim + 2 * kv_dim), False),
             (layers * dim, True), (3 * layers * hidden * dim, False), (dim, True)]
    rng = random.Random(1)
    numbers = [rng.gauss(0, 0.06) for _ in range(1 << 20)]
    with open(path, "wb") as file:
        file.write(struct.pack("<7i", dim, hidden, layers, heads, kv_heads, vocab, context))
        turn = 0
        for size, is_norm in sizes:
            if is_norm and norm is not None:
                file.write(array("f", [norm]).tobytes() * size)
                continue
            for start in range(0, size, 1 << 20):
                turn = (turn + 127) % (1 << 20)
                rotated = numbers[turn:] + numbers[:turn]
                file.write(array("f", rotated[:min(1 << 20, size - start)]).tobytes())
        file.write(bytes(4 * context * (dim // heads)))
    with open(os.path.join(os.path.dirname(path), "tokenizer.bin"), "wb") as file:
        file.write(struct.pack("<i", 6) + b"".join(struct.pack("<fi", 0, 6) + b"%06d" % i for i in range(vocab)))


def command_figures(name, python, *command, out=None):
    """The processor's seconds and the megabytes that a command takes, in a process of its own; out: a file for its
    standard output."""
    with open(out or os.devnull, "wb") as target:
        process = subprocess.Popen([python, *command], stdout=target, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    return {f"{name}: seconds": usage.ru_utime + usage.ru_stime, f"{name}: MB": usage.ru_maxrss / 1000}


def measure_model(path, name):
    """Write a model: in a process of its own, since a process that is started shows its parent's memory as well."""
    write_model(path, *SHAPES[name], norm=1.0)
    return {}


def measure_audit(python, path, options, steps, turn):
    """A run, a secret of its model, the audit and the verification."""
    log, dump, secret = (os.path.join(os.path.dirname(path), name) for name in ("log", "dump", "secret"))
    program, tracing = os.path.join(HERE, "llama2.py"), os.path.join(HERE, "trace.py")
    if MAPPED in path:
        program = os.path.join(os.path.dirname(path), "mapped.py")
        with open(program, "w") as file:
            file.write(f"import sys; sys.path.insert(0, {HERE!r}); import llama2; llama2.free_memory = lambda: 0\n"
                       "from llama2_py.command import main; sys.exit(main())")
    figures = {}
    if turn == 0:
        figures = {**command_figures("the run, with log and dump", python, program, path, *options, "-n", str(steps),
                                     "--trace", log, "--trace-level", "op", "--dump", dump),
                   **command_figures("the secret", python, tracing, "secret", path, out=secret),
                   "KB of the secret": os.path.getsize(secret) / 1000,
                   "KB of the log, a step": os.path.getsize(log) / 1000 / steps,
                   "KB of the dump, a step": os.path.getsize(dump) / 1000 / steps}
    audit = command_figures("the audit", python, tracing, "audit", log, dump, secret)
    verification = command_figures("the verification", python, program, path, "--verify", log)
    share = 100 * audit["the audit: seconds"] / verification["the verification: seconds"]
    return {**figures, **verification, **audit, "the audit: % of the verification's seconds": share}


MAPPED = "7B"  # in the name of a model's file: its weights, which would take 8 GB, are read from the map


AUDITS = [  # model, rounds, steps, options of the run
    ("260K", 3, 200, ["-s", "1"]), ("15M", 3, 64, ["-s", "1"]), ("15M", 3, 64, ["-t", "0"]),
    ("135M", 1, 16, ["-s", "1"]), ("7B, one layer", 1, 16, ["--tokens", ",".join(map(str, range(1, 17)))])]


def measure_audits(pythons):
    """Print tables of audits beside verifications, in turns."""
    for name, rounds, steps, options in AUDITS:
        figures = {}
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, f"{name}.bin")
            if name in SHAPES:
                subprocess.run([sys.executable, __file__, "--part", "model", path, name], check=True,
                               stdout=subprocess.DEVNULL)
            else:
                shutil.copy(MODEL, path)
                shutil.copy(os.path.join(os.path.dirname(MODEL), "tokenizer.bin"), folder)
            for turn in range(rounds):
                for python in pythons:
                    what = f"{steps} steps, {' '.join(options[:1])}"
                    column = figures.setdefault((name, what, python), {})
                    for figure, value in measure_audit(python, path, options, steps, turn).items():
                        column.setdefault(figure, []).append(value)
                print(f"{name}: round {turn + 1} of {rounds}", file=sys.stderr)
        print_table(pythons, figures)


def print_table(pythons, figures):
    """A column for each (name, what of it, Python), a row for each figure: the median and the extremes."""
    versions = {python: subprocess.run([python, "-c", "import platform; print(platform.python_version())"],
                                       stdout=subprocess.PIPE,
                                       text=True).stdout.strip() for python in pythons}
    print("| | " + " | ".join(f"{name} {arithmetic}, {versions[python]}" for name, arithmetic,
                              python in figures) + " |")
    print("|---" * (len(figures) + 1) + "|")
    for figure in dict.fromkeys(figure for column in figures.values() for figure in column):
        cells = []
        for column in figures.values():
            values = sorted(column.get(figure, []))
            cells.append(f"{statistics.median(values):.3g} ({values[0]:.3g} to {values[-1]:.3g})" if values else "")
        print(f"| {figure} | " + " | ".join(cells) + " |")


def measure(pythons, rounds=5):
    """Print a table of what is measured, a column for each model, dialect and Python."""
    with tempfile.TemporaryDirectory() as folder:
        large = os.path.join(folder, "15M.bin")
        write_model(large, *SHAPES["15M"])
        figures = {}
        for turn in range(rounds):
            for name, path, steps in ("260K", MODEL, {"exact": 200, "c": 40}), ("15M", large, {"exact": 8, "c": 2}):
                for arithmetic, n in steps.items():
                    parts = [["speed", path, arithmetic, n], ["start", path, arithmetic]]
                    if arithmetic == "exact":
                        parts += [["trace", path, arithmetic, n, level] for level in events.LEVELS]
                        parts += [["workers", path, arithmetic, n], ["mapped", path, arithmetic, n]]
                    if (name, arithmetic, turn) == ("260K", "exact", 0):
                        parts += [["referee", path, arithmetic, *event] for event in (
                            ("ffn_out", 0), ("weights", 100), ("attention", 100))]
                    for part in parts:
                        for python in pythons:
                            done = subprocess.run([python, __file__, "--part", *map(str, part)],
                                                  stdout=subprocess.PIPE, check=True)
                            column = figures.setdefault((name, arithmetic, python), {})
                            for figure, value in json.loads(done.stdout).items():
                                column.setdefault(figure, []).append(value)
            print(f"round {turn + 1} of {rounds}", file=sys.stderr)
    print_table(pythons, figures)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        part, path, arithmetic, *more = sys.argv[2:]
        more = [int(value) if value.isdecimal() else value for value in more]
        print(json.dumps(globals()[f"measure_{part}"](path, arithmetic, *more)))
    elif sys.argv[1:2] == ["--audit"]:
        measure_audits(sys.argv[2:] or [sys.executable])
    else:
        measure(sys.argv[1:] or [sys.executable])
