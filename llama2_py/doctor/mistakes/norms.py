"""Mistakes in the norms."""
from collections.abc import Iterator
from math import fsum, inf, sqrt
from operator import mul

from llama2_py.doctor.mistakes.mistake import NORM_OPS, OF_A_MEAN, Kind, Mistake, widened
from llama2_py.doctor.operations import rms


def formulas() -> Iterator[Kind]:
    """Another formula."""
    class EpsilonOutside(Mistake):
        name = "epsilon is added outside of the root"
        changes = NORM_OPS

        def inverse_root(self, mean):
            return 1 / (sqrt(mean) + self.epsilon)
    yield EpsilonOutside

    def around_mean(self, op, l, pos, y):
        """What a LayerNorm subtracts, in the units of its result."""
        x = self.norm_input(op, l, pos)
        mean = fsum(x) / len(x)
        deviation = rms([v - mean for v in x]) or inf
        weights = self.norm_weight(op, l)
        return [OF_A_MEAN * (abs(v) + abs(w * mean) / deviation) for v, w in zip(y, weights, strict=True)]

    class LayerNorm(Mistake):
        name = "LayerNorm, which takes off the mean, stands for RMSNorm"
        changes = NORM_OPS
        errors = widened(NORM_OPS, around_mean)

        def normalized(self, x):
            mean = fsum(x) / len(x)
            return super().normalized([v - mean for v in x])
    yield LayerNorm

    class SumForMean(Mistake):
        name = "norms divide by the root of the sum of squares, not of their mean"
        changes = NORM_OPS

        def normalized(self, x):
            root = sqrt(len(x))
            return [v / root for v in super().normalized(x)]
    yield SumForMean

    class NoWeights(Mistake):
        name = "the norms' weights are missing"
        changes = NORM_OPS

        def norm_weight(self, op, l):
            return (1.0,) * self.config.dim
    yield NoWeights

    class OnePlusWeight(Mistake):
        name = "the norms' weights are 1 + weight"
        changes = NORM_OPS

        def norm_weight(self, op, l):
            return [1 + w for w in super().norm_weight(op, l)]
    yield OnePlusWeight


def weights(n_layers: int) -> Iterator[Kind]:
    """One norm's weights."""
    for op in NORM_OPS:
        yield from one_norm(op)
        if op != "final_norm" and n_layers > 1:
            yield weight_of_layer(op, 1, "after", n_layers)
            yield weight_of_layer(op, -1, "before", n_layers)


def one_norm(which: str) -> Iterator[Kind]:
    """One of the norms in part, or not at all."""
    class NoWeight(Mistake):
        name = f"{which} has no weight"
        changes = (which,)

        def norm_weight(self, op, l):
            return (1.0,) * self.config.dim if op == which else super().norm_weight(op, l)
    yield NoWeight

    class Missing(Mistake):
        name = f"{which} is missing"
        changes = (which,)

        def norm(self, op, l, x):
            return list(x) if op == which else super().norm(op, l, x)
    yield Missing

    class WeightAlone(Mistake):
        name = f"{which} multiplies by the weight and does not divide"
        changes = (which,)

        def norm(self, op, l, x):
            if op != which:
                return super().norm(op, l, x)
            return list(map(mul, x, self.norm_weight(op, l)))
    yield WeightAlone


def weight_of_layer(which: str, by: int, text: str, n_layers: int) -> Kind:
    """A norm's weight, a layer off."""
    class WeightOfLayer(Mistake):
        name = f"{which} has the weight of the layer {text}"
        changes = (which,)
        alone = True

        def norm_weight(self, op, l):
            return super().norm_weight(op, (l + by) % n_layers if op == which else l)
    return WeightOfLayer


def renamed_norms(text: str, names: dict[str, str]) -> Kind:
    """Norms with the weights of others."""
    class RenamedNorms(Mistake):
        name = text
        changes = tuple(names)

        def norm_weight(self, op, l):
            return super().norm_weight(names.get(op, op), l)
    return RenamedNorms


def swapped() -> Iterator[Kind]:
    """The norms' weights, inputs and number."""
    yield renamed_norms("the weights of attention_norm and ffn_norm are swapped",
                        {"attention_norm": "ffn_norm", "ffn_norm": "attention_norm"})
    yield renamed_norms("ffn_norm has attention_norm's weight", {"ffn_norm": "attention_norm"})
    yield renamed_norms("attention_norm has ffn_norm's weight", {"attention_norm": "ffn_norm"})

    class OneRowTooEarly(Mistake):
        name = "final_norm has the last layer's ffn_norm's weight"
        changes = ("final_norm",)

        def norm_weight(self, op, l):
            if op != "final_norm":
                return super().norm_weight(op, l)
            return super().norm_weight("ffn_norm", self.config.n_layers - 1)
    yield OneRowTooEarly

    class FinalNormTwice(Mistake):
        name = "final_norm is applied twice"
        changes = ("final_norm",)
        alone = True

        def norm(self, op, l, x):
            once = super().norm(op, l, x)
            return super().norm(op, l, once) if op == "final_norm" else once
    yield FinalNormTwice

    class BeforeAttention(Mistake):
        name = "ffn_norm is of what entered the layer, before attention"
        changes = ("ffn_norm",)

        def norm_input(self, op, l, pos):
            return self.x(l, pos) if op == "ffn_norm" else super().norm_input(op, l, pos)
    yield BeforeAttention


def orders(n_layers: int) -> Iterator[Kind]:
    """In which order the norms' weights stand in a file."""
    if n_layers == 1:
        return

    class OneAfterTheOther(Mistake):
        name = ("the norms' weights are read layer by layer, where all of attention_norm stand before those of "
                "ffn_norm")
        changes = ("attention_norm", "ffn_norm")
        alone = True

        def norm_weight(self, op, l):
            if op == "final_norm":
                return super().norm_weight(op, l)
            number = 2 * l + (op == "ffn_norm")
            which = "attention_norm" if number < n_layers else "ffn_norm"
            return super().norm_weight(which, number % n_layers)
    yield OneAfterTheOther
