"""Tests of operations.py, mistakes/ and diagnosis.py: ports of Llama to float32, right and wrong, and the verdicts.

The ports are written here, as somebody who does not know this project would write them: plain loops, every operation
rounded, sums in some order.
"""
import math
import struct
from types import SimpleNamespace

import pytest

import llama2
from llama2_py.doctor import compare, constants, diagnosis, limits, noise, numbers, precision
from llama2_py.doctor.mistakes import weights
from llama2_py.doctor.mistakes.known import known
from llama2_py.doctor import operations, report, search, simple, singles
from llama2_py.doctor.budget import Budget
from llama2_py.doctor.errors import ROUNDED, ROUNDED_TWICE
from llama2_py.doctor.precision import PRECISIONS
from llama2_py.engine import graph
from llama2_py.engine.checkpoint import Checkpoint, Config
from tests.formulas import port_with
from tests.helpers import make_checkpoint, run_forward, some
from tests.ports import TOKENS, bf16, f16, f32

FLOAT32 = PRECISIONS["float32"]


def forward(terms):
    total = 0.0
    for t in terms:
        total = f32(total + t)
    return total


def backward(terms):
    return forward(terms[::-1])


def pairwise(terms):
    if len(terms) < 3:
        return forward(terms)
    half = len(terms) // 2
    return f32(pairwise(terms[:half]) + pairwise(terms[half:]))


def four_lanes(terms):
    return pairwise([forward(terms[lane::4]) for lane in range(4)])


def double(terms):
    return f32(math.fsum(terms))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("ports") / "model.bin", dim=32, hidden_dim=40, n_layers=2, n_heads=4,
                           n_kv_heads=2, vocab_size=48, seq_len=16)


class NoiseOnce(noise.NoisyRun):
    """Noisy runs whose results are kept, since every comparison asks for the same."""

    kept = {}

    def steps(self, *job):
        key = repr(([length for _, length in self.draws], job))
        if key not in self.kept:
            self.kept[key] = super().steps(*job)
        return self.kept[key]


