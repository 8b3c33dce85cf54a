"""Tests of workers.py and rows.py: any number of processes, and any amount of memory, give the same bits."""
import contextlib
import math
import multiprocessing
import os
import random
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llama2
from llama2_py.engine import workers
from llama2_py.engine.arithmetic import ARITHMETIC
from llama2_py.engine.checkpoint import Checkpoint
from llama2_py.engine.rows import Rows, free_memory
from tests.helpers import (HERE, Scripted, bits, command, edited, examples, failure, forward_definition, interruptible,
                           make_checkpoint, numbers, run_forward, some, tell)


@pytest.mark.parametrize("workers, arithmetic", [(2, "exact"), (3, "c"), *[
    pytest.param(*case, marks=pytest.mark.slow) for case in ((2, "c"), (3, "exact"), (7, "exact"), (7, "c"))]])
@pytest.mark.parametrize("shape", ["grouped", "multi-query"])
def test_any_number_of_workers_gives_the_same_operations(files, shape, workers, arithmetic):
    tokens = [1, 7, 279, 30]
    alone, shared = (list(run_forward(files[shape], arithmetic, tokens, n)) for n in (1, workers))
    assert alone == shared


@given(st.data())
@examples(12)
def test_models_of_any_shape_are_the_definition_with_any_number_of_workers(tmp_path_factory, data):
    draw, path = data.draw, tmp_path_factory.getbasetemp() / "shape.bin"
    n_kv_heads, group, half = (draw(st.integers(1, n)) for n in (3, 3, 3))
    n_heads = n_kv_heads * group
    path = make_checkpoint(path, dim=n_heads * 2 * half, hidden_dim=draw(st.integers(1, 9)), n_heads=n_heads,
                           n_layers=draw(st.integers(1, 2)), n_kv_heads=n_kv_heads, vocab_size=draw(st.integers(1, 20)),
                           seq_len=draw(st.integers(3, 9)), shared=draw(st.booleans()), seed=draw(st.integers(0, 99)))
    tokens = [0] * 3
    definition = list(forward_definition("exact", path, tokens))
    for count in {1, draw(st.integers(2, 5))}:
        assert list(run_forward(path, "exact", tokens, count)) == definition


@pytest.mark.parametrize("workers", [1, 2])
def test_positions_together_are_positions_one_by_one(files, workers):
    tokens = [1, 7, 279, 7, 30, 4, 5]
    alone = list(run_forward(files["grouped"], "exact", tokens))
    with llama2.Transformer(files["grouped"], workers=workers) as transformer:
        for first, last in (0, 3), (3, 7):
            ops = [[] for _ in range(first, last)]
            logits = transformer.forward_chunk(tokens[first:last], first, [
                lambda layer, op, values, seen=seen: seen.append((layer, op, bits(values))) for seen in ops], skip=1)
            assert [row.tobytes() for row in logits] == [row for _, row in alone[first + 1:last]]
            assert ops == [seen for seen, _ in alone[first:last]]


@given(st.lists(st.integers(259, 262), min_size=20, max_size=20), st.lists(st.integers(259, 262), max_size=25),
       st.integers(1, 20))
def test_a_draft_changes_nothing_as_long_as_it_is_right(tokenizer, script, draft, steps):
    plain = tell(Scripted(script), tokenizer, [1, 260], steps)
    right = [step[1] for step in plain]
    n = next((i for i, (a, b) in enumerate(zip(right[2:], draft, strict=False)) if a != b), None)
    model, told = llama2.Drafted(Scripted(script), [1, 260, *draft]), []
    with pytest.raises(ValueError, match="is not the drafted one") if n is not None else contextlib.nullcontext():
        for step in llama2.generate(model, tokenizer, llama2.Sampler(0.0), [1, 260], steps):
            told.append((step.pos, step.token, step.next, step.piece))
    assert told == plain[:None if n is None else n + 2]
    model = llama2.Drafted(Scripted(script), right)
    assert tell(model, tokenizer, [1, 260], steps) == plain


