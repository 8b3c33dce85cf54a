"""Tests of compare.py: arrays written, read, refused, compared."""
import hashlib
import json
import math
import os
import random
import re
import struct
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import llama2
from llama2_py import command as command_line
from llama2_py.doctor import numbers
from llama2_py.engine.checkpoint import Config
from tests.helpers import bits, command, failure, forward_definition, read_lines, rounded, some


def npy(path, rows, descr="<f4", fortran=False, shape=None, form="<{}f", version=b"\1\0"):
    """Write rows as numpy.save does; their numbers in that order, whatever fortran says."""
    text = repr({"descr": descr, "fortran_order": fortran, "shape": shape or (len(rows), len(rows[0]))})
    text = text.replace(")}", "), }").encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    with open(path, "wb") as file:
        file.write(b"\x93NUMPY" + version + struct.pack("<H" if version == b"\1\0" else "<I", len(text)) + text)
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
        command_line.main([*run[0], "--logits", str(tmp_path / "a.npy")])
    assert os.listdir(tmp_path) == []


def test_equal_logits_are_consistent(run, tmp_path, capfdbinary):
    code, out, err = command(capfdbinary, *run[0], "--compare", npy(tmp_path / "a.npy", run[1]))
    lines = out.decode().splitlines()
    assert code == 0 and lines[0] == "consistent with float32: the differences are those of rounding"
    assert "overall 0 (limit 2), worst step 0 (limit 12) at step 0" in lines[1] and len(lines) == 2 + 1 + 10 + 1 + 5
    assert lines[3].split()[:4] == ["0", "0", "0", str(run[1][0].index(max(run[1][0])))]


def test_a_text_that_parts_is_judged_up_to_there(run, tmp_path, capfdbinary):
    options, rows = run
    best = rows[6].index(max(rows[6]))
    rows[6][9] = rounded(max(rows[6]) + 2.0**-22)  # a near tie, decided otherwise
    rows[7] = [0.0] * 280
    code, out, _ = command(capfdbinary, *options, "--compare", npy(tmp_path / "a.npy", rows))
    last, advice = out.decode().splitlines()[-8:-6]
    assert advice.startswith("first: give both programs the same 20 tokens (--tokens)")
    assert last.startswith("    6") and f"  {best} " in last and " here, by " in last and "; 9 " in last
    assert b"the programs chose different tokens after step 6: only the steps up to there were judged\n" in out
    assert code == 1 and b"\n    7" not in out  # one logit alone is wrong by more than rounding


@pytest.mark.parametrize("value", [1e39, 1.7e308, -1e160])
def test_doubles_that_no_float32_holds_are_not_finite(run, tmp_path, capfdbinary, value):
    options, rows = run
    for row in [value] * 280, [*rows[2][:5], value, *rows[2][6:]]:
        path = npy(tmp_path / "b.npy", [*rows[:2], row], "<f8", form="<{}d")
        code, out, _ = command(capfdbinary, *options, "--compare", path)
        assert code == 1 and out.startswith(b"not finite at step 2, token ")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_a_verdict(run, files, tmp_path, capfdbinary, value):
    options, rows = run
    rows[3][17] = value
    code, out, _ = command(capfdbinary, *options, "--compare", npy(tmp_path / "b.npy", rows))
    assert code == 1 and out.decode().splitlines()[0] == f"not finite at step 3, token 17: {value}"
    assert "logits of 3 steps" in out.decode().splitlines()[1]
    command(capfdbinary, *options[:-4], "-n", 2, "--dump", tmp_path / "d")
    data = (tmp_path / "d").read_bytes()
    at = data.index(b"1 1 q 16\n") + 9
    (tmp_path / "d").write_bytes(data[:at + 20] + struct.pack("<f", value) + data[at + 24:])
    code, out, _ = command(capfdbinary, *options[:-4], "--compare", tmp_path / "d")
    assert code == 1
    assert out.decode().splitlines()[0] == f"not finite at position 1, layer 1, q, head 1, element 1 of 4: {value}"