@pytest.fixture(scope="module")
def judge(path, tmp_path_factory):
    """judge(port) -> the comparisons and names of its logits, and of its operations."""
    folder = tmp_path_factory.mktemp("numbers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "NoisyRun", NoiseOnce)
        yield from judges(path, folder)


def judges(path, folder):
    with llama2.Transformer(path) as model:
        def compared(data):
            (folder / "theirs").write_bytes(data)
            comparison = compare.Comparison(model, TOKENS, numbers.Numbers(str(folder / "theirs"), model.config))
            comparison.run()
            comparison.found = [] if comparison.consistent() else comparison.search(Budget())
            return comparison

        def verdicts(port):
            rows = port.run()
            logits = compared(b"".join(struct.pack(f"<{len(row)}f", *row) for row in rows))
            records = b"".join(b"%d %d %s %d\n" % (pos, l, op.encode(), len(v)) + struct.pack(f"<{len(v)}f", *v)
                               for pos, l, op, v in port.records if pos < 6)
            return SimpleNamespace(logits=logits, operations=compared(records))

        yield verdicts


@pytest.mark.parametrize("add", [forward, four_lanes, *[
    pytest.param(add, marks=pytest.mark.slow) for add in (backward, pairwise, double)]])
@pytest.mark.parametrize("fma", [False, True])
def test_right_ports_are_consistent_whatever_their_order_of_summation(path, judge, add, fma):
    verdict = judge(port_with(path, add=staticmethod(add), fma=fma))
    assert verdict.logits.consistent() and verdict.operations.consistent()
    assert verdict.logits.overall < 1.5 and not verdict.operations.apart
    assert sum(map(len, verdict.operations.judged.values())) == 6 * (2 * 14 + 3)


# What a port does wrong, as the doctor names it
NAMED = [
    "RoPE turns halves",
    "RoPE is left out",
    "RoPE turns q only, not k",
    "RoPE turns the other way",
    "RoPE's theta is 500000",
    "RoPE's theta is 9000",
    "RoPE's frequency of pair i is theta^(-i/hs)",
    "RoPE's frequencies are rounded to bfloat16",
    "query head h uses key and value head h % kv_heads,",
    "scores are not divided by sqrt(hs)",
    "scores are divided by hs,",
    "scores are divided by sqrt(dim)",
    "scores are multiplied by 0.5",
    "a position does not attend to itself (the first does)",
    "attention sees the last 4 positions only",
    "the cache's keys are one position late, the edge twice",
    "the cache's keys are one position early, 0 at the edge",
    "the cache's values are one position late, the edge twice",
    "epsilon is 1e-06",
    "epsilon is 0.001",
    "epsilon is added outside of the root",
    "LayerNorm",
    "ffn_norm has no weight",
    "final_norm is missing",
    "the weights of attention_norm and ffn_norm are swapped",
    "attention_norm has the weight of the layer after",
    "GELU, by tanh, stands for SiLU",
    "GELU stands for SiLU",
    "ReLU stands for SiLU",
    "a sigmoid stands for SiLU",
    "quick GELU, a * sigmoid(1.702 a), stands for SiLU",
    "w1 and w3 are swapped",
    "attention_residual is missing",
    "ffn_residual is missing",
    "wo is transposed",
    "wq is transposed",
    "wk and wv are swapped",
    "w2 is that of the layer after",
    "weights are rounded to bfloat16",
    "weights are rounded to float16",
    "weights of matrices are rounded to int8, in rows",
    "row 33 of the classifier",
    "log-probabilities stand for logits",
    "BOS, token 1, is missing",
    "BOS, token 1, is there twice",
    "EOS, token 2, stands before the text",
    "RoPE turns k the other way",
    "RoPE turns by twice the angle",
    "query head h uses value head h % kv_heads,",
    "the layers run in reverse order",
    "the last row of every matrix is left out",
    "the logit of token 7 is off by 0.5",
    "the logit of token 7 is -1e+04",
    "the logit of every token that was an input is divided by 1.2",
]
# What a port does wrong; what the logits say; what the operations say (None: nothing is wrong there)
OTHERWISE_NAMED = [
    ("RoPE's positions begin at 1", None, "RoPE's positions begin at 1"),  # the same function
    ("RoPE's positions begin at -1", None, "RoPE's positions begin at -1"),
    ("RoPE's cosines and sines are swapped", "", "RoPE's cosines and sines are swapped"),
    ("softmax's exponentials and results are float16", "softmax's exponentials and results are float16",
     "results are float16 (in weights alone)"),
    ("epsilon is 0", "epsilon is ", "epsilon is "),
    ("keys and values are float16", "values are float16", "keys and values are float16"),
    ("keys and values are bfloat16", "values are bfloat16", "keys and values are bfloat16"),
    ("logits are float16", "logits are float16", "results are float16 (in logits alone)"),
    ("row 7 of w1 in layer 1", "", "row 7 of w1 in layer 1 is not the checkpoint's"),
    ("(in layer 1 alone)", "", "ReLU stands for SiLU (in layer 1 alone)"),
    ("the last layer is skipped", "the last layer is skipped", ""),
    ("rows are one step late", "rows are one step late", None),
    ("rows are one step early", "rows are one step early", None),
]


@pytest.mark.slow
@pytest.mark.parametrize("wrong, by_logits, by_operations", [*[(name, name, name) for name in NAMED], *OTHERWISE_NAMED])
def test_every_known_mistake_is_named(path, judge, wrong, by_logits, by_operations):
    verdict = judge(port_with(path, wrong))
    if by_logits is None:
        assert verdict.logits.consistent()
    else:
        assert not verdict.logits.consistent()
        assert by_logits in "\n".join(verdict.logits.found), verdict.logits.found
    if by_operations is None:
        assert verdict.operations.first_wrong is None
    else:
        assert not verdict.operations.consistent()
        found = verdict.operations.found
        assert by_operations == "" or len(found) == 1 and by_operations in found[0], found


@pytest.mark.slow
def test_a_last_row_that_is_never_written_is_one_mistake(path, judge):
    verdict = judge(port_with(path, "the last row is never written"))
    assert verdict.operations.found == ["the last row of every matrix is not the checkpoint's: is it left out?"]


@pytest.mark.slow
def test_a_name_for_a_part_is_right_about_the_rest(path, judge):
    """Weights in bfloat16 and another epsilon: the norms' weights may be rounded, too."""
    found = "\n".join(judge(port_with(path, "weights are rounded to bfloat16", "epsilon is 0.001")).operations.found)
    assert "without the norms'" not in found and "alone" not in found and "not known" not in found, found
    assert "weights are rounded to bfloat16; and epsilon is 0.001" in found, found
    found = "\n".join(judge(port_with(path, "epsilon is 0.001", "ffn_norm has no weight")).operations.found)
    assert "epsilon is 0.001, not 1e-05 (in attention_norm, final_norm)" in found, found
    assert "ffn_norm has no weight; and epsilon is 0.001" in found and "not known" not in found, found


@pytest.mark.slow
def test_a_formula_and_a_constant_in_one_operation_are_named(path, judge):
    found = judge(port_with(path, "RoPE turns halves", "RoPE's theta is 500000")).operations.found
    assert len(found) == 1 and found[0].startswith("RoPE turns halves") and "; and RoPE's theta is 500000" in found[0]


@pytest.mark.slow
@pytest.mark.parametrize("add", [forward, backward, four_lanes])
def test_a_fused_residual_is_right_and_explained(path, judge, add):
    verdict = judge(port_with(path, "the residual connections are one sum", add=staticmethod(add)))
    assert verdict.operations.is_fused and verdict.operations.consistent() and verdict.logits.consistent()
    (line,) = [line for line in report.reasons(verdict.operations) if line.startswith("ffn_residual is one sum")]
    assert "the same function as two additions, with other roundings" in line
    both = "the residual stream is 0.99 of itself", "the residual connections are one sum"
    assert not judge(port_with(path, *both)).operations.consistent()


def compared(model, data, file, tokens=TOKENS):
    file.write_bytes(data)
    comparison = compare.Comparison(model, tokens, numbers.Numbers(str(file), model.config))
    comparison.run()
    return comparison


def as_records(records):
    return b"".join(b"%d %d %s %d\n" % (pos, l, op.encode(), len(v)) + struct.pack(f"<{len(v)}f", *v)
                    for pos, l, op, v in records)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 12])
