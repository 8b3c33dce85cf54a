"""Tests of trace.py: logs written, verified, tampered with, shown, proved, compared; and those of llama2-rs."""
import base64
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import llama2
import merkle
import plain
from llama2_py import command as command_line
from llama2_py import console
from llama2_py import trace_command as tracing
from llama2_py.log import events, formats, proofs, show, weights, writing
from llama2_py.log.verify import progress
from llama2_py.console import VerificationError
from llama2_py.engine import graph
from llama2_py.engine.checkpoint import Checkpoint
from tests.helpers import (HERE, OPTIONS, PIECES, SHAPES, SHARE, bits, command, door, edit, edited, examples, failure,
                           forge, forward_definition, interruptible, make_tokenizer, noticed, process, read_bytes,
                           read_lines, root_line, some)
from tests.test_events import CONFIG, HEADER
from test_merkle import mth

# ----------------------------------------------------------------------------
# Writing and verifying

def weights_definition(config, model):
    """Leaf 0 is the config, then the rows of every tensor in this order, as RFC 6962 defines a tree of them."""
    rows = [json.dumps(config, separators=(",", ":")).encode(), *map(bits, model.embedding)]
    for l in range(config["n_layers"]):
        for matrix in ([model.rms_att[l]], model.wq[l], model.wk[l], model.wv[l], model.wo[l], [model.rms_ffn[l]],
                       model.w1[l], model.w2[l], model.w3[l]):
            rows += map(bits, matrix)
    rows.append(bits(model.rms_final))
    if not config["shared_classifier"]:
        rows += map(bits, model.classifier)
    return mth([hashlib.sha256(b"\0" + row).digest() for row in rows]).hex()


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_are_the_tree_over_the_rows_whatever_the_file(files, shape):
    found = []
    for path in files[shape], files[f"{shape}, version 0"]:
        checkpoint = Checkpoint(path)
        config = checkpoint.config.described()
        assert weights.weights_root(config, checkpoint.tree_rows()) == weights_definition(
            config, plain.Model(files[f"{shape}, version 0"]))
        found.append(config)
    assert found[0] == found[1]


@pytest.mark.parametrize("level", ["step", "layer", "op"])
def test_a_trace_is_the_log_that_the_definition_gives(files, traces, tokenizer, level):
    lines = read_lines(traces[level])
    with open(files["grouped"], "rb") as m, open(files["tokenizer"], "rb") as t:
        hashes = [hashlib.sha256(file.read()).hexdigest() for file in (m, t)]
    said = [json.loads(line) for line in lines]
    tokens = tokenizer.encode("ab 😀a")
    config = {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 280,
              "seq_len": 32,
              "shared_classifier": False}
    weights = weights_definition(config, plain.Model(files["grouped"]))
    assert said[0] == {"format": "llama2.py trace 2", "model": hashes[0], "weights": weights, "config": config,
                         "tokenizer": hashes[1], "arithmetic": "exact", "rng": "xorshift64*", "temperature": 1.0,
                         "p_value": 0.9, "seed": 7, "steps": 14, "level": level, "prompt": "ab 😀a", "tokens": tokens}
    assert list(said[0]["config"]) == list(config)
    steps = [event for event in said if "next" in event]
    inputs = [step["token"] for step in steps]
    sampler = llama2.Sampler(1.0, 0.9, 7)
    expected = [lines[0]]
    for pos, (ops, logits) in enumerate(forward_definition("exact", files["grouped"], inputs)):
        for layer, op, values in ops:
            if level == "op" or level == "layer" and op == "ffn_residual":
                place = {} if layer is None else {"layer": layer}
                expected.append(events.encode({"pos": pos, **place, "op": op,
                                              "sha256": hashlib.sha256(values).hexdigest()}))
        row = list(struct.unpack(f"<{len(logits) // 4}f", logits))
        following = tokens[pos + 1] if pos + 1 < len(tokens) else plain.sample(row, 1.0, 0.9, sampler.coin())
        text = tokenizer.decode(inputs[pos], following).decode(errors="backslashreplace")
        expected.append(events.encode({"pos": pos, "token": inputs[pos], "next": following, "text": text,
                                      "logits": hashlib.sha256(logits).hexdigest()}))
    assert lines == expected + [root_line(expected)]
    assert '"text":"\\ud83d\\ude00"' in b"".join(lines).decode()


@pytest.mark.parametrize("workers", some(1, [1, 2]))
@pytest.mark.parametrize("kind", ["step", "layer", "op", "c", "rust"])
def test_a_trace_verifies(traces, model, capfdbinary, kind, workers):
    root = formats.read(traces[kind]).head()
    options = OPTIONS + ["--like", "llama2-rs"] if kind == "rust" else []
    code, out, err = command(capfdbinary, *model, "--verify", traces[kind], *options, "--workers", workers)
    lines = out.decode().splitlines()
    assert (code, err) == (0, "") and lines[0] == "verified: 14 steps computed again and found equal"
    assert lines[-1] == (f"root: {root}, only recomputed from the file itself; compare it with the one that was "
                         "published")
    code, out, err = command(capfdbinary, *model, "--verify", traces[kind], "--root", root, "--verify-iteration", 5,
                             *options)
    index = {"step": 6, "layer": 18, "op": 186, "c": 6, "rust": 5}[kind]
    size = {"step": 15, "layer": 43, "op": 435, "c": 15, "rust": 14}[kind]
    lines = out.decode().splitlines()
    assert (code, err) == (0, "") and root.startswith(f"{size}:")
    assert lines[:2] == ["verified: 6 steps computed again and found equal",
                         f"step 5 is leaf {index} of {size} under the root"]
    assert lines[-1] == f"root: {root}, as published"


def test_a_verdict_says_what_was_claimed_and_what_was_chosen(traces, model, tmp_path, capfdbinary):
    code, out, err = command(capfdbinary, *model, "--verify", traces["step"], "-s", 7, "-t", "1.0")
    assert (code, err) == (0, "")
    assert out.decode().splitlines()[1:-1] == [
        "these options were claimed by the caller:", "  temperature: 1.0", "  seed: 7",
        "these options were chosen by the log's author:", "  arithmetic: exact", "  rng: xorshift64*", "  p_value: 0.9",
        "  steps: 14", "  level: step", '  prompt: "ab \\ud83d\\ude00a"',
        "the text of these steps:", "    " + console.quoted(show.text_of(formats.read(traces["step"])))]
    code, out, err = command(capfdbinary, *model, "--verify", traces["rust"], *OPTIONS)
    assert "these options were claimed by the caller:\n  seed: 7\n" in out.decode()
    assert "these were not given, and taken as they are by default:\n  arithmetic: c\n" in out.decode()


def test_the_text_can_be_claimed(traces, model, tmp_path, capfdbinary):
    for kind in "step", "c", "rust":
        options = OPTIONS if kind == "rust" else []
        like = {"step": [], "c": ["--like", "llama2.c"], "rust": ["--like", "llama2-rs"]}[kind]
        text = command(capfdbinary, *model, *OPTIONS, *like)[1]
        for claim, code in (text, 0), (text[:-1], 0), (text[:-2], 1), (text.replace(b"a", b"b"), 1), (b"", 1):
            (tmp_path / "text").write_bytes(claim)
            got, out, err = command(capfdbinary, *model, "--verify", traces[kind], *options, "--text",
                                    tmp_path / "text")
            assert got == code and ("text: expected" in err) == (code == 1)


def test_the_same_run_writes_the_same_trace_wherever_it_is(files, traces, model, tmp_path):
    for n in 2, 3:
        with contextlib.redirect_stderr(io.StringIO()):
            command_line.main([*model, *OPTIONS, "--trace-level", "op", "--trace", str(tmp_path / "t"), "--workers",
                               str(n)])
        assert read_lines(tmp_path / "t") == read_lines(traces["op"])


def test_another_root_is_noticed_before_anything_is_computed(traces, model, capfdbinary, monkeypatch):
    monkeypatch.setattr(llama2, "Transformer", None)
    for kind in "step", "rust":
        own = formats.read(traces[kind]).head()
        for other in "00" * 32, f"{own.split(':')[0]}:{'00' * 32}", f"99:{own.split(':')[1]}":
            message = failure(capfdbinary, *model, "--verify", traces[kind], "--root", other, "-s", 7, code=1)
            assert message == f"verification failed: {traces[kind]}: root: expected {other}, got {own}"


def test_a_bare_root_will_do_where_the_whole_log_is_at_hand(traces, model, capfdbinary):
    for root in formats.read(traces["step"]).head(), formats.read(traces["step"]).root.upper():
        assert command(capfdbinary, *model, "--verify", traces["step"], "--root", root)[0] == 0


def test_a_trace_cut_short_is_told_as_that_where_a_root_is_given(traces, model, tmp_path, capfdbinary):
    lines = read_lines(traces["step"])
    cut = forge(tmp_path / "cut", lines[:7], False)
    message = failure(capfdbinary, *model, "--verify", cut, "--root", formats.read(traces["step"]).head(), code=1)
    assert "a trace without its last line, after 7 lines" in message.replace("\\u0020", " ")
    assert command(capfdbinary, *model, "--verify", cut, "--root", formats.read(cut).head())[0] == 0


@pytest.mark.parametrize("claim, field", [
    (["-s", "8"], "seed"), (["-t", "0.5"], "temperature"), (["-p", "0.5"], "p_value"), (["-n", "13"], "steps"),
    (["-i", "ab a"], "prompt"), (["--like", "llama2.c"], "arithmetic"), (["-n", "0"], "steps")])