@pytest.mark.parametrize("change, message", [
    ({"descr": "<i4"}, "holds '<i4', must be float16, 32 or 64, '<f2' to '<f8' or '>f2' to '>f8'"),
    ({"descr": [("a", "<f4")]}, "holds [("), ({"descr": "<c8"}, "holds '<c8'"),
    ({"shape": (5, 560)}, "shape is (5, 560), must be (steps, 280), the vocabulary: rows padded to a longer"),
    ({"shape": (10, 279)}, "shape is (10, 279), must be (steps, 280), the vocabulary"),
    ({"shape": (280, 10)}, "shape is (280, 10)"), ({"shape": (2800,)}, "shape is (2800,)"),
    ({"shape": (2, 5, 280)}, "shape is (2, 5, 280)"), ({"shape": (9, 280)}, "size is 11328 bytes, must be 10208 for"),
    ({"shape": (0, 280)}, "shape is (0, 280)"), ({"shape": "x"}, "not an array"),
    ({"shape": (True, 280)}, "not an array"),
    ({"shape": (10**4000, 280)}, "shape is (1000"),
    ({"version": b"\4\0"}, "not an array of numpy's format 1.0, 2.0 or 3.0"),
    ({"version": b"\1\1"}, "not an array of numpy's format 1.0, 2.0 or 3.0")])
def test_arrays_of_another_kind_are_refused_with_both_named(run, tmp_path, capfdbinary, change, message):
    path = npy(tmp_path / "a.npy", run[1], **change)
    assert failure(capfdbinary, *run[0], "--compare", path).startswith(f"{path}: {message}")


def test_more_steps_than_the_run_or_the_context_are_refused(run, tmp_path, capfdbinary):
    path = npy(tmp_path / "a.npy", run[1] + run[1][:1])
    assert failure(capfdbinary, *run[0], "--compare", path) == f"{path}: has 11 steps, this run 10"
    path = npy(tmp_path / "a.npy", run[1] * 4)
    assert failure(capfdbinary, *run[0], "--compare", path) == f"{path}: has 40 steps, more than the context of 32"


KINDS = {  # of arrays: what differs from numpy.save of float32 rows
    "<f4": {}, "<f8": {"descr": "<f8", "form": "<{}d"}, ">f4": {"descr": ">f4", "form": ">{}f"},
    ">f8": {"descr": ">f8", "form": ">{}d"}, "one more dimension": {"shape": (1, 10, 280)},
    "one dimension between": {"shape": (10, 1, 280)}, "format 2": {"version": b"\2\0"},
    "format 3": {"version": b"\3\0"},
    "Fortran's order": {"fortran": True}, "Fortran's order, one dimension between": {"fortran": True,
                                                                                    "shape": (10, 1, 280)},
    "Fortran's order, >f8": {"fortran": True, "descr": ">f8", "form": ">{}d"}}


@pytest.mark.parametrize("kind", ["<f4", "Fortran's order, >f8", "bare", "records", *[
    pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind not in ("<f4", "Fortran's order, >f8")]])
def test_every_kind_of_file_is_read(run, tmp_path, capfdbinary, kind):
    options, rows = run
    options = [option for option in options if option not in ("-n", "10")]  # the file says how many
    path = tmp_path / "theirs"
    if kind == "bare":
        path.write_bytes(b"".join(map(bits, rows)))
    elif kind == "records":
        path.write_bytes(b"".join(b"%d -1 logits 280\n" % i + bits(row) for i, row in reversed(list(enumerate(rows)))))
    else:
        more = KINDS[kind]
        shape = {"shape": (10, 280), **more}
        npy(path, list(zip(*rows, strict=True)) if more.get("fortran") else rows, **shape)
    code, out, err = command(capfdbinary, *options, "--compare", path)
    assert code == 0 and b"overall 0 (limit 2)" in out and b"logits of 10 steps" in out


STRANGE = {  # how rows are written; what they look like
    "float64": ("<{}d", "looks like float64"), "float16": ("<{}e", "looks like float16"),
    "big endian": (">{}f", "looks like big-endian float32"), "big-endian float64": (">{}d", "looks like big-endian"),
    "padded": ("<{}f", "looks like rows of 320 float32, a padded vocabulary: must be rows of 280")}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("steps", [2, 8, 10])
def test_bare_numbers_of_another_kind_are_told_what_they_look_like(run, tmp_path, capfdbinary, kind, steps):
    form, message = STRANGE[kind]
    rows = run[1][:steps]
    if kind == "padded":
        rows = [[*row, *[0.0] * 40] for row in rows]
    (tmp_path / "theirs").write_bytes(b"".join(struct.pack(form.format(len(row)), *row) for row in rows))
    error = failure(capfdbinary, *run[0][:-4], "-i", "a", "--compare", tmp_path / "theirs")
    assert error.startswith(f"{tmp_path / 'theirs'}: {message}"), error


@pytest.mark.slow
@pytest.mark.parametrize("change", [
    lambda rows: [[v * 1e-6 for v in row] for row in rows], lambda rows: [[v * 1e6 for v in row] for row in rows],
    lambda rows: [[0.0] * 280 for row in rows], lambda rows: [[math.exp(3 * v) for v in row] for row in rows],
    lambda rows: [[math.nan] * 280, *rows[1:]]])