def test_few_steps_of_a_correct_port_are_consistent(path, tmp_path, steps):
    """With one draw of noise alone one port in some ten was called wrong."""
    with llama2.Transformer(path) as model:
        for add in forward, backward, pairwise, four_lanes:
            rows = port_with(path, add=staticmethod(add)).run(TOKENS[:steps])
            data = b"".join(struct.pack("<48f", *row) for row in rows)
            comparison = compared(model, data, tmp_path / "theirs", TOKENS[:steps])
            assert comparison.consistent() and comparison.overall < 1.8 and comparison.limit == (3 if steps <= 8 else 2)


@pytest.mark.parametrize("n", [4, 64, 300])
@pytest.mark.parametrize("is_aligned", [False, True])
def test_the_noise_of_a_product_is_what_programs_are_expected_to_err_by(n, is_aligned):
    """Of numbers that cancel it comes from the lengths, of others from the result."""
    w = [f32(math.sin(i + 1)) for i in range(n)]
    x = w if is_aligned else [f32(math.cos(2.3 * i)) for i in range(n)]
    A = noise.Noisy()
    found = A.dots(A.Matrix([tuple(w)] * 3000), A.operand(tuple(x)))
    y = operations.dot(w, x)
    sigma = math.sqrt(0.09 * operations.dot(w, w) * operations.dot(x, x) + 0.06 * n * y * y) * 2.0**-24
    assert operations.rms([v - y for v in found]) == pytest.approx(sigma, rel=0.05)


def test_in_few_bits_a_result_is_moved_by_its_rounding():
    values = [float(i % 7 + 1) for i in range(5000)]
    few_bits = noise.NoisyInFewBits(2.0**-9)
    for op, roundings in ("q", ROUNDED), ("swiglu", ROUNDED_TWICE), ("ffn_norm", ROUNDED_TWICE), ("gate", 0.0):
        off = [(a - b) / b for a, b in zip(few_bits.passed_on(0, op, values), values, strict=True)]
        assert operations.rms(off) == pytest.approx(roundings * 2.0**-9, rel=0.05)
    assert noise.Noisy().passed_on(0, "q", values) == values


def test_noise_is_drawn_until_its_luck_weighs_little():
    assert noise.draws(1, 1) == [1] * 64 and noise.draws(3, 3) == [3] * 21 + [1] and noise.draws(8, 8) == [8] * 8
    assert noise.draws(63, 63) == [63, 1] and [noise.draws(n, n) for n in (64, 65, 1000)] == [[64], [65], [1000]]
    assert noise.draws(1, 100) == [100] * 2 and noise.draws(1, 300) == [300]  # late steps cost all those before


@pytest.mark.parametrize("wanted", some(2, [
    lambda pos, l, op: l == 0, lambda pos, l, op: op != "embedding", lambda pos, l, op: op == "attention_norm",
    lambda pos, l, op: l == 1 and op in ("v", "gate"), lambda pos, l, op: op == "weights" and pos == 0]))
