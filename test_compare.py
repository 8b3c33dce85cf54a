"""Tests of compare.py: arrays written, read, refused, compared."""
import hashlib
import json
import math
import os
import struct
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import compare
import llama2
from conftest import any_float, bits, command, failure, read_lines, rounded


def npy(path, rows, descr="<f4", fortran=False, shape=None, form="<{}f", version=b"\1\0"):
    """Write rows as numpy.save does."""
    text = repr({"descr": descr, "fortran_order": fortran, "shape": shape or (len(rows), len(rows[0]))})
    text = text.replace(")}", "), }").encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    with open(path, "wb") as file:
        file.write(b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text)
        for row in rows:
            file.write(struct.pack(form.format(len(row)), *row))
    return path


@pytest.fixture
def run(files):
    """Options of a run, and its logits."""
    with llama2.Transformer(files["grouped"]) as model:
        tokenizer = llama2.Tokenizer(files["tokenizer"], 280)
        steps = llama2.generate(model, tokenizer, llama2.Sampler(0.0), tokenizer.encode("a"), 10, logits=True)
        return [files["grouped"], "-z", files["tokenizer"], "-t", "0", "-n", "10", "-i", "a"], [list(s.logits)
                                                                                                for s in steps]


def test_logits_are_an_array_of_numpy(run, tmp_path, capfdbinary):
    code, out, err = command(capfdbinary, *run[0], "--logits", tmp_path / "a.npy", "--trace", tmp_path / "t")
    data = (tmp_path / "a.npy").read_bytes()
    assert code == 0 and out.startswith(b"a") and data[:10] == b"\x93NUMPY\1\0v\0" and data[127:128] == b"\n"
    assert eval(data[10:128]) == {"descr": "<f4", "fortran_order": False, "shape": (10, 280)}
    assert data[128:] == b"".join(map(bits, run[1]))
    assert [json.loads(line)["logits"] for line in read_lines(tmp_path / "t")[1:-1]] == [
        hashlib.sha256(bits(row)).hexdigest() for row in run[1]]
    assert sorted(os.listdir(tmp_path)) == ["a.npy", "t"]


def test_a_run_that_fails_leaves_no_array(run, tmp_path, monkeypatch, capfdbinary):
    monkeypatch.setattr(llama2.Sampler, "sample", lambda self, logits: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        llama2.main([*run[0], "--logits", str(tmp_path / "a.npy")])
    assert os.listdir(tmp_path) == []


def test_equal_logits_compare_equal(run, tmp_path, capfdbinary):
    code, out, err = command(capfdbinary, *run[0], "--compare", npy(tmp_path / "a.npy", run[1]))
    assert code == 0 and out.decode().endswith("largest difference: 0; in ulps: 0\narg max agrees at 10 of 10 steps\n"
                                               "first step that differs: None; first beyond the tolerance: None\n")


def test_a_difference_is_shown_where_it_is(run, tmp_path, capfdbinary):
    options, rows = run
    (i,) = struct.unpack("<i", bits([rows[4][7]]))
    rows[4][7] = struct.unpack("<f", struct.pack("<i", i + 3))[0]
    best = max(rows[6])
    rows[6][9] = rounded(best + 1.0)
    path = npy(tmp_path / "a.npy", rows)
    code, out, err = command(capfdbinary, *options, "--compare", path)
    lines = out.decode().splitlines()
    assert code == 1 and len(lines) == 1 + 10 + 3
    assert lines[5].split()[2] == "3" and lines[5].endswith("beyond the tolerance") and lines[4].split()[1:3] == ["0",
                                                                                                                  "0"]
    assert " here, 9 there" in lines[7]
    assert lines[-2] == "arg max agrees at 9 of 10 steps"
    assert lines[-1] == "first step that differs: 4; first beyond the tolerance: 4"
    code, out, _ = command(capfdbinary, *options, "--compare", path, "--tolerance", 0.01)
    assert code == 1 and out.decode().splitlines()[-1] == "first step that differs: 4; first beyond the tolerance: 6"
    assert command(capfdbinary, *options, "--compare", path, "--tolerance", 100)[0] == 0
    rows[3][0] = math.nan
    code, out, _ = command(capfdbinary, *options, "--compare", npy(tmp_path / "b.npy", rows), "--tolerance", 100)
    assert code == 1 and out.decode().splitlines()[4].split()[1] == "inf"


@pytest.mark.parametrize("change, message", [
    ({"descr": ">f4"}, "holds '>f4', must be '<f4'"), ({"descr": "<f8"}, "holds '<f8'"),
    ({"descr": [("a", "<f4")]}, "holds [("),
    ({"fortran": True}, "fortran_order is True"), ({"shape": (10, 279)}, "shape is (10, 279), this run's is (10, 280)"),
    ({"shape": (280, 10)}, "shape is (280, 10), this run's is (10, 280)"), ({"shape": (2800,)}, "shape is (2800,)"),
    ({"shape": (1, 10, 280)}, "shape is (1, 10, 280)"),
    ({"shape": (11, 280)}, "shape is (11, 280), this run's is (10, 280)"),
    ({"shape": (9, 280)}, "size is 11328 bytes, must be 10208 for shape (9, 280)"),
    ({"shape": (0, 280)}, "shape is (0, 280)"),
    ({"shape": "x"}, "not an array"), ({"shape": (True, 280)}, "not an array"),
    ({"shape": (10**4000, 280)}, "shape is (1000"),
    ({"version": b"\2\0"}, "not an array of numpy's format 1.0")])
def test_arrays_of_another_kind_are_refused_with_both_named(run, tmp_path, capfdbinary, change, message):
    path = npy(tmp_path / "a.npy", run[1], **change)
    assert failure(capfdbinary, *run[0], "--compare", path).startswith(f"{path}: {message}")


@pytest.mark.parametrize("header", [b"{'descr': '<f4', 'fortran_order': False, 'shape': 3if 1else 2}",
                                    b"{'descr': '\\\x1b[31m', 'fortran_order': False, 'shape': (10, 280)}"])
def test_odd_headers_of_arrays_get_one_line(run, tmp_path, capfdbinary, header):
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header)
    assert "\x1b" not in failure(capfdbinary, *run[0], "--compare", path)


