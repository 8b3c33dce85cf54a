"""Tests of operations.py: how far float32 may stray in one operation, where numbers are extreme."""
import math
import random
import struct
from types import SimpleNamespace

import pytest

from llama2_py.doctor import operations
from llama2_py.engine.arithmetic import Exact
from llama2_py.engine.rows import Rows

TINY = 2.0**-126


def f32(x):
    try:
        return struct.unpack("f", struct.pack("f", x))[0]
    except OverflowError:
        return math.copysign(math.inf, x)


def ftz(x):
    """Rounded to float32, and flushed to zero if it is not normal."""
    value = f32(x)
    return value if abs(value) >= TINY else 0.0


def judged(op, theirs, inputs, l=0, pos=0, weight=(), matrix=(), heads=1):
    """An operation of a model of one layer, judged from its own inputs: {operation: values}."""
    n = len(theirs)
    layer = SimpleNamespace(rms_att=weight, rms_ffn=weight)
    rows = Rows(lambda first, last, check: list(matrix)[first:last], lambda: None, Exact, range(len(matrix)),
                len(matrix[0]) if matrix else 1, unpacked=True)
    for name in ("wq", "wk", "wv", "wo", "w1", "w2", "w3"):
        setattr(layer, name, rows)
    config = SimpleNamespace(head_size=max(2, n // heads), n_heads=heads, n_kv_heads=heads, n_layers=1, dim=n,
                             norm_epsilon=1e-5, rope_theta=10000.0, rope_scaling=None)
    shard = SimpleNamespace(config=config, group=1, layers=[layer], rms_final=weight)
    right = operations.Operations(shard, [1], lambda name, layer, t: inputs.get(name))
    y = right.result(op, l, pos)
    return operations.judge(theirs, y, right.errors(op, l, pos, y))


# gates: exp(-gate) overflows float32 below -88.7
GATES = [-200.0, -104.0, -89.0, -88.8, -88.0, -87.5, -86.0, -60.0, -17.0, -9.0, -1.0, 0.0, 1.0, 20.0, 90.0, 200.0]


def silu_by_exp(a, flush):
    e = flush(math.exp(min(-a, 700.0)))
    return flush(a * flush(1 / f32(1 + e)))


def silu_by_quotient(a, flush):
    e = flush(math.exp(min(-a, 700.0)))
    return flush(a / f32(1 + e))


def silu_by_tanh(a, flush):
    return flush(flush(0.5 * a) * f32(1 + f32(math.tanh(f32(0.5 * a)))))


@pytest.mark.parametrize("silu", [silu_by_exp, silu_by_quotient, silu_by_tanh])
@pytest.mark.parametrize("flush", [f32, ftz])
@pytest.mark.parametrize("up", [1000.0, 1.0, -1e-3, 1e6])
def test_swiglu_is_right_at_any_gate_by_exp_and_by_tanh(silu, flush, up):
    theirs = [flush(silu(a, flush) * up) for a in GATES]
    for gates, values in [(GATES, theirs), *[([a], [v]) for a, v in zip(GATES, theirs, strict=True)]]:
        judgement = judged("swiglu", values, {"gate": gates, "up": [up] * len(gates)})
        assert not judgement.wrong, (gates, judgement)


@pytest.mark.parametrize("silu", [silu_by_exp, silu_by_quotient, silu_by_tanh])
@pytest.mark.parametrize("size", [1e-3, 1.0, 5.0])
def test_what_swiglu_is_expected_to_err_by_is_what_programs_err_by(silu, size):
    rng = random.Random(1)
    gates, ups = ([f32(rng.gauss(0, size)) for _ in range(2000)] for _ in range(2))
    theirs = [f32(silu(a, f32) * b) for a, b in zip(gates, ups, strict=True)]
    judgement = judged("swiglu", theirs, {"gate": gates, "up": ups})
    assert 0.3 < judgement.sigmas < 1.5 and judgement.worst < 8, judgement


def test_a_swiglu_that_is_wrong_by_more_is_seen():
    for a, up in (-89.0, 1000.0), (-20.0, 1.0), (-9.0, 10.0), (1.0, 1.0):
        right = a * operations.sigmoid(a) * up
        assert not judged("swiglu", [f32(right)], {"gate": [a], "up": [up]}).wrong
        assert judged("swiglu", [right + 3 * 2.0**-24 * abs(a * up) + 64 * 2.0**-24 * abs(right) + 1e-30], {
            "gate": [a], "up": [up]}).impossible


def test_flushed_denormals_are_right_in_norms_products_rope_and_residuals():
    rng = random.Random(1)
    small = [rng.choice((-1, 1)) * rng.uniform(0.1, 3) * TINY for _ in range(8)]
    flushed = [v if abs(v) >= TINY else 0.0 for v in small]
    weight = [1000.0, -30.0, 1.0, 0.5, 1e-3, 2.0, 7.0, 1.0]
    s = 1 / math.sqrt(1e-5)
    theirs = [ftz(w * ftz(s * v)) for w, v in zip(weight, flushed, strict=True)]
    assert not judged("attention_norm", theirs, {"embedding": small}, weight=weight).wrong
    other = [0.9 * v for v in small]
    theirs = [ftz(a + (b if abs(b) >= TINY else 0.0)) for a, b in zip(flushed, other, strict=True)]
    assert not judged("attention_residual", theirs, {"embedding": small, "attention_out": other}).wrong
    matrix = [tuple(rng.uniform(-30, 30) for _ in small) for _ in small]
    theirs = [ftz(sum(ftz(w * v) for w, v in zip(row, flushed, strict=True))) for row in matrix]
    for op in "v", "q":  # at position 0 RoPE turns by nothing
        assert not judged(op, theirs, {"attention_norm": small}, matrix=matrix).wrong
    far = [v + 1e-33 for v in theirs]
    assert judged("v", far, {"attention_norm": small}, matrix=matrix).impossible


def test_softmax_may_flush_what_is_all_but_zero():
    q = [100.0, 0.0]
    keys = [1.0, 0.0], [0.0, 0.0], [-0.24, 0.0]
    scores = [f32(100 * k / math.sqrt(2)) for k, _ in keys]
    e = [ftz(math.exp(v - scores[0])) for v in scores]
    shard = SimpleNamespace(config=SimpleNamespace(head_size=2, n_heads=1, n_kv_heads=1, n_layers=1, norm_epsilon=1e-5,
                                                   rope_theta=1e4, rope_scaling=None), group=1)
    right = operations.Operations(shard, [1, 1, 1], lambda op, l, t: q if op == "q" else keys[t])
    y = right.result("weights", 0, 2)
    assert 0 < y[2] < TINY and e[2] == 0.0
    assert not operations.judge([v / sum(e) for v in e], y, right.errors("weights", 0, 2, y)).wrong