def test_a_part_of_a_correct_dump_is_consistent(path, tmp_path, wanted):
    with llama2.Transformer(path) as model:
        port = port_with(path, add=staticmethod(four_lanes))
        port.run(TOKENS[:4])
        some = [record for record in port.records if wanted(*record[:3])]
        assert compared(model, as_records(some), tmp_path / "theirs").consistent()
        pos, l, op, values = some[-1]
        some[-1] = pos, l, op, [values[0] + 1e-3, *values[1:]]
        assert not compared(model, as_records(some), tmp_path / "theirs").consistent()


def test_operations_outrank_logits(path, tmp_path, monkeypatch):
    """Where every operation is there and right, the logits are not held against it; elsewhere they are."""
    monkeypatch.setattr(compare, "ONE_STEP", 1e-9)
    with llama2.Transformer(path) as model:
        port = port_with(path)
        port.run(TOKENS[:5])
        comparison = compared(model, as_records(port.records), tmp_path / "theirs")
        assert comparison.settled == 5 and comparison.outranked and comparison.consistent()
        lines = "\n".join(report.reasons(comparison))
        assert "every operation that led to them is right" in lines
        some = [record for record in port.records if record[0] < 3 or record[2] == "logits"]
        comparison = compared(model, as_records(some), tmp_path / "theirs")
        assert comparison.settled == 3 and not comparison.outranked and not comparison.consistent()
        assert "the first 3 positions is there, and right: dump those of positions 3 to 3 as well" in "\n".join(
            report.advice(comparison, []))
        some = [record for record in port.records if record[:3] != (0, 1, "gate")]
        assert compared(model, as_records(some), tmp_path / "theirs").settled == 0


def test_what_a_consistent_verdict_does_not_show_is_said():
    c = SimpleNamespace(not_finite=False, consistent=lambda: True, judged={})
    (by_logits,) = report.advice(c, [])
    c.judged = {"q": []}
    (by_operations,) = report.advice(c, [])
    shifted = "; and a mistake that changes no logit, such as RoPE with all positions shifted"
    assert by_logits == by_operations + shifted and "with other tokens" in by_operations


def test_nobody_is_told_to_dump_what_is_there(path, tmp_path):
    with llama2.Transformer(path) as model:
        port = port_with(path)
        rows = port.run(TOKENS[:3])
        wrong = [(pos, -1, "logits", [v + 0.5 * math.sin(i) for i, v in enumerate(row)])
                 for pos, row in enumerate(rows)]
        some = [record for record in port.records if record[2] == "embedding"] + wrong
        comparison = compared(model, as_records(some), tmp_path / "theirs")
        (advice,) = report.advice(comparison, [])
        assert advice == "next: the operations in the file are right: dump all others of the same positions as well"
        tokens, advice = report.advice(compared(model, as_records(wrong), tmp_path / "theirs"), [])
        assert tokens == "first: was the other program given the same tokens, 1,17,5?"
        assert advice.startswith("next: dump every operation of the first steps")


@pytest.mark.slow
def test_the_first_step_alone_does_not_name_a_rounding(path, judge):
    """At the first step rounded results of attention are rounded values; what tells them apart comes later."""
    verdict = judge(port_with(path, "results of attention are bfloat16"))
    assert verdict.operations.found == ["results are bfloat16 (in attention alone)"]
    (name,) = verdict.logits.found
    assert name.startswith("results of attention are bfloat16 (seen at step 0") and " or " not in name


def test_the_limits_are_those_that_verdicts_were_promised():
    """A wider one would call mistakes rounding, a nearer one right programs wrong: of either, no port may tell."""
    assert [compare.limit_of([None] * n) for n in (1, 8, 9, 400)] == [3, 3, 2, 2]
    assert (limits.ONE_STEP, limits.ONE_LOGIT, limits.OPERATION, limits.ONE_OPERATION) == (12, 32, 4, 32)


def test_an_epsilon_that_may_be_0_is_told_as_a_range():
    c = SimpleNamespace(norm_epsilon=1e-5)
    text = diagnosis.constant_text(constants.EPSILON, [0.0, 1e-8, 1e-9], 1e-9, c)
    assert text == "epsilon is smaller than 1e-05, 0 to 1e-08"
    assert diagnosis.constant_text(constants.EPSILON, [0.0], 0.0, c).startswith("epsilon is 0")
    assert diagnosis.constant_text(constants.EPSILON, [1e-6, 1.1e-6], 1e-6, c).startswith("epsilon is 1e-06")


