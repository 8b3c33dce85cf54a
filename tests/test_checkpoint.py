"""Tests of checkpoint.py: files that are none are refused, files that change under a run are noticed."""
import contextlib
import math
import os
import struct
import subprocess
import sys
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llama2
import merkle
import plain
from llama2_py.engine import half_precision
from llama2_py.engine.arithmetic import Exact
from llama2_py.engine.checkpoint import Checkpoint
from llama2_py.engine.rows import unpacked_size
from tests.helpers import (HERE, MODEL, bits, command, edited, failure, forward_definition, make_checkpoint, read_bytes,
                           run_forward)


@pytest.mark.parametrize("field, value, message", [
    (0, 0, "dim is 0"), (0, -16, "dim is -16"), (0, 2**24, "dim is 16777216"), (0, 1179993926, "dim is 1179993926"),
    (0, 18, "dim is 18, must be a multiple of n_heads, 4"), (0, 20, "dim / n_heads is 5, must be even"),
    (1, 0, "hidden_dim is 0"), (2, -1, "n_layers is -1"), (3, 2**31 - 1, "n_heads is 2147483647"),
    (4, 0, "n_kv_heads is 0"),
    (4, 3, "n_heads is 4, must be a multiple of n_kv_heads, 3"), (5, 0, "vocab_size is 0"),
    (5, -(2**31), "vocab_size is"),
    (6, 0, "seq_len is 0"), (6, 33, "size is"), (1, 25, "size is"), (2, 2**24 - 1, "size is"), (5, -280, "size is")])
def test_a_header_that_cannot_be_is_refused(files, tmp_path, capfdbinary, field, value, message):
    for shape, offset in ("multi-head", 0), ("version 1, unshared", 8):
        if (shape, value) == ("version 1, unshared", -280):
            message = "vocab_size is -280"
        if (shape, value) == ("version 1, unshared", 33):
            continue  # it has no tables that depend on seq_len
        path = edited(files[shape], tmp_path / "bad.bin", offset + 4 * field, "i", value)
        assert failure(capfdbinary, path, "-s", 1).startswith(f"{path}: {message}")


def test_versions_and_flags_that_cannot_be_are_refused(files, tmp_path, capfdbinary):
    for offset, form, value, message in [
            (4, "i", 2, "group size is 0, must be 1 to 16777215"),
            (4, "i", 3, "version is 3, must be 0, 1 or 2"), (36, "B", 2, "shared_classifier is 2, must be 0 or 1"),
            (36, "B", 0, "size is"), (0, "I", 0x616B3433, "dim is 1634415667")]:
        path = edited(files["version 1"], tmp_path / "bad.bin", offset, form, value)
        assert failure(capfdbinary, path, "-s", 1).startswith(f"{path}: {message}")


def test_a_file_of_the_wrong_size_is_refused_with_both_sizes(files, tmp_path, capfdbinary):
    for shape in "multi-head", "version 1":
        with open(files[shape], "rb") as file:
            data = file.read()
        for cut in 0, 1, 27, 28, 100, 255, 256, 300, len(data) - 4, len(data) - 1, len(data) + 1, len(data) + 4:
            path = tmp_path / "cut.bin"
            path.write_bytes((data + bytes(8))[:cut])
            message = failure(capfdbinary, path, "-s", 1)
            assert message.startswith(f"{path}: ") and str(cut) in message
            if cut >= 256:
                assert str(len(data)) in message


def test_files_that_cannot_be_read_are_named(files, tmp_path, capfdbinary):
    assert failure(capfdbinary, tmp_path / "none") == f"{tmp_path / 'none'}: No such file or directory"
    assert failure(capfdbinary, tmp_path, "-s", 1) == f"{tmp_path}/config.json: No such file or directory"
    assert failure(capfdbinary, files["grouped"], "-s", 1, "-z", tmp_path) == (
        f"{tmp_path}/tokenizer.json: No such file or directory")
    assert failure(capfdbinary, files["grouped"], "-s", 1, "-z",
                   tmp_path / "none").startswith(f"{tmp_path / 'none'}: No such")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("arithmetic", ["exact", "c"])
def test_a_weight_that_is_not_finite_is_refused_with_its_matrix_named(files, tmp_path, value, arithmetic):
    checkpoint = Checkpoint(files["grouped"])
    for name, (offset, rows, columns) in checkpoint.tensors.items():
        if name == "rope_tables":
            continue
        path = edited(files["grouped"], tmp_path / "bad.bin", offset + 4 * (rows * columns - 1), "f", value)
        with pytest.raises(ValueError, match=f"bad.bin: {name} "):
            with llama2.Transformer(path, arithmetic) as transformer:
                transformer.forward(279, 0)


