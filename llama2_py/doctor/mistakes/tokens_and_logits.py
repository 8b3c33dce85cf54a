"""Mistakes in what goes in and comes out."""
import math
from collections.abc import Callable, Iterator, Sequence
from math import exp, fsum, sqrt

from llama2_py.doctor.errors import U
from llama2_py.doctor.mistakes.attention import CAPS, capped
from llama2_py.doctor.mistakes.mistake import Kind, Mistake
from llama2_py.doctor.operations import Operations, softmax


def wrong_tokens() -> Iterator[Kind]:
    """Other tokens, or another embedding."""
    class NoBOS(Mistake):
        name = "BOS, token 1, is missing before the text"
        changes = ("embedding",)

        def token(self, pos):
            return self.tokens[pos + 1] if pos + 1 < len(self.tokens) else None
    yield NoBOS

    class TwoBOS(Mistake):
        name = "BOS, token 1, is there twice before the text"
        changes = ("embedding",)

        def token(self, pos):
            return self.tokens[max(0, pos - 1)]
    yield TwoBOS

    yield other_beginning("EOS, token 2,", 2)
    yield other_beginning("token 0", 0)

    class TimesRootOfDim(Mistake):
        name = "the embedding is multiplied by sqrt(dim)"
        changes = ("embedding",)

        def embedding(self, l, pos):
            factor = sqrt(self.config.dim)
            return [factor * v for v in super().embedding(l, pos)]

        def errors(self, op, l, pos, y):
            if op != "embedding":
                return super().errors(op, l, pos, y)
            once = [U * abs(v) for v in y]  # the root is rounded, and so is the product
            return once, [2 * v for v in once]
    yield TimesRootOfDim


def other_beginning(text: str, first: int) -> Kind:
    """Another token in place of BOS."""
    class OtherBeginning(Mistake):
        name = f"{text} stands before the text, not BOS, token 1"
        changes = ("embedding",)

        def token(self, pos):
            return self.tokens[pos] if pos else first
    return OtherBeginning


def log_softmax(x: Sequence[float]) -> list[float]:
    """x (n) -> (n)"""
    highest = max(x)
    total = highest + math.log(fsum([exp(v - highest) for v in x]))
    return [v - total for v in x]


def with_a_shared_error(self, op, l, pos, y):
    """Operations.errors, where one number is subtracted from all logits: it errs as one of them does."""
    sigma, bound = Operations.errors(self, op, l, pos, y)
    if op != "logits":
        return sigma, bound
    widest, farthest = max(sigma), max(bound)
    return [s + widest for s in sigma], [b + farthest for b in bound]


def wrong_logits() -> Iterator[Kind]:
    """Something else in place of the logits."""
    class LogProbabilities(Mistake):
        name = "log-probabilities stand for logits"
        changes = ("logits",)

        def logits(self, l, pos):
            return log_softmax(super().logits(l, pos))

        errors = with_a_shared_error
    yield LogProbabilities

    class Probabilities(Mistake):
        name = "probabilities stand for logits"
        changes = ("logits",)

        def logits(self, l, pos):
            return softmax(super().logits(l, pos))
    yield Probabilities

    class LessTheLargest(Mistake):
        name = "the largest logit is subtracted from all"
        changes = ("logits",)

        def logits(self, l, pos):
            result = super().logits(l, pos)
            highest = max(result)
            return [v - highest for v in result]

        errors = with_a_shared_error
    yield LessTheLargest

    for cap in CAPS:
        yield capped_logits(cap)
    yield moved_logits("in reverse order", reversed_rows)
    yield moved_logits("one token late: token i has the logit of token i - 1", later_rows)
    yield moved_logits("one token early: token i has the logit of token i + 1", earlier_rows)

    class OfTheNormsInput(Mistake):
        name = "logits are of the norm's input, without its result"
        changes = ("logits",)
        in_logits = False

        def logits(self, l, pos):
            x = self.norm_input("final_norm", None, pos)
            return self.shard.classifier.times([x])[0]
    yield OfTheNormsInput


def capped_logits(cap: float) -> Kind:
    """Logits with a soft cap."""
    class CappedLogits(Mistake):
        name = f"logits are capped at {cap:g} by tanh"
        changes = ("logits",)
        alone = True

        def logits(self, l, pos):
            return capped(super().logits(l, pos), cap)
    return CappedLogits


def reversed_rows(x: Sequence[float]) -> list[float]:
    """x (n) -> (n), from the last to the first."""
    return list(x[::-1])


def later_rows(x: Sequence[float]) -> list[float]:
    """x (n) -> (n): the last one stands first."""
    return [x[-1], *x[:-1]]


def earlier_rows(x: Sequence[float]) -> list[float]:
    """x (n) -> (n): the first one stands last."""
    return [*x[1:], x[0]]


def moved_logits(text: str, moved: Callable) -> Kind:
    """Logits that stand at other tokens' places."""
    class MovedLogits(Mistake):
        name = f"logits stand {text}"
        changes = ("logits",)
        alone = True

        def logits(self, l, pos):
            return moved(super().logits(l, pos))

        def errors(self, op, l, pos, y):
            if op != "logits":
                return super().errors(op, l, pos, y)
            sigma, bound = super().errors(op, l, pos, self.products[op, l])
            return moved(sigma), moved(bound)
    return MovedLogits