def test_the_normalized_error_is_that_of_all_steps_together():
    c = SimpleNamespace(steps=[SimpleNamespace(off=off, noise=noise, size=size) for off, noise, size in (
        (3.0, 0.1, 2.0), (4.0, 0.2, 1.0))])
    assert report.normalized_error(c) == pytest.approx((0.3**2 + 0.8**2) / (2.0**2 + 1.0**2))
    c.steps[0].size = c.steps[1].size = 0.0
    assert report.normalized_error(c) == pytest.approx(0.3**2 + 0.8**2)


def test_single_elements_are_told_up_to_four():
    rows = {(0, i) for i in range(4)}
    assert diagnosis.elements_text("q", {(1, 7)}) == "row 7 of wq in layer 1 is not the checkpoint's"
    assert diagnosis.elements_text("final_norm", {(None, 7)}) == "weight 7 of the final_norm is not the checkpoint's"
    assert diagnosis.elements_text("q", rows).endswith(" and row 3 of wq in layer 0 are not the checkpoint's")
    assert diagnosis.elements_text("q", {*rows, (0, 4)}).endswith(
        " and row 3 of wq in layer 0 and others are not the checkpoint's")


def test_a_constant_is_tried_by_the_operations_own_value_first():
    values = {"attention_norm": 3e-6, "ffn_norm": 2e-6, "final_norm": 1e-6, "q": math.inf, "k": None}
    among = SimpleNamespace(right=None, get=lambda op, l, pos: op, wrong={op: [(True, 0, 1)] for op in values})
    constant = SimpleNamespace(measure=lambda right, op, places: values[places[0][2]])
    assert diagnosis.AmongOperations.measured(among, constant, "ffn_norm", list(values)) == [2e-6, 1e-6, 3e-6]


def test_a_token_that_is_not_known_does_not_hide_what_the_others_show(path, judge):
    with llama2.Transformer(path) as model:
        rows = [(pos, -1, "embedding", model.shard.embedding(token)) for pos, token in enumerate([*TOKENS[1:4], 9])]
        places = [(pos > 0, None, pos) for pos in range(4)]
        found = diagnosis.by_operations(model.shard, TOKENS[:4], lambda op, l, pos: rows[pos][3], {
            "embedding": places}, FLOAT32, Budget())
        assert found == ["BOS, token 1, is missing before the text"]


@pytest.mark.slow
def test_a_mistake_that_would_spoil_something_is_not_named(path, judge):
    verdict = judge(port_with(path, "RoPE turns q only, not k"))
    assert verdict.operations.found == ["RoPE turns q only, not k"]  # not: RoPE is left out


OTHER_HEADS = "query head h uses key and value head h % kv_heads,"


@pytest.mark.slow
def test_two_mistakes_are_both_named(path, judge):
    verdict = judge(port_with(path, "RoPE turns halves", "epsilon is 1e-06"))
    assert sorted(name.split(",")[0] for name in verdict.operations.found) == [
        "RoPE turns halves", "epsilon is 1e-06"]
    assert len(judge(port_with(path, "LayerNorm", "attention_residual is missing")).operations.found) == 2
    found = "\n".join(judge(port_with(path, "scores are not divided by sqrt(hs)", OTHER_HEADS)).operations.found)
    assert "scores are not divided" in found and "key head h % kv_heads" in found  # in one operation
    verdict = judge(port_with(path, "GELU, by tanh, stands for SiLU", OTHER_HEADS))
    assert len(verdict.operations.found) == 2
    assert len(verdict.logits.found) == 2
    assert "h % kv_heads" in verdict.logits.found[0] and "GELU, by tanh" in verdict.logits.found[1]


@pytest.mark.slow
def test_what_no_known_mistake_explains_is_left_over(path, judge):
    verdict = judge(port_with(path, "ReLU stands for SiLU", "the residual stream is 0.99 of itself"))
    assert verdict.operations.found == ["ReLU stands for SiLU", "one that is not known, in ffn_residual"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["the residual stream is 0.99 of itself", "logits are pressed together by tanh"])
def test_a_mistake_that_is_not_known_is_wrong_and_has_no_name(path, judge, fault):
    verdict = judge(port_with(path, fault))
    for comparison in verdict.logits, verdict.operations:
        assert not comparison.consistent() and comparison.found == []
    wrong = verdict.operations.first_wrong
    first = ("logits", None, 0) if fault.startswith("logits") else ("ffn_residual", 0, 0)
    assert (wrong.op, wrong.layer, wrong.pos) == first