def test_a_wrong_claim_beside_verify_is_noticed(traces, model, capfdbinary, claim, field):
    message = failure(capfdbinary, *model, "--verify", traces["step"], *claim, code=1)
    assert f"line 1 (header): {field}: expected " in message
    for claims in OPTIONS, ["-s", "0"]:  # 0: none
        assert command(capfdbinary, *model, "--verify", traces["step"], *claims)[0] == 0


def test_another_model_or_tokenizer_is_noticed_and_so_is_what_came_of_it(files, traces, model, tmp_path, capfdbinary):
    checkpoint = Checkpoint(files["grouped"])
    offset, rows, columns = checkpoint.tensors["wo"]
    at = offset + 4 * rows * columns  # the first weight of layer 1
    weight = struct.unpack_from("<I", checkpoint.data, at)[0]
    other = edited(files["grouped"], tmp_path / "other.bin", at, "I", weight ^ 1 << 22)
    message = failure(capfdbinary, other, *model[1:], "--verify", traces["op"], code=1)
    assert re.search(r"line 1 \(header\): model: expected [0-9a-f]{64}, got [0-9a-f]{64}; then .*, line \d+ "
                     r"\(position 0, layer 1, operation attention_out\): sha256: expected", message)
    other = make_tokenizer(tmp_path / "other", PIECES[:-1] + [b"f"])
    message = failure(capfdbinary, model[0], "-z", other, "--verify", traces["step"], code=1)
    assert "line 1 (header): tokenizer: expected" in message
    unused = edited(files["version 1"], tmp_path / "unused.bin", 200, "B", 1)  # the header's zeros: nothing comes of it
    with contextlib.redirect_stderr(io.StringIO()):
        command_line.main([files["version 1"], *model[1:], *OPTIONS, "--trace", str(tmp_path / "t")])
    assert failure(capfdbinary, unused, *model[1:], "--verify", tmp_path / "t", code=1).count("expected") == 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("screen, shown", [(io.StringIO, ""), (Terminal, (
    "\r3 of 8 steps, 10.0 steps/s, 0 s left  " "\r6 of 8 steps, 10.0 steps/s, 0 s left  \n"))])
def test_a_terminal_shows_how_far_the_verifier_is_five_times_a_second_at_most(monkeypatch, screen, shown):
    steps = [llama2.Step(pos, 0, 0, None, b"") for pos in range(8)]
    clock = iter([0.0, 0.1, 0.2, 0.3, 0.39, 0.48, 0.6, 0.69, 0.78])
    monkeypatch.setattr("llama2_py.log.verify.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", screen())
    assert list(progress(steps, 8)) == steps
    assert sys.stderr.getvalue() == shown


# ----------------------------------------------------------------------------
# Tampering: each is noticed with exit 1, or 2 where the file is no trace any more

def test_any_changed_byte_is_noticed(traces):
    for kind in "step", "rust":
        with open(traces[kind], "rb") as file:
            data = file.read()
        path = traces[kind] + ".bad"
        for i in range(0, len(data), SHARE**2):
            with open(path, "wb") as file:
                file.write(data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1:])
            if kind == "step":
                with pytest.raises((ValueError, VerificationError)):
                    formats.read(path)
            else:  # what this format does not commit to is compared when it is verified
                with contextlib.suppress(ValueError, VerificationError):
                    assert formats.read(path).lines != formats.read(traces[kind]).lines


