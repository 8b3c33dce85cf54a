"""Tests of events.py: what a line may say, and where it stands."""
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama2_py.log import events
from llama2_py.console import VerificationError
from llama2_py.log.reading import Follow
from tests.helpers import examples

CONFIG = {"dim": 4, "hidden_dim": 4, "n_layers": 2, "n_heads": 1, "n_kv_heads": 1, "vocab_size": 50, "seq_len": 8,
          "shared_classifier": True}
HEADER = {"format": "llama2.py trace 2", "model": "00" * 32, "weights": "00" * 32, "config": CONFIG,
          "tokenizer": "00" * 32, "arithmetic": "exact", "rng": "xorshift64*", "temperature": 1.0, "p_value": 0.9,
          "seed": 1, "steps": 3, "level": "step", "prompt": "", "tokens": [1, 5]}


def places(level, n_layers, steps):
    """Where the lines of a log stand, in order, written down one after the other."""
    result = [None]
    for pos in range(steps):
        if level == "op":
            result.append({"pos": pos, "op": "embedding"})
        for l in range(n_layers):
            for op in events.OPERATIONS:
                if level == "op" or level == "layer" and op == "ffn_residual":
                    result.append({"pos": pos, "layer": l, "op": op})
        if level == "op":
            result.append({"pos": pos, "op": "final_norm"})
        result.append({"pos": pos})
    return result


@pytest.mark.parametrize("level", events.LEVELS)
@pytest.mark.parametrize("n_layers", [1, 2, 5])
def test_a_place_follows_from_the_header(level, n_layers):
    layout = events.Layout({**HEADER, "level": level, "config": {**CONFIG, "n_layers": n_layers}})
    expected = places(level, n_layers, 4)
    assert [layout.place(index) for index in range(1, len(expected))] == expected[1:]
    assert [layout.step(pos) for pos in range(4)] == [i for i, place in enumerate(expected)
                                                      if place and "op" not in place]


@given(st.sampled_from(events.LEVELS), st.integers(1, 200), st.integers(1, 200))
@examples(200)
def test_an_event_stands_at_its_own_index_and_at_no_other(level, index, other):
    layout = events.Layout({**HEADER, "level": level, "steps": 8, "tokens": [3] * 8})

    def event(index):
        place = layout.place(index)
        return {**place, "sha256": "00" * 32} if "op" in place else {
            **place, "token": 3, "next": 3, "text": "", "logits": "00" * 32}

    if event(index)["pos"] < 8:
        layout.check("line", index, event(index))
    else:
        with pytest.raises(VerificationError):
            layout.check("line", index, event(index))
    if index != other:
        with pytest.raises(VerificationError):
            layout.check("line", other, event(index))


@pytest.mark.parametrize("level", events.LEVELS)
def test_an_operation_in_a_steps_place_is_refused_and_the_other_way_round(level):
    layout = events.Layout({**HEADER, "level": level})
    step = {"pos": 1, "token": 5, "next": 7, "text": "", "logits": "00" * 32}
    for op in {"pos": 1, "op": "final_norm"}, {"pos": 1, "layer": 1, "op": "ffn_residual"}:
        with pytest.raises(VerificationError, match="line: expected a step, got|line: expected .a.step., got"):
            layout.check("line", layout.step(1), {**op, "sha256": "00" * 32})
    for index in range(layout.step(0) + 1, layout.step(1)):
        with pytest.raises(VerificationError, match=": (op|layer): expected "):
            layout.check("line", index, step)
    layout.check("line", layout.step(1), step)