def test_a_draft_changes_no_operation_and_no_logits(files, tokenizer):
    with llama2.Transformer(files["grouped"]) as model:
        def run(draft):
            events = []
            steps = llama2.generate(llama2.Drafted(model, draft), tokenizer, llama2.Sampler(1.0, 0.9, 3), [1, 260], 24,
                                    lambda *event: events.append((*event[:2], bits(event[2]))), True)
            return list(steps), events

        alone = run([])
        tokens = [step.token for step in alone[0]]
        assert run(tokens) == run(tokens[:7]) == alone


def test_workers_skip_the_classifier_where_the_prompt_says_what_follows(tokenizer):
    prompt = [1] + [261] * 20
    for skip in 20, 0:
        model = Scripted([260] * 64)
        for step in llama2.generate(llama2.Drafted(model, prompt, skip), tokenizer, llama2.Sampler(0.0), prompt, 24):
            assert (step.logits is None) == (step.pos < skip)
        assert sum(len(tokens) - skipped for tokens, _, skipped in model.calls) == 24 - skip
        assert [len(tokens) for tokens, _, _ in model.calls] == [16, 5, 1, 1, 1]


def test_logits_that_nobody_wants_are_not_computed(files, monkeypatch):
    with llama2.Transformer(files["grouped"]) as transformer:
        monkeypatch.setattr(transformer.shard.classifier, "times", None)
        assert transformer.forward(1, 0, logits=False) is None
        assert transformer.forward_chunk([7, 30], 1, skip=2) == []


@pytest.mark.parametrize("arithmetic", some(1, ["exact", "c"]))
def test_weights_read_from_the_map_give_the_same_operations(files, monkeypatch, arithmetic):
    tokens = [1, 7, 279, 30, 5, 6]
    for shape in "grouped", "version 1":
        unpacked = list(run_forward(files[shape], arithmetic, tokens))
        with monkeypatch.context() as patch:
            patch.setattr(llama2, "free_memory", lambda: 0)
            for workers in 1, 2:
                assert list(run_forward(files[shape], arithmetic, tokens, workers)) == unpacked
            with llama2.Transformer(files[shape], arithmetic) as transformer:
                assert not transformer.shard.classifier.unpacked
                rows = [logits.tobytes() for first in (0, 3)
                        for logits in transformer.forward_chunk(tokens[first:first + 3], first)]
                assert rows == [row for _, row in unpacked]


@pytest.mark.parametrize("unpacked", [False, True])
@pytest.mark.parametrize("name", ["exact", "c"])
def test_weights_are_checked_once_and_let_go_of_after_each_product(unpacked, name, monkeypatch):
    monkeypatch.setattr("llama2_py.engine.rows.BLOCK", 6)  # of two rows
    matrix, seen = [(1.0, 2.0, 3.0), (-4.0, 5.0, 6.0), (7.0, 8.0, -9.0)], []

    def read(first, last, check):
        seen.append((first, last, check))
        return matrix[first:last]

    rows = Rows(read, lambda: seen.append("let go"), ARITHMETIC[name], range(3), 3, unpacked)
    results = [rows.times([(1.0, 0.0, 0.5), (0.0, 2.0, 0.0)]) for _ in range(2)]
    assert [list(map(list, result)) for result in results] == [[[2.5, -1.0, 2.5], [4.0, 10.0, 16.0]]] * 2
    once, again = [[(0, 2, check), (2, 3, check), "let go"] for check in (True, False)]
    assert seen == (once if unpacked else once + again)


@pytest.mark.slow
@pytest.mark.parametrize("arithmetic, rows, columns", [
    ("exact", 300_000, 1), ("exact", 100_000, 4), ("exact", 1000, 1000), ("c", 3, 300_000), ("c", 40, 50_000),
    ("c", 1_000_000, 1), ("c", 5000, 300)])
