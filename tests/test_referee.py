"""Tests of a dispute: every kind settled, nothing said that was not computed, and whatever a liar sends."""
import base64
import hashlib
import io
import json
import math
import random
import re
import struct
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import llama2
import merkle
from llama2_py import command as command_line
from llama2_py import trace_command as tracing
from llama2_py.console import VerificationError
from llama2_py.engine import checkpoint
from llama2_py.engine.arithmetic import Exact, from_bytes, to_bytes
from llama2_py.engine.graph import OPERATIONS, PRODUCTS
from llama2_py.log import events, formats
from llama2_py.log.weights import Leaves, Row, weights_tree
from llama2_py.referee import dispute as disputes
from llama2_py.referee import judge as judging
from llama2_py.referee import messages
from llama2_py.referee.commands import Hearing, Replay
from llama2_py.referee.judge import Conclusion, Needed, Ruling
from tests.helpers import (HERE, SHAPES, bits, command, edit, failure, forge, make_checkpoint, read_bytes, read_lines,
                           some)
from tests.test_events import CONFIG, HEADER

LINES = 14 * 2 + 3  # of a step
KINDS = ["embedding", *OPERATIONS, "final_norm", "logits", "next", "text"]


@pytest.fixture(scope="module", params=["exact", pytest.param("c", marks=pytest.mark.slow)])
def run(request, files, tmp_path_factory):
    """A model, an honest op-level log of it as lines, and a folder."""
    folder = tmp_path_factory.mktemp("referee")
    args = [files["grouped"], "-z", files["tokenizer"], "-s", "3", "-n", "5", "-i", "ab"]
    path = str(folder / "a.trace")
    like = [] if request.param == "exact" else ["--like", "llama2.c"]
    assert command_line.main([*args, *like, "--trace", path, "--trace-level", "op"]) == 0
    return files["grouped"], files["tokenizer"], read_lines(path)[:-1], folder


def judged(capfdbinary, *args, code=0):
    """The last line of a command of the referee."""
    got, out, err = command(capfdbinary, *args, program=tracing)
    assert got == code, (got, err)
    return out.decode().splitlines()[-1]


def forged(run, index, name="b", **fields):
    """A log that is honest up to an event, and says something else there."""
    _, _, lines, folder = run
    return forge(folder / f"{name}.trace", [*lines[:index], edit(lines[index], **fields), *lines[index + 1:]])


def lie(line, digest="5" * 64):
    """Another claim for an event."""
    event = json.loads(line)
    return {"sha256": digest} if "sha256" in event else {"logits": digest}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def scanner(data):
    return messages.Scanner("a message", io.BytesIO(data))


def heard(dispute, sent):
    """The evidence of messages, in whatever order they are sent, and why others were refused."""
    hearing = Hearing(dispute)
    for data in sent:
        hearing.add(scanner(data))
    hearing.take_values()
    hearing.take_rows()
    return hearing.evidence, hearing.refused


def rows_message(truth, rows):
    """A message of rows, by whoever has the model."""
    return b"".join(messages.write_rows(truth.tree, truth.file, rows))


def rows_of(event, numbers=None):
    """The rows that an event's result depends on, or some of them."""
    first = event.task.tensor
    if first is None:
        return []
    if numbers is None:
        numbers = range(event.task.rows)
    return [Row(first.tensor, first.layer, first.row + i) for i in numbers]


