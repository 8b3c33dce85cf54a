"""Tests of llama2.py, from the smallest part to the whole: plain.py judges."""
import contextlib
import heapq
import itertools
import json
import math
import os
import random
import re
import subprocess
import sys

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import llama2
import plain
import trace
from conftest import (COINS, HERE, JUDGES, MODEL, PIECES, SCORES, SHAPES, STORY, STORY_LOGITS, STORY_ROOT, Scripted,
                      bits,
                      command, edited, failure, forward_definition, make_checkpoint, make_tokenizer, process,
                      read_bytes, read_lines, rounded, run_forward, tell)


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


def test_both_versions_of_a_checkpoint_give_the_same_logits(tmp_path):
    for shared in True, False:
        paths = [make_checkpoint(tmp_path / f"v{version}", version=version, shared=shared) for version in (0, 1)]
        one, other = ([logits for _, logits in run_forward(path, "exact", [1, 5, 9])] for path in paths)
        assert one == other


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
# Checkpoints that are none

@pytest.mark.parametrize("field, value, message", [
    (0, 0, "dim is 0"), (0, -16, "dim is -16"), (0, 2**24, "dim is 16777216"), (0, 0x46554747, "dim is 1179993927"),
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
            (4, "i", 2, "version is 2, must be 0 or 1: int8 checkpoints are not supported"),
            (4, "i", 3, "version is 3, must be 0 or 1"), (36, "B", 2, "shared_classifier is 2, must be 0 or 1"),
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
    assert failure(capfdbinary, tmp_path, "-s", 1) == f"{tmp_path}: Is a directory"
    assert failure(capfdbinary, files["grouped"], "-s", 1, "-z", tmp_path) == f"{tmp_path}: Is a directory"
    assert failure(capfdbinary, files["grouped"], "-s", 1, "-z",
                   tmp_path / "none").startswith(f"{tmp_path / 'none'}: No such")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("arithmetic", ["exact", "c"])
def test_a_weight_that_is_not_finite_is_refused_with_its_matrix_named(files, tmp_path, value, arithmetic):
    checkpoint = llama2.Checkpoint(files["grouped"])
    for name, (offset, rows, columns) in checkpoint.tensors.items():
        if name == "rope_tables":
            continue
        path = edited(files["grouped"], tmp_path / "bad.bin", offset + 4 * (rows * columns - 1), "f", value)
        with pytest.raises(ValueError, match=f"bad.bin: {name} "):
            with llama2.Transformer(path, arithmetic) as transformer:
                transformer.forward(279, 0)


# ----------------------------------------------------------------------------
# Tokenizer

@given(st.text(st.sampled_from("ab cdé😀\n~"), max_size=40) | st.text(max_size=12))
@settings(max_examples=400)
def test_encoding_is_the_quadratic_definition(tokenizer, text):
    assume(not any("\ud800" <= c <= "\udfff" for c in text))
    expected = plain.Tokenizer(tokenizer.path, 280).encode(text)
    assert tokenizer.encode(text) == expected
    assert tokenizer.encode(text, bos=False) == expected[1:]


@given(st.lists(st.sampled_from([0.0, -1.0, -2.0, 1.0, -1e10, math.nan, -math.inf]), min_size=20, max_size=20),
       st.text(st.sampled_from("abcd "), max_size=30))
@settings(max_examples=200)
def test_encoding_is_the_definition_with_tied_and_odd_scores(tmp_path_factory, scores, text):
    path = make_tokenizer(tmp_path_factory.getbasetemp() / "scores.bin", PIECES[:279], [0.0] * 259 + scores)
    assert llama2.Tokenizer(path, 279).encode(text) == plain.Tokenizer(path, 279).encode(text)


def test_encoding_looks_at_a_number_of_pairs_in_proportion_to_the_text(tokenizer, monkeypatch):
    pairs = []

    def counted(heap, item):
        pairs.append(item)
        heapq.heappush(heap, item)

    monkeypatch.setattr(llama2, "heappush", counted)
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


def test_decoding(tokenizer):
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
@settings(max_examples=400)
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
    with contextlib.suppress(EOFError):
        llama2.chat(model, tokenizer, llama2.Sampler(0.0), steps, read, out.append, **more)
    return b"".join(out), questions, [token for call in model.calls for token in call[0]]


def test_chat_takes_turns_as_run_c_does(tokenizer):
    turns = [tokenizer.encode("[INST] <<SYS>>\nbe\n<</SYS>>\n\na [/INST]"), tokenizer.encode("[INST] b [/INST]")]
    script = [9, 2] + [9] * (len(turns[0]) - 3) + [260, 261, 2, 261] + [9] * (len(turns[1]) - 1) + [265, 2, 260]
    out, questions, tokens = converse(script, ["be", "a", "b"], 250, tokenizer)
    assert questions == ["Enter system prompt (optional): ", "User: ", "User: ", "User: "]
    # run.c prints what the model says after its EOS, too, and a new line for an EOS where it reads a turn
    assert out == b"Assistant: \nab\nbAssistant: aba\na"
    assert tokens[:len(turns[0])] == turns[0] and tokens[len(turns[0]):len(turns[0]) + 3] == [260, 261, 2]


def test_chat_without_a_system_prompt_has_no_system_block(tokenizer):
    out, questions, tokens = converse([260] * 64, [], 30, tokenizer, user="a", system="")
    turn = tokenizer.encode("[INST] a [/INST]")
    assert questions == [] and tokens[:len(turn)] == turn
    assert out.startswith(b"Assistant: a") and out.endswith(b"\n")


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
    (["--workers", "0"], "argument --workers: 0"), (["--nonsense"], "unrecognized"),
    (["--trace-level", "op"], "--trace-level needs --trace"),
    (["--verify-iteration", "3"], "--verify-iteration needs --verify"),
    (["--root", "00" * 32], "--root needs --verify"), (["--tolerance", "1"], "--tolerance needs --compare"),
    (["--verify", "x", "--root", "00"], "argument --root: not a root of 64 hexadecimal digits, or SIZE:ROOT: 00"),
    *[([f"--{option}", "x", "--verify", "y"], f"--{option} and --verify: one at a time")
      for option in ("trace", "logits", "compare")],
    *[([f"--{option}", "x", "--explain-text", "y"], f"--{option} and --explain-text: one at a time")
      for option in ("verify", "trace", "logits", "compare")],
    (["-y", "x"], "--system_prompt belongs to mode chat"),
    (["--compare", "x", "--tolerance", "nan"], "argument --tolerance: nan"),
    (["--compare", "x", "--tolerance", "inf"], "argument --tolerance: inf, must be 0 or more, and finite"),
    (["--trace", "x", "--like", "llama2-rs", "--trace-level", "op"], "argument --trace-level: op, but llama2-rs's"),
    *[(["-m", "chat", option, "x"], f"{option} belongs to mode generate, not to chat")
      for option in ("--trace", "--verify", "--logits", "--compare")]])
