"""Tests of llama2.py, from the smallest part to the whole: plain.py judges."""
import concurrent.futures
import contextlib
import heapq
import io
import itertools
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import llama2
import plain
from llama2_py.console import VERSION
from llama2_py.engine import merging
from llama2_py.log import formats, show
from llama2_py.log import verify as verification
from llama2_py.console import VerificationError
from tests.helpers import (COINS, HERE, JUDGES, PIECES, SCORES, SHAPES, STORY, STORY_LOGITS, STORY_ROOT, TOKENIZER,
                           Scripted, command, edit, edited, examples, failure, forge, forward_definition,
                           make_checkpoint, make_tokenizer, process, read_bytes, read_lines, rounded, run_forward, tell)


# ----------------------------------------------------------------------------
# Transformer

@pytest.mark.parametrize("arithmetic", ["exact", "c"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_operation_equals_the_definition(files, shape, arithmetic):
    tokens = [1, 7, 279, 7, 30, 4]
    definition = forward_definition(arithmetic, files[f"{shape}, version 0"], tokens)
    run = run_forward(files[shape], arithmetic, tokens)
    for pos, (got, expected) in enumerate(zip(run, definition, strict=True)):
        for one, other in zip(got[0], expected[0], strict=True):
            assert one == other, (pos, one[:2], other[:2])
        assert len(got[0]) == len(expected[0]) == 2 + 14 * 2
        assert got[1] == expected[1], f"logits of position {pos}"


def test_positions_come_in_order_or_begin_anew(files):
    with llama2.Transformer(files["grouped"]) as transformer:
        first = [transformer.forward(token, pos) for pos, token in enumerate([1, 5, 9])]
        for pos in 1, 2, 4, -1:
            with pytest.raises(ValueError, match="position"):
                transformer.forward(9, pos)
        assert [transformer.forward(token, pos) for pos, token in enumerate([1, 5])] == first[:2]
        with pytest.raises(ValueError, match="position 3 is neither 0 nor the next, 2"):
            transformer.forward(9, 3)
        assert transformer.forward(1, 0) == first[0]
        for token in -1, 280:
            with pytest.raises(ValueError, match="vocabulary of 280"):
                transformer.forward(token, 1)


def test_the_context_ends(files):
    with llama2.Transformer(files["multi-query"]) as transformer:
        for pos in range(32):
            transformer.forward(1, pos)
        with pytest.raises(ValueError, match="32"):
            transformer.forward(1, 32)


def test_finite_weights_whose_activations_overflow_are_an_error(tmp_path):
    path = make_checkpoint(tmp_path / "big", scale=1e15)
    with llama2.Transformer(path) as transformer, pytest.raises(ValueError, match="not finite"):
        for pos in range(4):
            transformer.forward(pos, pos)


# ----------------------------------------------------------------------------
# Tokenizer

@given(st.text(st.sampled_from("ab cdé😀\n~"), max_size=40) | st.text(max_size=12))
@examples(400)
def test_encoding_is_the_quadratic_definition(tokenizer, text):
    assume(not any("\ud800" <= c <= "\udfff" for c in text))
    expected = plain.Tokenizer(tokenizer.path, 280).encode(text)
    assert tokenizer.encode(text) == expected
    assert tokenizer.encode(text, bos=False) == expected[1:]


@given(st.lists(st.sampled_from([0.0, -1.0, -2.0, 1.0, -1e10, math.nan, -math.inf]), min_size=20, max_size=20),
       st.text(st.sampled_from("abcd "), max_size=30))
@examples(200)
def test_encoding_is_the_definition_with_tied_and_odd_scores(tmp_path_factory, scores, text):
    path = make_tokenizer(tmp_path_factory.getbasetemp() / "scores.bin", PIECES[:279], [0.0] * 259 + scores)
    assert llama2.Tokenizer(path, 279).encode(text) == plain.Tokenizer(path, 279).encode(text)


def test_encoding_looks_at_a_number_of_pairs_in_proportion_to_the_text(tokenizer, monkeypatch):
    pairs = []

    def counted(heap, item):
        pairs.append(item)
        heapq.heappush(heap, item)

    monkeypatch.setattr(merging, "heappush", counted)
    counts = []
    for n in 4_000, 8_000:
        text = "ab a cd b" * n
        tokens = tokenizer.encode(text)
        counts.append(len(pairs))
        pairs.clear()
    assert n < counts[0] < counts[1] < 2.1 * counts[0] < 9 * n
    assert b"".join(map(tokenizer.vocab.__getitem__, tokens[1:])) == b" " + text.encode()


@given(st.text(max_size=60))
def test_what_is_encoded_is_decoded(tokenizer, text):
    assume(not any("\ud800" <= c <= "\udfff" for c in text))
    tokens = tokenizer.encode(text)
    assert b"".join(tokenizer.decode(a, b) for a, b in itertools.pairwise(tokens)) == text.encode()


def test_bytes_that_are_not_utf_8_are_encoded_as_bytes(tokenizer):
    assert tokenizer.encode("\udcff\udc80a", bos=False) == [259, 0xFF + 3, 0x80 + 3, 260]
    with pytest.raises(ValueError):
        tokenizer.encode("\ud800")


def test_a_space_after_bos_is_dropped_and_byte_tokens_are_bytes(tokenizer):
    assert tokenizer.decode(1, 263) == b"a" and tokenizer.decode(5, 263) == b" a"
    assert tokenizer.decode(1, 259) == b"" and tokenizer.decode(5, 3) == b"\0" and tokenizer.decode(1,
                                                                                                    3 + 0xE9) == b"\xe9"


def test_the_first_of_equal_tokens_counts(tmp_path):
    path = make_tokenizer(tmp_path / "t", PIECES + [b" a"], SCORES + [5.0])
    assert llama2.Tokenizer(path, 281).encode("a", bos=False) == [263]


def test_a_vocabulary_without_bytes_says_so(tmp_path):
    tokenizer = llama2.Tokenizer(make_tokenizer(tmp_path / "t"), 100)
    with pytest.raises(ValueError, match="vocabulary of 100 has no token for every byte"):
        tokenizer.encode("~")


def test_tokenizers_that_are_none_are_refused(files, tmp_path, capfdbinary):
    with open(files["tokenizer"], "rb") as file:
        data = file.read()
    for cut in [0, 3, 4, 11, 12, 13, len(data) - 1]:
        (tmp_path / "cut").write_bytes(data[:cut])
        message = failure(capfdbinary, files["grouped"], "-s", 1, "-z", tmp_path / "cut")
        assert re.match(r".*cut: (ends within token \d+; the checkpoint has 280|"
                        r"token \d+ has length \d+, but \d+ bytes are left)$", message)
    for length in -1, 2**31 - 1, -(2**31):
        path = edited(files["tokenizer"], tmp_path / "bad", 8, "i", length)
        assert failure(capfdbinary, files["grouped"], "-s", 1, "-z",
                       path).startswith(f"{path}: token 0 has length {length}")


# ----------------------------------------------------------------------------
# Sampler

@pytest.mark.parametrize("rng", COINS)
def test_the_first_coins(rng):
    for seed, coins in COINS[rng].items():
        sampler = llama2.Sampler(seed=seed, rng=rng)
        assert [sampler.coin() * 2**24 for _ in coins] == coins


@given(st.integers(1, 2**64 - 1))
def test_coins_are_in_range_and_states_stay_64_bits(seed):
    for rng in COINS:
        sampler = llama2.Sampler(seed=seed, rng=rng)
        for _ in range(4):
            assert 0 <= sampler.coin() < 1 and 0 <= sampler.state < 2**64


@given(st.lists(st.sampled_from([0.0, 1.0, -1.0]) | st.floats(-20, 20, width=32), min_size=2, max_size=30),
       st.sampled_from([0.0, 1e-50, 0.1, 1.0, 3.5, 1e30]),
       st.sampled_from([0.0, 1e-9, 0.5, 0.9, 0.999, 1.0]) | st.floats(0, 1),
       st.integers(1, 2**64 - 1), st.sampled_from(["exact", "c"]))
@examples(150)
def test_sampling_is_the_definition(logits, temperature, p, seed, arithmetic):
    sampler, coins = (llama2.Sampler(temperature, p, seed, arithmetic=arithmetic) for _ in range(2))
    for _ in range(3):
        coin = coins.coin() if rounded(temperature) else 0
        assert sampler.sample(logits) == JUDGES[arithmetic].sample(logits, temperature, p, coin)


def test_a_coin_on_the_border_of_two_tokens_takes_the_second(monkeypatch):
    rng, on_the_border = random.Random(1), 0
    for _ in range(50):
        logits = [2.0 + rng.random(), rng.random(), -3.0]
        sampler = llama2.Sampler(1.0, 0.95)
        first, second, _ = plain.softmax(logits)
        total = rounded(first + second)
        for k in range(-2, 3):  # coins whose product with the sum is, once rounded, the first probability or beside it
            coin = (round(first / total * 2**24) + k) / 2**24
            on_the_border += rounded(coin * total) == first > coin * total
            monkeypatch.setattr(sampler, "coin", lambda coin=coin: coin)
            assert sampler.sample(logits) == plain.sample(logits, 1.0, 0.95, coin)
    assert on_the_border > 5


def test_sampling_follows_the_probabilities():
    logits = [math.log(p) for p in (0.5, 0.3, 0.15, 0.05)]
    sampler, counts = llama2.Sampler(1.0, 0.0, 42), [0] * 4
    for _ in range(4000):
        counts[sampler.sample(logits)] += 1
    assert counts[0] > counts[1] > counts[2] > counts[3]
    assert abs(counts[0] - 2000) < 150 and abs(counts[3] - 200) < 70
    sampler = llama2.Sampler(1.0, 0.7, 42)
    assert {sampler.sample(logits) for _ in range(1000)} == {0, 1}


@pytest.mark.parametrize("options", [{"temperature": -0.1}, {"temperature": math.nan}, {"temperature": math.inf},
                                     {"p_value": -0.1}, {"p_value": 1.1}, {"p_value": math.nan}, {"seed": 0},
                                     {"seed": 2**64}])
def test_samplers_out_of_range_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} is .*must be"):
        llama2.Sampler(**options)


# ----------------------------------------------------------------------------
# Generation and chat

def test_the_prompt_is_forced_and_then_the_model_speaks_until_bos(tokenizer):
    model = Scripted([9, 9, 260, 261, 1, 260])
    assert tell(model, tokenizer, [1, 263, 261], 64) == [
        (0, 1, 263, b"a"), (1, 263, 261, b"b"), (2, 261, 260, b"a"), (3, 260, 261, b"b"), (4, 261, 1, b"\n<s>\n")]


def test_steps_end_a_story_and_a_prompt(tokenizer):
    assert len(tell(Scripted([260] * 64), tokenizer, [1, 263, 261], 5)) == 5
    assert [step[2] for step in tell(Scripted([9] * 64), tokenizer, [1, 263, 261, 260], 2)] == [263, 261]


def test_the_classifier_is_skipped_where_the_prompt_says_what_follows(tokenizer):
    for logits in False, True:
        model = Scripted([260] * 64)
        told = list(llama2.generate(model, tokenizer, llama2.Sampler(0.0), [1] + [261] * 20, 24, logits=logits))
        assert sum(len(tokens) - skip for tokens, _, skip in model.calls) == (24 if logits else 24 - 20)
        assert [step.pos for step in told if step.logits is None] == ([] if logits else list(range(20)))


def test_a_prompt_beyond_the_context_is_refused(files, capfdbinary):
    message = failure(capfdbinary, files["grouped"], "-z", files["tokenizer"], "-s", 1, "-i", "~" * 40)
    assert message == f"the prompt has 42 tokens, but the context of {files['grouped']} is 32"


def converse(script, lines, steps=64, tokenizer=None, **more):
    out, questions = [], []

    def read(question):
        questions.append(question)
        if not lines:
            raise EOFError
        return lines.pop(0)

    model = Scripted(script)
    ended = None
    with contextlib.suppress(EOFError):
        ended = llama2.chat(model, tokenizer, llama2.Sampler(0.0), steps, read, out.append, **more)
    return b"".join(out), questions, [token for call in model.calls for token in call[0]], ended


def test_chat_takes_turns_as_run_c_does(tokenizer):
    turns = [tokenizer.encode("[INST] <<SYS>>\nbe\n<</SYS>>\n\na [/INST]"), tokenizer.encode("[INST] b [/INST]")]
    script = [9, 2] + [9] * (len(turns[0]) - 3) + [260, 261, 2, 261] + [9] * (len(turns[1]) - 1) + [265, 2, 260]
    out, questions, tokens, _ = converse(script, ["be", "a", "b"], 250, tokenizer)
    assert questions == ["Enter system prompt (optional): ", "User: ", "User: ", "User: "]
    # run.c prints what the model says after its EOS, too, and a new line for an EOS where it reads a turn
    assert out == b"Assistant: \nab\nbAssistant: aba\na"
    assert tokens[:len(turns[0])] == turns[0] and tokens[len(turns[0]):len(turns[0]) + 3] == [260, 261, 2]


def test_chat_without_a_system_prompt_has_no_system_block(tokenizer):
    out, questions, tokens, ended = converse([260] * 64, [], 30, tokenizer, user="a", system="")
    assert ended == 0
    turn = tokenizer.encode("[INST] a [/INST]")
    assert questions == [] and tokens[:len(turn)] == turn
    assert out.startswith(b"Assistant: a") and out.endswith(b"\n")


def test_turns_that_the_model_ends_are_counted(tokenizer):
    turn = len(tokenizer.encode("[INST] a [/INST]"))
    script = [2] * (turn - 1) + [260, 2, 9] + [2] * (turn - 1) + [2, 9]  # what it says within a prompt does not count
    for steps, expected in (turn, 0), (turn + 1, 1), (turn + 2, 1), (2 * turn + 2, 2):
        assert converse(script, ["a"] * 3, steps, tokenizer, system="")[3] == expected


def test_a_turn_that_the_context_does_not_hold_is_refused(tokenizer):
    turn = tokenizer.encode("[INST] " + "~" * 50 + " [/INST]")
    assert len(turn) > 64
    with pytest.raises(ValueError, match=f"^the turn has {len(turn)} tokens, but 64 positions are left$"):
        converse([9] * 64, ["~" * 50], tokenizer=tokenizer, system="")
    first = tokenizer.encode("[INST] a [/INST]")
    script = [9] * (len(first) - 1) + [2, 9] + [9] * 64  # the model ends its turn at once
    left = 64 - len(first) - 1
    with pytest.raises(ValueError, match=f"^the turn has {len(turn)} tokens, but {left} positions are left$"):
        converse(script, ["a", "~" * 50], tokenizer=tokenizer, system="")


# ----------------------------------------------------------------------------
# Command line

@pytest.mark.parametrize("args, message", [
    (["-t", "-0.5"], "temperature is -0.5, must be 0 or more, and finite"), (["-t", "nan"], "temperature is nan"),
    (["-t", "inf"], "temperature is inf"), (["-t", "warm"], "argument -t/--temperature: invalid float value: 'warm'"),
    (["-p", "1.5"], "p_value is 1.5, must be 0 to 1"), (["-p", "-1"], "p_value is -1.0"),
    (["-p", "nan"], "p_value is nan"),
    (["-s", "-1"], "seed is -1, must be 1 to 2**64 - 1"), (["-s", str(2**64)], f"seed is {2**64}"),
    (["-s", "x"], "argument -s"),
    (["-s", "1.5"], "argument -s/--seed: invalid int value: '1.5'"),
    (["-n", "-1"], "argument -n/--steps: -1, must be 0 or more"),
    (["-n", "x"], "argument -n/--steps"), (["-m", "sing"], "argument -m/--mode: invalid choice: 'sing'"),
    (["--like", "gpt"], "argument --like"), (["x\n\x1b[31my", "z"], "unrecognized arguments: x\\n\\x1b[31my z"),
    (["--workers", "0"], "argument --workers: 0, must be 1 to 1024"),
    (["--workers", "1025"], "argument --workers: 1025"),
    (["--nonsense"], "unrecognized"),
    (["--trace-level", "op"], "--trace-level needs --trace"),
    (["--verify-iteration", "3"], "--verify-iteration needs --verify"),
    (["--root", "00" * 32], "--root needs --verify"), (["--tolerance", "1"], "unrecognized arguments: --tolerance"),
    (["--verify", "x", "--root", "00"], "argument --root: not a root of 64 hexadecimal digits, or SIZE:ROOT: 00"),
    *[([f"--{option}", "x", "--verify", "y"], f"--{option} and --verify: one at a time")
      for option in ("trace", "logits", "dump", "compare")],
    *[([f"--{option}", "x", "--explain-text", "y"], f"--{option} and --explain-text: one at a time")
      for option in ("verify", "trace", "logits", "dump", "compare")],
    (["-y", "x"], "--system_prompt belongs to mode chat"),
    (["-i", "x", "--tokens", "1"], "--tokens and --input_prompt:"),
    (["--mode", "chat", "--compare-text", "x"], "--compare-text belongs to mode generate, not to chat"),
    (["-m", "chat", "--tokens", "1"], "--tokens belongs to mode generate, not to chat"),
    *[(["--compare", "x", *more], "--compare takes the likeliest tokens")
      for more in (["-t", "0.5"], ["--workers", "2"])],
    *[(["--compare", "x", f"--{option}", "y"], f"--{option} and --compare: one at a time")
      for option in ("trace", "logits", "dump", "page")],
    (["--trace", "x", "--like", "llama2-rs", "--trace-level", "op"], "argument --trace-level: op, but llama2-rs's"),
    *[(["-m", "chat", option, "x"], f"{option} belongs to mode generate, not to chat")
      for option in ("--trace", "--verify", "--logits", "--dump", "--compare")]])
def test_bad_options_get_one_line(files, capfdbinary, args, message):
    assert failure(capfdbinary, files["grouped"], "-z", files["tokenizer"], *args).startswith(message)


def test_the_clock_gives_the_seed_and_standard_error_says_which(files, tmp_path, capfdbinary):
    args = files["grouped"], "-z", files["tokenizer"], "-n", 12
    code, out, err = command(capfdbinary, *args)
    seed = re.match(r"seed: (\d+)\n", err)[1]
    assert code == 0 and command(capfdbinary, *args, "-s", seed)[1] == out
    assert command(capfdbinary, *args, "-s", 0)[2].startswith("seed: ")
    assert "seed" not in command(capfdbinary, *args, "-t", 0)[2]  # it is 1
    assert "seed" not in command(capfdbinary, *args, "-t", 0, "--trace", tmp_path / "t")[2]
    assert formats.read(tmp_path / "t").header["seed"] == 1


def test_steps_0_and_too_many_are_the_context(files, capfdbinary):
    args = files["grouped"], "-z", files["tokenizer"], "-t", 0
    outs = {command(capfdbinary, *args, "-n", n)[1] for n in (0, 32, 33, 10**9)}
    assert len(outs) == 1


def test_standard_output_is_the_text_alone_and_rate_and_root_go_to_standard_error(files, tmp_path, capfdbinary):
    code, out, err = command(capfdbinary, files["grouped"], "-z", files["tokenizer"], "-s", 1, "-n", 9, "-i", "ab a",
                             "--trace", tmp_path / "t")
    assert code == 0 and out.startswith(b"ab a") and out.endswith(b"\n")
    assert re.fullmatch(r"root: 10:[0-9a-f]{64}\nachieved tok/s: [0-9.]+\n", err)


def test_a_prompt_that_is_not_utf_8_works(files):
    done = process(files["grouped"], "-z", files["tokenizer"], "-t", 0, "-n", 4, "-i", "a\udcff\udcc3b")
    assert done.returncode == 0 and done.stdout.startswith("a\ufffd\ufffdb".encode())


def test_an_empty_prompt_is_no_prompt(files, capfdbinary):
    args = files["grouped"], "-z", files["tokenizer"], "-t", 0, "-n", 8
    assert command(capfdbinary, *args, "-i", "")[:2] == command(capfdbinary, *args)[:2]


def test_chat_reads_turns_from_standard_input(files):
    done = subprocess.run([sys.executable, os.path.join(HERE, "llama2.py"), files["grouped"], "-z", files["tokenizer"],
                           "-t", "0",
                           "-m", "chat", "-n", "30"], input=b"\nhello\n", capture_output=True)
    assert done.returncode == 0 and done.stdout.startswith(b"Enter system prompt (optional): User: Assistant: ")
    done = subprocess.run([sys.executable, os.path.join(HERE, "llama2.py"), files["grouped"], "-z", files["tokenizer"],
                           "-t", "0",
                           "-m", "chat", "-n", "30"], input=b"\n\xff\xc3\n", capture_output=True,
                          env={**os.environ, "LANG": "C"})
    assert done.returncode == 0 and b"Assistant: " in done.stdout
    done = process(files["grouped"], "-z", files["tokenizer"], "-t", 0, "-m", "chat")
    assert (done.returncode, done.stdout) == (0, b"Enter system prompt (optional): \n")


def test_a_run_that_fails_its_checks_overwrites_nothing(files, traces, model, tmp_path, capfdbinary):
    path = tmp_path / "t"
    for args in (["-i", "~" * 40], ["-t", "-1"], ["-z", tmp_path / "none"]):
        for option in "--trace", "--logits":
            path.write_bytes(b"precious")
            failure(capfdbinary, *model, "-s", 1, option, path, *args)
            assert path.read_bytes() == b"precious"
    message = failure(capfdbinary, *model, "--trace", path, "--logits", f"{tmp_path}/./t")
    assert message == f"{path}: is to be both --trace and --logits"
    for option in "--trace", "--logits":
        for source in model[0], model[2]:
            assert failure(capfdbinary, *model, "-s", 1, option,
                           source) == f"{source}: is read, and would be overwritten"


# What a new user meets


def test_a_tokenizer_larger_than_the_vocabulary_is_warned_about(files, tmp_path, capfdbinary):
    larger = make_tokenizer(tmp_path / "t", PIECES + [b"more"], SCORES + [0.0])
    code, out, err = command(capfdbinary, files["grouped"], "-z", larger, "-s", 1, "-n", 3)
    assert code == 0 and err.startswith(f"warning: {larger} has more tokens than the 280 of the model: ")
    assert "warning" not in command(capfdbinary, files["grouped"], "-z", files["tokenizer"], "-s", 1, "-n", 3)[2]


def test_a_prompt_that_leaves_nothing_to_generate_is_warned_about(model, capfdbinary):
    for steps, warned in (4, True), (5, False):
        code, out, err = command(capfdbinary, *model, "-s", 1, "-i", "ab 😀a", "-n", steps)
        assert code == 0 and err.startswith(
            f"warning: the prompt has 5 tokens, so that {steps} steps (-n) generate nothing\n") == warned


def test_chat_with_a_model_that_ends_no_turn_is_warned_about(model, capfdbinary, monkeypatch):
    args = *model, "-m", "chat", "-t", 0, "-n", 18, "-i", "a", "-y", ""
    warning = "warning: the model ended no turn by itself: is it one that was trained to chat?\n"
    assert command(capfdbinary, *args)[2] == warning
    monkeypatch.setattr(llama2.Sampler, "sample", lambda self, logits: 2)  # EOS
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\n" * 30)))
    assert command(capfdbinary, *args)[2] == ""


def test_a_prompt_in_place_of_a_checkpoint_gets_a_hint(capfdbinary):
    for name in "Once upon", "story":
        assert failure(capfdbinary, name) == f"{name}: No such file or directory (how a text begins is given with -i)"
    assert failure(capfdbinary, "none.bin") == "none.bin: No such file or directory"


@pytest.mark.parametrize("args, message", [
    (["-i", "Once", "upon", "a", "time"],
     'unrecognized arguments: a time (a prompt of several words is quoted: -i "Once upon a time")'),
    (["--tempereture", "3"], "unrecognized arguments: --tempereture (is --temperature meant?)"),
    (["--nonsense"], "unrecognized arguments: --nonsense"),
    (["-s", "1", "--page", "/nowhere/page.html"], "/nowhere/page.html: the folder /nowhere does not exist")])
def test_what_was_meant_is_said(capfdbinary, args, message):
    assert failure(capfdbinary, *args) == message


@pytest.mark.parametrize("beginning, kind", [
    (b"GGUF\3\0\0\0", "a GGUF file, as llama.cpp has it"), (b"\x40\1\0\0\0\0\0\0{", "a safetensors file"),
    (b"PK\3\4", "a file of PyTorch's"), (b"\x80\2\x8a\n", "a file of PyTorch's"),
    (b"\n\x0e\n\5<unk>\x15\0", "a SentencePiece model"), (b'{\n  "version"', "a text in JSON")])
def test_files_of_other_kinds_are_told_by_their_beginning(model, tmp_path, capfdbinary, beginning, kind):
    path = tmp_path / "other"
    path.write_bytes(beginning + bytes(100))
    as_tokenizer = [model[0], "-s", 1, "-z", path]
    for args in [path], *[as_tokenizer] * (beginning[:1] != b"{"):
        assert failure(capfdbinary, *args).startswith(f"{path}: is {kind}")


def test_where_a_tokenizer_was_looked_for_is_said(files, tmp_path, capfdbinary, monkeypatch):
    (tmp_path / "sub").mkdir()
    shutil.copy(files["grouped"], tmp_path / "sub" / "model.bin")
    monkeypatch.chdir(tmp_path)
    nowhere = "no tokenizer.bin in the working directory; say where it is with -z"
    assert failure(capfdbinary, "sub/model.bin") == (
        f"no tokenizer for sub/model.bin: there is no sub/tokenizer.bin, and {nowhere}")
    monkeypatch.chdir("sub")
    assert failure(capfdbinary, "model.bin") == f"no tokenizer for model.bin: there is {nowhere}"


def test_a_prompt_can_come_from_standard_input(model, capfdbinary):
    for data, prompt in (b"ab a\n", "ab a"), (b"", ""), (b"a\nb\n", "a\nb"):
        done = subprocess.run([sys.executable, os.path.join(HERE, "llama2.py"), *model, "-t", "0", "-n", "9", "-i",
                               "-"], input=data, capture_output=True)
        assert (done.returncode, done.stdout) == command(capfdbinary, *model, "-t", 0, "-n", 9, "-i", prompt)[:2]


def test_lines_of_chat_and_prompts_on_standard_input_are_limited(model):
    for args in ["-m", "chat", "-y", ""], ["-i", "-"]:
        done = subprocess.run([sys.executable, os.path.join(HERE, "llama2.py"), *model, "-t", "0", *args],
                              input=b"a" * (2**20 + 1), capture_output=True)
        assert (done.returncode, done.stderr) == (2, b"llama2.py: error: standard input: more than 1048576 bytes\n")


def test_the_version_is_that_of_the_project(capfdbinary):
    with pytest.raises(SystemExit) as end:
        command(capfdbinary, "--version")
    assert end.value.code == 0 and capfdbinary.readouterr().out == f"llama2.py {VERSION}\n".encode()


def test_it_runs_through_a_link_from_anywhere(tmp_path):
    os.symlink(os.path.join(HERE, "llama2.py"), tmp_path / "llama")
    done = subprocess.run([sys.executable, tmp_path / "llama", "-t", "0", "-n", "3"], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"Once upon a\n")


def test_everybodys_greedy_run_has_the_same_root(model, tmp_path, capfdbinary):
    roots = [command(capfdbinary, *model, "-t", 0, *more, "--trace", tmp_path / "t")[2].splitlines()[0]
             for more in ([], [], ["-s", 1], ["-s", 2])]
    assert roots[0] == roots[1] == roots[2] != roots[3] and roots[0].startswith("root: ")


def test_seeds_that_atoi_does_not_keep_are_refused_for_llama2_c(model, capfdbinary):
    assert failure(capfdbinary, *model, "--like", "llama2.c", "-s", 2**31).startswith(
        "argument -s/--seed: 2147483648, must be below 2**31 for --like llama2.c")
    for args in ["--like", "llama2.c", "-s", 2**31 - 1], ["--like", "llama2-rs", "-s", 2**31], ["-s", 2**64 - 1]:
        assert command(capfdbinary, *model, *args, "-n", 2)[0] == 0


def test_a_temperature_that_makes_logits_overflow_is_refused(model, tmp_path, capfdbinary):
    code, out, err = command(capfdbinary, *model, "-s", 1, "-t", "1e-40", "--logits", tmp_path / "a.npy")
    assert code == 2 and err == (
        "llama2.py: error: temperature is 1e-40, so small that logits / temperature overflow\n")
    assert os.listdir(tmp_path) == []
    assert command(capfdbinary, *model, "-s", 1, "-t", "1e-50")[1] == command(capfdbinary, *model, "-t", 0)[1]


def test_no_tokens_are_an_error(files, tokenizer):
    with llama2.Transformer(files["grouped"]) as transformer, pytest.raises(ValueError, match="no token"):
        next(llama2.generate(transformer, tokenizer, llama2.Sampler(), [], 5))


@pytest.mark.parametrize("call, message", [
    (lambda path: llama2.Transformer(path, "fast"), "^arithmetic is fast, must be exact or c or runq$"),
    (lambda path: llama2.Transformer(path, ["c"]), "^arithmetic is "),
    (lambda path: llama2.Transformer(path, workers=0), "^workers is 0, must be an integer from 1 to 1024$"),
    (lambda path: llama2.Transformer(path, workers=2.0), "^workers is 2.0"),
    (lambda path: llama2.Transformer(path, workers=True), "^workers is true"),
    (lambda path: llama2.Sampler("warm"), "^temperature is warm"),
    (lambda path: llama2.Sampler(None), "^temperature is"),
    (lambda path: llama2.Sampler(1.0, "x"), "^p_value is x"), (lambda path: llama2.Sampler(seed=1.0), "^seed is 1.0"),
    (lambda path: llama2.Sampler(seed=True), "^seed is true"),
    (lambda path: llama2.Sampler(rng="x"), "^rng is x, must"),
    (lambda path: llama2.Sampler(arithmetic="x"), "^arithmetic is x"),
    (lambda path: llama2.Tokenizer(TOKENIZER, 0), "^vocab_size is 0"),
    (lambda path: llama2.Tokenizer(TOKENIZER, "512"), "^vocab_size is"),
    (lambda path: llama2.Tokenizer(TOKENIZER, 512).encode(b"a"), "^text is"),
    (lambda path: llama2.Tokenizer(TOKENIZER, 512).encode(None), "^text is"),
    (lambda path: llama2.Tokenizer(TOKENIZER, 512).decode(1, -1), "^token is -1, must be an integer from 0 to 511$"),
    (lambda path: llama2.Tokenizer(TOKENIZER, 512).decode(1, 512), "^token is 512"),
    (lambda path: llama2.Transformer(path).forward("1", 0), r"^token of .* is .*, must be in the vocabulary of 280$"),
    (lambda path: llama2.Transformer(path).forward(1.0, 0), "^token of"),
    (lambda path: llama2.Transformer(path).forward(True, 0), "^token of"),
    (lambda path: llama2.Transformer(path).forward(1, "0"), "^position is")])
def test_wrong_arguments_get_a_clear_error(files, call, message):
    with pytest.raises(ValueError, match=message):
        call(files["grouped"])


# ----------------------------------------------------------------------------
# Many traces


def test_verify_returns_a_verdict_or_raises(files, traces, tmp_path):
    log = formats.read(traces["step"])
    verdict = llama2.verify(traces["step"], files["grouped"], files["tokenizer"])
    assert (verdict.path, verdict.steps, verdict.whole, verdict.head, verdict.published) == (
        traces["step"], 14, True, log.head(), False)
    assert verdict.text == show.text_of(log) and verdict.claimed == {} and verdict.chosen["seed"] == 7
    for root in log.head(), log.root:
        assert llama2.verify(traces["step"], files["grouped"], files["tokenizer"], root).published
    cut = forge(tmp_path / "-cut.trace", read_lines(traces["step"])[:7], False)
    assert not llama2.verify(cut, files["grouped"], files["tokenizer"]).whole
    with pytest.raises(VerificationError):
        llama2.verify(traces["step"], files["grouped"], files["tokenizer"], "15:" + "00" * 32)
    with pytest.raises(ValueError):
        llama2.verify(traces["step"], files["grouped"], files["tokenizer"], "root")
    with pytest.raises(OSError):
        llama2.verify(str(tmp_path / "none"), files["grouped"])


def jobs_and_answers(files, traces, tmp_path):
    header, *lines = read_lines(traces["step"])[:-1]
    forged = forge(tmp_path / "forged", [header, *lines[:9], edit(lines[9], logits="5a" * 32), *lines[10:]])
    model = files["grouped"], files["tokenizer"]
    jobs = [(traces[kind], *model) for kind in ("step", "op", "layer")]
    return [*jobs, (forged, *model), (str(tmp_path / "none"), *model)], [
        verification.Verdict, verification.Verdict, verification.Verdict, VerificationError, FileNotFoundError]


def check_many(executor, files, traces, tmp_path):
    jobs, kinds = jobs_and_answers(files, traces, tmp_path)
    answers = list(llama2.verify_many(jobs, executor))
    assert [type(answer) for answer in answers] == kinds
    assert [answer.head for answer in answers[:3]] == [formats.read(job[0]).head() for job in jobs[:3]]
    assert (answers[3].field, answers[3].got) == ("logits", "5a" * 32) and "line 11" in str(answers[3])


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_verify_many_runs_on_the_standard_librarys_executors(files, traces, tmp_path, kind):
    pool = concurrent.futures.ProcessPoolExecutor if kind == "processes" else concurrent.futures.ThreadPoolExecutor
    with pool(2) as executor:
        check_many(executor, files, traces, tmp_path)


def test_verify_many_runs_on_dask(files, traces, tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs dask[distributed]")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        with distributed.Client(cluster) as client, client.get_executor() as executor:
            check_many(executor, files, traces, tmp_path)


# ----------------------------------------------------------------------------
# The whole

def test_the_golden_story(tmp_path, capfdbinary):
    code, out, err = command(capfdbinary, "-i", "Once upon a time", "-s", 42, "--trace", tmp_path / "t")
    steps = [json.loads(line) for line in read_lines(tmp_path / "t") if b"next" in line]
    for step, expected in zip(steps, STORY_LOGITS, strict=False):
        assert step["logits"].startswith(expected), f"step {step['pos']} is the first that differs"
    assert out.decode() == STORY
    assert json.loads(read_lines(tmp_path / "t")[-1])["root"] == STORY_ROOT
    page = read_bytes(os.path.join(HERE, "docs", "verifying.md"))
    assert formats.read(tmp_path / "t").header["model"].encode() in page