def test_the_inputs_of_an_operation_are_those_that_it_asks_for(path):
    with llama2.Transformer(path) as model:
        whole = operations.Model(operations.Operations, model.shard, TOKENS)
        asked = set()
        given = whole.operations.given

        def get(op, l, pos):
            asked.add((op, l, pos))
            return given(op, l, pos)

        whole.operations.given = get
        for pos in range(3):
            for op, l in graph.sequence(2):
                asked.clear()
                whole.results[op, l, pos] = whole.operations.result(op, l, pos)
                assert asked == {(name, layer, t) for name, layer, positions in graph.inputs(op, l, pos, 2)
                                 for t in positions}


def test_the_operations_are_those_of_the_forward_pass(path):
    with llama2.Transformer(path) as model:
        whole = operations.Model(operations.Operations, model.shard, TOKENS)
        for pos, (events, logits) in enumerate(run_forward(path, "exact", TOKENS[:4])):
            assert max(abs(a - b) for a, b in zip(whole.logits(pos), struct.unpack("48f", logits), strict=True)) < 1e-5
            assert len(events) == 2 * 14 + 2


# ----------------------------------------------------------------------------
# Parts of the search


def test_the_expected_errors_are_those_of_right_programs(path, judge):
    """A sigma is neither so small that right programs are far from it nor so large that they are far below."""
    judged = judge(port_with(path)).operations.judged
    found = {op: [judgement for judgement, _, _ in places] for op, places in judged.items()}
    for op, judgements in found.items():
        largest = max(j.sigmas for j in judgements)
        assert op == "embedding" and largest == 0.0 or 0.2 < largest < 2.5, (op, largest)
    typical = {op: compare.rms([j.sigmas for j in judgements]) for op, judgements in found.items()}
    assert 0.5 < typical["gate"] < 1.5 and 0.5 < typical["logits"] < 1.5


def test_what_no_rounding_makes_is_impossible_and_what_it_hardly_makes_unlikely(path):
    sigma, bound = [1e-7] * 4, [1e-5] * 4
    for theirs, wrong, impossible in [([1.0, 2.0, 3.0, 4.0], False, False), ([1.0, 2.0, 3.0, 4.0 + 15e-7], True, False),
                                      ([1.0, 2.0, 3.0, 4.0 + 17e-7], True, False),
                                      ([1.0 + 3e-7, 2.0, 3.0, 4.0], False, False),
                                      ([1.0, 2.0, 3.0, 4.0 + 2e-5], True, True)]:
        judgement = operations.judge(theirs, [1.0, 2.0, 3.0, 4.0], (sigma, bound))
        assert (judgement.wrong, judgement.impossible) == (wrong, impossible), theirs
    one = operations.judge([0.0] * 99 + [17e-7], [0.0] * 100, ([1e-7] * 100, [1e-5] * 100))
    assert one.sigmas < 4 and one.wrong and one.at == 99 and not one.impossible


def test_a_rounding_that_explains_the_first_step_and_no_other_is_not_named(path):
    rounded = next(m for m in known(Checkpoint(path).config, 0) if m.name == "values are bfloat16")
    with llama2.Transformer(path) as model:
        for other in True, False:
            steps, kinds = [], (rounded, operations.Operations)
            wrong, right = [operations.Model(kind, model.shard, TOKENS) for kind in kinds]
            for pos in range(4):
                theirs, own = wrong.logits(pos), right.logits(pos)
                far = [v + 0.1 * (-1) ** i for i, v in enumerate(own)] if pos and other else theirs
                steps.append(search.Seen(far, own, 1e-7))
            searched = search.Search(model.shard, TOKENS, steps, FLOAT32, Budget())
            assert bool(searched.best([rounded], "roundings")) == (not other)


def test_what_explains_the_logits_to_rounding_leaves_its_own_kind_alone_to_be_tried(path, monkeypatch):
    mistakes = [SimpleNamespace(name=op, changes=(op,), rough=False) for op in ("logits", "q", "gate", "weights", "up")]
    noises, tried = {"logits": 3.0, "q": 0.9, "weights": 0.7}, []

    def sifted(mistake):
        tried.append(mistake.name)
        return search.Fit(noises.get(mistake.name, 0.9), 1e6)

    with llama2.Transformer(path) as model:
        searched = search.Search(model.shard, TOKENS, [search.Seen([1.0] * 48, [0.0] * 48, 1e-7)], FLOAT32, Budget())
        monkeypatch.setattr(searched, "sifted", sifted)
        assert searched.best(mistakes, "mistakes") == ["weights", "q"] and tried == ["logits", "q", "weights"]