def test_bad_options_get_one_line(files, capfdbinary, args, message):
    assert failure(capfdbinary, files["grouped"], "-z", files["tokenizer"], *args).startswith(message)


def test_the_clock_gives_the_seed_and_standard_error_says_which(files, tmp_path, capfdbinary):
    args = files["grouped"], "-z", files["tokenizer"], "-n", 12
    code, out, err = command(capfdbinary, *args)
    seed = re.match(r"seed: (\d+)\n", err)[1]
    assert code == 0 and command(capfdbinary, *args, "-s", seed)[1] == out
    assert command(capfdbinary, *args, "-s", 0)[2].startswith("seed: ")
    assert "seed" not in command(capfdbinary, *args, "-t", 0)[2]  # unused, but a trace would have it
    assert command(capfdbinary, *args, "-t", 0, "--trace", tmp_path / "t")[2].startswith("seed: ")


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


# ----------------------------------------------------------------------------
# The whole

def test_the_golden_story(tmp_path, capfdbinary):
    code, out, err = command(capfdbinary, "-i", "Once upon a time", "-s", 42, "--trace", tmp_path / "t")
    steps = [json.loads(line) for line in read_lines(tmp_path / "t") if b"next" in line]
    for step, expected in zip(steps, STORY_LOGITS, strict=False):
        assert step["logits"].startswith(expected), f"step {step['pos']} is the first that differs"
    assert out.decode() == STORY
    assert json.loads(read_lines(tmp_path / "t")[-1])["root"] == STORY_ROOT
    assert trace.read(tmp_path / "t").header["model"].encode() in read_bytes(os.path.join(HERE, "README.md"))


@pytest.fixture
def readme(tmp_path):
    """A copy of the files that the README's commands use, and a shell for them."""
    for name in os.listdir(HERE):
        if name == "stories" or name.endswith(".py") and not name.startswith(("test_", "conftest")):
            os.symlink(os.path.join(HERE, name), tmp_path / name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "bin" / "python3").chmod(0o755)

    def shell(line):
        return subprocess.run(["bash", "-c", line], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True,
                              env={**os.environ,
                                   "PATH": f"{tmp_path / 'bin'}:{os.environ.get('PATH', os.defpath)}"}).stdout

    with open(os.path.join(HERE, "README.md"), encoding="utf-8") as file:
        return file.read(), shell


def test_the_commands_of_the_readme_print_what_it_says(readme):
    text, shell = readme
    count = 0
    for block in re.findall(r"```console\n(.*?)```", text, re.S):
        for line, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.M):
            got = shell(line)
            if "--compare" in line:  # what differs depends on the C library
                got, expected = (re.sub(r"[-\d.e]+|None", "N", output) for output in (got, expected))
            got, expected = (re.sub(r"tok/s: .*", "", output) for output in (got, expected))
            assert got.strip() == expected.strip(), line
            count += 1
    assert count >= 18


def test_the_example_of_the_readme_works(readme, tmp_path):
    text, shell = readme
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    with llama2.Transformer(MODEL, "c") as model:
        seen = {}
        for pos, token in enumerate([1, 406]):
            model.forward(token, pos, lambda layer, op, values: seen.update({(layer, op): list(values)}))
    values = seen[2, "attention"]
    values[11] += 0.5
    (tmp_path / "attention.f32").write_bytes(bits(values))
    (tmp_path / "example.py").write_text(code)
    assert shell("python3 example.py") == "largest difference 0.5 at element 11, head 1\n"
    assert len(code.splitlines()) <= 13