@pytest.mark.parametrize("fields", [
    {"p_value": 1.0000001}, {"seed": 0}, {"steps": 0}, {"steps": 9}, {"tokens": [1] * 9}, {"tokens": [50]},
    {"tokens": []}, {"tokens": [True]}, {"config": {**CONFIG, "dim": 0}}, {"config": {**CONFIG, "dim": 2**24}},
    {"config": {**CONFIG, "dim": 4.0}}, {"config": {**CONFIG, "shared_classifier": 1}},
    {"config": {**CONFIG, "more": 1}}, {"config": {**CONFIG, "norm_epsilon": 1e-05}},
    {"config": {**CONFIG, "eos": [7], "norm_epsilon": 1e-06}},
    {"config": dict(reversed(CONFIG.items()))}, {"config": []}, {"weights": "0" * 63}, {"temperature": 1},
    {"temperature": float("inf")}, {"level": "all"}, {"format": "llama2.py trace 3"}])
def test_headers_that_no_run_has_are_refused(fields):
    assert events.read_header("x", events.encode(HEADER)) == HEADER
    with pytest.raises(ValueError, match="^x: "):
        events.read_header("x", events.encode({**HEADER, **fields}))


def test_a_line_that_is_too_long_is_refused_unread(monkeypatch):
    line = events.encode({**HEADER, "prompt": "a" * events.MAX_LINE})
    monkeypatch.setattr(json, "loads", None)
    with pytest.raises(ValueError, match="^x: more than the 4194304 bytes that a line may have"):
        events.read_line("x", line)


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8}


@pytest.mark.parametrize("change, message", [
    ({"dim": 9, "n_heads": 4}, "dim of the config cannot be 9, with 4 heads"),
    ({"dim": 6, "n_heads": 2}, "head_size of the config cannot be 3, with 2 heads"),
    ({"dim": 16, "n_heads": 4, "n_kv_heads": 3}, "n_kv_heads of the config cannot be 3, with 4 heads"),
    ({"n_heads": 2**12, "n_kv_heads": 1, "head_size": 2**12}, "n_heads of the config cannot be 4096"),
    ({"norm_epsilon": 1e300}, "norm_epsilon of the config cannot be"), ({"norm_epsilon": 1e-30}, "norm_epsilon of"),
    ({"rope_theta": 5e-324}, "rope_theta of"), ({"rope_theta": 0.5}, "rope_theta of"),
    ({"rope_scaling": {"factor": 0.5}}, "rope_scaling of"),
    ({"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, "rope_scaling of"),
    ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1e30}}, "rope_scaling of"),
    ({"bos": 2**20}, "bos of"), ({"eos": [2**20]}, "eos of"), ({"eos": [5, 5]}, "eos of"), ({"eos": [2, 2]}, "eos of"),
    ({"eos": list(range(3, 68))}, "eos of")])
def test_a_config_is_one_that_a_checkpoint_can_have(change, message):
    line = events.encode({**HEADER, "config": {**CONFIG, **change}})
    with pytest.raises(ValueError, match=message):
        events.read_header("line 1", line)


@pytest.mark.parametrize("fields", [{"temperature": -0.0}, {"p_value": -0.0},
                                    {"arithmetic": "c", "config": {**CONFIG, "norm_epsilon": 1e-06}}])
def test_a_header_that_no_run_writes_is_refused(fields):
    assert events.read_header("x", events.encode(HEADER)) == HEADER
    with pytest.raises(ValueError, match="^x: (temperature|p_value|arithmetic) cannot be"):
        events.read_header("x", events.encode({**HEADER, **fields}))
    other = {**CONFIG, "norm_epsilon": 1e-06, "rope_scaling": LLAMA3, "eos": list(range(3, 9))}
    assert events.read_header("x", events.encode({**HEADER, "config": other}))["config"] == other


def test_no_operation_stands_behind_the_end_of_a_run():
    follow = Follow({**HEADER, "level": "op"})
    index = follow.layout.step(0) + 1
    event = {**follow.layout.place(index), "sha256": "0" * 64}
    line = events.encode(event)
    assert follow.is_operation(index, line)
    follow.token = 1  # BOS was chosen
    assert not follow.is_operation(index, line)
    with pytest.raises(VerificationError, match="the end of the run"):
        follow.check("line 9", index, line, event)
