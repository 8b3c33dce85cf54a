"""Tests of precision.py, and of the doctor where the other program computes in bfloat16 or float16; of the search's
budget, and of what is printed for programs."""
import functools
import json
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llama2
from llama2_py.doctor import precision, report
from llama2_py.doctor.budget import Budget, Spent
from llama2_py.doctor.compare import Comparison, divergence, likeliest
from llama2_py.doctor.numbers import Numbers
from llama2_py.doctor.precision import PRECISIONS, RoundedCheckpoint, open_rounded
from llama2_py.engine.half_precision import table
from llama2_py.engine.models import open_checkpoint
from tests.formulas import FORMULAS
from tests.helpers import MODEL, command, edited, examples, failure
from tests.ports import SHAPE, TOKENS, OneCache, Right, records_of, rows_of

ROUND = {"bfloat16": precision.bfloat16, "float16": precision.float16}


def in_few_bits(round_all, more=(), base=Right):
    """A port that rounds the results of operations to a format; more: methods whose results it rounds, too."""
    class InFewBits(base):
        def weights(self, name, l):
            return [round_all(row) for row in super().weights(name, l)]

        def keep(self, pos, l, op, x):
            return super().keep(pos, l, op, round_all(list(x)))

    def rounded(name):
        def method(self, *args):
            result = getattr(super(InFewBits, self), name)(*args)
            return round_all([result])[0] if isinstance(result, float) else list(round_all(list(result)))
        return method

    for name in more:
        setattr(InFewBits, name, rounded(name))
    return InFewBits


STYLES = [(), ("matmul",), ("matmul", "score", "activation"), ("matmul", "dot", "softmax", "norm")]
Halves, Unscaled = FORMULAS["RoPE turns halves"], FORMULAS["scores are not divided by sqrt(hs)"]


@pytest.fixture(scope="module")
def doctor(ports_path, tmp_path_factory):
    """doctor(data, precision) -> the comparison of a file with these bytes."""
    file = tmp_path_factory.mktemp("numbers") / "theirs"

    def examine(data, name):
        file.write_bytes(data)
        opened = functools.partial(open_rounded, PRECISIONS[name])
        with llama2.Transformer(ports_path, opened=opened) as model:
            comparison = Comparison(model, TOKENS, Numbers(str(file), model.config), PRECISIONS[name])
            comparison.run()
            comparison.found = [] if comparison.consistent() else comparison.search(Budget())
        return comparison

    return examine


# ----------------------------------------------------------------------------
# The verdict


SOME = ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("style", [pytest.param(style, marks=[pytest.mark.slow] if i else [])
                                   for i, style in enumerate(STYLES)])
def test_a_correct_port_in_few_bits_is_consistent_in_any_style_and_wrong_in_float32(ports_path, doctor, name, style):
    rows = rows_of(in_few_bits(ROUND[name], style)(ports_path))
    c = doctor(rows, name)
    assert c.consistent() and 0.1 < c.overall < 1.9, c.overall
    assert not any("looks like float32" in line for line in report.reasons(c))
    assert any(f"logits in {name} do not show: a theta" in line for line in report.reasons(c))
    assert not doctor(rows, "float32").consistent()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bfloat16", "float16"])
@pytest.mark.parametrize("style", STYLES)
def test_so_are_its_operations(ports_path, doctor, name, style):
    port = in_few_bits(ROUND[name], style)(ports_path)
    rows_of(port)
    records = records_of(port, 5)
    assert doctor(records, name).consistent() and not doctor(records, "float32").consistent()


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("kind, text", [
    pytest.param(Halves, "RoPE turns halves", marks=pytest.mark.slow),
    pytest.param(OneCache, "all layers share one cache", marks=pytest.mark.slow),  # it comes within 4 times the noise
    (Unscaled, "scores are not divided")])
def test_a_mistake_in_few_bits_is_seen_and_named(ports_path, doctor, name, kind, text):
    port = in_few_bits(ROUND[name], base=kind)(ports_path)
    c = doctor(rows_of(port), name)
    assert not c.consistent() and all(text in found for found in c.found) and c.found
    c = doctor(records_of(port, 5), name)
    assert not c.consistent() and len(c.found) == 1 and text in c.found[0]


@pytest.mark.slow
def test_a_float32_port_is_told_that_it_is_better_than_bfloat16(ports_path, doctor):
    rounded = type("Rounded", (Right,), {"weights": lambda self, name, l: [
        precision.bfloat16(row) for row in Right.weights(self, name, l)]})
    c = doctor(rows_of(rounded(ports_path)), "bfloat16")
    assert c.consistent() and any("this looks like float32" in line for line in report.reasons(c))


def test_an_option_is_suggested_where_every_number_is_of_a_format(ports_path, doctor):
    c = doctor(rows_of(in_few_bits(precision.bfloat16)(ports_path)), "float32")
    assert any("(--precision bfloat16 judges it as that)" in line for line in report.reasons(c))
    assert c.found == []


# ----------------------------------------------------------------------------
# Weights


def nearest(values, v):
    """By definition: the nearest of two neighbours, of two as near the one with an even code. values: by code."""
    finite = [c for c in range(2**15) if math.isfinite(values[c])]
    best = min(finite, key=lambda c: (abs(values[c] - abs(v)), c % 2))
    return math.copysign(values[best], v)


@examples(30)
@given(st.lists(st.floats(-60000, 60000, width=32), min_size=1, max_size=2), st.sampled_from(list(ROUND)))
def test_weights_are_rounded_to_the_nearest_even(numbers, name):
    values = table(PRECISIONS[name].form.dtype)
    assert list(ROUND[name](numbers)) == [nearest(values, v) for v in numbers]