def test_both_versions_of_a_checkpoint_give_the_same_logits(tmp_path):
    for shared in True, False:
        paths = [make_checkpoint(tmp_path / f"v{version}", version=version, shared=shared) for version in (0, 1)]
        one, other = ([logits for _, logits in run_forward(path, "exact", [1, 5, 9])] for path in paths)
        assert one == other


# Files that change under a run


@pytest.fixture
def copy(files, tmp_path):
    with open(files["grouped"], "rb") as file:
        (tmp_path / "model.bin").write_bytes(file.read())
    return str(tmp_path / "model.bin")


CHANGED = "model.bin: the file was changed or replaced while it was being read"


def overwrite(path):
    """Another weight, in place."""
    with open(path, "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(struct.pack("<f", 0.5))


def test_a_change_in_place_is_noticed(copy, monkeypatch):
    with llama2.Transformer(copy) as transformer:
        transformer.forward(1, 0)
        transformer.checkpoint.check_unchanged()
        overwrite(copy)
        with pytest.raises(ValueError, match=CHANGED):
            transformer.checkpoint.check_unchanged()
        with pytest.raises(ValueError, match=CHANGED):
            transformer.forward(1, 1)  # which reads a row of the embedding


def test_a_file_is_let_go_of_when_the_model_is_closed(copy):
    with llama2.Transformer(copy) as transformer:
        checkpoint = transformer.checkpoint
        assert not checkpoint.file.closed and not checkpoint.data.closed
    assert checkpoint.file.closed and checkpoint.data.closed


@pytest.mark.parametrize("how", ["trace", "verify"])
def test_a_file_that_is_changed_under_a_run_ends_it_without_a_root_or_verdict(
        files, traces, copy, tmp_path, capfdbinary, monkeypatch, how):
    sample, count = llama2.Sampler.sample, []

    def sample_and_change(self, logits):
        count.append(1)
        if len(count) == 10:  # at the last step, when no more is read: only the comparison at the end sees it
            os.utime(copy)
        return sample(self, logits)

    args = copy, "-z", files["tokenizer"]
    monkeypatch.setattr(llama2.Sampler, "sample", sample_and_change)
    more = ["--verify", traces["step"]] if how == "verify" else [
        "-s", 7, "-n", 14, "-i", "ab 😀a", "--trace", tmp_path / "t"]
    code, out, err = command(capfdbinary, *args, *more)
    assert code == 2 and CHANGED in err and b"verified" not in out and len(count) == 10
    if how == "trace":
        assert b"root" not in (tmp_path / "t").read_bytes()


def test_a_file_that_is_swapped_before_a_worker_opens_it_is_noticed(files, copy, tmp_path, monkeypatch):
    """Today's attack: the honest file is hashed, and another one is computed with."""
    other = make_checkpoint(tmp_path / "other.bin", n_kv_heads=2, shared=False, seed=2)
    start = llama2.Team.start

    def swap_and_start(self, *args):
        os.replace(other, copy)
        start(self, *args)

    monkeypatch.setattr(llama2.Team, "start", swap_and_start)
    identity = Checkpoint(copy).identity
    with pytest.raises(ValueError, match=CHANGED):
        llama2.Transformer(copy, workers=2).forward(1, 0)
    with pytest.raises(ValueError, match=CHANGED):  # what the worker says
        llama2.open_shard(copy, identity, Exact, llama2.forward, True, 1, 2)


def test_a_map_that_is_cut_under_the_run_ends_in_one_line(copy):
    code = (f"import os, sys, llama2; llama2.free_memory = lambda: 0; os.chdir({os.path.dirname(copy)!r})\n"
            "from llama2_py import console\n"
            "def run():\n"
            "    t = llama2.Transformer('model.bin'); t.forward(1, 0)\n"
            "    os.truncate('model.bin', 4096); t.forward(1, 1)\n"
            "sys.exit(console.exit_code('llama2.py', run))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONPATH": HERE})
    assert (done.returncode, done.stderr.decode()) == (2, f"llama2.py: error: {CHANGED}\n")


def test_a_row_is_opened_with_a_path_to_the_weights(files):
    checkpoint = Checkpoint(files["multi-head"])
    rows, tree = list(checkpoint.tree_rows()), merkle.MerkleTree()
    for row in rows:
        tree.append(merkle.leaf_hash(row))
    at = 280 + 1 + 3  # row 3 of wq of layer 0, behind the embedding and rms_att
    assert rows[at] == bits(checkpoint.rows("wq", 0, 3, 4)[0])
    merkle.verify_inclusion(merkle.leaf_hash(rows[at]), at, len(rows), tree.inclusion_proof(at), tree.root())


