"""Single logits that are wrong while all others are right: a row of the classifier, a bias, a banned token, a penalty.

    single_logits(shard, tokens, steps)    # ["the logit of token 17 is -100 at every step: a banned token"]
"""
from collections.abc import Sequence
from dataclasses import dataclass
from operator import sub

from llama2_py.doctor.operations import rms, row_lengths

# A logit alone is wrong beyond so many times its noise, while all others stay within SINGLE_REST. (10 and 1.1 were the
# most that correct programs had.)
SINGLE, SINGLE_REST = 16, 2
SINGLES = 2  # logits that are wrong alone, at most, but for penalties
DIGITS = 4   # of a number that was measured


@dataclass
class Seen:
    """One step: another program's logits, the right ones (vocab each), the root mean square of their noise."""
    theirs: Sequence[float]
    right: Sequence[float]
    noise: float

    def off(self, logits: Sequence[float]) -> float:
        """How far logits are from the other program's: root mean square, in units of the noise."""
        return rms(list(map(sub, self.theirs, logits))) / self.noise

    def rest(self, off: set[int]) -> float:
        """How far all logits but some are from the right ones, in the same way."""
        left = [a - b for i, (a, b) in enumerate(zip(self.theirs, self.right, strict=True)) if i not in off]
        return rms(left) / self.noise if left else 0.0


class Singles:
    """The logits of some steps, seen one by one."""

    def __init__(self, shard, tokens: Sequence[int], steps: Sequence[Seen]):
        self.tokens = tokens  # the model's inputs, one a step
        self.steps = steps
        self.lengths = row_lengths(shard.classifier)  # by which logits share in the noise
        self.off = [{i for i in range(len(self.lengths)) if not self.near(step, i, step.right[i])} for step in steps]

    def near(self, step: Seen, i: int, value: float) -> bool:
        """Is a logit within rounding of a value?"""
        return abs(step.theirs[i] - value) <= SINGLE * self.lengths[i] * step.noise

    def others_are_right(self, count: int) -> bool:
        """Are all logits of the first steps right, but for those that are off by themselves?"""
        rests = [step.rest(off) for step, off in zip(self.steps[:count], self.off, strict=False)]
        return rms(rests) <= SINGLE_REST

    # -- penalties: of every token that was an input

    def penalty(self) -> list[str]:
        """A penalty for repetition: at each step the tokens that were inputs are off, and no others."""
        fed = [set(self.tokens[:pos + 1]) for pos in range(len(self.steps))]
        if any(off - there for off, there in zip(self.off, fed, strict=True)):
            return []
        places = [(step, i) for step, there in zip(self.steps, fed, strict=True) for i in there]
        if len(places) < 2 or not self.others_are_right(len(self.steps)):
            return []
        step, i = max(places, key=self.size)  # the largest has the most digits
        difference = step.theirs[i] - step.right[i]
        if all(self.near(s, j, s.right[j] + difference) for s, j in places):
            return [f"the logit of every token that was an input is off by {difference:.{DIGITS}g}: a penalty for "
                    "repetition"]
        ratio = step.right[i] / (step.theirs[i] or 1e-30)
        factor = ratio if step.right[i] > 0 else 1 / (ratio or 1e-30)
        if factor > 0 and all(self.near(s, j, penalized(s.right[j], factor)) for s, j in places):
            return [f"the logit of every token that was an input is divided by {factor:.{DIGITS}g}, or multiplied if "
                    "it is negative: a penalty for repetition"]
        return []

    def size(self, place: tuple[Seen, int]) -> float:
        """What the places of a penalty are sorted by."""
        step, i = place
        return abs(step.right[i])

    # -- one or two tokens

    def few(self, count: int) -> set[int]:
        """The tokens that are off in the first steps, if they are few and all others are right."""
        off = set().union(*self.off[:count])
        return off if len(off) <= SINGLES and self.others_are_right(count) else set()

    def text(self, i: int, count: int) -> str:
        """What is said of a token whose logit is off in the first steps."""
        steps = self.steps[:count]
        values = [step.theirs[i] for step in steps]
        if count < 2:
            return f"the logit of token {i} alone is wrong: a row of the classifier, or a bias"
        differences = [step.theirs[i] - step.right[i] for step in steps]
        middle = sum(differences) / count
        if all(self.near(step, i, step.right[i] + middle) for step in steps):
            return f"the logit of token {i} is off by {middle:.{DIGITS}g} at every step: a bias"
        if min(values) == max(values):
            return f"the logit of token {i} is {values[0] + 0.0:.{DIGITS}g} at every step: a banned token"
        fed = self.tokens.index(i) if i in self.tokens else count
        if 0 < fed < count and all(i in self.off[pos] for pos in range(fed, count)) and not any(
                i in self.off[pos] for pos in range(fed)):
            return f"the logit of token {i} is wrong once that token was an input: a penalty for repetition"
        return f"row {i} of the classifier is not the checkpoint's: the logit of token {i} alone is wrong"


def penalized(logit: float, factor: float) -> float:
    """A logit after a penalty for repetition, as transformers has it."""
    return logit / factor if logit > 0 else logit * factor


def single_logits(shard, tokens: Sequence[int], steps: Sequence[Seen], is_classifier_alone: bool = False) -> list[str]:
    """The name of what makes single logits wrong while all others are right; none if that is not so.

    tokens: the inputs, one a step. A wrong row of a classifier that is the embedding enters the model with its token,
    and the steps from there on say nothing; not if is_classifier_alone, for logits computed from their own inputs.
    """
    singles = Singles(shard, tokens[:len(steps)], steps)
    if not any(singles.off):
        return []
    penalty = singles.penalty()
    if penalty:
        return penalty
    off = singles.few(len(steps))
    end = ""
    count = len(steps)
    if not off and shard.config.shared_classifier and not is_classifier_alone:
        count = first_input_that_is_off(singles)
        off = singles.few(count)
        end = ", until that token, whose embedding it is, is an input"
    return ["; and ".join([singles.text(i, count) for i in sorted(off)]) + end] if off else []


def first_input_that_is_off(singles: Singles) -> int:
    """The first step whose input has had a wrong logit by then."""
    seen: set[int] = set()
    for pos, off in enumerate(singles.off):
        if singles.tokens[pos] in seen:
            return pos
        seen |= off
    return len(singles.off)