def test_arrays_go_through_links_and_into_devices(run, tmp_path, capfdbinary):
    (tmp_path / "real.npy").write_bytes(b"old")
    os.symlink(tmp_path / "real.npy", tmp_path / "link.npy")
    os.mkfifo(tmp_path / "fifo")
    reader = subprocess.Popen(["cat", tmp_path / "fifo"], stdout=subprocess.PIPE)
    for name in "link.npy", "fifo":
        assert command(capfdbinary, *run[0], "--logits", tmp_path / name)[0] == 0
    assert os.path.islink(tmp_path / "link.npy")
    assert reader.communicate()[0] == (tmp_path / "real.npy").read_bytes() != b"old"
    path = tmp_path / "none" / "a.npy"
    assert failure(capfdbinary, *run[0], "--logits", path).startswith(f"{path}: cannot be written")


@given(any_float)
def test_neighbours_are_one_ulp_apart_on_either_side_of_zero(value):
    if value == 0.0:
        assert compare.ordered([-(2.0**-149), -0.0, 0.0, 2.0**-149]) == [-1, 0, 0, 1]
    else:
        (i,) = struct.unpack("<i", bits([value]))
        (away,) = struct.unpack("<f", struct.pack("<i", i + 1))  # from zero
        assert compare.ordered([away])[0] - compare.ordered([value])[0] == (1 if value > 0 else -1)


def test_an_array_of_fewer_steps_than_the_run_is_refused(run, tmp_path, capfdbinary):
    path = npy(tmp_path / "a.npy", run[1][:9])
    code, out, err = command(capfdbinary, *run[0], "--compare", path)
    assert code == 2 and err == f"llama2.py: error: {path}: shape is (9, 280), but this run has more steps\n"


def test_an_array_of_more_steps_than_the_run_is_refused(run, tmp_path, capfdbinary, monkeypatch):
    path = npy(tmp_path / "a.npy", run[1])
    monkeypatch.setattr(llama2.Sampler, "sample", lambda self, logits: 1)  # BOS, as soon as the prompt is over
    code, out, err = command(capfdbinary, *run[0], "--compare", path)
    assert code == 2 and out.count(b"\n") == 1 + 2
    assert err == f"llama2.py: error: {path}: shape is (10, 280), but this run's is (2, 280)\n"


@given(st.binary(max_size=150))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_an_array_or_an_error(tmp_path_factory, data):
    path = str(tmp_path_factory.getbasetemp() / "any.npy")
    for content in data, b"\x93NUMPY\1\0" + struct.pack("<H", len(data)) + data:
        with open(path, "wb") as file:
            file.write(content)
        with pytest.raises(ValueError, match="any.npy"):
            compare.LogitsArray(path, 4, 280)
