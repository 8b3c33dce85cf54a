"""Tests of checkpoint.py: files that are none are refused, files that change under a run are noticed."""
import math
import os
import struct
import subprocess
import sys

import pytest

import llama2
import merkle
import plain
from llama2_py.engine.arithmetic import Exact
from llama2_py.engine.checkpoint import Checkpoint
from tests.helpers import HERE, MODEL, bits, command, edited, failure, make_checkpoint, read_bytes, run_forward


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