@pytest.mark.parametrize("name", ROUND)
def test_rows_are_those_of_the_checkpoint_rounded_and_refer_to_one_table(ports_path, name):
    form = PRECISIONS[name].form
    rounded, own = open_rounded(PRECISIONS[name], ports_path), open_checkpoint(ports_path)
    values = {id(v) for v in table(form.dtype)}
    for tensor in own.tensors:
        rows = rounded.rows(tensor, 0)
        assert rows == [tuple(form.round(row)) for row in own.rows(tensor, 0)] and rounded.is_shared(tensor)
        assert {id(v) for row in rows for v in row} <= values
    assert rounded.rows("w1", 1, 3, 5) == rounded.rows("w1", 1)[3:5] and rounded.config == own.config
    again = RoundedCheckpoint(rounded, form)
    assert again.rows("w2", 1) == rounded.rows("w2", 1)


@pytest.mark.parametrize("name, value", [("float16", 65520.0), ("float16", -1e30), ("bfloat16", 3.4e38)])
def test_a_weight_that_the_format_has_not_is_refused(ports_path, tmp_path, name, value):
    file = edited(ports_path, tmp_path / "large.bin", 28, "f", value)
    with pytest.raises(ValueError, match=f"large.bin: a weight is too large for {name}"):
        open_rounded(PRECISIONS[name], file).rows("embedding")


# ----------------------------------------------------------------------------
# The search's budget, and what is said of it


def test_what_a_budget_leaves_out_is_kept_in_mind():
    budget = Budget(0)
    assert list(budget.trials([1, 2, 3], "things", str)) == [] and budget.untried == ["3 of 3 things"]
    budget, told = Budget(tell=lambda done, of: told.append((done, of))), []

    def trial(n):
        if n == 3:
            raise Spent
        return n * n if n % 2 else None

    assert list(budget.trials([1, 2, 3, 4], "things", trial)) == [(1, 1)]
    assert budget.untried == ["2 of 4 things"] and told == [(0, 4), (1, 4), (2, 4)]


@pytest.fixture(scope="module")
def wrong(tmp_path_factory, ports_path):
    """Options of a comparison with a port whose RoPE turns halves."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "theirs").write_bytes(rows_of(Halves(ports_path)))
    (folder / "tokenizer.bin").write_bytes(struct.pack("<i", 4) + b"".join(
        struct.pack("<fi", 0.0, 4) + b"%04d" % i for i in range(SHAPE["vocab_size"])))
    return [ports_path, "-z", folder / "tokenizer.bin", "--tokens", ",".join(map(str, TOKENS)), "--compare",
            folder / "theirs"]


def test_the_verdict_stands_before_the_search_and_says_what_was_not_tried(wrong, capfdbinary):
    code, out, _ = command(capfdbinary, *wrong, "--budget", "0")
    lines = out.decode().splitlines()
    assert code == 1 and lines[0] == "a mistake, not rounding in float32"
    assert "none of the known mistakes that were tried explains it" in lines
    (untried,) = [line for line in lines if line.startswith("not tried, in 0 s (--budget): ")]
    assert " of 3 constants; " in untried and " known mistakes; " in untried


@pytest.mark.slow
def test_the_report_ends_with_a_block_that_names_the_mistake(wrong, capfdbinary):
    code, out, _ = command(capfdbinary, *wrong)
    lines = out.decode().splitlines()
    name = "RoPE turns halves, (i, i + hs/2), not neighbours, (2i, 2i + 1)"
    assert code == 1 and f"the mistake: {name}" in lines and lines[-5].endswith(f"not rounding in float32: {name}")
    assert lines[-3] == "12 steps of logits judged, and 0 operations, from their own inputs"


@pytest.mark.slow
def test_json_is_one_object_that_says_what_the_report_says(wrong, capfdbinary):
    code, out, _ = command(capfdbinary, *wrong, "--json")
    said = json.loads(out)
    assert code == 1 and out.count(b"\n") == 1 and said["consistent"] is False and said["precision"] == "float32"
    assert said["mistakes"][0].startswith("RoPE turns halves") and said["untried"] == []
    logits = said["logits"]
    assert logits["steps"] == 12 == len(logits["by_step"]) and logits["overall"] > logits["overall_limit"] == 2
    assert logits["worst_step"] == max(step["noise"] for step in logits["by_step"])
    assert logits["kl_mean"] == pytest.approx(math.fsum(step["kl"] for step in logits["by_step"]) / 12)
    assert said["first_wrong"] is None and said["operations"] == {}


@pytest.mark.parametrize("option", [["--precision", "bfloat16"], ["--budget", "5"], ["--json"]])
def test_options_of_a_comparison_need_one(option, capfdbinary):
    code, out, err = command(capfdbinary, MODEL, *option)
    assert code == 2 and out == b"" and f"{option[0]} needs --compare" in err


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "1e+07"])
def test_a_budget_that_cannot_be_is_refused(wrong, capfdbinary, value):
    message = failure(capfdbinary, *wrong, f"--budget={value}")
    assert message == f"argument --budget: {value}, must be 0 to 1000000 seconds"


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=9), st.floats(-5, 5), st.data())
def test_divergence_is_that_of_the_probabilities(row, shift, data):
    other = data.draw(st.lists(st.floats(-30, 30), min_size=len(row), max_size=len(row)))
    p, q = ([math.exp(v) / math.fsum(map(math.exp, x)) for v in x] for x in (row, other))
    expected = math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert divergence(row, other) == pytest.approx(expected, abs=1e-9, rel=1e-9)
    assert divergence(row, [v + shift for v in row]) == pytest.approx(0, abs=1e-12)
    assert likeliest(row) == sorted(range(len(row)), key=lambda i: (-row[i], i))[:5]