def test_wrong_logits_are_a_verdict_and_not_a_strange_file(run, tmp_path, capfdbinary, change):
    rows = [list(map(rounded, row)) for row in change(run[1])]
    (tmp_path / "theirs").write_bytes(b"".join(map(bits, rows)))
    assert command(capfdbinary, *run[0], "--compare", tmp_path / "theirs")[0] == 1


def split_records(data):
    """A file of records -> [(line, its numbers)]"""
    at, parts = 0, []
    while at < len(data):
        line = data[at:data.index(b"\n", at) + 1]
        n = 4 * int(line.split()[3])
        parts.append((line, data[at + len(line):at + len(line) + n]))
        at += len(line) + n
    return parts


@pytest.mark.parametrize("ops", some(1, [[b"logits"], [b"embedding", b"q"], None]))
def test_positions_that_begin_at_1_are_told(files, tmp_path, capfdbinary, ops):
    args = files["grouped"], "-z", files["tokenizer"], "--tokens", "1,7,30,9,40", "-t", 0
    command(capfdbinary, *args, "-n", 4, "--like", "llama2.c", "--dump", tmp_path / "d")
    parts = [(line, values) for line, values in split_records((tmp_path / "d").read_bytes())
             if ops is None or line.split()[2] in ops]
    (tmp_path / "right").write_bytes(b"".join(line + values for line, values in parts))
    assert command(capfdbinary, *args, "--compare", tmp_path / "right")[0] == 0
    later = b"".join(b"%d" % (line[0] - 47) + line[1:] + values for line, values in parts)
    (tmp_path / "later").write_bytes(later)
    error = failure(capfdbinary, *args, "--compare", tmp_path / "later")
    assert error.startswith(f"{tmp_path / 'later'}: positions look as if they begin at 1, must begin at 0: position 1 ")


def test_half_precision_is_read_as_what_it_is(run, tmp_path, capfdbinary):
    halves = [list(struct.unpack("<280e", struct.pack("<280e", *row))) for row in run[1]]
    path = npy(tmp_path / "half.npy", halves, "<f2", form="<{}e")
    code, out, err = command(capfdbinary, *run[0], "--compare", path)
    assert code == 0 and b"the file's numbers are float16, which hides what is smaller than their rounding\n" in out
    path = npy(tmp_path / "single.npy", halves)
    code, out, err = command(capfdbinary, *run[0], "--compare", path)
    assert code == 1 and out.startswith(b"a mistake, not rounding in float32\n")
    assert b"\nthe mistake: logits are float16\n" in out and b"(--precision float16 judges it as that)" in out