def test_the_embedded_checkpoint_has_real_tables_of_rope():
    size = 4 * 2 * 512 * 4  # they end the file, since its classifier is the embedding
    rows = list(struct.iter_unpack("<4f", read_bytes(MODEL)[-size:]))
    tables = rows[:512], rows[512:]
    assert tables[0][0] == (1.0,) * 4 and tables[1][0] == (0.0,) * 4
    for pos in 1, 100, 511:
        angles = [plain.r(pos * plain.r(1 / plain.power(10000.0, plain.r(i / 8)))) for i in range(0, 8, 2)]
        assert tables[0][pos] == tuple(map(plain.cos, angles)) and tables[1][pos] == tuple(map(plain.sin, angles))


# ----------------------------------------------------------------------------
# Float32 weights that are numbers of 16 bits

def cut_to_16_bits(dtype, numbers):
    """Numbers -> those of a type of 16 bits beside them, as the bytes of float32."""
    if dtype == "F16":
        return bits(struct.unpack(f"{len(numbers)}e", struct.pack(f"{len(numbers)}e", *numbers)))
    halves = array("H", bits(numbers))
    halves[0::2] = array("H", bytes(2 * len(numbers)))
    return halves.tobytes()


@given(st.integers(1, 5), st.lists(st.floats(-60000, 60000, width=32), min_size=20, max_size=60), st.sampled_from(
    ["BF16", "F16", "F32"]), st.booleans(), st.booleans())
def test_rows_of_float32_have_the_same_bits_in_a_table_and_without(columns, numbers, dtype, odd, keep):
    """odd: one number is of another type; negative zeros stay negative."""
    numbers = [*numbers[:len(numbers) // columns * columns - 1], -0.0]
    numbers += [0.5] * (-len(numbers) % columns)
    data = bits(numbers) if dtype == "F32" else cut_to_16_bits(dtype, numbers)
    if odd:
        data = data[:-4] + bits([1 + 2.0**-23])
    rows = half_precision.float32_rows(columns, data, keep)
    assert b"".join(map(bits, rows)) == data and {len(row) for row in rows} == {columns}
    values = half_precision.table(dtype) if dtype != "F32" else ()
    if dtype != "F32" and keep and not odd and not half_precision.float32_codes("BF16", data):
        assert all(value is values[code] for row, codes in zip(rows, struct.iter_unpack(
            f"{columns}H", half_precision.float32_codes(dtype, data)), strict=True) for value, code in zip(
                row, codes, strict=True))


@pytest.mark.parametrize("dtype", ["BF16", "F16", None])
def test_a_file_of_16_bit_values_takes_8_bytes_a_weight_and_has_the_same_log(tmp_path, files, dtype):
    data = read_bytes(files["grouped"])
    if dtype:
        data = data[:28] + cut_to_16_bits(dtype, struct.unpack(f"<{(len(data) - 28) // 4}f", data[28:]))
    (tmp_path / "model.bin").write_bytes(data)
    with contextlib.closing(Checkpoint(str(tmp_path / "model.bin"))) as checkpoint:
        assert {checkpoint.is_shared(name) for name in checkpoint.tensors} == {dtype is not None}
        shared, plain = unpacked_size(Exact, checkpoint), 40 * (len(data) // 4)
        assert shared < plain / 2 if dtype else shared > plain / 2
        rows = checkpoint.rows("w1", 1)
        assert bits([v for row in rows for v in row]) == checkpoint._bytes("w1", 1, 0, None)
    path = str(tmp_path / "model.bin")
    assert list(run_forward(path, "exact", [1, 5])) == list(forward_definition("exact", path, [1, 5]))


def test_rows_are_of_16_bits_only_if_those_all_over_the_matrix_are(tmp_path, files):
    """The first rows may be zeros: of tokens that nobody uses."""
    data = read_bytes(files["grouped"])
    (tmp_path / "model.bin").write_bytes(data[:28] + bytes(16 * 4 * 16) + data[28 + 16 * 4 * 16:])
    with contextlib.closing(Checkpoint(str(tmp_path / "model.bin"))) as checkpoint:
        assert checkpoint.config.dim == 16 and not any(checkpoint.rows("embedding", 0, 0, 16)[15])
        assert not checkpoint.is_shared("embedding")
