"""The doctor's names, on another program's numbers: a port in plain loops, and ports derived from it that each do one
thing wrong. Names are tried on logits and, where a mistake shows in single operations, on those; and what the doctor
computes for a name is what a port computes that makes the mistake.
"""
import math
import struct
from operator import mul

import pytest

import llama2
from llama2_py.doctor import constants, report
from llama2_py.doctor.mistakes.known import known
from llama2_py.doctor.budget import Budget
from llama2_py.doctor.compare import Comparison
from llama2_py.doctor.numbers import Numbers
from llama2_py.doctor.operations import Model, Operations
from llama2_py.engine.checkpoint import Checkpoint
from tests.formulas import FORMULAS
from tests.helpers import make_checkpoint, read_bytes
from tests.ports import SHAPE, TOKENS, WRONG, Right, records_of, rows_of

# ----------------------------------------------------------------------------
# What the doctor says


@pytest.fixture(scope="module")
def doctor(ports_path, tmp_path_factory):
    """doctor(data) -> the comparison of a file with these bytes, and the names of what is wrong."""
    file = tmp_path_factory.mktemp("numbers") / "theirs"
    with llama2.Transformer(ports_path) as model:
        def examine(data):
            file.write_bytes(data)
            comparison = Comparison(model, TOKENS, Numbers(str(file), model.config))
            comparison.run()
            return comparison, [] if comparison.consistent() else comparison.search(Budget())

        yield examine


def test_the_port_is_right(ports_path, doctor):
    port = Right(ports_path)
    assert doctor(rows_of(port))[0].consistent() and doctor(records_of(port, 5))[0].consistent()


# Of what ports do wrong: with whether it is seen in single operations, too
DONE_WRONG = WRONG | {name: (FORMULAS[name], True) for name in [
    "weights, without the norms', are cut to bfloat16, not rounded",
    "weights, without the norms', are rounded to TensorFloat-32",
    "weights, without the norms', are rounded to float8 (e4m3)", "weights of matrices are in Q8_0",
    "wv is that of layer 0 in every layer"]}
BY_DEFAULT = "heads are joined in reverse order"


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name == BY_DEFAULT else [pytest.mark.slow])
                                  for name in DONE_WRONG])
def test_what_real_ports_do_wrong_has_its_name(ports_path, doctor, name):
    kind, in_operations = DONE_WRONG[name]
    port = kind(ports_path)
    comparison, names = doctor(rows_of(port))
    assert not comparison.consistent() and len(names) == 1 and name in names[0], names
    if in_operations:
        comparison, names = doctor(records_of(port, 5))
        assert not comparison.consistent() and len(names) == 1 and name in names[0], names


OTHER_SHAPE = {"dim": 48, "hidden_dim": 24, "n_layers": 3, "n_heads": 6, "n_kv_heads": 2, "vocab_size": 36,
               "seq_len": 12, "seed": 2}  # where h / kv_heads is not h / (heads / kv_heads)
FEW = [1, 17, 5, 33]