def test_a_dump_holds_every_operation_and_compares_equal(files, tmp_path, capfdbinary):
    args = files["grouped"], "-z", files["tokenizer"], "--tokens", "1,7,279,30", "-t", 0
    code, out, err = command(capfdbinary, *args, "-n", 4, "--dump", tmp_path / "d")
    assert code == 0
    expected = b""
    for pos, (ops, logits) in enumerate(forward_definition("exact", files["grouped"], [1, 7, 279, 30])):
        for layer, op, data in [*ops, (None, "logits", logits)]:
            expected += b"%d %d %s %d\n" % (pos, -1 if layer is None else layer, op.encode(), len(data) // 4) + data
    assert (tmp_path / "d").read_bytes() == expected
    code, out, err = command(capfdbinary, *args, "--compare", tmp_path / "d")
    assert code == 0 and b"operations judged from their own inputs: 124, of them wrong: 0\n" in out
    assert b"logits of 4 steps" in out


def test_a_dump_of_llama2_c_is_consistent(files, tmp_path, capfdbinary):
    args = files["grouped"], "-z", files["tokenizer"], "-t", 0, "-i", "ab"
    command(capfdbinary, *args, "-n", 12, "--like", "llama2.c", "--dump", tmp_path / "d", "--logits", tmp_path / "l")
    for name in "d", "l":
        code, out, _ = command(capfdbinary, *args, "--compare", tmp_path / name)
        assert code == 0 and b"overall 0 " not in out
        code, out, _ = command(capfdbinary, *args, "--like", "llama2.c", "--compare", tmp_path / name)
        assert code == 0 and out.splitlines()[1] == b"equal in every bit to those of --like"
    command(capfdbinary, *args, "-n", 12, "--dump", tmp_path / "exact")
    code, out, _ = command(capfdbinary, *args, "--like", "llama2.c", "--compare", tmp_path / "exact")
    assert code == 0 and re.match(rb"first bit unlike those of --like: position \d+, layer 0, ", out.splitlines()[1])


def test_the_first_wrong_operation_is_named_whatever_the_order_of_the_records(files, tmp_path, capfdbinary):
    args = files["grouped"], "-z", files["tokenizer"], "--tokens", "1,7", "-t", 0
    command(capfdbinary, *args, "-n", 2, "--dump", tmp_path / "d")
    records = re.findall(rb"(\d+ -?\d+ [a-z_]+ (\d+)\n)", (tmp_path / "d").read_bytes())
    data, at, parts = (tmp_path / "d").read_bytes(), 0, []
    for line, n in records:
        parts.append((line, bytearray(data[at + len(line):at + len(line) + 4 * int(n)])))
        at += len(line) + 4 * int(n)
    assert at == len(data)
    for line, values in parts:
        if line.startswith((b"1 1 q ", b"1 1 gate ")):
            struct.pack_into("<f", values, 4 * 11, 9.0)
    weights = next(i for i, (line, _) in enumerate(parts) if line == b"1 0 weights 8\n")
    line, values = parts.pop(weights)  # head by head, as run.c's att: the same line again appends
    parts += [(b"1 0 weights 2\n", values[i:i + 8]) for i in range(0, 32, 8)]
    random.Random(1).shuffle(parts[:-4])
    (tmp_path / "shuffled").write_bytes(b"".join(line + values for line, values in [*parts[:-4][::-1], *parts[-4:]]))
    code, out, err = command(capfdbinary, *args, "--compare", tmp_path / "shuffled", "--budget", 0)
    assert code == 1 and b"operations judged from their own inputs: 62, of them wrong: " in out
    assert re.search(rb"first wrong operation: position 1, layer 1, q, head 2, element 3 of 4: 9 there, -?[0-9.]+ "
                     rb"here; impossible in float32, in any order of summation: ", out)
    code, out, err = command(capfdbinary, *args, "--compare", tmp_path / "d")
    assert code == 0


@pytest.mark.parametrize("op", some(1, ["v", "ffn_residual", "weights"]))
def test_operations_without_inputs_are_judged_against_the_right_run(files, tmp_path, capfdbinary, op):
    args = files["grouped"], "-z", files["tokenizer"], "--tokens", "1,7,30"
    command(capfdbinary, *args, "-n", 3, "-t", 0, "--like", "llama2.c", "--dump", tmp_path / "d")
    parts = split_records((tmp_path / "d").read_bytes())
    parts = [(line, values) for line, values in parts if line.split()[2] == op.encode()]
    (tmp_path / "some").write_bytes(b"".join(line + values for line, values in parts))
    code, out, err = command(capfdbinary, *args, "--compare", tmp_path / "some")
    assert code == 0 and b"operations whose inputs are not in the file, against the right run's: 6, all within" in out
    line, values = parts[3]
    wrong = struct.pack("<f", struct.unpack("<f", values[:4])[0] + 0.01)
    parts[3] = line, wrong + values[4:]
    (tmp_path / "some").write_bytes(b"".join(line + values for line, values in parts))
    code, out, err = command(capfdbinary, *args, "--compare", tmp_path / "some")
    assert code == 1 and f"first of them beyond the noise: position 1, layer 1, {op}: ".encode() in out


def test_a_record_of_a_later_step_alone_is_judged(run, tmp_path, capfdbinary):
    for row, expected in (run[1][2], 0), ([0.0] * 280, 1):
        (tmp_path / "d").write_bytes(b"2 -1 logits 280\n" + bits(row))
        code, out, _ = command(capfdbinary, *run[0], "--compare", tmp_path / "d", "--budget", 0)
        assert code == expected and b"logits of 1 step, in units" in out and b"\n    2" in out


@pytest.mark.parametrize("data, message", [
    (b"", "the file is empty"), (b"0 0 queue 1\n" + bytes(4), "no operation is called queue in layer 0, of 2"),
    (b"0 2 q 1\n" + bytes(4), "no operation is called q in layer 2, of 2"),
    (b"0 -1 q 1\n" + bytes(4), "no operation is called q in layer -1"),
    (b"0 0 logits 1\n" + bytes(4), "no operation is called logits in layer 0"),
    (b"0 0 q 0\n", "q has 0 numbers, but 0"),
    (b"0 0 q 5\n" + bytes(16), "q has 5 numbers, but 4 are left"),
    (b"0 0 q 1\n" + bytes(5), "not a line `POS LAYER OP N`"),
    (b"0 0 q 1\n" + bytes(4) + b"x" * 200, "record at byte 12, after 0 0 q 1: not a line"),
    (b"0 0 q 15\n" + bytes(60), "position 0, "
     "layer 0, q: has 15 numbers, must have 16"),
     (b"0 -1 logits 279\n" + bytes(4 * 279), "position 0, logits: has 279 numbers, must have 280"),
    ((b"0 0 q 9\n" + bytes(36)) * 2, "record at byte 44, after 0 0 q 9: more than the 16 numbers of position 0, "
     "layer 0, q"),
    (b"32 0 q 1\n" + bytes(4), "position 32 is beyond the context of 32"),
    (b"0 0 q 16\r\n" + bytes(64), "record at byte 0: the line ends in CR LF, must end in LF alone"),
    (b"0 0 Q 16\n" + bytes(64), "record at byte 0: no operation is called Q; it looks like q"),
    (b"0 0 w1 24\n" + bytes(96), "no operation is called w1; it looks like gate"),
    (b"0 0 q 16\n" + bytes(64) + b"0 0 w1 24\n" + bytes(96), "after 0 0 q 16: no operation is called w1; it looks"),
    (b"0 0 q_proj 16\n" + bytes(64), "no operation is called q_proj; it looks like q"),
    (b"0  0 q 16\n" + bytes(64), "record at byte 0: not a line `POS LAYER OP N`: "),
    (b"1 0 weights 4\n" + bytes(16) + b"2 0 weights 8\n" + bytes(32), "positions look as if they begin at 1, must "
     "begin at 0: position 1 has weights of 1 positions"),
    (b"\0" * 1121, "size is 1121 bytes: neither")])
def test_files_that_are_none_of_the_kinds_get_one_line(files, tmp_path, capfdbinary, data, message):
    path = tmp_path / "theirs"
    path.write_bytes(data)
    got = failure(capfdbinary, files["grouped"], "-z", files["tokenizer"], "-t", 0, "--compare", path)
    assert got.startswith(f"{path}") and message in got


@pytest.mark.parametrize("tokens, message", [
    ("", "argument --tokens: not tokens as 1,403,407: "), ("1,", "argument --tokens"), ("1,-2", "argument --tokens"),
    ("1,x", "argument --tokens"), ("1,280", "token of"), ("1" + ",2" * 32, "the prompt has 33 tokens")])
def test_tokens_that_are_none_get_one_line(model, capfdbinary, tokens, message):
    assert failure(capfdbinary, *model, "-s", 1, "--tokens", tokens).startswith(message)


def test_tokens_are_a_beginning_and_a_trace_of_them_verifies(model, tmp_path, capfdbinary):
    plain = command(capfdbinary, *model, "-s", 7, "-i", "ab 😀a", "-n", 14)[1]
    tokens = ",".join(map(str, llama2.Tokenizer(model[2], 280).encode("ab 😀a")))
    assert command(capfdbinary, *model, "-s", 7, "--tokens", tokens, "-n", 14, "--trace", tmp_path / "t")[1] == plain
    code, out, err = command(capfdbinary, *model, "--verify", tmp_path / "t")
    assert code == 0 and f"  tokens: [{tokens.replace(',', ', ')}]\n".encode() in out
    assert command(capfdbinary, *model, "--verify", tmp_path / "t", "--tokens", tokens)[0] == 0
    message = failure(capfdbinary, *model, "--verify", tmp_path / "t", "--tokens", "1,2", code=1)
    assert "line 1 (header): tokens: expected [1, 2], got" in message
    failure(capfdbinary, *model, "--verify", tmp_path / "t", "-i", "ab", code=1)


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
    assert failure(capfdbinary, *run[0], "--logits", path).startswith(f"{path}: the folder {tmp_path}")


def test_fewer_steps_are_compared_as_far_as_they_go(run, tmp_path, capfdbinary):
    path = npy(tmp_path / "a.npy", run[1][:4])
    code, out, err = command(capfdbinary, *run[0], "--compare", path)
    assert code == 0 and b"logits of 4 steps" in out


@given(st.binary(max_size=150))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_an_array_or_an_error(tmp_path_factory, data):
    path = str(tmp_path_factory.getbasetemp() / "any.npy")
    for content in b"0 0 q 1\n" + data, data, b"\x93NUMPY\1\0" + struct.pack("<H", len(data)) + data:
        with open(path, "wb") as file:
            file.write(content)
        try:
            file = numbers.Numbers(path, Config(16, 24, 2, 4, 2, 280, 4))
        except ValueError as error:
            assert "any.npy" in str(error)
        else:  # records
            assert file.records and file.steps <= 4