def test_the_memory_that_a_matrix_takes_is_estimated_with_its_own_overhead(arithmetic, rows, columns):
    code = f"""
import functools, sys
from llama2_py.engine import arithmetic, rows as module
A = arithmetic.ARITHMETIC[{arithmetic!r}]
def read(first, last, check):
    return [tuple([float(i + j) for j in range({columns})]) for i in range(first, last)]
def memory():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
before = memory()
kept = module.Rows(read, lambda: None, A, range({rows}), {columns}, True)
print(memory() - before, module.matrix_size(A, {rows}, {columns}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, check=True)
    took, estimate = map(int, done.stdout.split())
    slack = 6 * 2**20  # what a block took while it was read
    assert took < 1.15 * estimate + slack and estimate < 1.6 * took + slack


@pytest.mark.slow
def test_a_model_larger_than_the_memory_is_read_from_the_map(tmp_path):
    path, limit = tmp_path / "large.bin", 300 * 2**20
    dim, layers, hidden = 512, 4, 2048
    weights = 280 * dim + 2 * layers * dim + layers * (4 * dim * dim + 3 * dim * hidden) + dim
    row = numbers(random.Random(1), 1 << 16, 0.05)
    with open(path, "wb") as file:
        file.write(struct.pack("<7i", dim, hidden, layers, 8, 8, 280, 64))
        file.write((row * (weights // (1 << 16) + 1))[:4 * weights] + bytes(4 * 64 * dim // 8))
    assert weights * 40 > 2 * limit > 6 * os.path.getsize(path)
    code = (f"import llama2, re; t = llama2.Transformer({str(path)!r});"
            "print([hash(t.forward(1, p).tobytes()) for p in (0, 1)]);"
            "print(re.search('VmHWM:[^0-9]*([0-9]+)', open('/proc/self/status').read())[1])")
    results = [subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, preexec_fn=limited,
                              env={**os.environ, "PYTHONHASHSEED": "1"}).stdout.split(b"\n")
               for limited in (lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)), None)]
    assert results[0][0] == results[1][0] != b""
    assert int(results[0][1]) * 1024 < 100 * 2**20 < 6 * int(results[1][1]) * 1024


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("arithmetic", ["exact", "c"])
def test_a_step_that_was_interrupted_is_not_gone_on_from(files, arithmetic, workers):
    def interrupt(layer, op, values):
        if (layer, op) == (1, "gate"):
            raise KeyboardInterrupt

    with llama2.Transformer(files["grouped"], arithmetic, workers) as transformer:
        first = [transformer.forward(token, pos) for pos, token in enumerate([1, 5, 9])]
        with pytest.raises(KeyboardInterrupt):
            transformer.forward(7, 3, interrupt)
        with pytest.raises(ValueError, match="position"):
            transformer.forward(7, 3)
        for connection in [connection for _, connection in transformer.team.processes]:
            connection.send((transformer.team.number, ([1], 0, 0, False)))  # a step whose answers nobody waits for
        assert [transformer.forward(token, pos) for pos, token in enumerate([1, 5, 9])] == first


# ----------------------------------------------------------------------------
# Processes that end, or do not start

def children(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children") as file:
        return list(map(int, file.read().split()))
    return []


def gone(pid, seconds=10):
    for _ in range(seconds * 50):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def start_with_workers(path, *more):
    run = subprocess.Popen([sys.executable, os.path.join(HERE, "llama2.py"), "-s", "1", "-n", "0", "--trace", str(path),
                            "--workers", "3", *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           preexec_fn=interruptible)
    assert run.stdout.read(3)
    return run, children(run.pid)


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="looks for processes in /proc")
def test_a_killed_worker_ends_the_run_with_one_line_and_leaves_nothing_running(tmp_path, capfdbinary):
    for victim in 0, 1:
        run, workers = start_with_workers(tmp_path / "t")
        assert len(workers) == 2
        os.kill(workers[victim], signal.SIGKILL)
        _, err = run.communicate(timeout=20)
        assert (run.returncode, err.decode()) == (
            2, f"llama2.py: error: worker process {workers[victim]} died with exit code -9\n")
        assert all(map(gone, workers))
        assert command(capfdbinary, "--verify", tmp_path / "t")[0] == 0


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="looks for processes in /proc")
@pytest.mark.parametrize("kill, code", [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_workers_end_with_the_run(tmp_path, kill, code):
    run, workers = start_with_workers(tmp_path / "t")
    run.send_signal(kill)
    _, err = run.communicate(timeout=20)
    assert (run.returncode, err) == (code, b"")
    assert all(map(gone, workers))


def test_where_the_system_does_not_say_half_of_its_memory_is_taken_to_be_free(monkeypatch):
    def missing(*args):
        raise FileNotFoundError

    monkeypatch.setattr("llama2_py.engine.rows.open", missing, raising=False)
    monkeypatch.setattr("resource.getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert free_memory() == 2_048_000
    monkeypatch.setattr("resource.getrlimit", lambda which: (1_000_000, resource.RLIM_INFINITY))
    assert free_memory() == 1_000_000
    monkeypatch.setattr("resource.getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    monkeypatch.setattr(os, "sysconf", missing)
    assert free_memory() == 2**32


@pytest.mark.slow
def test_a_worker_that_does_not_end_is_killed(files):
    with llama2.Transformer(files["grouped"], workers=2) as model:
        ((process, _),) = model.team.processes
        os.kill(process.pid, signal.SIGSTOP)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.filterwarnings("ignore:.*is multi-threaded, use of fork")
@pytest.mark.parametrize("other_thread", [False, True])
def test_ctrl_c_while_workers_start_leaves_none_behind(files, monkeypatch, other_thread):
    start, started = multiprocessing.Process.start, []

    def start_and_interrupt(self):
        start(self)
        started.append(self)
        if len(started) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            select.select([reader], [], [], 5 if other_thread else 0.5)  # until another thread, if any, has taken it

    monkeypatch.setattr(workers.multiprocessing.Process, "start", start_and_interrupt)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background, shells have it ignored
    idle, (reader, writer) = threading.Event(), os.pipe()
    thread = threading.Thread(target=idle.wait)
    if other_thread:  # to which the system gives the signal, since this one has masked it
        thread.start()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    try:
        with pytest.raises(KeyboardInterrupt):
            llama2.Transformer(files["grouped"], workers=4)
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, handler)
        idle.set()
        if other_thread:
            thread.join()
        os.close(reader)
        os.close(writer)
    assert len(started) == 3 and not any(process.is_alive() for process in started)
    for process in started:  # where the break is: never reached by Transformer.close
        process.kill()


def test_a_worker_that_cannot_read_the_model_ends_the_run(files, tmp_path, capfdbinary, monkeypatch):
    checkpoint = Checkpoint(files["grouped"])
    offset, rows, columns = checkpoint.tensors["classifier"]
    # the last worker's
    path = edited(files["grouped"], tmp_path / "bad.bin", offset + 4 * (rows * columns - 1), "f", math.nan)
    assert failure(capfdbinary, path, "-z", files["tokenizer"], "-s", 1, "--workers", 3) == (
        f"{path}: classifier of layer 0 holds a weight that is not finite")
    monkeypatch.setattr(workers.multiprocessing.Process, "start", lambda self: os.stat("/nowhere"))
    assert failure(capfdbinary, files["grouped"], "-z", files["tokenizer"], "-s", 1, "--workers", 3) == (
        "/nowhere: No such file or directory")


@pytest.mark.parametrize("method", ["fork", "spawn", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_workers_start_by_every_method(files, method):
    code = (f"import multiprocessing, llama2\nif __name__ == '__main__':\n"
            f" multiprocessing.set_start_method({method!r})\n"
            f" with llama2.Transformer({files['grouped']!r}, workers=3) as t: print(t.forward(1, 0).tobytes().hex())")
    script = os.path.join(os.path.dirname(files["tokenizer"]), f"{method}.py")
    with open(script, "w") as file:
        file.write(code)
    done = subprocess.run([sys.executable, script], capture_output=True, env={**os.environ, "PYTHONPATH": HERE})
    assert done.stderr == b""
    with llama2.Transformer(files["grouped"]) as transformer:
        assert done.stdout.decode().strip() == transformer.forward(1, 0).tobytes().hex()
