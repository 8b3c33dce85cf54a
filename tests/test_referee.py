"""Tests of trace.py: disputes of every kind settled, and whatever a liar sends."""
import json
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama2_py.engine import checkpoint
import llama2
from llama2_py import command as command_line
from llama2_py import trace_command as tracing
from llama2_py.referee import commands as referee
from llama2_py.log import events, formats
from llama2_py.console import VerificationError
from tests.helpers import bits, command, edit, failure, forge, read_lines
from llama2_py.engine.graph import OPERATIONS

LINES = 14 * 2 + 3  # of a step
KINDS = ["embedding", *OPERATIONS, "final_norm", "logits", "next", "text"]


@pytest.fixture(scope="module", params=["exact", "c"])
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


def at(kind, pos, layer=1):
    """The index of an event."""
    if kind in ("logits", "next", "text"):
        return (pos + 1) * LINES
    if kind in ("embedding", "final_norm"):
        return pos * LINES + 1 + (LINES - 2 if kind == "final_norm" else 0)
    return pos * LINES + 2 + 14 * layer + OPERATIONS.index(kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pos, layer", [(0, 0), (3, 1)])
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


@pytest.mark.parametrize("kind", referee.PRODUCTS)
@pytest.mark.parametrize("wrong", [0, 3])
def test_one_element_settles_a_product_if_both_reveal(run, capfdbinary, kind, wrong):
    model, _, lines, folder = run
    index, a = at(kind, 2), forge(folder / "a.trace", lines)
    code, message, _ = command(capfdbinary, "reveal", a, index, model, program=tracing)
    (folder / "a.reveal").write_bytes(message)
    honest = referee.parse("a", message)["output"]
    values = list(referee.from_bytes(honest))
    values[wrong] = struct.unpack("f", struct.pack("f", values[wrong] * 1.5 + 1e-3))[0]
    values[wrong + 1] += 1.0
    values = referee.from_bytes(referee.to_bytes(values))
    assert referee.first_difference(b"abcdefgh", b"abcdefgx") == 1 and referee.first_difference(b"abcd", b"xbcd") == 0
    b = forged(run, index, **lie(lines[index], referee.hashlib.sha256(referee.to_bytes(values)).hexdigest()))
    (folder / "b.reveal").write_bytes(referee.reveal_message(index, [], referee.to_bytes(values)))
    reveals = [folder / "a.reveal", folder / "b.reveal"]
    tensor = referee.PRODUCTS[kind][0]
    layer = 0 if kind == "logits" else 1
    first = wrong // 2 * 2 if kind in ("q", "k") else wrong
    both = f"{first} {first + 1}" if kind in ("q", "k") else f"{first}"
    assert judged(capfdbinary, "judge", a, b, *reveals).endswith(f"trace.py rows CHECKPOINT {tensor} {layer} {both}")
    rows = [first, first + 1] if kind in ("q", "k") else [first]
    code, message, _ = command(capfdbinary, "rows", model, tensor, layer, *rows, program=tracing)
    (folder / "rows").write_bytes(message)
    code, out, _ = command(capfdbinary, "judge", a, b, *reveals, folder / "rows", program=tracing)
    assert out.decode().splitlines()[0] == "the logs were not held against heads that were published (--roots)"
    assert out.decode().splitlines()[1].startswith(f"element {wrong} of {len(values)}: A ")
    assert out.decode().splitlines()[-1] == "A is right"
    assert judged(capfdbinary, "judge", b, a, folder / "rows", *reveals) == "B is right"
    assert judged(capfdbinary, "settle", b, a, model, folder / "b.reveal") == "B is right"
    (folder / "junk").write_bytes(referee.reveal_message(index, [], b"junk"))  # it cannot hold up a verdict
    args = "judge", a, b, folder / "junk", folder / "rows", *reveals
    code, out, err = command(capfdbinary, *args, program=tracing)
    assert code == 0 and out.endswith(b"A is right\n") and "not taken into account: " in err
    (folder / "junk").write_bytes(b"junk")
    assert "not JSON" in failure(capfdbinary, "judge", a, b, folder / "junk", program=tracing)


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
    assert out.decode().splitlines()[-1] == "A is right" and b"rows classifier 0 27" in out


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
    tree = referee.weights_tree(file)
    path = forge(folder / "honest.trace", lines)
    log = formats.read(path)

    def make(index, kind="logits"):
        event = referee.Event(log, index, kind)
        party = referee.Party(event, model, tokenizer)
        return SimpleEvidence(log, event, party, tree, file)

    return make


class SimpleEvidence:
    def __init__(self, log, event, party, tree, file):
        self.log, self.event, self.party, self.tree, self.file = log, event, party, tree, file
        self.config = file.config.described()


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_a_lie_that_follows_from_false_inputs_or_rows_does_not_pass(run, evidence, kind):
    """The liar's claim is what its false inputs, or its false row, would give: only their hashes betray them."""
    model, tokenizer, lines, folder = run
    index = at(kind, 3)
    truth = evidence(index, "next" if kind == "next" else "logits")
    event, inputs = truth.event, truth.party.inputs()
    rows = [truth.file.rows(event.leaves.tensor(row.tensor), row.layer, row.row, row.row + 1)[0]
            for row in event.needed(None)]

    def claimed(vectors, weights):
        result = event.compute(vectors, weights, None)
        if kind == "next":
            return forge(folder / "b.trace", [*lines[:index], edit(lines[index], next=result)], False), b""
        data = referee.to_bytes(result)
        digest = referee.hashlib.sha256(data).hexdigest()
        return forge(folder / "b.trace", [*lines[:index], edit(lines[index], **lie(lines[index], digest))], False), data

    a = formats.read(forge(folder / "a.trace", lines))
    if inputs:
        false = [[-2.0 * v for v in referee.from_bytes(data)] for data in inputs]
        path, data = claimed(false, rows)
        dispute, found = referee.Dispute(a, formats.read(path)), referee.Evidence()
        with pytest.raises(referee.VerificationError):
            found.take(dispute, "liar", referee.reveal_message(index, [referee.to_bytes(v) for v in false], data))
        assert found.inputs is None
    if rows:
        false = [[2.0 * v for v in row] for row in rows]
        path, data = claimed(list(map(referee.from_bytes, inputs)), false)
        dispute, found = referee.Dispute(a, formats.read(path)), referee.Evidence()
        message = json.loads(referee.rows_message(truth.tree, truth.config, truth.file, event.needed(None)))
        for entry, row in zip(message["rows"], false, strict=True):
            entry["values"] = referee.base64_of(referee.to_bytes(row))
        with pytest.raises(referee.VerificationError):
            found.take(dispute, "liar", referee.encode(message) + b"\n")
        assert not found.rows


def test_messages_that_are_not_about_the_dispute_are_refused(run, evidence, capfdbinary):
    model, _, lines, folder = run
    index = at("gate", 2)
    truth = evidence(index)
    inputs, output = truth.party.inputs(), truth.party.output()
    a, b = forge(folder / "a.trace", lines), forged(run, index, **lie(lines[index]))
    for message, field in [(referee.reveal_message(index + 1, inputs, b""), "event: expected"),
                           (referee.reveal_message(index, inputs * 2, b""), "inputs: expected 1, got 2"),
                           (referee.reveal_message(index, [], output[:-4]), "output: expected"),
                           (referee.reveal_message(index, [inputs[0][:-4]], b""), "size: expected 64, got 60")]:
        (folder / "message").write_bytes(message)
        assert field in failure(capfdbinary, "judge", a, b, folder / "message", program=tracing, code=1)
    # both logs agree on the hash of something that is no vector of this model
    digest = referee.hashlib.sha256(b"12345").hexdigest()
    lied = [*lines[:index - 1], edit(lines[index - 1], sha256=digest), *lines[index:]]
    a = forge(folder / "a.trace", lied)
    b = forge(folder / "b.trace", [*lied[:index], edit(lied[index], sha256="5" * 64), *lied[index + 1:]])
    (folder / "message").write_bytes(referee.reveal_message(index, [b"12345"], b""))
    message = failure(capfdbinary, "judge", a, b, folder / "message", program=tracing, code=1)
    assert "size: expected 64, got 5" in message


def test_a_message_of_many_parts_is_refused_before_it_takes_memory(run, evidence, capfdbinary):
    _, _, lines, folder = run
    index = at("text", 2)
    a, b = forge(folder / "a.trace", lines), forged(run, index, text="lie")
    inputs = b"[" + b"[]," * 10**5 + b"[]]"
    (folder / "many").write_bytes(b'{"format":"llama2.py reveal 1","event":93,"inputs":' + inputs + b',"output":""}')
    assert "more than" in failure(capfdbinary, "judge", a, b, folder / "many", program=tracing)


def test_a_shared_classifier_is_the_embedding(files, tmp_path, capfdbinary):
    model = files["multi-head"]
    a = str(tmp_path / "a")
    command_line.main([model, "-z", files["tokenizer"], "-t", "0", "-n", "2", "--trace", a, "--trace-level", "op"])
    lines = read_lines(a)[:-1]
    b = forge(tmp_path / "b", [*lines[:-1], edit(lines[-1], logits="1" * 64)])
    assert judged(capfdbinary, "settle", b, a, model) == "B is right"
    code, out, _ = command(capfdbinary, "rows", model, "classifier", 0, 7, program=tracing)
    (row,) = referee.parse("rows", out)["rows"]
    code, out, _ = command(capfdbinary, "rows", model, "embedding", 0, 7, program=tracing)
    (same,) = referee.parse("rows", out)["rows"]
    assert {**row, "tensor": "embedding"} == same


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_an_honest_log_never_loses_whatever_the_liar_reveals(run, evidence, data):
    model, tokenizer, lines, folder = run
    kind = data.draw(st.sampled_from(KINDS))
    pos = data.draw(st.integers(3 if kind == "next" else 0, 4))
    index = at(kind, pos, data.draw(st.integers(0, 1)))
    truth = evidence(index, kind if kind in ("next", "text") else "logits")
    n = truth.event.task.n
    false = truth.party.output() if n else b""
    if n:  # the liar's result: right but for some elements, or of another length, or nothing at all
        values = list(referee.from_bytes(false))
        for _ in range(data.draw(st.integers(1, 3))):
            values[data.draw(st.integers(0, n - 1))] = data.draw(st.floats(width=32))
        false = referee.to_bytes(values[:data.draw(st.sampled_from([n, n, n, n - 1])) or 1])
        digest = data.draw(st.sampled_from([referee.hashlib.sha256(false).hexdigest(), "0" * 64]))
        if digest == referee.hashlib.sha256(truth.party.output()).hexdigest():
            return
        line = edit(lines[index], **lie(lines[index], digest))
    elif kind == "text":
        line = edit(lines[index], text="a lie")
    else:
        line = edit(lines[index], next=(json.loads(lines[index])["next"] + data.draw(st.integers(1, 270))) % 280)
    b = lines[:index] + [line]  # what comes after does not matter: the log is cut short
    logs = [formats.read(forge(folder / "a.trace", lines)), formats.read(forge(folder / "b.trace", b, False))]
    dispute = referee.Dispute(*logs)
    true_inputs = truth.party.inputs()

    def liars():
        """A message that a liar may send."""
        what = data.draw(st.sampled_from(["values", "false inputs", "rows", "other rows", "bytes"]))
        if what == "values":
            return referee.reveal_message(index, data.draw(st.sampled_from([true_inputs, []])),
                                          data.draw(st.sampled_from([false, b""])))
        if what == "false inputs":
            bad = [data.draw(st.binary(max_size=len(i))) for i in true_inputs] or [b"1234"]
            return referee.reveal_message(index + data.draw(st.integers(0, 1)), bad, false)
        if what == "bytes":
            return data.draw(st.binary(max_size=200))
        wanted = dispute.needed(None)[:4] or [referee.Row("wq", 0, 1)]
        message = json.loads(referee.rows_message(truth.tree, truth.config, truth.file, wanted))
        if what == "other rows":
            row = data.draw(st.sampled_from(message["rows"]))
            change = data.draw(st.sampled_from(["row", "layer", "tensor", "values", "path", "config"]))
            if change == "config":
                message["config"] = message["config"][:-1]
            elif change == "values":
                row["values"] = referee.base64_of(bits([0.5] * 16))
            elif change == "path":
                row["path"] = row["path"][::-1]
            elif change == "tensor":
                row["tensor"] = data.draw(st.sampled_from(["wk", "w1", "wo", "embedding", "nothing"]))
            else:
                row[change] += data.draw(st.sampled_from([1, -1, 100]))
        return referee.encode(message) + b"\n"

    found, honest = referee.Evidence(), [
        referee.reveal_message(index, true_inputs, truth.party.output() if n else b""),
        referee.rows_message(truth.tree, truth.config, truth.file, dispute.needed(None))]
    messages = [liars() for _ in range(data.draw(st.integers(0, 3)))] + honest * data.draw(st.booleans())
    for message in data.draw(st.permutations(messages)):
        try:
            found.take(dispute, "message", message)
        except (ValueError, referee.VerificationError):
            continue
    last = referee.judge(dispute, found)[-1]
    assert last == "A is right" or last.startswith("needed: ")
    if honest[0] in messages:
        assert last == "A is right"
    swapped = referee.Dispute(*logs[::-1])
    found.outputs = found.outputs[::-1]
    assert referee.judge(swapped, found)[-1].startswith("needed" if "needed" in last else "B is right")


NAMES = st.sampled_from(["format", "event", "inputs", "output", "rows", "config"])
VALUES = st.recursive(st.none() | st.integers() | st.text(max_size=9) | st.floats(), lambda value: (
    st.lists(value, max_size=3) | st.dictionaries(NAMES, value, max_size=4)), max_leaves=9)


@given(st.binary(max_size=300) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_what_is_not_a_message_gets_one_line(data):
    with pytest.raises(ValueError):
        referee.parse("message", data)


@pytest.mark.parametrize("change", [
    lambda m: {**m, "more": 1}, lambda m: {**m, "event": True}, lambda m: {**m, "event": 1.0},
    lambda m: {**m, "inputs": ["AA=A"]}, lambda m: {**m, "inputs": ["AB=="]}, lambda m: {**m, "output": "A"},
    lambda m: dict(reversed(m.items())), lambda m: {**m, "inputs": [1]}, lambda m: {**m, "inputs": ["é"]}])
def test_there_is_one_way_to_write_a_message(change):
    message = {"format": "llama2.py reveal 1", "event": 3, "inputs": ["AAAAAA=="], "output": ""}
    assert referee.parse("m", referee.encode(message) + b"\n")["inputs"] == [bytes(4)]
    with pytest.raises(ValueError):
        referee.parse("m", referee.encode(change(message)) + b"\n")
    for data in referee.encode(message), referee.encode(message) + b"\n\n", b" " + referee.encode(message) + b"\n":
        with pytest.raises(ValueError):
            referee.parse("m", data)


def test_rows_lead_to_the_weights_of_every_tensor(run, capfdbinary):
    model, _, lines, folder = run
    header = json.loads(lines[0])
    leaves = referee.Leaves(header["config"])
    with llama2.Transformer(model) as transformer:
        tree = referee.weights_tree(transformer.checkpoint)
        assert tree.root().hex() == header["weights"] and len(tree) == leaves.size
        layers = {"embedding": [0], "rms_final": [0], "classifier": [0]}
        seen = {0}
        for name, layer, row in [(tensor, l, i) for tensor, (rows, _) in leaves.shapes.items()
                                 for l in layers.get(tensor, [0, 1]) for i in range(rows)]:
            seen.add(leaves.index(referee.Row(name, layer, row)))
            if row in (0, leaves.shapes[name][0] - 1):
                (values,) = transformer.checkpoint.rows(name, layer, row, row + 1)
                referee.merkle.verify_inclusion(referee.merkle.leaf_hash(bits(values)), leaves.index(
                    referee.Row(name, layer, row)), leaves.size, tree.inclusion_proof(
                        leaves.index(referee.Row(name, layer, row))), tree.root())
        assert seen == set(range(leaves.size))
    assert "the model has no row wq 2 0" in failure(capfdbinary, "rows", model, "wq", 2, 0, program=tracing)
    assert "tensor is wx, must be embedding, rms_att" in failure(capfdbinary, "rows", model, "wx", 0, program=tracing)
    message = failure(capfdbinary, "rows", model, "classifier", 1, program=tracing)
    assert "the model has no row classifier 1 0" in message
    assert "the model has no row wq 0 16" in failure(capfdbinary, "rows", model, "wq", 0, 16, program=tracing)