def test_a_constant_that_is_only_near_is_about():
    CONFIG = Config(16, 24, 2, 4, 2, 280, 4)
    assert constants.named(constants.EPSILON, 1e-6, 9.4e-7, CONFIG) == "epsilon is 1e-06, not 1e-05"
    assert constants.named(constants.EPSILON, 1e-7, 1.6e-7, CONFIG) == "epsilon is about 1e-07, not 1e-05"
    assert constants.named(constants.EPSILON, 0.0, 1e-9, CONFIG).startswith("epsilon is 0, or so small")


def test_one_logit_alone_can_be_wrong(path, tmp_path):
    """A logit that is 40 times the noise of its row at one step is too far, though the whole is not."""
    with llama2.Transformer(path) as model:
        rows = [list(model.forward(token, pos)) for pos, token in enumerate(TOKENS)]

        def compared():
            (tmp_path / "theirs").write_bytes(b"".join(struct.pack("<48f", *row) for row in rows))
            comparison = compare.Comparison(model, TOKENS, numbers.Numbers(str(tmp_path / "theirs"), model.config))
            comparison.run()
            return comparison

        step = compared().steps[6]
        length = compared().lengths[11]
        for times, consistent in (20, True), (45, False):
            before, rows[6][11] = rows[6][11], rows[6][11] + times * step.noise * length
            comparison = compared()
            assert comparison.consistent() == consistent and comparison.overall < 2
            assert max(s.off for s in comparison.steps) < 12
            assert (comparison.steps[6].at, round(comparison.steps[6].worst)) == (11, times)
            rows[6][11] = before


RIGHT = [[math.sin(7 * i + pos) + (0.0 if i != 3 else 2.0) for i in range(48)] for pos in range(5)]
FED = [1, 17, 5, 3, 9]


def named_singles(model, change, right=RIGHT, tokens=FED, **more):
    """change(pos, token, logit) -> what the other program has; the name of what makes single logits wrong."""
    model.forward(1, 0)  # which measures the classifier's rows
    seen = [search.Seen([change(pos, i, v) for i, v in enumerate(row)], row, 1e-7) for pos, row in enumerate(right)]
    return singles.single_logits(model.shard, tokens, seen, **more)


@pytest.mark.parametrize("dim, hidden_dim, lanes", [
    (36, 36, [8]), (32, 40, [16]), (64, 64, []), (288, 768, [64]), (30, 34, [4, 8, 16])])
def test_loops_that_leave_out_the_same_columns_are_one_mistake(dim, hidden_dim, lanes):
    kinds = weights.vector_tails(Config(dim, hidden_dim, 1, 1, 1, 16, 16))
    assert [int(kind.name.split()[6]) for kind in kinds] == lanes


def seen(change):
    """Steps with the right logits, and with what becomes of them: change(position, row)."""
    return [search.Seen(change(pos, row), row, 1e-7) for pos, row in enumerate(RIGHT)]


def test_logits_in_few_bits_are_named_if_they_are_the_right_ones_rounded():
    assert simple.rounded_logits(seen(lambda pos, row: list(map(f16, row)))) == ["logits are float16"]
    assert simple.rounded_logits(seen(lambda pos, row: list(map(bf16, row)))) == ["logits are bfloat16"]
    assert simple.rounded_logits(seen(lambda pos, row: row)) == []
    for by in 1.02, -1.0:
        assert simple.rounded_logits(seen(lambda pos, row, by=by: [f16(by * v) for v in row])) == []


def test_logits_that_are_a_step_off_or_a_multiple_are_named():
    (late,) = simple.out_of_step(seen(lambda pos, row: RIGHT[max(0, pos - 1)]), 3.0)
    (early,) = simple.out_of_step(seen(lambda pos, row: RIGHT[min(4, pos + 1)]), 3.0)
    assert late.startswith("rows are one step late") and early.startswith("rows are one step early")
    assert simple.out_of_step(seen(lambda pos, row: row), 3.0) == []
    (name,) = simple.scaled_logits(seen(lambda pos, row: [f32(v / 0.7) for v in row]), 3.0)
    assert name == "logits are divided by 0.7: a temperature"
    assert simple.scaled_logits(seen(lambda pos, row: [v / (0.7 + 0.01 * pos) for v in row]), 3.0) == []
    assert simple.scaled_logits(seen(lambda pos, row: [-v for v in row]), 3.0) == []


