"""Tests of llama2rs.py: the trace files of llama2-rs, and what it overlooks in them."""
import contextlib
import hashlib
import json
import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama2_py.log import formats
from llama2_py.console import VerificationError
from tests.helpers import OPTIONS, SHARE, command, failure, noticed, read_bytes, read_lines

RUST = OPTIONS + ["--like", "llama2-rs"]


def rust_parts(path):
    log = formats.read(path)
    header, *entries = map(log.event, range(len(log)))
    return header, entries


def rust_file(path, header, entries, leaves=None, root=None, counts=(0, 0), tail=b""):
    """Write a trace of llama2-rs from its parts: by default with the leaves and the root that the entries have."""
    def string(text):
        return struct.pack("<Q", len(text.encode())) + text.encode()

    if leaves is None:
        leaves = [hashlib.sha256(struct.pack("<ii", e["pos"], e["token"]) + bytes.fromhex(e["logits"])).digest()
                  for e in entries]
    if root is None:
        level = leaves
        while len(level) > 1:  # llama2-rs's own way: pair by pair, an odd node is promoted
            level = [hashlib.sha256(b"".join(level[i:i + 2])).digest() if i + 1 < len(level) else level[i]
                     for i in range(0, len(level), 2)]
        root = b"\1" + level[0] if level else b"\0"
    with open(path, "wb") as file:
        file.write(string(header["model_path"]) + string(header["prompt"]) + struct.pack("<Q", header["steps"]))
        file.write(struct.pack("<Q", len(entries) + counts[0]))
        for e in entries:
            file.write(struct.pack("<ii", e["pos"], e["token"]) + string(e["text"]) + bytes.fromhex(e["logits"]))
        file.write(struct.pack("<Q", len(leaves) + counts[1]) + b"".join(leaves) + root + tail)
    return str(path)


def test_traces_of_llama2_rs_are_written_as_it_does(files, traces, tmp_path):
    header, entries = rust_parts(traces["rust"])
    assert header == {"model_path": files["grouped"], "prompt": "ab 😀a", "steps": 14}
    own = [json.loads(line) for line in read_lines(traces["c"])[1:5]]  # the prompt's steps, in which no coin matters
    assert [e["pos"] for e in entries] == list(range(14)) and entries[:4] == own and "😀" in {e["text"] for e in own}
    rewritten = rust_file(tmp_path / "t", header, entries)
    assert read_bytes(rewritten) == read_bytes(traces["rust"])


@pytest.mark.parametrize("change", [
    {"leaf": 3}, {"root": b"\1" + bytes(32)}, {"root": b"\0"}, {"root": b"\2" + bytes(32)}, {"counts": (1, 0)},
    {"counts": (-1, 0)},
    {"counts": (0, 1)}, {"counts": (0, -1)}, {"counts": (2**61, 0)}, {"counts": (0, 2**61)}, {"tail": b"\0"},
    {"drop": 13},
    {"drop": 5}, {"double": 5}, {"pos": 6}, {"token": 6}, {"text": 6}, {"logits": 6}, {"model_path": "x.bin"},
    {"prompt": "ab"},
    {"steps": 15}, {"steps": 13}, {"drop": slice(None)}, {"leaves": 13}, {"first byte": b"\2"}])
def test_what_llama2_rs_overlooks_is_noticed(traces, model, tmp_path, capfdbinary, change):
    header, entries = rust_parts(traces["rust"])
    ((what, value),) = change.items()
    leaves, more = None, {}
    log = formats.read(traces["rust"])
    hashes = [bytes(log.tree.levels[0][32 * i:32 * i + 32]) for i in range(14)]
    if what == "leaf":
        leaves = [*hashes[:value], bytes(32), *hashes[value + 1:]]
    elif what == "leaves":
        leaves = hashes[:value]
    elif what == "first byte":
        more = {"root": value + log.tree.root()}
    elif what in ("root", "counts", "tail"):
        more = change
    elif what == "drop":
        del entries[value]
    elif what == "double":
        entries.insert(value, entries[value])
    elif what in header:
        header[what] = value
    else:
        entries[value][what] = {"pos": 7, "token": 3, "text": "?", "logits": "00" * 32}[what]
    err = noticed(capfdbinary, model, rust_file(tmp_path / "bad", header, entries, leaves, **more), *RUST)
    if what in ("token", "pos", "text", "logits"):
        place = rf"entry {value}(| \(position {value}\)): {what}"
        if what == "token":
            place = r"entry 5 \(position 5\): next"
        assert re.search(f"{place}: expected", err)
    if what == "counts" and abs(value[0] + value[1]) > 2**60:
        assert "bytes are left" in err


@pytest.mark.parametrize("option, value", [("-s", "8"), ("-t", "0.1"), ("-p", "0.1"), ("-i", "ab"), ("-n", "13")])
def test_wrong_options_beside_a_trace_of_llama2_rs_are_noticed_and_explained(traces, model, capfdbinary, option, value):
    err = noticed(capfdbinary, model, traces["rust"], *RUST, option, value)
    if option in ("-s", "-t", "-p"):
        assert "entry" in err and "does not commit to the run's options" in err


def test_a_trace_of_llama2_rs_needs_the_options_and_no_like(traces, model, capfdbinary):
    assert command(capfdbinary, *model, "--verify", traces["rust"], *OPTIONS)[0] == 0
    assert "(header): prompt: expected \"\", got" in noticed(capfdbinary, model, traces["rust"], "-s", 7)


@given(st.binary(max_size=120), st.integers(0, 3))
def test_any_bytes_are_a_trace_of_llama2_rs_or_an_error(tmp_path_factory, data, zeros):
    path = str(tmp_path_factory.getbasetemp() / "rust")
    for content in data, b"\1" + bytes(7) + data, bytes(8 * zeros) + data:
        with open(path, "wb") as file:
            file.write(content)
        with contextlib.suppress(ValueError, VerificationError):
            formats.read(path)


def test_a_trace_of_llama2_rs_cut_anywhere_is_an_error(traces, tmp_path):
    data = read_bytes(traces["rust"])
    for n in range(0, len(data), SHARE):
        (tmp_path / "cut").write_bytes(data[:n])
        with pytest.raises(ValueError):
            formats.read(tmp_path / "cut")


def test_a_prompt_that_a_trace_of_llama2_rs_cannot_hold_is_refused(model, tmp_path, capfdbinary):
    message = failure(capfdbinary, *model, "--like", "llama2-rs", "-s", 1, "-i", "a\udcff", "--trace", tmp_path / "t")
    assert message == f'{tmp_path / "t"}: prompt is "a\\udcff", must be UTF-8 for llama2-rs\'s format'