def at(kind, pos, layer=1):
    """The index of an event."""
    if kind in ("logits", "next", "text"):
        return (pos + 1) * LINES
    if kind in ("embedding", "final_norm"):
        return pos * LINES + 1 + (LINES - 2 if kind == "final_norm" else 0)
    return pos * LINES + 2 + 14 * layer + OPERATIONS.index(kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pos, layer", [pytest.param(0, 0, marks=pytest.mark.slow), (3, 1)])
def test_every_kind_of_event_is_settled_for_the_honest(run, capfdbinary, kind, pos, layer):
    model, tokenizer, lines, folder = run
    index, a = at(kind, pos, layer), forge(folder / "a.trace", lines)
    if kind == "next":
        pos = 3  # behind the prompt
        index = at(kind, pos)
        fields = {"next": (json.loads(lines[index])["next"] + 1) % 280}
        rest = [edit(lines[index + LINES], token=fields["next"])]
        b = forge(folder / "b.trace", [*lines[:index], edit(lines[index], **fields),
                                       *lines[index + 1:index + LINES], *rest])
    else:
        b = forged(run, index, **({"text": "lie"} if kind == "text" else lie(lines[index])))
    asked = command(capfdbinary, "ask", a, b, program=tracing)
    assert asked[0] == 0 and f"the logs part at event {index}: position {pos}, ".encode() in asked[1]
    more = ["-z", tokenizer]
    assert judged(capfdbinary, "settle", a, b, model, *more) == "A is right"
    assert judged(capfdbinary, "settle", b, a, model, *more) == "B is right"
    if kind == "next":  # two liars: each ends its log with a token of its own
        others = [(json.loads(lines[index])["next"] + by) % 280 for by in (2, 3)]
        two = [forge(folder / f"{token}.trace", [*lines[:index], edit(lines[index], next=token)], False)
               for token in others]
    elif kind == "text":
        two = [b, forged(run, index, "c", text="lies")]
    else:
        two = [b, forged(run, index, "c", **lie(lines[index], "6" * 64))]
    assert judged(capfdbinary, "settle", *two, model, *more) == "neither is right"


@pytest.mark.parametrize("kind, wrong", [pytest.param(kind, wrong, marks=[pytest.mark.slow] if wrong or i else [])
                                         for i, kind in enumerate(PRODUCTS) for wrong in (0, 3)])
def test_one_element_settles_a_product_if_both_reveal(run, capfdbinary, kind, wrong):
    model, _, lines, folder = run
    index, a = at(kind, 2), forge(folder / "a.trace", lines)
    code, message, _ = command(capfdbinary, "reveal", a, index, model, program=tracing)
    (folder / "a.reveal").write_bytes(message)
    values = list(from_bytes(base64.b64decode(json.loads(message)["output"])))
    values[wrong] = struct.unpack("f", struct.pack("f", values[wrong] * 1.5 + 1e-3))[0]
    values[wrong + 1] += 1.0
    b = forged(run, index, **lie(lines[index], sha256(to_bytes(values))))
    (folder / "b.reveal").write_bytes(messages.write_values(index, [], to_bytes(values)))
    reveals = [folder / "a.reveal", folder / "b.reveal"]
    tensor = PRODUCTS[kind][0]
    layer = 0 if kind == "logits" else 1
    first = wrong // 2 * 2 if kind in ("q", "k") else wrong
    both = f"{first} {first + 1}" if kind in ("q", "k") else f"{first}"
    needed = judged(capfdbinary, "judge", a, b, *reveals, code=1)
    assert needed.endswith(f"trace.py rows CHECKPOINT {tensor} {layer} {both}")
    rows = [first, first + 1] if kind in ("q", "k") else [first]
    code, message, _ = command(capfdbinary, "rows", model, tensor, layer, *rows, program=tracing)
    assert code == 0
    (folder / "rows").write_bytes(message)
    code, out, _ = command(capfdbinary, "judge", a, b, *reveals, folder / "rows", program=tracing)
    assert out.decode().splitlines()[0] == "the logs were not held against heads that were published (--roots)"
    assert out.decode().splitlines()[1].startswith(f"element {wrong} of {len(values)}: A ")
    computed = "2 were" if len(rows) == 2 else "1 was"
    assert out.decode().splitlines()[-2] == (f"of A's {len(values)} elements {computed} computed and found right; "
                                             "the others were not computed")
    assert out.decode().splitlines()[-1] == "B is wrong"
    assert judged(capfdbinary, "judge", b, a, folder / "rows", *reveals) == "A is wrong"
    assert judged(capfdbinary, "settle", b, a, model, folder / "b.reveal") == "B is right"
    (folder / "junk").write_bytes(messages.write_values(index, [], b"junk"))  # it cannot hold up a verdict
    args = "judge", a, b, folder / "junk", folder / "rows", *reveals
    code, out, err = command(capfdbinary, *args, program=tracing)
    assert code == 0 and out.endswith(b"B is wrong\n") and "not taken into account: " in err
    (folder / "junk").write_bytes(b"junk")
    assert "neither a message of values" in failure(capfdbinary, "judge", a, b, folder / "junk", program=tracing)


def test_a_dishonest_model_reveals_what_it_committed_to_and_loses(run, capfdbinary, tmp_path):
    model, tokenizer, lines, folder = run
    data = bytearray(open(model, "rb").read())
    data[-100:] = bytes(100)  # of the classifier
    (tmp_path / "bad.bin").write_bytes(data)
    like = ["--like", "llama2.c"] if b'"arithmetic":"c"' in lines[0] else []
    command_line.main([str(tmp_path / "bad.bin"), "-z", tokenizer, "-s", "3", "-n", "5", "-i", "ab", *like, "--trace",
                 str(tmp_path / "b"), "--trace-level", "op"])
    b = forge(tmp_path / "b", [lines[0], *read_lines(tmp_path / "b")[1:-1]])
    a = forge(folder / "a.trace", lines)
    code, message, _ = command(capfdbinary, "reveal", b, LINES, tmp_path / "bad.bin", "--output", program=tracing)
    (tmp_path / "b.reveal").write_bytes(message)
    code, out, _ = command(capfdbinary, "settle", a, b, model, tmp_path / "b.reveal", program=tracing)
    assert re.search(rb"values +a file +\d+  the result of B\n", out)
    assert re.search(rb"values +A +\d+  the inputs and the result of A\n", out)
    assert out.decode().splitlines()[-1] == "A is right" and b" 280 rows\n" in out


@pytest.mark.parametrize("change, where", [
    ({"temperature": 0.5}, "line 1 (header): temperature: expected 1.0, got 0.5"),
    ({"weights": "7" * 64}, "line 1 (header): weights")])
def test_logs_with_two_headers_cannot_be_compared(run, capfdbinary, change, where):
    _, _, lines, folder = run
    a, b = forge(folder / "a.trace", lines), forge(folder / "b.trace", [edit(lines[0], **change), *lines[1:]])
    assert where in failure(capfdbinary, "ask", a, b, program=tracing, code=1)


def test_logs_that_do_not_part_and_other_levels_are_refused(run, traces, capfdbinary):
    _, _, lines, folder = run
    a, cut = forge(folder / "a.trace", lines), forge(folder / "cut.trace", lines[:50], False)
    for other in a, cut:
        message = failure(capfdbinary, "ask", a, other, program=tracing, code=1)
        assert 'expected "a difference", got "none in ' in message
    step = read_lines(traces["step"])[:-1]
    other = forge(folder / "step.trace", [*step[:3], edit(step[3], logits="1" * 64), *step[4:]])
    assert "level: expected " in failure(capfdbinary, "ask", traces["step"], other, program=tracing, code=1)
    assert "has no event 0" in failure(capfdbinary, "reveal", a, 0, "x", program=tracing)


@pytest.mark.parametrize("change", ["drop", "add"])
def test_a_log_with_a_step_too_few_or_too_many_is_no_log(run, capfdbinary, change):
    model, _, lines, folder = run
    a, step = forge(folder / "a.trace", lines), lines[1 + 2 * LINES:1 + 3 * LINES]
    body = lines[:1 + 2 * LINES] + lines[1 + 3 * LINES:] if change == "drop" else lines + step
    failure(capfdbinary, "settle", a, forge(folder / "b.trace", body), model, program=tracing, code=1)


def test_published_heads_are_held_against_the_logs(run, capfdbinary):
    model, _, lines, folder = run
    a, b = forge(folder / "a.trace", lines), forged(run, 5, **lie(lines[5]))
    heads = [formats.read(path).head() for path in (a, b)]
    assert command(capfdbinary, "ask", a, b, "--roots", *heads, program=tracing)[0] == 0
    assert "root: expected" in failure(capfdbinary, "ask", a, b, "--roots", *heads[::-1], program=tracing, code=1)


def test_a_header_that_lies_about_the_config_is_found(run, capfdbinary):
    model, tokenizer, lines, folder = run
    header = json.loads(lines[0])
    header["config"]["hidden_dim"] += 1
    lied = [events.encode(header), *lines[1:]]
    a = forge(folder / "a.trace", lied)
    b = forge(folder / "b.trace", [*lied[:3], edit(lied[3], sha256="4" * 64), *lied[4:]])
    code, message, _ = command(capfdbinary, "rows", model, "wq", 0, 0, 1, program=tracing)
    (folder / "rows").write_bytes(message)
    assert "config: expected" in failure(capfdbinary, "judge", a, b, folder / "rows", program=tracing, code=1)


# ----------------------------------------------------------------------------
# Liars


@pytest.fixture(scope="module")
def evidence(run):
    """For an event: the honest log, its inputs, output and rows, and the tree."""
    model, tokenizer, lines, folder = run
    file = checkpoint.Checkpoint(model)
    tree = weights_tree(file)
    path = forge(folder / "honest.trace", lines)
    log = formats.read(path)

    def make(index, kind="logits"):
        event = disputes.LoggedEvent(log, index, kind)
        return Truth(event, Replay(event, model, tokenizer), tree, file)

    return make


class Truth:
    """What whoever has the model knows of an event."""

    def __init__(self, event, replay, tree, file):
        self.event, self.replay, self.tree, self.file = event, replay, tree, file


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_a_lie_that_follows_from_false_inputs_or_rows_does_not_pass(run, evidence, kind):
    """The liar's claim is what its false inputs, or its false row, would give: only their hashes betray them."""
    model, tokenizer, lines, folder = run
    index = at(kind, 3)
    truth = evidence(index, "next" if kind == "next" else "logits")
    event, inputs = truth.event, truth.replay.inputs()
    rows = [truth.file.rows(event.leaves.tensor(row.tensor), row.layer, row.row, row.row + 1)[0]
            for row in rows_of(event)]
    a = formats.read(forge(folder / "a.trace", lines))

    def claimed(vectors, weights):
        """What is claimed follows from these -> the dispute, and the numbers that are claimed."""
        if kind == "next":
            fields, data = {"next": event.chosen(vectors[0])}, b""
        else:
            data = to_bytes(disputes.compute(event.arithmetic, event.config, kind, 3, vectors, weights))
            fields = lie(lines[index], sha256(data))
        path = forge(folder / "b.trace", [*lines[:index], edit(lines[index], **fields)], False)
        return disputes.Dispute(a, formats.read(path)), data

    if inputs:
        false = [[-2.0 * v for v in from_bytes(data)] for data in inputs]
        dispute, data = claimed(false, rows)
        found = judging.Evidence(dispute)
        with pytest.raises(VerificationError):
            found.take_values(scanner(messages.write_values(index, list(map(to_bytes, false)), data)))
        assert found.inputs is None
    if rows:
        false = [[2.0 * v for v in row] for row in rows]
        dispute, _ = claimed(list(map(from_bytes, inputs)), false)
        message = json.loads(rows_message(truth, rows_of(event)))
        for entry, row in zip(message["rows"], false, strict=True):
            entry["values"] = messages.base64_of(to_bytes(row))
        found = judging.Evidence(dispute)
        if inputs:
            found.take_values(scanner(messages.write_values(index, inputs, b"")))
        with pytest.raises(VerificationError):
            found.take_rows(scanner(events.encode(message) + b"\n"))
        assert found.row is None and not found.product and not found.is_whole()


def test_messages_that_are_not_about_the_dispute_are_refused(run, evidence, capfdbinary):
    model, _, lines, folder = run
    index = at("gate", 2)
    truth = evidence(index)
    inputs, output = truth.replay.inputs(), truth.replay.output()
    a, b = forge(folder / "a.trace", lines), forged(run, index, **lie(lines[index]))
    for message, field in [(messages.write_values(index + 1, inputs, b""), "event: expected"),
                           (messages.write_values(index, inputs * 2, b""), "inputs: expected 1, got more"),
                           (messages.write_values(index, [], output[:-4]), "output: expected"),
                           (messages.write_values(index, [inputs[0][:-4]], b""), "size: expected 64, got 60")]:
        (folder / "message").write_bytes(message)
        assert field in failure(capfdbinary, "judge", a, b, folder / "message", program=tracing, code=1)
    # both logs agree on the hash of something that is no vector of this model
    digest = sha256(b"12345")
    lied = [*lines[:index - 1], edit(lines[index - 1], sha256=digest), *lines[index:]]
    a = forge(folder / "a.trace", lied)
    b = forge(folder / "b.trace", [*lied[:index], edit(lied[index], sha256="5" * 64), *lied[index + 1:]])
    (folder / "message").write_bytes(messages.write_values(index, [b"12345"], b""))
    message = failure(capfdbinary, "judge", a, b, folder / "message", program=tracing, code=1)
    assert "size: expected 64, got 5" in message


@pytest.mark.parametrize("begin, part, what", [
    (b'"event":93,"inputs":[', b'"",', "inputs: expected 1, got more"),
    (b'"event":93,"inputs":["', b"A" * 1000, "tokenizer's file: size: expected "),
    (b'"event":' + b"9" * 30, b"9" * 1000, "an integer must stand at byte 39")])
def test_a_message_that_never_ends_is_refused_where_it_has_too_much(run, begin, part, what):
    """No byte is read behind the fault, but for what one reading takes."""
    _, _, lines, folder = run
    index = at("text", 2)
    a, b = forge(folder / "a.trace", lines), forged(run, index, text="lie")
    dispute = disputes.Dispute(formats.read(a), formats.read(b))
    pieces = messages.Pieces(endless(b'{"format":"llama2.py reveal 1",' + begin, part))
    with pytest.raises((VerificationError, ValueError), match=what):
        judging.Evidence(dispute).take_values(messages.Scanner("endless", pieces))
    assert pieces.size < 2**26


def endless(begin, part):
    yield begin
    while True:
        yield part


def test_a_message_with_too_many_rows_is_refused(run, evidence):
    _, _, lines, folder = run
    index = at("gate", 2)
    truth = evidence(index)
    dispute = disputes.Dispute(*[formats.read(path) for path in (
        forge(folder / "a.trace", lines), forged(run, index, **lie(lines[index])))])
    one = json.loads(rows_message(truth, rows_of(dispute, [3])))
    config, row = events.encode(one["config"]), events.encode(one["rows"][0])
    begin = messages.ROWS + b'"config":' + config + b',"rows":[' + row
    pieces = messages.Pieces(endless(begin, b"," + row))
    with pytest.raises(VerificationError, match="at most.*88.*got more"):
        judging.Evidence(dispute).take_rows(messages.Scanner("endless", pieces))
    assert judging.Evidence(dispute).take_rows(scanner(rows_message(truth, rows_of(dispute, [3] * 88)))) == 88


@pytest.mark.parametrize("kind, pos, revealed", [
    ("embedding", 2, "no inputs"), ("gate", 2, "position 2, layer 1, ffn_norm, and the results of both"),
    ("swiglu", 2, "position 2, layer 1, gate, position 2, layer 1, up"),
    ("weights", 1, "position 1, layer 1, q, position 0, layer 1, k, position 1, layer 1, k"),
    ("weights", 2, "position 2, layer 1, q, position 0, layer 1, k, position 1, layer 1, k, .. (4 in all)")])
def test_what_must_be_revealed_is_named_up_to_three_inputs(run, capfdbinary, kind, pos, revealed):
    _, _, lines, folder = run
    index = at(kind, pos)
    a, b = forge(folder / "a.trace", lines), forged(run, index, **lie(lines[index]))
    code, out, _ = command(capfdbinary, "ask", a, b, program=tracing)
    assert code == 0 and f"\nto be revealed: {revealed}\n" in out.decode()


def test_a_shared_classifier_is_the_embedding(files, tmp_path, capfdbinary):
    model = files["multi-head"]
    a = str(tmp_path / "a")
    command_line.main([model, "-z", files["tokenizer"], "-t", "0", "-n", "2", "--trace", a, "--trace-level", "op"])
    lines = read_lines(a)[:-1]
    b = forge(tmp_path / "b", [*lines[:-1], edit(lines[-1], logits="1" * 64)])
    assert judged(capfdbinary, "settle", b, a, model) == "B is right"
    code, out, _ = command(capfdbinary, "rows", model, "classifier", 0, 7, program=tracing)
    (row,) = json.loads(out)["rows"]
    code, out, _ = command(capfdbinary, "rows", model, "embedding", 0, 7, program=tracing)
    (same,) = json.loads(out)["rows"]
    assert {**row, "tensor": "embedding"} == same


def liars_message(data, truth, dispute, false):
    """A message that a liar may send; false: its result."""
    index, true_inputs = dispute.index, truth.replay.inputs()
    what = data.draw(st.sampled_from(["values", "false inputs", "rows", "other rows", "bytes"]))
    if what == "values":
        return messages.write_values(index, data.draw(st.sampled_from([true_inputs, []])),
                                     data.draw(st.sampled_from([false, b""])))
    if what == "false inputs":
        bad = [data.draw(st.binary(max_size=len(i))) for i in true_inputs] or [b"1234"]
        return messages.write_values(index + data.draw(st.integers(0, 1)), bad, false)
    if what == "bytes":
        return data.draw(st.binary(max_size=200))
    message = json.loads(rows_message(truth, rows_of(dispute)[:4] or [Row("wq", 0, 1)]))
    if what == "other rows":
        change_rows(data, message)
    return events.encode(message) + b"\n"


def change_rows(data, message):
    """Make something of a message of rows false."""
    row = data.draw(st.sampled_from(message["rows"]))
    change = data.draw(st.sampled_from(["row", "layer", "tensor", "values", "path", "config"]))
    if change == "config":
        message["config"] = message["config"][:-1]
    elif change == "values":
        row["values"] = messages.base64_of(bits([0.5] * 16))
    elif change == "path":
        row["path"] = row["path"][::-1]
    elif change == "tensor":
        row["tensor"] = data.draw(st.sampled_from(["wk", "w1", "wo", "embedding", "nothing"]))
    else:
        row[change] += data.draw(st.sampled_from([1, -1, 100]))


@pytest.mark.slow
@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_an_honest_log_never_loses_whatever_the_liar_reveals(run, evidence, data):
    model, tokenizer, lines, folder = run
    kind = data.draw(st.sampled_from(KINDS))
    pos = data.draw(st.integers(3 if kind == "next" else 0, 4))
    index = at(kind, pos, data.draw(st.integers(0, 1)))
    truth = evidence(index, kind if kind in ("next", "text") else "logits")
    n = truth.event.task.n
    false = truth.replay.output() if n else b""
    if n:  # the liar's result: right but for some elements, or of another length, or nothing at all
        values = list(from_bytes(false))
        for _ in range(data.draw(st.integers(1, 3))):
            values[data.draw(st.integers(0, n - 1))] = data.draw(st.floats(width=32))
        false = to_bytes(values[:data.draw(st.sampled_from([n, n, n, n - 1])) or 1])
        digest = data.draw(st.sampled_from([sha256(false), "0" * 64]))
        if digest == sha256(truth.replay.output()):
            return
        line = edit(lines[index], **lie(lines[index], digest))
    elif kind == "text":
        line = edit(lines[index], text="a lie")
    else:
        line = edit(lines[index], next=(json.loads(lines[index])["next"] + data.draw(st.integers(1, 270))) % 280)
    b = lines[:index] + [line]  # what comes after does not matter: the log is cut short
    logs = [formats.read(forge(folder / "a.trace", lines)), formats.read(forge(folder / "b.trace", b, False))]
    dispute = disputes.Dispute(*logs)
    true_inputs = truth.replay.inputs()

    honest = [messages.write_values(index, true_inputs, truth.replay.output() if n else b""),
              rows_message(truth, rows_of(dispute))]
    sent = [liars_message(data, truth, dispute, false) for _ in range(data.draw(st.integers(0, 3)))]
    sent += honest * data.draw(st.booleans())
    sent = data.draw(st.permutations(sent))
    found = judging.judge(heard(dispute, sent)[0])
    assert isinstance(found, Needed) or found.conclusion in (Conclusion.A_RIGHT, Conclusion.B_WRONG)
    if honest[0] in sent:
        assert found.conclusion == Conclusion.A_RIGHT
    swapped = judging.judge(heard(disputes.Dispute(*logs[::-1]), sent)[0])
    assert isinstance(swapped, Needed) == isinstance(found, Needed)
    assert isinstance(swapped, Needed) or swapped.conclusion in (Conclusion.B_RIGHT, Conclusion.A_WRONG)


NAMES = st.sampled_from(["format", "event", "inputs", "output", "rows", "config"])
VALUES = st.recursive(st.none() | st.integers() | st.text(max_size=9) | st.floats(), lambda value: (
    st.lists(value, max_size=3) | st.dictionaries(NAMES, value, max_size=4)), max_leaves=9)


@given(st.binary(max_size=300) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_what_is_not_a_message_gets_one_line(data):
    assume(not data.startswith((messages.VALUES, messages.ROWS)))
    with pytest.raises(ValueError):
        messages.begins_with_rows(scanner(data))


ONE_INPUT = [disputes.Input("x", 2, 1, "")]


def read_one(data):
    return messages.read_values(scanner(data), ONE_INPUT, 0)


@pytest.mark.parametrize("change", [
    lambda m: {**m, "more": 1}, lambda m: {**m, "event": True}, lambda m: {**m, "event": 1.0},
    lambda m: {**m, "inputs": ["AA=A"]}, lambda m: {**m, "inputs": ["AB=="]}, lambda m: {**m, "output": "A"},
    lambda m: dict(reversed(m.items())), lambda m: {**m, "inputs": [1]}, lambda m: {**m, "inputs": ["é"]}])
def test_there_is_one_way_to_write_a_message(change):
    message = {"format": "llama2.py reveal 1", "event": 3, "inputs": ["AAAAAA=="], "output": ""}
    line = events.encode(message)
    assert read_one(line + b"\n").inputs == [bytes(4)]
    with pytest.raises((ValueError, VerificationError)):
        read_one(events.encode(change(message)) + b"\n")
    for data in line, line + b"\n\n", b" " + line + b"\n", line.replace(b"3", b"03") + b"\n":
        with pytest.raises(ValueError):
            read_one(data)


def test_rows_lead_to_the_weights_of_every_tensor(run, capfdbinary):
    model, _, lines, folder = run
    header = json.loads(lines[0])
    leaves = Leaves(header["config"])
    with llama2.Transformer(model) as transformer:
        tree = weights_tree(transformer.checkpoint)
        assert tree.root().hex() == header["weights"] and len(tree) == leaves.size
        layers = {"embedding": [0], "rms_final": [0], "classifier": [0]}
        seen = {0}
        for name, layer, row in [(tensor, l, i) for tensor, (rows, _) in leaves.shapes.items()
                                 for l in layers.get(tensor, [0, 1]) for i in range(rows)]:
            seen.add(leaves.index(Row(name, layer, row)))
            if row in (0, leaves.shapes[name][0] - 1):
                (values,) = transformer.checkpoint.rows(name, layer, row, row + 1)
                merkle.verify_inclusion(merkle.leaf_hash(bits(values)), leaves.index(
                    Row(name, layer, row)), leaves.size, tree.inclusion_proof(
                        leaves.index(Row(name, layer, row))), tree.root())
        assert seen == set(range(leaves.size))
    assert "the model has no row wq 2 0" in failure(capfdbinary, "rows", model, "wq", 2, 0, program=tracing)
    assert "tensor is wx, must be embedding, rms_att" in failure(capfdbinary, "rows", model, "wx", 0, program=tracing)
    message = failure(capfdbinary, "rows", model, "classifier", 1, program=tracing)
    assert "the model has no row classifier 1 0" in message
    assert "the model has no row wq 0 16" in failure(capfdbinary, "rows", model, "wq", 0, 16, program=tracing)


# ----------------------------------------------------------------------------
# Nothing is said that was not computed


def changed(data, elements, by=1.0):
    """Numbers with other values in some elements."""
    values = from_bytes(data)
    for element in elements:
        values[element] = struct.unpack("f", struct.pack("f", values[element] * 1.5 + by))[0]
    return to_bytes(values)


def claiming(run, index, name, data):
    """A log, cut short, that claims numbers for an event."""
    _, _, lines, folder = run
    return forge(folder / name, [*lines[:index], edit(lines[index], **lie(lines[index], sha256(data)))], False)


@pytest.mark.parametrize("kind", ["q", "ffn_out", "logits"])
def test_two_liars_who_lie_in_different_elements_do_not_make_each_other_honest(run, evidence, capfdbinary, kind):
    model, _, _, _ = run
    index = at(kind, 2)
    truth = evidence(index)
    inputs, honest = truth.replay.inputs(), truth.replay.output()
    outputs = changed(honest, [5]), changed(honest, [0])
    paths = [claiming(run, index, name, data) for name, data in zip(("5.trace", "0.trace"), outputs, strict=True)]
    dispute = disputes.Dispute(*map(formats.read, paths))
    values = [messages.write_values(index, inputs, outputs[0]), messages.write_values(index, [], outputs[1])]

    def ruling(rows):
        evidence, refused = heard(dispute, [rows_message(truth, rows), *values])
        assert not refused
        return judging.judge(evidence)

    n = dispute.task.n
    first = ruling(rows_of(dispute, dispute.task.rows_of(0)))
    assert first.conclusion == Conclusion.B_WRONG
    assert re.fullmatch(rf"of A's {n} elements (1 was|2 were) computed and found right; the others were not computed",
                        first.reasons[-1])
    assert ruling(rows_of(dispute, dispute.task.rows_of(5))).conclusion == Conclusion.A_WRONG
    both = [*dispute.task.rows_of(0), *dispute.task.rows_of(5)]
    assert ruling(rows_of(dispute, both)).conclusion == Conclusion.BOTH_WRONG
    assert ruling(rows_of(dispute)).conclusion == Conclusion.NEITHER_RIGHT
    assert isinstance(ruling(rows_of(dispute, [7])), Needed)
    assert judged(capfdbinary, "settle", *paths, model) == "neither is right"


def test_a_model_that_is_not_the_headers_is_told_before_its_run_is_made(run, capfdbinary, monkeypatch):
    _, _, lines, folder = run
    index = at("q", 1)
    logs = [forge(folder / f"other {claim}", [*lines[:index], edit(lines[index], sha256=claim * 64)], False)
            for claim in "12"]
    other = make_checkpoint(folder / "other.bin", **SHAPES["grouped"], seed=9)
    monkeypatch.setattr("llama2_py.referee.commands.Replay", None)
    code, _, message = command(capfdbinary, "settle", *logs, other, program=tracing)
    assert code == 1 and f"other.bin: weights: expected {json.loads(lines[0])['weights']}" in message


def test_nobody_is_right_about_what_is_no_number(run, capfdbinary):
    """Both logs commit to infinities whose sum is none: its bits are the processor's."""
    _, _, lines, folder = run
    index = at("attention_residual", 2, 0)
    dispute = disputes.LoggedEvent(formats.read(forge(folder / "finite", lines[:index + 1], False)), index)
    inputs = [bits([sign * math.inf] * dispute.task.n) for sign in (1, -1)]
    outputs = [struct.pack("<I", nan) * dispute.task.n for nan in (0x7fc00000, 0xffc00000)]
    logs = []
    for name, output in zip("ab", outputs, strict=True):
        forged = lines[:index + 1]
        for place, data in ((at("embedding", 2), inputs[0]), (at("attention_out", 2, 0), inputs[1]), (index, output)):
            forged[place] = edit(forged[place], sha256=sha256(data))
        logs.append(forge(folder / name, forged, False))
        (folder / f"{name}.reveal").write_bytes(messages.write_values(index, inputs, output))
    sent = [*logs, folder / "a.reveal", folder / "b.reveal"]
    assert "inputs: expected \"numbers" in failure(capfdbinary, "judge", *sent, program=tracing, code=1)


FALSE_LOGITS = {"logits": "5" * 64}


@pytest.mark.parametrize("of_a, of_b, without, with_tokenizer", some(3, [
    ({}, FALSE_LOGITS, "A is right", "A is right"),
    ({}, {**FALSE_LOGITS, "text": "lie"}, "B is wrong", "A is right"),
    ({"text": "lie"}, FALSE_LOGITS, "B is wrong", "neither is right"),
    ({"next": 7}, FALSE_LOGITS, "neither is right", "neither is right"),
    ({"next": 7, "text": "lie"}, {"logits": "5" * 64, "next": 8}, "neither is right", "neither is right"),
    ({}, {"next": 7, "text": "lie"}, "B is wrong", "A is right"),
    ({"text": "lie"}, {"next": 7}, "B is wrong", "neither is right"),
    ({"next": 7}, {"text": "lie"}, "A is wrong", "neither is right")]))
def test_a_line_is_right_in_all_its_fields_or_not_at_all(run, capfdbinary, of_a, of_b, without, with_tokenizer):
    """Both logs end with the step in dispute: who is right in the logits may lie about the token, or the text."""
    model, tokenizer, lines, folder = run
    index = at("logits", 3)
    logs = [forge(folder / f"field {name}.trace", [*lines[:index], edit(lines[index], **fields)], False)
            for name, fields in zip("ab", (of_a, of_b), strict=True)]
    code, out, _ = command(capfdbinary, "settle", *logs, model, program=tracing)
    assert code == 0 and out.decode().splitlines()[-1] == without
    computed = "of A logits and next were computed and found right; the text, in which they differ, was not computed"
    if of_b == {**FALSE_LOGITS, "text": "lie"}:
        assert computed in out.decode()
    assert judged(capfdbinary, "settle", *logs, model, "-z", tokenizer) == with_tokenizer
    code, message, _ = command(capfdbinary, "reveal", logs[0], index, model, program=tracing)
    (folder / "field.reveal").write_bytes(message)
    code, message, _ = command(capfdbinary, "rows", model, "classifier", 0, program=tracing)
    (folder / "field.rows").write_bytes(message)
    if "logits" in of_b:
        sent = ["judge", *logs, folder / "field.reveal", folder / "field.rows"]
        assert judged(capfdbinary, *sent) == without
        assert judged(capfdbinary, *sent, "-z", tokenizer) == with_tokenizer
        assert "expected" in failure(capfdbinary, *sent, "-z", model, program=tracing, code=1)
        data = read_bytes(tokenizer)
        (folder / "other.bin").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # one letter of the last piece
        for args in sent, ["settle", *logs, model]:
            code, _, message = command(capfdbinary, *args, "-z", folder / "other.bin", program=tracing)
            assert code == 1 and f"other.bin: tokenizer: expected {sha256(data)}, got " in message


def test_an_element_proves_a_party_wrong_while_the_other_is_silent(run, evidence):
    index = at("gate", 2)
    truth = evidence(index)
    false = changed(truth.replay.output(), [3])
    paths = claiming(run, index, "a.trace", false), claiming(run, index, "b.trace", truth.replay.output())
    dispute = disputes.Dispute(*map(formats.read, paths))
    sent = [messages.write_values(index, truth.replay.inputs(), false), rows_message(truth, rows_of(dispute, [3]))]
    found = judging.judge(heard(dispute, sent)[0])
    assert found.conclusion == Conclusion.A_WRONG
    assert found.reasons[-1] == "of B nothing was computed: its result is not revealed"


@pytest.mark.parametrize("kind, columns", [("embedding", 2), ("embedding", 17), ("ffn_norm", 15), ("gate", 15),
                                           ("gate", 0), ("gate", 17), ("ffn_out", 16)])
def test_a_row_must_have_its_tensors_columns(run, evidence, kind, columns):
    """The header's root commits to rows of another length: whoever made it had no such model."""
    _, _, lines, folder = run
    index = at(kind, 2)
    truth = evidence(index)
    (row,) = rows_of(truth.event, [0])
    leaves = truth.event.leaves
    tree = merkle.MerkleTree()
    tree.append(merkle.leaf_hash(events.encode(truth.event.header["config"])))
    values = bits([0.5] * columns)
    for leaf in range(1, leaves.size):
        tree.append(merkle.leaf_hash(values if leaf == leaves.index(row) else b""))
    header = edit(lines[0], weights=tree.root().hex())
    logs = []
    for claim in "12":
        line = edit(lines[index], sha256=claim * 64)
        logs.append(formats.read(forge(folder / f"{claim}.trace", [header, *lines[1:index], line], False)))
    found = judging.Evidence(disputes.Dispute(*logs))
    if found.inputs is None:
        found.take_values(scanner(messages.write_values(index, truth.replay.inputs(), b"")))
    message = {"format": "llama2.py rows 1", "config": [h.hex() for h in tree.inclusion_proof(0)], "rows": [
        {"tensor": row.tensor, "layer": row.layer, "row": row.row, "values": messages.base64_of(values),
         "path": [h.hex() for h in tree.inclusion_proof(leaves.index(row))]}]}
    with pytest.raises(VerificationError, match=f"row {row}: size: expected "):
        found.take_rows(scanner(events.encode(message) + b"\n"))
    assert isinstance(judging.judge(found), Needed)


# ----------------------------------------------------------------------------
# Memory

SLACK = 4  # megabytes: repeated measurements differ by less than 1; rows that are kept take 9

# The command runs in the child of a small process: getrusage counts what a process had before it became another
# program, and that would be the memory of these tests
MEASURE = """import resource, subprocess, sys
if sys.argv[1] != "here":
    sys.exit(subprocess.run([sys.executable, "-c", sys.orig_argv[2], "here", *sys.argv[1:]]).returncode)
from llama2_py import trace_command
code = trace_command.main(sys.argv[2:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10))
sys.exit(code)"""


def measured(*args, code=0):
    """A command in a process of its own, which exits with a code -> the last line that it prints, and the megabytes
    that it took."""
    done = subprocess.run([sys.executable, "-c", MEASURE, *map(str, args)], cwd=HERE, capture_output=True, timeout=60)
    assert done.returncode == code, done.stderr
    *_, last, megabytes = done.stdout.decode().splitlines()
    return last, int(megabytes)


def with_config(folder, **config):
    """Two logs of a step that part at once, with another config."""
    header = {**HEADER, "level": "op", "config": {**CONFIG, **config}}
    line = b'{"pos":0,"op":"embedding","sha256":"%s"}'
    return [forge(folder / f"{claim}.trace", [events.encode(header), line % (claim * 64).encode()], False)
            for claim in "12"]


@pytest.mark.slow
@pytest.mark.parametrize("n_layers", [2**20, 2**23])
def test_a_header_with_many_layers_costs_nothing(tmp_path, n_layers):
    small = measured("ask", *with_config(tmp_path))
    last, megabytes = measured("ask", *with_config(tmp_path, n_layers=n_layers))
    assert last == "  trace.py rows CHECKPOINT embedding 0 1"
    assert megabytes <= small[1] + SLACK


@pytest.mark.parametrize("op, config", [
    ("gate", {"hidden_dim": 2**24 - 1}),
    pytest.param("q", {"head_size": 2**23 - 2, "n_heads": 2, "n_kv_heads": 1}, marks=pytest.mark.slow)])
def test_a_header_with_many_rows_costs_nothing(tmp_path, op, config):
    """A message opens the inputs, and rows at both ends and in between."""
    c = {**CONFIG, "dim": 2, "n_heads": 1, "n_kv_heads": 1, **config}
    leaves = Leaves(c)
    tensor, rows = PRODUCTS[op][0], leaves.shapes[PRODUCTS[op][0]][0]
    x = bits([1.0, 2.0])
    opened = [0, 1, rows // 2 // 2 * 2, rows // 2 // 2 * 2 + 1, rows - 2, rows - 1]
    tree, paths = sparse_tree(leaves, {0: events.encode(c), **{
        leaves.index(Row(tensor, 0, row)): x for row in opened}})
    header = {**HEADER, "level": "op", "weights": tree.hex(), "config": c}
    index = 2 + OPERATIONS.index(op)
    layout = events.Layout(header)
    before = [events.encode({**layout.place(i), "sha256": sha256(x)}) for i in range(1, index)]
    logs = [forge(tmp_path / claim, [events.encode(header), *before, events.encode(
        {**layout.place(index), "sha256": claim * 64})], False) for claim in "12"]
    (tmp_path / "values").write_bytes(messages.write_values(index, [x], b""))
    (tmp_path / "rows").write_bytes(events.encode({
        "format": "llama2.py rows 1", "config": [h.hex() for h in paths[0]], "rows": [
            {"tensor": tensor, "layer": 0, "row": row, "values": messages.base64_of(x),
             "path": [h.hex() for h in paths[leaves.index(Row(tensor, 0, row))]]} for row in opened]}) + b"\n")
    _, small = measured("ask", *with_config(tmp_path))
    for sent, missing in ([], rows), (["rows"], rows - len(opened)):
        last, megabytes = measured("judge", *logs, tmp_path / "values", *[tmp_path / name for name in sent], code=1)
        assert last.startswith(f"needed: {missing} rows of {tensor}: trace.py rows CHECKPOINT {tensor} 0 (or the")
        assert megabytes <= small + SLACK


def sparse_tree(leaves, known):
    """The root of a tree whose leaves are empty but for some, and the path of each of these (RFC 6962, 2.1)."""
    empty = {}

    def head(begin, end):
        if not any(begin <= index < end for index in known):
            if end - begin not in empty:
                empty[end - begin] = combined(begin, end) if end - begin > 1 else merkle.leaf_hash(b"")
            return empty[end - begin]
        return combined(begin, end) if end - begin > 1 else merkle.leaf_hash(known[begin])

    def combined(begin, end):
        middle = begin + (1 << (end - begin - 1).bit_length() - 1)
        return merkle.node_hash(head(begin, middle), head(middle, end))

    def path(index, begin, end):
        if end - begin == 1:
            return []
        middle = begin + (1 << (end - begin - 1).bit_length() - 1)
        if index < middle:
            return [*path(index, begin, middle), head(middle, end)]
        return [*path(index, middle, end), head(begin, middle)]

    return head(0, leaves.size), {index: path(index, 0, leaves.size) for index in known}


@pytest.mark.parametrize("change", [{"n_layers": 2**24}, {"dim": 0}, {"vocab_size": 2**40}, {"n_heads": 3},
                                    {"n_kv_heads": 3}, {"dim": 5}, {"seq_len": -1}, {"hidden_dim": 1.0}])
def test_a_header_with_shapes_that_no_checkpoint_has_is_refused(tmp_path, capfdbinary, change):
    logs = with_config(tmp_path, **change)
    assert "cannot be " in failure(capfdbinary, "ask", *logs, program=tracing)


@pytest.mark.slow
def test_the_rows_of_a_silent_party_take_no_memory(tmp_path):
    """A message of 10 MB, of all rows of a classifier. Held with its numbers it would take ten times as much."""
    config = {"dim": 288, "hidden_dim": 2, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "vocab_size": 4000,
              "seq_len": 8, "shared_classifier": False}
    leaves = Leaves(config)
    numbers = bits([random.Random(1).gauss(0, 1) for _ in range(288)])
    first = leaves.index(Row("classifier", 0, 0))
    tree = merkle.MerkleTree()
    tree.append(merkle.leaf_hash(events.encode(config)))
    for _ in range(1, first):
        tree.append(merkle.leaf_hash(b""))
    for _ in range(4000):
        tree.append(merkle.leaf_hash(numbers))
    x = bits([1.0] * 288)
    logits = to_bytes([Exact.dot(from_bytes(numbers), from_bytes(x))] * 4000)
    header = {"format": events.FORMAT, "model": "0" * 64, "weights": tree.root().hex(), "config": config,
              "tokenizer": "0" * 64, "arithmetic": "exact", "rng": "xorshift64*", "temperature": 0.0, "p_value": 0.9,
              "seed": 1, "steps": 1, "level": "op", "prompt": "", "tokens": [1]}
    layout = events.Layout(header)
    before = [events.encode({**layout.place(i), "sha256": sha256(x)}) for i in range(1, layout.lines)]
    step = {"pos": 0, "token": 1, "next": 0, "text": ""}
    logs = [forge(tmp_path / claim[:1], [events.encode(header), *before, events.encode({**step, "logits": claim})])
            for claim in (sha256(logits), "5" * 64)]
    (tmp_path / "values").write_bytes(messages.write_values(layout.lines, [x], b""))
    one = {"tensor": "classifier", "layer": 0, "row": 0, "values": messages.base64_of(numbers), "path": []}
    with open(tmp_path / "rows", "wb") as file:
        path = events.encode([h.hex() for h in tree.inclusion_proof(0)])
        file.write(messages.ROWS + b'"config":' + path + b',"rows":[')
        for row in range(4000):
            path = [h.hex() for h in tree.inclusion_proof(first + row)]
            file.write(b"," * (row > 0) + events.encode({**one, "row": row, "path": path}))
        file.write(b"]}\n")
    _, small = measured("ask", *logs)
    last, megabytes = measured("judge", *logs, tmp_path / "rows", tmp_path / "values")
    assert last == "A is right"
    assert megabytes <= small + SLACK


# ----------------------------------------------------------------------------
# Many liars


def mutated(rng, data):
    """A message with a few bytes changed, taken out, put in or moved."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(data) + 1)
        stop = min(len(data), start + rng.choice([1, 1, 2, 8, 100, 10**6]))
        what = rng.randrange(6)
        if what == 0 and start < len(data):
            data[start] ^= 1 << rng.randrange(8)
        elif what == 1:
            del data[start:stop]
        elif what == 2:
            data[start:start] = rng.choice([b"0", b"1", b'"', b",", b"[", b"]", b"{}", b"AAAA", b"\n", b"null", b"-1",
                                            b"\xff"])
        elif what == 3:
            data[start:start] = data[start:stop]
        elif what == 4:
            numbers = list(re.finditer(rb":[0-9]+", data))
            chosen = rng.choice(numbers) if numbers else None
            if chosen:
                data[chosen.start():chosen.end()] = b":%d" % rng.choice([0, 1, 2, 15, 16, 2**32, 2**64])
        else:
            names = list(re.finditer(rb'"(wq|wk|wv|wo|w1|w2|w3|rms_att|rms_ffn|rms_final|embedding|classifier)"', data))
            chosen = rng.choice(names) if names else None
            if chosen:
                data[chosen.start():chosen.end()] = rng.choice([b'"wq"', b'"w1"', b'"embedding"', b'"x"'])
    return bytes(data)


@pytest.mark.parametrize("count", some(1, [100, 20_000]))
def test_a_mutated_message_makes_no_honest_log_lose(run, evidence, count):
    _, _, lines, _ = run
    rng = random.Random(count)
    cases = []
    for kind in KINDS[:-2]:
        index = at(kind, 3)
        truth = evidence(index)
        inputs, honest = truth.replay.inputs(), truth.replay.output()
        false = changed(honest, [0, 3])
        dispute = disputes.Dispute(*[formats.read(claiming(run, index, f"{name}.trace", data))
                                     for name, data in (("a", honest), ("b", false))])
        sent = [messages.write_values(index, inputs, honest), messages.write_values(index, inputs, false),
                messages.write_values(index, [], false)]
        if dispute.task.tensor:
            sent.append(rows_message(truth, rows_of(dispute)))
            sent.append(rows_message(truth, rows_of(dispute)[:4]))
        cases.append((dispute, sent))
    refusals = 0
    for _ in range(count):
        dispute, sent = rng.choice(cases)
        some = [mutated(rng, data) if rng.random() < 0.5 else data for data in sent if rng.random() < 0.7]
        evidence, refused = heard(dispute, some)
        refusals += len(refused)
        found = judging.judge(evidence)
        assert isinstance(found, Needed) or found.conclusion in (Conclusion.A_RIGHT, Conclusion.B_WRONG)
    assert refusals > count / 2


@pytest.mark.parametrize("count", some(1, [30, 1000]))
def test_two_liars_are_never_right(run, evidence, count):
    rng = random.Random(count)
    kinds = KINDS[:-2]
    truths = {kind: evidence(at(kind, 3)) for kind in kinds}
    seen = set()
    for _ in range(count):
        kind = rng.choice(kinds + 2 * list(PRODUCTS))
        index, truth = at(kind, 3), truths[kind]
        inputs, honest = truth.replay.inputs(), truth.replay.output()
        n = len(honest) // 4
        lies = [rng.sample(range(n), rng.randint(1, 3)) for _ in range(2)]
        outputs = [changed(honest, elements, rng.choice([1.0, -30.0, 7.0])) for elements in lies]
        if outputs[0] == outputs[1]:
            continue
        dispute = disputes.Dispute(*[formats.read(claiming(run, index, f"liar {name}.trace", data))
                                     for name, data in zip("ab", outputs, strict=True)])
        sent = [messages.write_values(index, inputs, b"")]
        sent += [messages.write_values(index, [], data) for data in outputs if rng.random() < 0.8]
        rows = rows_of(dispute)
        if rows:
            sent.append(rows_message(truth, rng.choice([rows, rng.sample(rows, rng.randint(1, min(9, len(rows))))])))
        rng.shuffle(sent)
        evidence, refused = heard(dispute, sent)
        assert not refused
        found = judging.judge(evidence)
        seen.add(type(found) if isinstance(found, Needed) else found.conclusion)
        if isinstance(found, Ruling):
            assert found.conclusion not in (Conclusion.A_RIGHT, Conclusion.B_RIGHT)
            assert (found.conclusion == Conclusion.NEITHER_RIGHT) == evidence.is_whole()
    assert {Conclusion.NEITHER_RIGHT, Conclusion.A_WRONG, Conclusion.B_WRONG, Needed} <= seen