@pytest.mark.parametrize("level", some(1, ["step", "op"]))
@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("change", ["delete", "double", "swap", "insert", "graft"])
def test_a_line_deleted_doubled_swapped_inserted_or_grafted_is_noticed(traces, model, tmp_path, capfdbinary, level,
                                                                       root, change):
    lines = read_lines(traces[level])
    body, last = lines[:-1], lines[-1:]
    with contextlib.redirect_stderr(io.StringIO()):
        command_line.main([*model, "-s", "8", *OPTIONS[2:], "--trace-level", level, "--trace", str(tmp_path / "other")])
    other = read_lines(tmp_path / "other")
    for i in {0, 1, 5, len(body) // 2, len(body) - 1}:
        bad = list(body)
        if change == "delete":
            del bad[i]
        elif change == "double":
            bad.insert(i, bad[i])
        elif change == "swap":
            j = (i + 1) % len(body)
            bad[i], bad[j] = bad[j], bad[i]
        elif change == "insert":
            bad.insert(i + 1, edit(next(line for line in body if b"next" in line),
                                   pos=json.loads(body[i]).get("pos", 0) + 1))
        elif other[i] != body[i]:
            bad[i] = other[i]
        else:
            continue
        noticed(capfdbinary, model, forge(tmp_path / "bad", bad if root else bad + last, root))


@pytest.mark.parametrize("level", some(1, ["step", "op"]))
def test_an_end_cut_off_is_noticed_under_a_root_and_told_without(traces, model, tmp_path, capfdbinary, level):
    lines = read_lines(traces[level])
    root = json.loads(lines[-1])["root"]
    for n in {1, 2, 3, len(lines) // 2, len(lines) - 3, len(lines) - 2}:
        noticed(capfdbinary, model, forge(tmp_path / "bad", lines[:n]))
        noticed(capfdbinary, model, forge(tmp_path / "bad", lines[:n] + lines[-1:], False))
        cut = forge(tmp_path / "cut", lines[:n], False)
        noticed(capfdbinary, model, cut, "--root", root)
        code, out, err = command(capfdbinary, *model, "--verify", cut)
        if formats.read(cut).steps:
            assert code == 0 and b"incomplete" in out
        else:
            assert code == 2 and "has no step to verify" in err
        with open(cut, "ab") as file:
            file.write(lines[n][:-3])
        noticed(capfdbinary, model, cut)


def test_a_log_that_lacks_its_last_line_alone_is_of_a_whole_run(traces, model, tmp_path, capfdbinary):
    lines = read_lines(traces["step"])
    cut = forge(tmp_path / "cut", lines[:-1], False)
    code, out, _ = command(capfdbinary, *model, "--verify", cut, "--root", formats.read(traces["step"]).head())
    assert code == 0 and b"the trace lacks its last line; its run is whole\n" in out
    code, out, _ = command(capfdbinary, "show", cut, program=tracing)
    assert code == 0 and b"the run may have been cut short" in out


def test_a_true_claim_of_tokens_does_not_hide_another_prompt(traces, model, tmp_path, capfdbinary):
    lines = read_lines(traces["step"])[:-1]
    tokens = ",".join(map(str, json.loads(lines[0])["tokens"]))
    assert command(capfdbinary, *model, "--verify", traces["step"], "--tokens", tokens)[0] == 0
    lines[0] = edit(lines[0], prompt="b")
    forged = forge(tmp_path / "forged", lines)
    for claim in [], ["--tokens", tokens]:
        assert "tokens: expected" in failure(capfdbinary, *model, "--verify", forged, *claim, code=1)


def test_a_prompt_that_stands_for_no_bytes_is_refused(traces, tmp_path, capfdbinary):
    lines = read_lines(traces["step"])
    lines[0] = edit(lines[0], prompt="\ud800")
    assert "line 1: prompt cannot be" in failure(capfdbinary, "show", forge(tmp_path / "bad", lines), program=tracing)


def test_a_proof_whose_line_is_nested_too_deeply_is_refused(traces):
    log = formats.read(traces["step"])
    proof = proofs.prove(log, 2)
    begin, end = proof.index(b'"line":') + len(b'"line":'), proof.index(b'","path":[')
    with pytest.raises(ValueError, match="event 0: the line is not written as JSON"):
        proofs.verify_proof(proof[:begin] + b"[" * 100_000 + proof[end:], log.head())


def test_what_follows_the_root_is_noticed(traces, model, tmp_path, capfdbinary):
    lines = read_lines(traces["step"])
    noticed(capfdbinary, model, forge(tmp_path / "bad", lines + lines[-1:], False))
    noticed(capfdbinary, model, forge(tmp_path / "bad", lines + lines[1:2], False))


@pytest.mark.parametrize("number, fields", [
    (0, {"model": "00" * 32}), (0, {"tokenizer": "00" * 32}), (0, {"temperature": 0.3}), (0, {"p_value": 0.2}),
    (0, {"seed": 8}),
    (0, {"steps": 15}), (0, {"steps": 13}), (0, {"steps": 10**6}), (0, {"prompt": "ab 😀"}), (0, {"tokens": [1, 259]}),
    (0, {"arithmetic": "c"}), (0, {"rng": "llama2-rs"}), (0, {"level": "op"}), (0, {"format": "llama2.py trace 1"}),
    (0, {"weights": "00" * 32}), (0, {"config": {}}), (0, {"steps": 33}), (0, {"tokens": [1, 280]}),
    (0, {"tokens": [1] * 33}), (0, {"p_value": 1.5}), (0, {"seed": 0}), (0, {"temperature": -1.0}),
    (1, {"token": 2}), (1, {"next": 261}), (1, {"pos": 1}), (1, {"text": "x"}), (1, {"logits": "00" * 32}),
    (12, {"token": 2}), (12, {"next": 261}), (12, {"next": 1}), (12, {"pos": 10}), (12, {"text": ""}),
    (14, {"next": 1}),
    (12, {"next": 5000}),
    (14, {"text": "\x1b[31m"}), (14, {"logits": "ab" * 32})])
def test_a_field_rewritten_under_a_recomputed_root_is_noticed(traces, model, tmp_path, capfdbinary, number, fields):
    lines = read_lines(traces["step"])[:-1]
    assert edit(lines[number], **fields) != lines[number]
    lines[number] = edit(lines[number], **fields)
    err = noticed(capfdbinary, model, forge(tmp_path / "bad", lines))
    # believed until another line
    options = {"temperature", "p_value", "seed", "steps", "arithmetic", "level", "tokens"}
    assert (options & fields.keys() or re.search(f"line ({number + 1}|{number + 2})[ :]", err)) and "\x1b" not in err
    if "token" in fields:
        assert ": token: expected" in err
    if "pos" in fields:
        with pytest.raises(VerificationError, match=f"line {number + 1}: pos: expected {number - 1}, got"):
            formats.read(tmp_path / "bad")


def test_format_1_is_read_no_more(traces, tmp_path, capfdbinary):
    lines = read_lines(traces["step"])[:-1]
    header = {name: value for name, value in json.loads(lines[0]).items() if name not in ("weights", "config")}
    lines[0] = events.encode({**header, "format": "llama2.py trace 1"})
    bad = forge(tmp_path / "bad", lines)
    assert failure(capfdbinary, "show", bad, program=tracing) == (
        f"{bad}, line 1: format is \"llama2.py trace 1\"; this program reads 'llama2.py trace 2'")


@pytest.mark.parametrize("fields", [{"model": "00" * 32}, {"weights": "00" * 32}, {"model": "00" * 32, "steps": 20},
                                    {"model": "00" * 32, "tokens": [1]}])
def test_a_false_header_is_noticed_however_little_is_verified(traces, model, tmp_path, capfdbinary, fields):
    lines = read_lines(traces["step"])[:-1]
    lines[0] = edit(lines[0], **fields)
    whole, part = forge(tmp_path / "whole", lines), forge(tmp_path / "part", lines[:6], False)
    for args in ([whole], [part], [whole, "--verify-iteration", 3], [part, "--verify-iteration", 3],
                 [whole, "--verify-iteration", 3, "--root", json.loads(root_line(lines))["root"]]):
        assert "line 1 (header): " in noticed(capfdbinary, model, *args)


def test_what_follows_the_end_of_the_run_is_noticed(traces, model, tmp_path, capfdbinary):
    lines = read_lines(traces["step"])[:-1]
    more = [*lines, edit(lines[-1], pos=14, token=json.loads(lines[-1])["next"])]
    op = read_lines(traces["op"])[:-1]
    for body, root in (more, False), ([*op, edit(op[1], pos=14)], False), ([*op, edit(op[1], pos=14)], True):
        err = noticed(capfdbinary, model, forge(tmp_path / "bad", body, root))
        assert "pos: expected " in err and ", got 14" in err
    bos = [*lines[:8], edit(lines[8], next=1)]
    for body in [*bos, edit(lines[9], token=1)], [*bos, lines[9]]:
        err = noticed(capfdbinary, model, forge(tmp_path / "bad", body, False))
        assert "line 10: line: expected " in err


@pytest.mark.parametrize("steps, message", [
    (0, "line 1: steps cannot be 0"), (33, "line 1: steps cannot be 33"), (13, "line 15: pos: expected"),
    (15, "line 1 (header): steps: expected 14, got 15"), (32, "line 1 (header): steps: expected 14, got 32")])
def test_a_finished_trace_has_the_steps_that_its_header_says_or_ends_with_bos(traces, model, tmp_path, capfdbinary,
                                                                              steps, message):
    header, *lines = read_lines(traces["step"])[:-1]
    bad = forge(tmp_path / "bad", [edit(header, steps=steps), *lines])
    for more in [], ["--verify-iteration", 2]:
        assert message in noticed(capfdbinary, model, bad, *more)
    ended = forge(tmp_path / "ended", [edit(header, steps=steps), *lines[:-1], edit(lines[-1], next=1)])
    if 14 < steps < 33:
        assert len(formats.read(ended).steps) == 14
    else:
        noticed(capfdbinary, model, ended, "--verify-iteration", 2)


def test_a_prompt_that_no_context_holds_is_refused_unread_and_in_few_words(
        traces, model, tmp_path, capfdbinary, monkeypatch):
    encode = llama2.Tokenizer.encode

    def short_texts_alone(self, text):
        assert len(text) < 10**4
        return encode(self, text)

    monkeypatch.setattr(llama2.Tokenizer, "encode", short_texts_alone)
    lines = read_lines(traces["step"])[:-1]
    for fields in {"prompt": "ab" * 10**6}, {"tokens": [1] * 10**5}, {"prompt": "ab" * 10**7}:
        err = noticed(capfdbinary, model, forge(tmp_path / "bad", [edit(lines[0], **fields), *lines[1:]]))
        assert len(err) < 2000
    assert "the prompt has 2000000 characters" in failure(capfdbinary, *model, "-s", 1, "-i", "ab" * 10**6)


def test_a_token_beyond_the_vocabulary_is_refused(traces, model, tmp_path, capfdbinary):
    lines = read_lines(traces["step"])[:-1]
    lines[11:13] = [edit(lines[11], next=5000), edit(lines[12], token=5000)]
    message = noticed(capfdbinary, model, forge(tmp_path / "bad", lines), "--verify-iteration", 3)
    assert "line 12: next: expected" in message


@pytest.mark.parametrize("option", [["-t", "1e300"], ["-t", "0"], ["-p", "5e-324"], ["-s", str(2**64 - 1)],
                                    ["-n", "1"]])
def test_whatever_the_options_a_trace_verifies(model, tmp_path, capfdbinary, option):
    assert command(capfdbinary, *model, "-s", 7, *option, "--trace", tmp_path / "t")[0] == 0
    assert command(capfdbinary, *model, "--verify", tmp_path / "t")[0] == 0


def test_only_results_in_the_dialect_c_are_excused_by_another_c_library(traces, model, tmp_path, capfdbinary):
    lines = read_lines(traces["c"])[:-1]
    for fields, excused in ({"logits": "5a" * 32}, True), ({"text": "x"}, False), ({"next": 261}, False):
        bad = forge(tmp_path / "bad", [*lines[:-1], edit(lines[-1], **fields)])
        assert ("another C library" in noticed(capfdbinary, model, bad)) == excused
    assert "C library" not in noticed(capfdbinary, model, traces["c"], "-s", 8)
    lines = read_lines(traces["step"])[:-1]
    bad = forge(tmp_path / "bad", [*lines[:-1], edit(lines[-1], logits="5a" * 32)])
    assert "C library" not in noticed(capfdbinary, model, bad)


def test_another_file_of_the_same_weights_is_told_as_that(files, tmp_path, capfdbinary):
    v1, v0, z = files["version 1"], files["version 1, version 0"], files["tokenizer"]
    assert command(capfdbinary, v1, "-z", z, *OPTIONS, "--trace", tmp_path / "t")[0] == 0
    message = failure(capfdbinary, v0, "-z", z, "--verify", tmp_path / "t", code=1)
    assert "line 1 (header): model: expected " in message and message.endswith(" (another file of the same weights)")


def test_an_empty_file_name_is_no_missing_option(model, capfdbinary):
    for option in "--verify", "--explain-text", "--trace", "--logits", "--compare":
        code, out, err = command(capfdbinary, *model, "-s", 1, option, "")
        assert code == 2 and out == b"" and err.count("\n") == 1


def test_like_another_program_beside_a_trace_of_this_one_is_noticed(traces, model, capfdbinary):
    for kind, like in ("step", "llama2-rs"), ("step", "llama2.c"), ("c", "llama2-rs"), ("rust", "llama2.c"):
        noticed(capfdbinary, model, traces[kind], "-s", 7, "--like", like)


@pytest.mark.parametrize("line", some(7, range(0, 434, 31)))
def test_a_rewritten_operation_is_noticed_at_its_line(traces, model, tmp_path, capfdbinary, line):
    lines = read_lines(traces["op"])[:-1]
    field = "sha256" if b"sha256" in lines[line] else "logits" if b"logits" in lines[line] else "model"
    lines[line] = edit(lines[line], **{field: "5a" * 32})
    assert f", line {line + 1} " in noticed(capfdbinary, model, forge(tmp_path / "bad", lines))


@pytest.mark.parametrize("change", [
    lambda line: line.replace(b",", b", ", 1), lambda line: b" " + line, lambda line: line + b" ",
    lambda line: line + b"\r",
    lambda line: line.replace(b'{"pos":3,"token"', b'{"token"').replace(b',"next"', b',"pos":3,"next"'),
    lambda line: line.replace(b'"pos":3', b'"pos":3,"pos":3'), lambda line: line.replace(b'"pos":3', b'"pos":3.0'),
    lambda line: line.replace(b'"pos":3', b'"pos":3e0'),
    lambda line: line.replace(b'"text":"', b'"text":"\\u0020').replace(b"0 ", b"0"),
    lambda line: line.replace(b'"pos"', b'"p\\u006fs"'), lambda line: line.replace(b'"pos":3', b'"pos":true'),
    lambda line: line.replace(b'"text":"', '"text":"é'.encode()), lambda line: line[:-1] + b',"more":1}',
    lambda line: b"[" + line + b"]", lambda line: b"3", lambda line: b"null", lambda line: b"",
    lambda line: b"[" * 100_000,
    lambda line: line.replace(b'"pos":3', b'"pos":' + b"3" * 10_000),
    lambda line: line.replace(b'"pos":3', b'"pos":-3'),
    lambda line: re.sub(rb'"logits":"(.)', rb'"logits":"A', line), lambda line: line.replace(b'"pos":3', b'"pos":NaN')])
def test_the_same_event_in_other_bytes_is_noticed(traces, model, tmp_path, capfdbinary, change):
    lines = read_lines(traces["step"])[:-1]
    changed = change(lines[4])
    assert changed != lines[4]
    lines[4] = changed
    with pytest.raises(ValueError, match="line 5: "):
        formats.read(forge(tmp_path / "bad", lines))
    assert "line 5" in noticed(capfdbinary, model, forge(tmp_path / "bad", lines))


@given(st.data())
@settings(examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_other_file_is_noticed(traces, files, data):
    with open(traces[data.draw(st.sampled_from(["step", "layer"]))], "rb") as file:
        original = file.read()
    lines = original.splitlines(keepends=True)
    for _ in range(data.draw(st.integers(1, 3))):
        i, j = sorted(data.draw(st.tuples(st.integers(0, len(lines) - 1), st.integers(0, len(lines)))))
        how = data.draw(st.sampled_from(["cut", "copy", "reverse", "bytes", "digits"]))
        if how == "cut":
            lines[i:j] = []
        elif how == "copy":
            lines[j:j] = lines[i:i + 2]
        elif how == "reverse":
            lines[i:j] = lines[i:j][::-1]
        elif i < len(lines) and lines[i]:
            line, at = bytearray(lines[i]), data.draw(st.integers(0, len(lines[i]) - 1))
            line[at] = data.draw(st.integers(0, 255)) if how == "bytes" else data.draw(st.sampled_from(b"0123456789"))
            lines[i] = bytes(line)
        lines = lines or [b""]
    path = traces["step"] + ".mutated"
    root = data.draw(st.booleans())
    body = b"".join(lines)
    if root:
        body = b"".join(line + b"\n" for line in body.splitlines()[:-1])
        body += root_line(body.splitlines()) + b"\n"
    assume(body != original and body + lines[-1] != original)
    with open(path, "wb") as file:
        file.write(body)
    out, err = io.StringIO(), io.StringIO()
    out.buffer = io.BytesIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
        code = command_line.main([files["grouped"], "-z", files["tokenizer"], "--verify", path])
    if code == 0:  # only what the run that its header describes has written, or had written when it was cut short
        option = {name: str(value) for name, value in json.loads(body.split(b"\n")[0]).items()}
        again = traces["step"] + ".again"
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(out):
            assert command_line.main([
                files["grouped"], "-z", files["tokenizer"], "-i", option["prompt"], "-s", option["seed"],
                "-t", option["temperature"], "-p", option["p_value"], "-n", option["steps"],
                *(["--like", "llama2.c"] if option["arithmetic"] == "c" else []),
                "--trace-level", option["level"], "--trace", again]) == 0
        assert read_bytes(again).startswith(body)
        assert read_bytes(again) == body or "incomplete" in out.getvalue()
    else:
        assert code in (1, 2) and err.getvalue().count("\n") == 1


# ----------------------------------------------------------------------------
# Runs that do not end well

def test_an_interrupted_run_leaves_a_trace_that_verifies_as_far_as_it_goes(tmp_path, capfdbinary):
    for kill, code in (signal.SIGINT, 130), (signal.SIGKILL, -9):
        path = tmp_path / "t"
        run = subprocess.Popen([sys.executable, os.path.join(HERE, "llama2.py"), "-s", "1", "-n", "0", "--trace",
                                str(path),
                                "--trace-level", "op"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               preexec_fn=interruptible)
        run.stdout.read(3)
        run.send_signal(kill)
        _, err = run.communicate()
        assert run.returncode == code and err == b""
        assert formats.read(path).root is None
        code, out, _ = command(capfdbinary, "show", path, program=tracing)
        assert code == 0 and b"may have been cut short" in out
        if formats.read(path).steps:
            code, out, _ = command(capfdbinary, "--verify", path)
            assert code == 0 and b"incomplete" in out


def test_a_full_disk_leaves_whole_lines_and_one_line_of_error(traces, model, tmp_path, capfdbinary):
    import resource
    path = tmp_path / "t"
    limit = len(b"\n".join(read_lines(traces["step"])[:6])) + 20
    done = process(*model, *OPTIONS, "--trace", path,
                   preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and b"Traceback" not in done.stderr
    assert read_lines(path) == read_lines(traces["step"])[:6]
    assert command(capfdbinary, *model, "--verify", path)[0] == 0


def test_a_trace_whose_reader_goes_away_is_an_error(model, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    reader = subprocess.Popen(["head", "-c", "10", tmp_path / "fifo"], stdout=subprocess.DEVNULL)
    done = process(*model, *OPTIONS, "--trace", tmp_path / "fifo", "--trace-level", "op")
    reader.wait()
    assert (done.returncode, done.stderr.decode()) == (2, f"llama2.py: error: {tmp_path / 'fifo'}: Broken pipe\n")


def test_a_trace_that_another_run_writes_is_not_touched(model, tmp_path, capfdbinary):
    writer = writing.Writer(tmp_path / "t", {name: value for name, value in HEADER.items() if name != "format"})
    written = read_bytes(tmp_path / "t")
    message = failure(capfdbinary, *model, *OPTIONS, "--trace", tmp_path / "t")
    assert message == f"{tmp_path / 't'}: another run is writing this trace" and read_bytes(tmp_path / "t") == written
    writer.close()
    assert command(capfdbinary, *model, *OPTIONS, "--trace", tmp_path / "t")[0] == 0
    assert len(formats.read(tmp_path / "t")) == 15


def test_traces_go_into_devices(model, capfdbinary):
    assert command(capfdbinary, *model, *OPTIONS, "--trace", "/dev/null")[0] == 0
    message = failure(capfdbinary, *model, *OPTIONS, "--trace", "/dev/full")
    assert message == "/dev/full: No space left on device"


def test_lone_surrogates_in_a_text_are_no_matter(traces, tmp_path, capfdbinary):
    lines = read_lines(traces["step"])[:-1]
    path = forge(tmp_path / "t", [*lines[:5], edit(lines[5], text="\ud800x"), *lines[6:]])
    for args in ["show", path], ["text", path], ["show", path, "--step", 4], ["prove", path, 4]:
        code, out, err = command(capfdbinary, *args, program=tracing)
        assert (code, err) == (0, "") and out


def test_a_longer_trace_is_replaced_as_a_whole(traces, model, tmp_path, capfdbinary):
    (tmp_path / "t").write_bytes(read_bytes(traces["op"]))
    assert command(capfdbinary, *model, *OPTIONS, "--trace", tmp_path / "t")[0] == 0
    assert read_bytes(tmp_path / "t") == read_bytes(traces["step"])


def test_a_trace_is_replaced_only_by_a_run_that_has_passed_its_checks(files, model, tmp_path, capfdbinary):
    path = tmp_path / "t"
    path.write_bytes(b"precious")
    # row 0 of the embedding: seen when used
    bad = edited(files["grouped"], tmp_path / "bad.bin", 28, "f", float("nan"))
    for args in (["-p", 2], ["--workers", 0], ["-i", "~" * 40], ["--compare", path],
                 ["--like", "llama2.c", "-s", 2**31],
                 ["--logits", tmp_path], ["--logits", path]):
        failure(capfdbinary, *model, "-s", 1, "--trace", path, *args)
        assert path.read_bytes() == b"precious"
    failure(capfdbinary, edited(bad, tmp_path / "worse.bin", 28 + 4 * 280 * 16, "f", float("inf")), *model[1:],
            "-s", 1, "--trace", path)  # rms_att
    assert path.read_bytes() == b"precious"


def test_a_log_can_be_read_while_it_grows(model, tmp_path):
    writer = writing.Writer(tmp_path / "t", {name: value for name, value in HEADER.items() if name != "format"})
    heads = []
    for pos in range(3):
        writer.step(llama2.Step(pos, (1, 5, 7)[pos], (5, 7, 9)[pos], b"x", [pos]))
        log = formats.read(tmp_path / "t")
        heads.append(log.head())
        assert len(log) == pos + 2 and log.root is None
    writer.finish()
    log = formats.read(tmp_path / "t")
    for head in heads:
        (tmp_path / "p").write_bytes(proofs.prove_growth(log, int(head.split(":")[0])))
        proofs.verify_growth(tmp_path / "p", log.head(), head)
    writer.close()


# ----------------------------------------------------------------------------
# trace.py: show, root, prove, check, diff

def test_show_prints_every_step_and_escapes_the_text(traces, tmp_path, capfdbinary):
    lines = read_lines(traces["step"])[:-1]
    lines[5] = edit(lines[5], text="\x1b[31m\x07")
    for path in traces["op"], traces["rust"], forge(tmp_path / "t", lines):
        for args, program in (("show", path), tracing), (("--explain-text", path), command_line):
            code, out, err = command(capfdbinary, *args, program=program)
            assert code == 0 and err == "" and b"\x1b" not in out and b"\x07" not in out
            log = formats.read(path)
            rows = re.findall(rb"^ +(\d+) +(\d+)  ([0-9a-f]{16})\.\.  \"", out, re.M)
            steps = map(log.event, log.steps)
            assert [(int(pos), int(token), h.decode()) for pos, token, h in rows] == [
                (step["pos"], step["token"], step["logits"][:16]) for step in steps]
            assert out.endswith(f"root: {log.head()}\n".encode())
    assert b"\\u001b[31m" in out


def test_show_step_can_be_followed_with_sha256(traces, capfdbinary):
    for kind in "step", "op":
        lines = read_lines(traces[kind])[:-1]
        for pos in 0, 5, 13:
            code, out, _ = command(capfdbinary, "show", traces[kind], "--step", pos, program=tracing)
            rows = out.decode().splitlines()
            line = lines[int(re.fullmatch(r"line (\d+) of the file:", rows[0])[1]) - 1]
            assert code == 0 and json.loads(line)["pos"] == pos and rows[1] == f"  pos: {pos}"
            current = hashlib.sha256(b"\0" + line).hexdigest()
            for row in rows[6:]:
                if match := re.match(r"  \| (left|right) +child, beside ([0-9a-f]{64})$", row):
                    pair = [current, match[2]] if match[1] == "left" else [match[2], current]
                    current = hashlib.sha256(b"\x01" + bytes.fromhex("".join(pair))).hexdigest()
                elif row.endswith("right)") or row.endswith("line)"):
                    assert row.split(" = ")[0] == current
            assert current == formats.read(traces[kind]).root


def test_every_proof_checks_and_needs_neither_trace_nor_model(traces, tmp_path, capfdbinary):
    for kind in "step", "layer", "op", "c":
        log = formats.read(traces[kind])
        assert command(capfdbinary, "root", traces[kind], program=tracing)[1].decode() == log.head() + "\n"
        for steps in "0", "1", "7", "13", "0-13", "4-6":
            code, out, err = command(capfdbinary, "prove", traces[kind], steps, program=tracing)
            assert (code, err) == (0, "")
            (tmp_path / "proof").write_bytes(out)
            code, out, err = command(capfdbinary, "check", tmp_path / "proof", "--root", log.head(), program=tracing)
            first, last = int(steps.split("-")[0]), int(steps.split("-")[-1])
            first -= first == 1  # step 0 needs no step before it, so that it is proved as well
            assert (code, err) == (0, "") and b'  prompt: "ab \\ud83d\\ude00a"\n' in out
            assert re.findall(rb"  pos: (\d+)\n", out) == [b"%d" % pos for pos in range(first, last + 1)]
            assert proofs.verify_proof(tmp_path / "proof", log.head()) == (
                log.header, [log.event(log.steps[pos]) for pos in range(first, last + 1)])


def test_a_root_without_its_size_is_not_enough_for_a_proof(traces, tmp_path, capfdbinary):
    log = formats.read(traces["step"])
    (tmp_path / "proof").write_bytes(proofs.prove(log, 6))
    message = failure(capfdbinary, "check", tmp_path / "proof", "--root", log.root, program=tracing)
    assert message == f"argument --root: the size is needed, too, as SIZE:ROOT: {log.root}"
    for size in 14, 16, 31:
        head = f"{size}:{log.root}"
        message = failure(capfdbinary, "check", tmp_path / "proof", "--root", head, program=tracing, code=1)
        assert f"root: expected {head}, got {log.head()}" in message


@given(st.data())
@examples(150)
def test_a_log_that_grows_proves_it_and_any_other_does_not(tmp_path_factory, traces, data):
    log, path = formats.read(traces["layer"]), str(tmp_path_factory.getbasetemp() / "growth.proof")
    size = data.draw(st.integers(1, len(log)))
    earlier = writing.head(size, log.tree.root(size))
    proof = bytearray(proofs.prove_growth(log, size))
    with open(path, "wb") as file:
        file.write(proof)
    proofs.verify_growth(path, log.head(), earlier)
    other = data.draw(st.integers(1, len(log)).filter(lambda n: n != size))
    shifted = (earlier, log.head()) if size < len(log) else (log.head(), writing.head(other, log.tree.root(size)))
    for wrong in (log.head(), writing.head(other, log.tree.root(other))), shifted:
        with pytest.raises(VerificationError):
            proofs.verify_growth(path, *wrong)
    bit = data.draw(st.integers(0, 8 * len(proof) - 1))
    proof[bit // 8] ^= 1 << bit % 8
    with open(path, "wb") as file:
        file.write(proof)
    with pytest.raises((ValueError, VerificationError)):
        proofs.verify_growth(path, log.head(), earlier)


def test_a_proof_that_is_too_large_is_refused(tmp_path, capfdbinary):
    with open(tmp_path / "proof", "wb") as file:
        file.truncate(2**24 + 1)
    message = failure(capfdbinary, "check", tmp_path / "proof", "--root", "3:" + "00" * 32, program=tracing)
    assert message == f"{tmp_path / 'proof'}: is larger than 16777216 bytes"


def test_growth_on_the_command_line(traces, tmp_path, capfdbinary):
    lines = read_lines(traces["step"])
    log, cut = formats.read(traces["step"]), formats.read(forge(tmp_path / "cut", lines[:6], False))
    code, out, err = command(capfdbinary, "prove", traces["step"], "--from", 6, program=tracing)
    (tmp_path / "proof").write_bytes(out)
    args = "check", tmp_path / "proof", "--root", log.head(), "--from", cut.head()
    code, out, err = command(capfdbinary, *args, program=tracing)
    assert (code, err) == (0, "") and out.decode().split() == [
        "proved:", "the", "log", "with", "the", "head", log.head(), "begins", "with", "the", "one", "that", "had",
        "the", "head", cut.head()]
    failure(capfdbinary, *args[:4], "--from", f"5:{cut.head()[2:]}", program=tracing, code=1)
    failure(capfdbinary, *args[:4], program=tracing)
    (tmp_path / "proof").write_bytes(proofs.prove(log, 3))
    failure(capfdbinary, *args, program=tracing)
    for bad in ["--from", 0], ["--from", 16], ["3", "--from", 6], [], ["3-2"], ["3-14"], ["3-4", "--tlog"]:
        failure(capfdbinary, "prove", traces["step"], *bad, program=tracing)


# A forger makes any log and any tree. Under one head at most one step of each position passes.

def forged_lines(draw):
    """Lines of a log that may be none: a header, steps and operations, in any order, with any positions."""
    header = {**HEADER, "level": draw(st.sampled_from(["step", "step", "layer"])), "steps": draw(st.integers(1, 4))}
    lines = [header]
    for pos in draw(st.lists(st.integers(0, 4), max_size=7)):
        token = draw(st.sampled_from([1, 5, 7])) if pos else 1
        step = {"pos": pos, "token": 5 if pos == 1 else token, "next": 5 if pos == 0
                else draw(st.sampled_from([1, 7, 9])),
                "text": draw(st.sampled_from(["a", "b"])), "logits": "00" * 32}
        if header["level"] == "layer" and draw(st.booleans()):
            lines += [{"pos": pos, "layer": l, "op": "ffn_residual", "sha256": "00" * 32} for l in (0, 1)]
        lines.append(step)
    if draw(st.booleans()):
        lines = draw(st.permutations(lines))
    return [events.encode(line) for line in lines]


@pytest.mark.slow
@given(st.data())
@examples(40)
def test_under_one_head_one_step_at_most_passes_for_a_position(tmp_path_factory, data):
    lines = forged_lines(data.draw)
    leaves = [merkle.leaf_hash(line) for line in lines]
    tree = merkle.MerkleTree()
    for leaf in leaves:
        tree.append(leaf)
    head, path = f"{len(lines)}:{mth(leaves).hex()}", str(tmp_path_factory.getbasetemp() / "forged.proof")
    passed = {}
    sizes = {len(lines), data.draw(st.integers(1, 20))}
    for i, j in [(i, j) for i in range(len(lines)) for j in range(len(lines))]:
        for index in {j, data.draw(st.integers(0, 20))}:
            for size in sizes:
                paths = [tree.inclusion_proof(k) for k in (i, j)]
                event = [{"index": k, "line": lines[at].decode(), "path": [h.hex() for h in p]}
                         for k, at, p in zip((0, index), (i, j), paths, strict=True)]
                with open(path, "wb") as file:
                    file.write(events.encode({"format": "llama2.py proof 3", "size": size, "root": mth(leaves).hex(),
                                             "events": event}))
                try:
                    header, (step,) = proofs.verify_proof(path, head)
                except (ValueError, VerificationError):
                    continue
                assert passed.setdefault(step["pos"], (header, step)) == (header, step)
    for header, step in passed.values():  # and it is the step that a reader of the whole log finds there
        per_step = 3 if header["level"] == "layer" else 1
        assert json.loads(lines[0]) == header and json.loads(lines[(step["pos"] + 1) * per_step]) == step
        assert step["pos"] < header["steps"] and len(lines) <= 1 + header["steps"] * per_step


@pytest.mark.parametrize("lines, size, index", [
    ([HEADER, *[{"pos": 0, "token": 1, "next": 5, "text": t, "logits": "00" * 32} for t in "ab"]], 3, 2),  # twice pos 0
    ([HEADER, {"pos": 123456, "token": 1, "next": 5, "text": "", "logits": "00" * 32}], 2, 1),
    ([{**HEADER, "steps": 9}, {"pos": 0, "token": 1, "next": 5, "text": "", "logits": "00" * 32}], 2, 1),
    ([{**HEADER, "p_value": 2.0}, {"pos": 0, "token": 1, "next": 5, "text": "", "logits": "00" * 32}], 2, 1),
    ([HEADER, {"pos": 0, "token": 2, "next": 5, "text": "", "logits": "00" * 32}], 2, 1),  # not as forced
    ([HEADER, {"pos": 0, "token": 1, "next": 6, "text": "", "logits": "00" * 32}], 2, 1),
    ([{**HEADER, "tokens": [1]}, {"pos": 0, "token": 1, "next": 50, "text": "", "logits": "00" * 32}], 2, 1),
    ([{**HEADER, "tokens": [1]}, *[{"pos": 0, "token": 1, "next": 1, "text": "", "logits": "00" * 32}] * 2], 3, 1),
    ([{**HEADER, "steps": 1}, *[{"pos": 0, "token": 1, "next": 5, "text": "", "logits": "00" * 32}] * 2], 3, 1),
    ([HEADER, {"pos": 0, "op": "embedding", "sha256": "00" * 32}], 2, 1)])
def test_lines_that_cannot_stand_in_one_log_prove_nothing(tmp_path, lines, size, index):
    lines, tree = [events.encode(line) for line in lines], merkle.MerkleTree()
    for line in lines:
        tree.append(merkle.leaf_hash(line))
    (tmp_path / "proof").write_bytes(events.encode({"format": "llama2.py proof 3", "size": size,
                                                   "root": tree.root().hex(),
        "events": [{"index": i, "line": lines[i].decode(), "path": [h.hex() for h in tree.inclusion_proof(i)]}
                   for i in (0, index)]}))
    with pytest.raises((ValueError, VerificationError)):
        proofs.verify_proof(tmp_path / "proof", writing.head(size, tree.root()))


def forged_steps(level="step"):
    """A log of three steps, each with its next token as the following one's input, but for the third."""
    header = {**HEADER, "level": level, "tokens": [1]}
    steps = [{"pos": pos, "token": token, "next": next_token, "text": "", "logits": "00" * 32}
             for pos, token, next_token in ((0, 1, 5), (1, 5, 7), (2, 9, 9))]
    ops = [[{"pos": pos, "layer": l, "op": "ffn_residual", "sha256": "00" * 32} for l in (0, 1)] for pos in range(3)]
    lines = [header]
    for operations, step in zip(ops, steps, strict=True):
        lines += [*operations, step] if level == "layer" else [step]
    return [events.encode(line) for line in lines]


@pytest.mark.parametrize("level", ["step", "layer"])
def test_a_token_is_the_next_of_the_step_before(tmp_path, level):
    path = forge(tmp_path / "t", forged_steps(level))
    with pytest.raises(VerificationError, match="token: expected 7, got 9"):
        formats.read(path)


@pytest.mark.parametrize("level, per_step", [("step", 1), ("layer", 3)])
def test_the_steps_of_one_proof_follow_each_other(tmp_path, level, per_step):
    lines, tree = forged_steps(level), merkle.MerkleTree()
    for line in lines:
        tree.append(merkle.leaf_hash(line))
    head = writing.head(len(lines), tree.root())

    def prove(*steps):
        indices = [0, *((pos + 1) * per_step for pos in steps)]
        (tmp_path / "proof").write_bytes(events.encode({
            "format": "llama2.py proof 3", "size": len(lines), "root": tree.root().hex(), "events": [
                {"index": i, "line": lines[i].decode(), "path": [h.hex() for h in tree.inclusion_proof(i)]}
                for i in indices]}))
        return proofs.verify_proof(tmp_path / "proof", head)[1]

    assert [step["pos"] for step in prove(0, 1)] == [0, 1]
    with pytest.raises(ValueError, match="the step before"):
        prove(2)
    for steps, field in ((0, 2), "index"), ((1, 0), "index"), ((1, 1), "index"), ((1, 2), "token"), ((0, 1, 2),
                                                                                                     "token"):
        with pytest.raises(VerificationError, match=f": {field}: expected"):
            prove(*steps)


def test_neighbours_that_contradict_each_other_are_not_both_proved(tmp_path):
    """Step 1 says that 7 follows, step 2 that it reads 9; or that the run ends, and another step follows."""
    for ended in False, True:
        lines, tree = forged_steps(), merkle.MerkleTree()
        if ended:
            lines[2] = edit(lines[2], next=1)
            lines[3] = edit(lines[3], token=1)
        for line in lines:
            tree.append(merkle.leaf_hash(line))
        paths = [[h.hex() for h in tree.inclusion_proof(i)] for i in range(4)]
        for first in 1, 2, 3:
            proof = events.encode({"format": proofs.PROOF_FORMAT, "size": 4, "root": tree.root().hex(), "events": [
                {"index": i, "line": lines[i].decode(), "path": paths[i]} for i in [0, *range(first, 4)]]})
            with pytest.raises((VerificationError, ValueError)):
                proofs.verify_proof(proof, writing.head(4, tree.root()))


def test_a_step_behind_a_token_that_ends_the_run_is_not_proved():
    """Step 1 reads BOS, so that the run was over; the proof of step 2 holds it as the step before."""
    lines, tree = forged_steps(), merkle.MerkleTree()
    lines[1:] = [edit(lines[1], next=5), edit(lines[2], token=1, next=3), edit(lines[3], token=3)]
    for line in lines:
        tree.append(merkle.leaf_hash(line))
    proof = events.encode({"format": proofs.PROOF_FORMAT, "size": 4, "root": tree.root().hex(), "events": [
        {"index": i, "line": lines[i].decode(), "path": [h.hex() for h in tree.inclusion_proof(i)]}
        for i in (0, 2, 3)]})
    with pytest.raises(VerificationError, match="token: expected .* got 1"):
        proofs.verify_proof(proof, writing.head(4, tree.root()))


def test_a_proof_that_could_not_be_checked_is_not_made(traces, monkeypatch):
    log = formats.read(traces["step"])
    whole = proofs.prove(log, 0, 9)
    monkeypatch.setattr(proofs, "MAX_PROOF", len(whole) - 1)
    with pytest.raises(ValueError, match="a proof of these steps is larger than .* bytes: ask for fewer"):
        proofs.prove(log, 0, 9)
    assert len(proofs.prove(log, 3)) < len(whole)


def test_a_text_that_is_claimed_is_that_of_the_tokens(files, tmp_path, capfdbinary):
    """What a log shows for the eye is ambiguous: \\xe2 is a byte, or four characters of a token's own."""
    pieces = [rb"\xe2\x82\xac"] * 280
    odd = make_tokenizer(tmp_path / "odd.bin", pieces, [0.0] * 280)
    model = files["grouped"], "-z", odd
    assert command(capfdbinary, *model, "--tokens", "1,7", "-t", 0, "-n", 3, "--trace", tmp_path / "t")[0] == 0
    for text, expected in (r"\xe2\x82\xac" * 3, 0), ("\u20ac" * 3, 1):
        (tmp_path / "text").write_text(text, encoding="utf-8")
        assert command(capfdbinary, *model, "--verify", tmp_path / "t", "--text", tmp_path / "text")[0] == expected


def test_a_proof_is_read_from_bytes_as_well(traces):
    log = formats.read(read_bytes(traces["step"]))
    assert log.path == "the bytes" and log.head() == formats.read(traces["step"]).head()
    assert proofs.verify_proof(proofs.prove(log, 5), log.head())[1] == [log.event(6)]
    proofs.verify_growth(proofs.prove_growth(log, 3), log.head(), writing.head(3, log.tree.root(3)))


STUFFINGS = [b"{},", b'{"index":0,"line":"' + rb"\u0000", b"1,", *[b'{"index":0,"line":"' + text for text in (
    b"", rb"\\", rb"\"", b" ")], b'{"index":0,"line":"x","path":["' + b'%s","' % (b"0" * 64)]


@pytest.mark.parametrize("stuffing", [pytest.param(stuffing, marks=[pytest.mark.slow] if i > 1 else [])
                                      for i, stuffing in enumerate(STUFFINGS)])
def test_a_proof_that_is_stuffed_takes_no_memory(stuffing, tmp_path, traces):
    """What stands at the end of an event is written again and again: objects, what a string has, or hashes."""
    log = formats.read(traces["step"])
    begin = proofs.prove(log, 0).split(b'"events":[')[0] + b'"events":['
    *once, repeated = re.split(rb'(?<="line":")|(?<="path":\[)', stuffing)
    data = begin + b"".join(once) + (repeated or b"a") * (2**23 // len(repeated or b"a")) + b'","path":[]}]}'
    (tmp_path / "proof").write_bytes(data)
    most = 24 + 3 * len(data) / 1e6  # a line of 4 MB alone takes as much
    assert peak_of(tmp_path, "check", tmp_path / "proof", "--root", log.head()) < most


def peak_of(folder, *args):
    """The peak of a trace.py command's memory, in MB; it must fail."""
    code = ("import sys, tracemalloc\nfrom llama2_py import trace_command\ntracemalloc.start()\n"
            "assert trace_command.main(sys.argv[1:]) in (1, 2)\n"
            "print(tracemalloc.get_traced_memory()[1] / 1e6)")
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_a_line_that_no_log_has_is_measured_before_it_is_read(tmp_path, traces):
    header = read_lines(traces["step"])[0]
    with open(tmp_path / "long", "wb") as file:
        file.write(header + b"\n" + b"x" * 2**20)
        file.truncate(2**27)  # zeros, that take no room
    assert peak_of(tmp_path, "root", tmp_path / "long") < 16


def test_a_line_may_have_as_many_bytes_as_the_limit_says(monkeypatch, traces):
    longest = max(map(len, read_lines(traces["op"])))
    for limit in longest, longest - 1:
        monkeypatch.setattr("llama2_py.log.reading.MAX_LINE", limit)
        monkeypatch.setattr(events, "MAX_LINE", limit)
        with pytest.raises(ValueError, match=f"more than the {limit} bytes") if limit < longest else (
                contextlib.nullcontext()):
            formats.read(traces["op"])


def test_a_long_log_is_read_line_by_line(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "IN_MEMORY", 100)
    header = {**HEADER, "level": "op", "steps": 2, "tokens": [1]}
    writer = writing.Writer(tmp_path / "t", {name: header[name] for name in header if name != "format"})
    for pos in 0, 1:
        for op, layer in graph.sequence(2)[:-1]:
            writer.operation(layer, op, [1.0, float(pos)])
        writer.step(llama2.Step(pos, 5 if pos else 1, 5, b"x", [0.0]))
    writer.finish()
    writer.close()
    log = formats.read(tmp_path / "t")
    assert log.head() == writer.head() and list(log.lines) == read_lines(tmp_path / "t")[:-1]
    assert log.lines.file.name == tmp_path.joinpath("t").as_posix()
    with open(tmp_path / "t", "r+b") as file:
        file.write(b"!")
    with pytest.raises(ValueError, match="t: the file was changed while it was being read"):
        log.event(0)


def test_trees_of_two_sizes_under_one_root_are_told_apart(tmp_path):
    """Leaf 5 of 6 and of 7 leaves can have the same path to the same root, if somebody builds the trees so."""
    leaves = [merkle.leaf_hash(b"%d" % i) for i in range(4)]
    inner, right = mth(leaves), [merkle.leaf_hash(b"a"), merkle.leaf_hash(b"b")]
    root = merkle.node_hash(inner, merkle.node_hash(*right))
    merkle.verify_inclusion(right[1], 5, 6, [right[0], inner], root)
    merkle.verify_inclusion(right[1], 6, 7, [right[0], inner], root)  # the same leaf at another place: so size is given


# Other formats for the same proofs


@pytest.fixture
def golden_log(tmp_path):
    lines = [events.encode(line) for line in [HEADER, *[
        {"pos": i, "token": (1, 5, 7)[i], "next": (5, 7, 9)[i], "text": "x", "logits": f"{i:064x}"} for i in range(3)]]]
    return formats.read(forge(tmp_path / "golden", lines)), lines


def test_a_checkpoint_is_c2sps(golden_log, tmp_path, capfdbinary):
    log, lines = golden_log
    root = base64.b64encode(mth([merkle.leaf_hash(line) for line in lines])).decode()
    code, out, err = command(capfdbinary, "checkpoint", tmp_path / "golden", "example.com/llama", program=tracing)
    assert (code, err) == (0, "") and out.decode() == f"example.com/llama\n4\n{root}\n"
    assert root == "sreV57Vub1oaeSmHRAb2+eSKLxq+ni5IGHv/Cnmlh+I="
    for origin in "", "a b", "a+b", "a\nb", "a\x1b[31m", "a\u202eb", "a\u00a0b", os.fsdecode(b"a\xff"):
        failure(capfdbinary, "checkpoint", tmp_path / "golden", origin, program=tracing)


def test_a_tlog_proof_is_c2sps(golden_log, tmp_path, capfdbinary):
    log, lines = golden_log
    code, out, err = command(capfdbinary, "prove", tmp_path / "golden", 1, "--tlog", program=tracing)
    assert (code, err) == (0, "")
    leaves = [merkle.leaf_hash(line) for line in lines]
    sibling, pair = leaves[3], merkle.node_hash(leaves[0], leaves[1])
    assert out.decode() == ("c2sp.org/tlog-proof@v1\nindex 2\n" + "".join(
        base64.b64encode(h).decode() + "\n" for h in (sibling, pair)) + "\n" + proofs.checkpoint(log, "llama2.py"))
    (tmp_path / "note").write_text(proofs.checkpoint(log, "other.org").replace("\n4\n", "\n5\n"))
    message = failure(capfdbinary, "prove", tmp_path / "golden", 1, "--tlog", tmp_path / "note",
                      program=tracing, code=1)
    assert message.startswith("verification failed: the checkpoint: size and root: expected")


@pytest.mark.parametrize("change, message", [
    (lambda note: note[:-1], "its last line does not end in a newline"),
    (lambda note: note + b"\n\xff\n", "byte 67 is not UTF-8"),
    (lambda note: note + "\u2014 a b\x1b[2Jc\n".encode(), "note, line 4: is"),
    (lambda note: b"\x1b" + note, "origin is"), (lambda note: b"", "its last line does not end in a newline")])
def test_a_note_that_is_none_is_refused(golden_log, tmp_path, capfdbinary, change, message):
    log, _ = golden_log
    (tmp_path / "note").write_bytes(change(proofs.checkpoint(log, "example.com/llama!").encode()))
    assert message in failure(capfdbinary, "prove", tmp_path / "golden", 1, "--tlog", tmp_path / "note",
                              program=tracing)


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl, to sign and to check the signature")
def test_a_signed_checkpoint_in_a_tlog_proof_is_checked_by_other_tools(golden_log, tmp_path, capfdbinary):
    log, lines = golden_log
    text = proofs.checkpoint(log, "example.com/llama").encode()
    (tmp_path / "text").write_bytes(text)

    def openssl(*args):
        return subprocess.run(["openssl", *map(str, args)], capture_output=True, check=True).stdout

    openssl("genpkey", "-algorithm", "ed25519", "-out", tmp_path / "key")
    openssl("pkey", "-in", tmp_path / "key", "-pubout", "-out", tmp_path / "public")
    openssl("pkeyutl", "-sign", "-inkey", tmp_path / "key", "-rawin", "-in", tmp_path / "text", "-out",
            tmp_path / "sig")
    public = openssl("pkey", "-in", tmp_path / "key", "-pubout", "-outform", "DER")[-32:]
    name = b"example.com/llama"
    key_id = hashlib.sha256(name + b"\n\x01" + public).digest()[:4]  # as C2SP's signed-note has it for Ed25519
    signature = base64.b64encode(key_id + (tmp_path / "sig").read_bytes())
    (tmp_path / "note").write_bytes(text + b"\n\xe2\x80\x94 " + name + b" " + signature + b"\n")
    code, out, err = command(capfdbinary, "prove", tmp_path / "golden", 2, "--tlog", tmp_path / "note", program=tracing)
    assert (code, err) == (0, "")

    # now as a stranger who has the proof, the step's line and the public key
    head, _, note = out.partition(b"\n\n")
    magic, index, *hashes = head.decode().split("\n")
    signed, _, signatures = note.partition(b"\n\n")
    origin, size, root = signed.decode().split("\n")
    dash, signer, encoded = signatures.decode().split()
    assert (magic, index, dash, signer) == ("c2sp.org/tlog-proof@v1", "index 3", "\u2014", origin)
    (tmp_path / "sig").write_bytes(base64.b64decode(encoded)[4:])
    (tmp_path / "text").write_bytes(signed + b"\n")
    assert b"Verified Successfully" in openssl("pkeyutl", "-verify", "-pubin", "-inkey", tmp_path / "public", "-rawin",
                                               "-in", tmp_path / "text", "-sigfile", tmp_path / "sig")
    merkle.verify_inclusion(merkle.leaf_hash(lines[3]), 3, int(size), list(map(base64.b64decode, hashes)),
                            base64.b64decode(root))


def test_a_proof_of_a_long_trace_is_short(tmp_path):
    header = {**HEADER, "config": {**CONFIG, "vocab_size": 512, "seq_len": 1000}, "steps": 1000, "tokens": [1]}
    del header["format"]
    writer = writing.Writer(tmp_path / "t", header)
    sizes = []
    for pos in range(1000):
        writer.step(llama2.Step(pos, 300 if pos else 1, 300, b" story", [pos]))
        sizes.append(writer.written)
    writer.finish()
    writer.close()
    assert sizes[99] < 16_000
    log = formats.read(tmp_path / "t")
    assert max(len(proofs.prove(log, pos)) for pos in (0, 511, 999)) < 3400


@pytest.mark.parametrize("change", [
    lambda p, q: {**p, "size": p["size"] + 10}, lambda p, q: {**p, "size": 6}, lambda p, q: {**p, "root": "00" * 32},
    lambda p, q: {**p, "events": p["events"][:1]},
    lambda p, q: {**p, "events": [p["events"][0], {**p["events"][1], "index": 5}]},
    lambda p, q: {**p, "events": [p["events"][0], {**p["events"][1], "line": q["events"][1]["line"]}]},
    lambda p, q: {**p, "events": [p["events"][0], {**p["events"][1], "path": p["events"][1]["path"][::-1]}]},
    lambda p, q: {**p, "events": [p["events"][0], {**p["events"][1], "path": p["events"][1]["path"][1:]}]},
    lambda p, q: {**p, "events": [
        {**p["events"][0], "line": p["events"][0]["line"].replace('"seed":7', '"seed":8')}, p["events"][1]]},
    lambda p, q: {**p, "events": [p["events"][1], p["events"][1]]}, lambda p, q: {**p, "events": [p["events"][0]] * 2},
    lambda p, q: {**p, "events": p["events"] + p["events"][1:]}, lambda p, q: {**p, "more": 1}, lambda p, q: [],
    lambda p, q: 3,
    lambda p, q: {**p, "root": [[]]}, lambda p, q: {**p, "size": "14"}, lambda p, q: {**p, "size": None}, lambda p,
    q: {**p, "size": 2**80},
    lambda p, q: {**p, "events": 3},
    lambda p, q: {**p, "events": [p["events"][0], {**p["events"][1], "path": [3]}]},
    lambda p, q: {**p, "events": [p["events"][0], {**p["events"][1], "path": ["00" * 32] * 100}]},
    lambda p, q: {**p, "events": [p["events"][0], {**p["events"][1], "index": "6"}]},
    lambda p, q: {**p, "events": [p["events"][0], {**p["events"][1], "line": 3}]},
    lambda p, q: {**p, "events": [p["events"][0], {**p["events"][1], "index": "\x1b[31m\n"}]},
    lambda p, q: {**p, "events": [p["events"][0], {**p["events"][1], "path": dict.fromkeys(p["events"][1]["path"])}]},
    lambda p, q: {**p, "format": "llama2.py proof 1"}])
def test_a_changed_proof_is_noticed(traces, tmp_path, capfdbinary, change):
    log = formats.read(traces["step"])
    proof, other = (json.loads(proofs.prove(log, pos)) for pos in (6, 7))
    changed = change(proof, other)
    # the same turns to the root in a tree of 15 and of 16 leaves only
    if changed == {**proof, "size": proof["size"] + 10}:
        assert log.tree.size == 15
    (tmp_path / "bad").write_bytes(events.encode(changed))
    code, out, err = command(capfdbinary, "check", tmp_path / "bad", "--root", log.head(), program=tracing)
    assert code in (1, 2) and out == b"" and err.count("\n") == 1 and err.startswith("trace.py: error: ")
    assert "\x1b" not in err
    if changed == {**proof, "root": [[]]}:  # nested deeply enough it could be read and compared, but not be written
        assert "size and root are not a number and a hash" in err


@given(st.sampled_from(["step", "layer", "op"]), st.integers(0, 13), st.data())
@examples(100)
def test_a_proof_proves_its_header_and_step_and_with_any_bit_flipped_nothing(tmp_path_factory, traces, kind, pos, data):
    log, path = formats.read(traces[kind]), str(tmp_path_factory.getbasetemp() / "flipped.proof")
    proof = bytearray(proofs.prove(log, pos))
    bit = data.draw(st.integers(0, 8 * len(proof) - 1))
    for flip in 0, 1:
        proof[bit // 8] ^= flip << bit % 8
        with open(path, "wb") as file:
            file.write(proof)
        if flip:
            with pytest.raises((ValueError, VerificationError)):
                proofs.verify_proof(path, log.head())
        else:
            first = 0 if pos == 1 else pos  # step 0 needs no step before it
            assert proofs.verify_proof(path, log.head()) == (
                log.header, [log.event(log.steps[at]) for at in range(first, pos + 1)])


def test_a_header_elsewhere_than_in_the_first_line_proves_nothing(traces, tmp_path, capfdbinary):
    header, step, *_ = read_lines(traces["step"])
    lines, tree = [b"x", header, step], merkle.MerkleTree()
    for line in lines:
        tree.append(merkle.leaf_hash(line))
    root = tree.root().hex()
    (tmp_path / "proof").write_bytes(events.encode({"format": "llama2.py proof 3", "size": 3, "root": root, "events": [
        {"index": i, "line": lines[i].decode(), "path": [h.hex() for h in tree.inclusion_proof(i)]} for i in (1, 2)]}))
    message = failure(capfdbinary, "check", tmp_path / "proof", "--root", f"3:{root}", program=tracing)
    assert message.endswith("not a proof: does not hold a header and a step")


def test_a_proof_of_another_trace_is_noticed(traces, tmp_path, capfdbinary):
    (tmp_path / "proof").write_bytes(proofs.prove(formats.read(traces["step"]), 6))
    for head in formats.read(traces["c"]).head(), "15:" + "00" * 32:
        assert ": root: expected" in failure(capfdbinary, "check", tmp_path / "proof", "--root", head, program=tracing,
                                             code=1)
    assert "--root" in failure(capfdbinary, "check", tmp_path / "proof", program=tracing)


def test_diff_names_the_first_operation_that_differs(files, traces, model, tmp_path, capfdbinary):
    assert command(capfdbinary, "diff", traces["op"], traces["op"], program=tracing) == (
        0, b"the two traces are equal\n", "")
    checkpoint = Checkpoint(files["grouped"])
    offset, rows, columns = checkpoint.tensors["w1"]
    weight = struct.unpack_from("<I", checkpoint.data, offset)[0]
    other = edited(files["grouped"], tmp_path / "other.bin", offset, "I", weight ^ 1 << 22)
    with contextlib.redirect_stderr(io.StringIO()):
        command_line.main([other, *model[1:], *OPTIONS, "--trace-level", "op", "--trace", str(tmp_path / "t")])
    code, out, err = command(capfdbinary, "diff", traces["op"], tmp_path / "t", program=tracing)
    assert code == 1 and err == ""
    header, operation = out.decode().splitlines()
    assert "line 1 (header): model: expected" in header
    assert "(position 0, layer 0, operation gate): sha256: expected" in operation
    lines = read_lines(traces["op"])
    code, out, _ = command(capfdbinary, "diff", traces["op"], forge(tmp_path / "cut", lines[:-1], False),
                           program=tracing)
    assert code == 1 and b"root: expected" in out
    code, out, _ = command(capfdbinary, "diff", traces["op"], forge(tmp_path / "cut", lines[:-9], False),
                           program=tracing)
    assert code == 1 and b"number of events: expected 435, got 427" in out
    assert command(capfdbinary, "diff", traces["rust"], traces["rust"], program=tracing)[0] == 0
    assert command(capfdbinary, "diff", traces["rust"], traces["step"], program=tracing)[0] == 1


def test_traces_of_two_levels_are_compared_in_what_both_have(files, traces, model, tmp_path, capfdbinary):
    for a, b in ("step", "op"), ("op", "layer"), ("layer", "step"):
        code, out, err = command(capfdbinary, "diff", traces[a], traces[b], program=tracing)
        assert (code, out.decode(), err) == (
            0, f"the two traces are equal in what both have: {a} and {b} are their levels\n", "")
    lines = read_lines(traces["op"])[:-1]
    at = 31 * 3 + 29  # ffn_residual of the last layer at position 3
    lines[at] = edit(lines[at], sha256="5a" * 32)
    other = forge(tmp_path / "other", lines)
    assert command(capfdbinary, "diff", traces["step"], other, program=tracing)[0] == 0
    code, out, err = command(capfdbinary, "diff", traces["layer"], other, program=tracing)
    where = f"line {at + 1} (position 3, layer 1, operation ffn_residual)"
    assert code == 1 and f"{where}: sha256: expected" in out.decode()
    cut = forge(tmp_path / "cut", lines[:100], False)
    code, out, err = command(capfdbinary, "diff", traces["step"], cut, program=tracing)
    assert code == 1 and b"number of events: expected 15, got 4" in out


def test_text_is_what_the_run_printed(traces, model, capfdbinary):
    for kind, more in ("op", []), ("rust", ["--like", "llama2-rs"]):
        printed = command(capfdbinary, *model, *OPTIONS, *more)[1]
        assert command(capfdbinary, "text", traces[kind], program=tracing)[:2] == (0, printed)


@pytest.mark.parametrize("args", [[], ["sing"], ["show"], ["show", "none"], ["prove", "{}", "x"],
                                  ["prove", "{}", "14"], ["root", "{}", "x"], ["text"],
                                  ["prove", "{}", "-1"], ["show", "{}", "--step", "99"],
                                  ["check", "{}", "--root", "00"], ["check", "{}", "--root", "15:" + "00" * 32],
                                  ["prove", "{rust}", "1"], ["show", "{rust}", "--step", "1"]])
def test_bad_questions_to_trace_get_one_line(traces, capfdbinary, args):
    failure(capfdbinary, *[arg.replace("{}", traces["step"]).replace("{rust}", traces["rust"]) for arg in args],
            program=tracing)


@pytest.mark.parametrize("data", [b"", b"\n", b"{}\n", b"text\n", b"{", b"\0" * 7, b"\0" * 8, b"\xff" * 100,
                                  b'{"size":0,"root":"' + b"0" * 64 + b'"}\n'])
def test_files_that_are_no_traces_get_one_line(model, tmp_path, capfdbinary, data):
    path = tmp_path / "bad"
    path.write_bytes(data)
    for args, program in (
            (("show", path), tracing), (("--explain-text", path), command_line),
            ((*model, "--verify", path), command_line)):
        assert str(path) in failure(capfdbinary, *args, program=program)


def test_the_trace_in_the_docstring_is_that_of_its_command(tmp_path, capfdbinary):
    command(capfdbinary, "-s", 1, "-n", 2, "--trace", tmp_path / "t")
    shown = re.sub(r"HEX\d\.\.", "HEX..", re.sub(r",\n +", ",", door("trace.py").__doc__))
    for line in read_lines(tmp_path / "t"):
        assert re.sub(r"[0-9a-f]{64}", "HEX..", line.decode()) in shown
