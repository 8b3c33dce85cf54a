"""Tests of int8 checkpoints, version 2: read exactly, and used as runq.c uses them."""
import contextlib
import math
import random
import struct
import tracemalloc
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llama2
from llama2_py.engine import runq
from llama2_py.engine.checkpoint import LAYER, Checkpoint, QuantizedRows, shapes
from llama2_py.engine.workers import Shard, Team
from llama2_py.log.weights import weights_root
from tests.helpers import bits, command, edited, failure, make_checkpoint, rounded


def naive_quantize(values, group):
    """Weights as integers and scales, as a converter would: nothing here depends on how ties are rounded."""
    integers, scales = [], []
    for i in range(0, len(values), group):
        scale = rounded(max(map(abs, values[i:i + group])) / 127)
        scales.append(scale)
        integers += [round(v / scale) for v in values[i:i + group]]
    return integers, scales


def make_int8(path, source, group):
    """Write a checkpoint of float32 as version 2 -> its weights, name and layer -> rows, by definition."""
    weights = {}
    with contextlib.closing(Checkpoint(str(source))) as checkpoint:
        c = checkpoint.config
        parts = [struct.pack("<Ii7iBi", 0x616B3432, 2, c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads,
                             c.vocab_size, c.seq_len, c.shared_classifier, group).ljust(256, b"\0")]
        for name in "rms_att", "rms_ffn", "rms_final":
            parts += [bits(checkpoint.rows(name, l)[0]) for l in range(shapes(c)[name][0])]
        order = ["embedding", *[name for name in LAYER if name[0] == "w"]] + ["classifier"] * (not c.shared_classifier)
        for name in order:
            layers, n, columns = shapes(c)[name]
            for l in range(layers):
                flat = [v for row in checkpoint.rows(name, l) for v in row]
                integers, scales = naive_quantize(flat, group)
                parts += [struct.pack(f"{len(flat)}b", *integers), bits(scales)]
                flat = [rounded(integers[i] * scales[i // group]) for i in range(len(flat))]
                weights[name, l] = [tuple(flat[i:i + columns]) for i in range(0, len(flat), columns)]
    path.write_bytes(b"".join(parts))
    return weights


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    return {"grouped": make_checkpoint(folder / "a.bin", n_kv_heads=2, shared=False),
            "multi-query": make_checkpoint(folder / "b.bin", dim=16, hidden_dim=32, n_heads=2, n_kv_heads=1)}


@pytest.mark.parametrize("shape", ["grouped", "multi-query"])
@pytest.mark.parametrize("group", [1, 4, 8, 64])
def test_weights_are_scales_times_integers(sources, tmp_path, shape, group):
    weights = make_int8(tmp_path / "q.bin", sources[shape], group)
    with contextlib.closing(Checkpoint(str(tmp_path / "q.bin"))) as checkpoint:
        for (name, l), rows in weights.items():
            assert checkpoint.rows(name, l) == rows
            for first, last in (1, 2), (3, 7), (len(rows) - 1, len(rows)):
                assert checkpoint.rows(name, l, first, last) == rows[first:last]


def test_a_run_of_int8_weights_is_that_of_the_same_weights_in_float32(sources, files, tmp_path, capfdbinary):
    make_int8(tmp_path / "q.bin", sources["grouped"], 8)
    with contextlib.closing(Checkpoint(str(tmp_path / "q.bin"))) as checkpoint:
        c = checkpoint.config
        data = struct.pack("<7i", c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads, -c.vocab_size, c.seq_len)
        for name, (layers, _, _) in shapes(c).items():
            if name == "classifier":
                data += bytes(4 * c.seq_len * c.head_size)
            data += b"".join(bits(row) for l in range(layers) for row in checkpoint.rows(name, l))
        (tmp_path / "f.bin").write_bytes(data)
        with contextlib.closing(Checkpoint(str(tmp_path / "f.bin"))) as wide:
            roots = [weights_root(file.config.described(), file.tree_rows()) for file in (checkpoint, wide)]
    assert roots[0] == roots[1]
    texts = [command(capfdbinary, tmp_path / name, "-z", files["tokenizer"], "-s", 1, "-n", 12)[1]
             for name in ("q.bin", "f.bin")]
    assert texts[0] == texts[1] != b"\n"


# ----------------------------------------------------------------------------
# runq.c


def naive_matmul(rows, x, group):
    """runq.c's matmul, one number after the other. rows: (integers, scales)."""
    quantized = []
    for i in range(0, len(x), group):
        part = x[i:i + group]
        scale = rounded(max(map(abs, part)) / 127)
        quantized.append(([int(math.copysign(math.floor(abs(rounded(v / scale)) + 0.5), v)) if scale else 0
                           for v in part], scale))
    out = []
    for integers, scales in rows:
        val = 0.0
        for g, (own, scale) in enumerate(quantized):
            ival = sum(a * b for a, b in zip(integers[g * group:(g + 1) * group], own, strict=True))
            val = rounded(val + rounded(rounded(rounded(ival) * scales[g]) * scale))
        out.append(val)
    return tuple(out)


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 4, 8]), st.sampled_from([0.0, 1.0, 1e-40, 1e30]))
def test_products_are_runq_cs(seed, group, size):
    rng = random.Random(seed)
    rows = [([rng.randint(-127, 127) for _ in range(8)], [rounded(rng.random()) for _ in range(8 // group)])
            for _ in range(3)]
    x = [rounded(size * rng.choice([rng.gauss(0, 1), 0.0, 0.5, -0.5])) for _ in range(8)]
    matrix = runq.QuantizedMatrix(QuantizedRows(group, [r for r, _ in rows], [s for _, s in rows]))
    assert bits(runq.QuantizedProducts.dots(matrix, x)) == bits(naive_matmul(rows, x, group))


@pytest.mark.parametrize("rows, columns, group", [(500, 288, 32), (100, 1024, 64), (300, 32, 8)])
def test_the_memory_of_a_matrix_is_estimated(rows, columns, group):
    def read():
        return QuantizedRows(group, [array("b", bytes(columns)) for _ in range(rows)],
                             [[random.random() for _ in range(columns // group)] for _ in range(rows)])

    tracemalloc.start()
    try:
        matrix = runq.QuantizedMatrix(read())
        took, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.85 * took < matrix.memory(rows, columns, False, group) < 1.15 * took


def test_integers_are_rounded_away_from_zero():
    assert [runq.rounded_away(v) for v in (0.5, -0.5, 1.5, 2.5, -2.5, 0.49, 127.0)] == [1, -1, 2, 3, -3, 0, 127]


def test_runq_gives_the_same_bits_in_memory_in_the_map_and_in_two_processes(sources, tmp_path, monkeypatch):
    make_int8(tmp_path / "q.bin", sources["multi-query"], 8)
    found = []
    for memory, workers in (2**40, 1), (0, 1), (2**40, 2):
        monkeypatch.setattr(llama2, "free_memory", lambda memory=memory: memory)
        with llama2.Transformer(str(tmp_path / "q.bin"), "runq", workers) as model:
            found.append([model.forward(token, pos).tobytes() for pos, token in enumerate([1, 5, 9])])
    assert found[0] == found[1] == found[2]


# ----------------------------------------------------------------------------
# What is odd, and what is refused


def test_groups_that_do_not_divide_rows_are_warned_about_and_refused_by_runq(sources, files, tmp_path, capfdbinary):
    path = tmp_path / "q.bin"
    make_int8(path, sources["grouped"], 64)
    text = (f"{path}: groups of 64 do not divide the rows of embedding, of 16 weights: runq.c takes other scales for "
            "them than they were made with")
    code, out, err = command(capfdbinary, path, "-z", files["tokenizer"], "-t", 0, "-n", 3)
    assert code == 0 and err.startswith(f"warning: {text}\n")
    assert failure(capfdbinary, path, "-z", files["tokenizer"], "--like", "runq", "-t", 0) == text


def test_what_runq_cannot_do_is_refused(sources, files, tmp_path, capfdbinary):
    assert failure(capfdbinary, files["grouped"], "-z", files["tokenizer"], "--like", "runq", "-t", 0) == (
        f"{files['grouped']}: version is 0 or 1, must be 2, with int8 weights, for runq")
    for option in "--trace", "--verify", "--page":
        assert failure(capfdbinary, "--like", "runq", option, tmp_path / "x") == (
            f"{option}: a log has no name for the arithmetic of --like runq")


@pytest.mark.parametrize("offset, form, value, message", [
    (37, "i", 0, "group size is 0, must be 1 to 16777215"), (37, "i", -8, "group size is -8"),
    (37, "i", 7, "group size is 7, must be a divisor of the 256 weights of wq"), (37, "i", 16, "size is"),
    (4, "i", 3, "version is 3, must be 0, 1 or 2"), (36, "B", 2, "shared_classifier is 2")])
def test_a_header_that_cannot_be_is_refused(sources, tmp_path, offset, form, value, message):
    make_int8(tmp_path / "q.bin", sources["grouped"], 8)
    bad = edited(tmp_path / "q.bin", tmp_path / "bad.bin", offset, form, value)
    with pytest.raises(ValueError) as error:
        Checkpoint(bad)
    assert str(error.value).startswith(f"{bad}: {message}")


@pytest.mark.parametrize("arithmetic", ["exact", "runq"])
def test_a_scale_that_is_not_finite_is_refused(sources, tmp_path, arithmetic):
    make_int8(tmp_path / "q.bin", sources["grouped"], 8)
    with contextlib.closing(Checkpoint(str(tmp_path / "q.bin"))) as checkpoint:
        offset, rows, columns = checkpoint.tensors["wq"]
    bad = edited(tmp_path / "q.bin", tmp_path / "bad.bin", offset + rows * columns, "f", math.nan)
    with pytest.raises(ValueError, match="bad.bin: wq of layer 0 holds a (weight|scale) that is not finite"):
        llama2.Transformer(bad, arithmetic)


def test_a_shard_of_int8_weights_is_a_part_of_the_whole(sources, tmp_path):
    make_int8(tmp_path / "q.bin", sources["grouped"], 4)
    with contextlib.closing(Checkpoint(str(tmp_path / "q.bin"))) as checkpoint:
        shard = Shard(checkpoint, runq.Runq, llama2.forward, 0, 1, True)
        ((_, logits),) = Team().run(shard, [1], 0, 0, False)
        assert len(logits) == 280 and all(map(math.isfinite, logits))