def sum_of_products(self, a, b):
    return sum(map(mul, a, b))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A model, the mistakes that can be made with it, and the right logits."""
    path = make_checkpoint(tmp_path_factory.mktemp("formulas") / "model.bin", **OTHER_SHAPE)
    with llama2.Transformer(path) as model:
        yield path, model.shard, known(model.config, 2), logits_of(Operations, model.shard)


def logits_of(kind, shard):
    model = Model(kind, shard, FEW)
    return [v for pos in range(len(FEW)) for v in model.logits(pos)]


def doubled(port, path):
    faster = {"dot": sum_of_products} if port.dot is Right.dot else {}
    return type("Double", (port,), {"r": staticmethod(float), **faster})(path)


def in_double(port, path):
    return [v for row in doubled(port, path).run(FEW) for v in row]


def distance(a, b):
    return math.dist(a, b) / math.sqrt(len(a))


def test_the_port_in_double_is_the_doctors_model(other):
    path, _, _, right = other
    assert distance(in_double(Right, path), right) < 1e-5 * distance(right, [0.0] * len(right))


NO_FORMULA = ("logits are divided by 0.7: a temperature", "(in layer 1 alone)")
PORTS = FORMULAS | {name: port for name, (port, _) in WRONG.items() if name not in NO_FORMULA and "; or" not in name}
ELSEWHERE = ["RoPE's positions begin at 1", "RoPE's positions begin at -1", "softmax takes exp of the scores",
             "BOS, token 1, is missing"]  # of the right logits; of a row less
NEARLY_RIGHT = [name for name in PORTS if any(few in name for few in ("loat", "int8", "Q8", "Q4", "epsilon"))]


def kind_called(name, mistakes):
    """The mistake whose name begins like this, and not that of which it is a longer one."""
    return min([kind for kind in mistakes if kind.name.startswith(name)], key=lambda kind: len(kind.name))


def test_every_mistake_has_a_port_that_makes_it(other):
    _, _, mistakes, _ = other
    assert {kind_called(name, mistakes) for name in [*PORTS, *ELSEWHERE]} == set(mistakes)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name in NEARLY_RIGHT or i % 3 else [])
                                  for i, name in enumerate(PORTS)])
def test_what_the_doctor_computes_for_a_name_is_what_a_port_computes(other, name):
    path, shard, mistakes, right = other
    kind = kind_called(name, mistakes)
    theirs, ours = in_double(PORTS[name], path), logits_of(kind, shard)
    share = 0.2 if name in NEARLY_RIGHT else 1e-3  # one or two numbers are rounded otherwise
    assert distance(theirs, ours) < share * distance(theirs, right)


@pytest.mark.parametrize("name", ["log-probabilities stand for logits", "the largest logit is subtracted from all"])
def test_what_is_subtracted_from_all_logits_errs_as_one_of_them_does(other, name):
    _, shard, mistakes, _ = other
    model, right = Model(kind_called(name, mistakes), shard, FEW), Model(Operations, shard, FEW)
    for op, l in model.sequence:
        y, _ = model.compute(op, l, 0), right.compute(op, l, 0)
        errors, usual = model.operations.errors(op, l, 0, y), right.operations.errors(op, l, 0, y)
        if op == "logits":
            usual = [[v + max(error) for v in error] for error in usual]
        assert list(map(list, errors)) == list(map(list, usual))


def other_epsilon(self, name, l, x):
    return [w * v / math.sqrt(self.dot(x, x) / len(x) + 0.01)
            for w, v in zip(self.weights(name, l)[0], x, strict=True)]


@pytest.mark.parametrize("constant, value, ops, methods", [
    (constants.EPSILON, 0.01, ("attention_norm", "ffn_norm", "final_norm"), {"norm": other_epsilon}),
    (constants.THETA, 2e4, ("q", "k"), {"angle": lambda self, i, pos: pos * 2e4 ** (-2 * i / self.hs)}),
    (constants.SCALE, 0.5, ("weights",), {"score": lambda self, s, h, t, pos: 0.5 * s * math.sqrt(self.hs)})])
def test_a_constant_is_measured_in_single_operations(other, constant, value, ops, methods):
    path, shard, _, _ = other
    port = doubled(type("Port", (Right,), methods), path)
    port.run(FEW)
    results = {(op, None if l < 0 else l, pos): values for pos, l, op, values in port.records}
    operations = Operations(shard, FEW, lambda *place: results.get(place))
    for op in ops:
        places = [(l, pos, values) for (own, l, pos), values in results.items() if own == op]
        assert constant.measure(operations, op, places) == pytest.approx(value, rel=1e-3)
        assert constant.measure(operations, op, []) is None


@pytest.mark.slow
def test_a_classifier_that_begins_with_the_tables_has_its_name(tmp_path):
    path = make_checkpoint(tmp_path / "model.bin", **{**SHAPE, "vocab_size": 64}, shared=False)
    data = bytearray(read_bytes(path))
    c = Checkpoint(path).config
    size, tables = 4 * c.vocab_size * c.dim, 4 * c.seq_len * c.head_size
    begin = len(data) - size - tables
    for i in range(tables // 4):  # cosines and sines, as llama2.c writes them
        struct.pack_into("<f", data, begin + 4 * i, math.cos(i))
    (tmp_path / "model.bin").write_bytes(data)

    class TooEarly(Right):
        def weights(self, name, l):
            if name != "classifier":
                return super().weights(name, l)
            numbers = struct.unpack_from(f"<{size // 4}f", data, begin)
            return [numbers[i:i + c.dim] for i in range(0, len(numbers), c.dim)]

    (tmp_path / "theirs").write_bytes(rows_of(TooEarly(path)))
    with llama2.Transformer(path) as model:
        comparison = Comparison(model, TOKENS, Numbers(str(tmp_path / "theirs"), model.config))
        comparison.run()
        assert comparison.search(Budget()) == [
            "the classifier is read where RoPE's tables stand, which were not skipped"]


def test_logits_of_other_tokens_and_logits_that_nobody_computed_are_told(ports_path, doctor):
    port, token, rows = Right(ports_path), TOKENS[0], []
    for pos in range(6):  # takes its own likeliest tokens
        rows.append(port.step(token, pos))
        token = rows[-1].index(max(rows[-1]))
    tokens = [TOKENS[0], *[row.index(max(row)) for row in rows[:-1]]]
    comparison, names = doctor(b"".join(struct.pack(f"<{len(row)}f", *row) for row in rows))
    assert not comparison.consistent()
    assert names == [f"other tokens were given: the logits are right for {','.join(map(str, tokens))}"]
    comparison, names = doctor(bytes(4 * SHAPE["vocab_size"] * 3))
    assert names == ["every logit of a step is the same number, 0 at the first: nothing was written there"]
    assert not any("computes in that format" in line for line in report.reasons(comparison))


def test_no_two_mistakes_have_one_name():
    config = Checkpoint(llama2.__file__.replace("llama2.py", "llama2_py/stories/model.bin")).config
    names = [mistake.name for mistake in known(config, 4)]
    assert len(names) == len(set(names))


class OrderOfHuggingFace(Right):
    """A correct program whose q and k stand in halves' order."""

    def keep(self, pos, l, op, x):
        if op not in ("q", "k"):
            return super().keep(pos, l, op, x)
        halves = [v for h in range(0, len(x), self.hs) for v in x[h:h + self.hs][0::2] + x[h:h + self.hs][1::2]]
        self.records.append((pos, l, op, halves))
        return x


@pytest.mark.slow
def test_another_order_of_q_and_k_is_hinted_at_where_the_logits_are_right(ports_path, doctor):
    port = OrderOfHuggingFace(ports_path)
    port.run(TOKENS)
    comparison, names = doctor(records_of(port, 5))
    assert comparison.first_wrong.op == "q" and not comparison.logits_wrong
    assert any("does the file have q and k in another order?" in line for line in report.advice(comparison, names))