def test_a_row_is_named_only_where_all_other_logits_are_right(path):
    with llama2.Transformer(path) as model:
        def row(pos, i, v):
            return v + 1e-3 * (pos + 1) * (i == 40)

        def others(pos, i, v):
            return v + 1e-3 * (i == 40 or pos >= 2)

        (name,) = named_singles(model, row)
        assert name == "row 40 of the classifier is not the checkpoint's: the logit of token 40 alone is wrong"
        assert named_singles(model, others) == []
        (name,) = named_singles(model, lambda pos, i, v: v + 1e-3 * (pos + 1) * (i == 40 or pos >= 2),
                                tokens=[1, 17, 40, 3, 9])  # from there on it enters the model
        assert name.startswith("row 40 of the classifier") and name.endswith("is an input")
        assert named_singles(model, lambda pos, i, v: row(pos, i, v) + 5e-7 * (-1) ** i) == []
        assert named_singles(model, lambda pos, i, v: v) == []


def test_a_bias_a_ban_and_a_penalty_are_no_rows_of_the_classifier(path):
    with llama2.Transformer(path) as model:
        fed = [set(FED[:pos + 1]) for pos in range(5)]
        for change, expected in [
            (lambda pos, i, v: v + 0.25 * (i == 40), "the logit of token 40 is off by 0.25 at every step: a bias"),
            (lambda pos, i, v: -100.0 if i == 40 else v, "the logit of token 40 is -100 at every step: a banned token"),
            (lambda pos, i, v: v - 1e9 if i == 40 else v, "the logit of token 40 is "),
            (lambda pos, i, v: v - 0.5 * (i in fed[pos]), "the logit of every token that was an input is off by -0.5:"),
            (lambda pos, i, v: (v / 1.1 if v > 0 else v * 1.1) if i in fed[pos] else v,
             "the logit of every token that was an input is divided by 1.1, or multiplied if it is negative: "),
            (lambda pos, i, v: v - 0.5 * (i == 5 and pos >= 2), "the logit of token 5 is wrong once that token was an"),
        ]:
            for more in {}, {"is_classifier_alone": True}:
                (name,) = named_singles(model, change, **more)
                assert name.startswith(expected) and "row" not in name, name
        (name,) = named_singles(model, lambda pos, i, v: v + 0.25 * (i == 40), RIGHT[:1])
        assert name == "the logit of token 40 alone is wrong: a row of the classifier, or a bias"


@pytest.mark.parametrize("name, own", [("float16", f16), ("bfloat16", bf16)])
def test_values_are_rounded_to_the_nearest_even(name, own):
    to = next(form.round for form in precision.FORMATS if form.name == name)
    for value in (1.0, 1.00390625, 1.01171875, 1.00048828125, 1.00146484375, -3.14159, 0.0, -0.0, 6e-5, 1e-40):
        assert struct.pack("f", to([value])[0]) == struct.pack("f", own(f32(value)))


def test_measured_constants_stand_for_round_numbers_first():
    assert constants.nearby(9.4e-7) == [0.0, 1e-6, 9e-7, 9.4e-7]
    assert constants.nearby(10001.0)[1:3] == [10000.0, 10001.0] and constants.nearby(-1.0) == [0.0]
    assert constants.nearby(0.35355)[1] == 1.0 and 0.4 in constants.nearby(0.35355)


def test_a_mistake_that_enlarges_noise_is_measured_in_its_own(path, monkeypatch):
    mistakes = known(Checkpoint(path).config, 0)
    missing = next(mistake for mistake in mistakes if mistake.name.startswith("attention_residual is missing"))
    with llama2.Transformer(path) as model:
        rows = [operations.Model(kind, model.shard, TOKENS) for kind in (missing, operations.Operations)]
        steps = []
        for pos in range(3):
            wrong, right = [row.logits(pos) for row in rows]
            steps.append(search.Seen([v + 15e-7 for v in wrong], right, 1e-7))
        searched = search.Search(model.shard, TOKENS, steps, FLOAT32, Budget())
        assert 1.0 <= searched.amplification(missing, 3) < 1000
        for amplification, explains in (1.0, False), (3.0, True):
            monkeypatch.setattr(searched, "amplification", lambda mistake, count, by=amplification: by)
            fit = searched.fit(missing)
            assert searched.explains(fit) == explains and abs(fit.noise * amplification - 15) < 0.1
