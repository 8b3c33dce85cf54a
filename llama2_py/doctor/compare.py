"""Another program's numbers beside this one's: is a difference float32 rounding, or a mistake, and which?

    python3 llama2.py -t 0 -n 50 --logits ours.npy       # write every step's logits
    python3 llama2.py -t 0 -n 6 --dump ours.dump         # write every operation, too
    python3 llama2.py -t 0 --compare theirs              # the verdict: how many steps there are, the file says

No tolerance is asked for. Logits are measured against noise (noise.py). Operations are computed again from the other
program's own inputs (operations.py), and outrank logits. If either is not as float32 rounds, diagnosis.py (operations)
or search.py (logits) looks for the mistake; report.py prints what was found.
"""
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nlargest
from math import exp, fsum, hypot, isfinite, log, sqrt
from operator import add, sub, truediv
from struct import pack

from llama2 import CHUNK, Events
from llama2_py.console import say
from llama2_py.doctor import diagnosis, search
from llama2_py.doctor.budget import Budget
from llama2_py.doctor.limits import (FEW, ONE_LOGIT, ONE_OPERATION, ONE_STEP, OPERATION, OVERALL,
                                     OVERALL_OF_FEW)
from llama2_py.doctor.noise import NoisyRun, draws
from llama2_py.doctor.numbers import Numbers
from llama2_py.doctor.operations import Judgement, Operations, in_precision, judge, rms, row_lengths
from llama2_py.doctor.precision import PRECISIONS, Precision
from llama2_py.engine.graph import count, place, sequence, size

# ----------------------------------------------------------------------------
# The verdict

NO_NOISE = 1e-30  # stands for noise where there is none
HALF_OF_FLOAT16 = 2.0**-12  # what writing float16 adds to the noise: root mean square, relative

KEPT = 4096  # results of the other program, for keys and values, which all later positions need


@dataclass
class Step:
    """How far the other program's logits of one step are from the right ones."""
    pos: int
    off: float     # root mean square of the differences / that of the noise
    worst: float   # the largest difference of a logit, in the noise that its row of the classifier has
    at: int        # its token
    noise: float   # root mean square of the noise
    ours: int      # the likeliest token here
    theirs: int    # and there
    margin: float  # the difference of the two largest logits here, if those two tokens are not the same
    size: float    # root mean square of the right logits
    kl: float      # Kullback-Leibler divergence of the probabilities, at temperature 1, in nats
    five: int      # how many of the five likeliest tokens are the five likeliest there


@dataclass
class Apart:
    """An operation whose inputs the file does not have, at one position, against the right run's."""
    pos: int
    off: float    # root mean square of the differences
    noise: float  # of the noise

    @property
    def ratio(self) -> float:
        """Times the noise."""
        return self.off / self.noise if self.off else 0.0


@dataclass
class FirstWrong:
    """The first operation that is wrong, given its own inputs."""
    op: str
    layer: int | None
    pos: int
    judgement: Judgement
    theirs: float  # its worst element there
    ours: float    # and here


class Comparison:
    """The comparison of a file's numbers with a model's: run it, then ask.

    tokens are those that both programs are given. If the file goes on after them, the next are the likeliest ones, as
    long as both programs have the same.
    """

    def __init__(self, model, tokens: Sequence[int], numbers: Numbers, precision: Precision = PRECISIONS["float32"]):
        """precision: what the other program computes in; the model's weights are rounded to it."""
        self.model = model
        self.precision = precision
        self.shard = model.shard
        self.numbers = numbers
        self.tokens = list(tokens)
        self.get = functools.lru_cache(KEPT)(numbers.values)
        self.operations = in_precision(Operations, precision)(self.shard, self.tokens, self.get)
        self.right: dict[tuple, Sequence[float]] = {}  # the right run's results, if there are operations without inputs
        self.right_operations = in_precision(Operations, precision)(self.shard, self.tokens, self._right_result)
        self.fused = in_precision(FusedResidual, precision)(self.shard, self.tokens, self.get)
        self.beginning: Sequence[float] = ()  # the right logits of position 0
        self.lengths: list[float] = []       # of the classifier's rows, by which logits share in the noise
        self.steps: list[Step] = []          # those whose logits were judged
        self.done = 0                        # positions that were run
        self.exact: dict[int, Sequence[float]] = {}  # the right logits, by position
        self.parted: int | None = None       # the step after which the texts differ
        self.not_finite: str | None = None   # the first number that is none: its place, for the eye
        self.not_finite_in_operation = False  # or else in a step's logits
        self.judged: dict[str, list[tuple[Judgement, int | None, int]]] = {}  # from the other program's own inputs
        self.apart: dict[tuple, list[Apart]] = {}  # (op, layer): where inputs are missing
        self.first_wrong: FirstWrong | None = None
        self.is_fused = False                # is ffn_residual one sum of three?

    # -- the run

    def run(self) -> None:
        """Compute the exact run and the noisy one, and judge."""
        goal = self.numbers.steps
        observed = self.numbers.lacks_inputs()  # is there an operation that the noise must judge?
        noise = NoisyRun(self.shard, self.precision, draws(len(self.numbers.positions()), goal))
        pos = 0
        while pos < goal and self.parted is None and self.not_finite is None:
            progress("running", pos, goal)
            chunk = self.tokens[pos:min(pos + CHUNK, goal)]
            seen = [Events() for _ in chunk]
            rows = self.model.forward_chunk(chunk, pos, seen if observed else [])
            noisy = noise.steps(chunk, pos, observed)
            for at, step in enumerate(zip(rows, seen, noisy, strict=True), pos):
                self._take(at, *step)
            pos += len(chunk)
            if pos == len(self.tokens) < goal:
                self._go_on(pos - 1, rows[-1])
        progress("running", goal, goal)

    def _take(self, pos, row, events, noisy):
        """Judge a position: the right logits and operations, and those of each draw of noise."""
        if self.not_finite is not None:
            return
        if pos == 0:
            self.beginning = row
        if pos == 1 and 0 not in self.numbers.positions():
            self._check_beginning(row, [logits for _, logits in noisy])
        if self.numbers.records is not None:
            self._operations(pos, events, [draw for draw, _ in noisy])
        if self.not_finite is None:
            self._logits(pos, row, [logits for _, logits in noisy])
        self.done = pos + 1

    def _check_beginning(self, row, noisy):
        """Raises ValueError if the file's positions evidently begin at 1: it has nothing at position 0, and at position
        1 what should be there."""
        embedding, logits = self.get("embedding", None, 1), self.get("logits", None, 1)
        first, second = [tuple(self.shard.embedding(token)) for token in self.tokens[:2]]
        is_shifted = embedding is not None and first == tuple(embedding) != second
        if logits is not None and not_finite(logits) is None:
            limit = ONE_STEP * noise_of(noisy, row)
            is_shifted |= rms(list(map(sub, logits, self.beginning))) < limit < rms(list(map(sub, logits, row)))
        if is_shifted:
            raise ValueError(f"{self.numbers.path}: positions look as if they begin at 1, must begin at 0: position 1 "
                             "has what position 0 should")

    def _go_on(self, pos, row):
        """The next token is the likeliest one; if the other program has another, the texts part."""
        theirs = self.numbers.values("logits", None, pos)
        self.tokens.append(row.index(max(row)))
        if theirs is not None and self.not_finite is None and theirs.index(max(theirs)) != self.tokens[-1]:
            self.parted = pos

    def _logits(self, pos, row, noisy):
        theirs = self.numbers.values("logits", None, pos)
        if theirs is None:
            return
        at = not_finite(theirs)
        if at is not None:
            self.not_finite = f"step {pos}, token {at}: {theirs[at]}"
            return
        if not self.lengths:
            self.lengths = row_lengths(self.shard.classifier)
        noise = noise_of(noisy, row)
        if self.numbers.are_float16 and not self.precision.form:
            noise = hypot(noise, HALF_OF_FLOAT16 * rms(row))
        self.exact[pos] = row
        self.steps.append(step_of(pos, theirs, row, noise, self.lengths))

    def _operations(self, pos, events, noisy):
        """Judge the operations of a position; events: the right ones, noisy: those of each draw, if any are needed."""
        for l, op, values in events:
            self.right[op, l, pos] = values
        draws = [{(op, l): values for l, op, values in draw} for draw in noisy]
        for op, l in sequence(self.shard.config.n_layers):
            theirs = self.get(op, l, pos)
            if theirs is None:
                continue
            at = not_finite(theirs)
            if at is not None:
                self.not_finite = f"{place(op, l, pos)}, {element(op, at, self.numbers, pos)}: {theirs[at]}"
                self.not_finite_in_operation = True
                return
            y = self.operations.result(op, l, pos)
            if y is not None:
                self._judge(op, l, pos, theirs, y)
            elif op != "logits":  # which are judged anyway
                self._judge_apart(op, l, pos, theirs, [draw[op, l] for draw in draws])
        for where in [where for where in self.right if where[0] not in ("k", "v")]:
            del self.right[where]

    def _right_result(self, op, l, pos):
        return self.right.get((op, l, pos))

    def _judge(self, op, l, pos, theirs, y):
        """Judge an operation from its own inputs."""
        judgement = judge(theirs, y, self.operations.errors(op, l, pos, y))
        if judgement.wrong and op == "ffn_residual":
            fused = self.fused.result(op, l, pos)
            if fused is not None:
                as_one_sum = judge(theirs, fused, self.fused.errors(op, l, pos, fused))
                if not as_one_sum.wrong:
                    judgement = as_one_sum
                    self.is_fused = True
        self.judged.setdefault(op, []).append((judgement, l, pos))
        if judgement.wrong and self.first_wrong is None:
            self.first_wrong = FirstWrong(op, l, pos, judgement, theirs[judgement.at], y[judgement.at])

    def _judge_apart(self, op, l, pos, theirs, noisy):
        """Hold an operation against the right run's, in units of the noise, but at least of its own expected error:
        where the right run happens to be exact, there is no noise."""
        right = self.right[op, l, pos]
        noise = noise_of(noisy, right)
        own, _ = self.right_operations.errors(op, l, pos, right)
        off = rms(list(map(sub, theirs, right)))
        self.apart.setdefault((op, l), []).append(Apart(pos, off, max(noise, rms(own))))

    # -- what it says

    @property
    def overall(self) -> float:
        """Root mean square of the differences of all steps / that of the noise."""
        return overall(self.steps)

    @property
    def limit(self) -> float:
        """Of overall."""
        return limit_of(self.steps)

    @property
    def settled(self) -> int:
        """The positions, from the first one on, of which every operation was judged and none is wrong: there rounding
        alone made the logits what they are."""
        judged: dict[int, int] = {}
        for places in self.judged.values():
            for judgement, _, pos in places:
                judged[pos] = judged.get(pos, 0) + (not judgement.wrong)
        pos = 0
        while judged.get(pos) == count(self.shard.config.n_layers):
            pos += 1
        return pos

    @property
    def logits_wrong(self) -> bool:
        """Are the logits farther from the right ones than float32 programs' are? Operations outrank logits: those of a
        settled position are not."""
        settled = self.settled
        return are_wrong([step for step in self.steps if step.pos >= settled])

    @property
    def outranked(self) -> bool:
        """Would the logits be called wrong, were it not for the operations?"""
        return are_wrong(self.steps) and not self.logits_wrong

    def apart_wrong(self) -> list[tuple[str, int | None, int, float]]:
        """(op, layer, pos, times the noise) of the operations without inputs that are too far from the right run's."""
        wrong = []
        for (op, l), found in self.apart.items():
            all_of_them = rms([a.off for a in found]) / rms([a.noise for a in found])
            largest = max(a.ratio for a in found)
            if all_of_them >= OPERATION or largest >= ONE_OPERATION:
                first = next(a for a in found if a.ratio >= min(OPERATION, largest))
                wrong.append((op, l, first.pos, first.ratio))
        order = {where: i for i, where in enumerate(sequence(self.shard.config.n_layers))}
        return sorted(wrong, key=lambda w: (w[2], order[w[0], w[1]]))

    def consistent(self) -> bool:
        """Is everything as float32 rounds?"""
        return not (self.logits_wrong or self.first_wrong or self.not_finite or self.apart_wrong())

    def search(self, budget: Budget) -> list[str]:
        """The mistakes that explain what is wrong, by name."""
        found = []
        if self.first_wrong:
            judged = {op: [(j.wrong, l, pos) for j, l, pos in places] for op, places in self.judged.items()}
            found = diagnosis.by_operations(self.shard, self.tokens, self.get, judged, self.precision, budget)
        elif self.logits_wrong:
            in_a_row = [step for i, step in enumerate(self.steps) if step.pos == i]  # up to the first that is missing
            if in_a_row:
                seen = [search.Seen(self.logits_of(step), self.exact[step.pos], step.noise) for step in in_a_row]
                found = search.by_logits(self.shard, self.tokens, seen, self.precision, budget)
        return found

    def logits_of(self, step: Step) -> Sequence[float]:
        """The other program's logits of a step that was judged."""
        values = self.numbers.values("logits", None, step.pos)
        assert values is not None
        return values


class FusedResidual(Operations):
    """Operations whose second residual connection is one sum of three, x + (attention_out + ffn_out): the same
    function, with other roundings."""

    def ffn_residual(self, l, pos):
        """(dim)"""
        changes = map(add, self.get("attention_out", l, pos), self.get("ffn_out", l, pos))
        return list(map(add, self.x(l, pos), changes))

    def parts(self, op, l, pos):
        """What it adds up: x, and the sum of the other two, which has been rounded, too."""
        changes = map(add, self.get("attention_out", l, pos), self.get("ffn_out", l, pos))
        return self.x(l, pos), list(changes)


FIVE = 5  # likeliest tokens whose agreement is told


def step_of(pos: int, theirs: Sequence[float], row: Sequence[float], noise: float, lengths: Sequence[float]) -> Step:
    """How far logits are from the right ones, (vocab) each; lengths: of the classifier's rows, (vocab)."""
    differences = list(map(sub, theirs, row))
    by_row = list(map(truediv, map(abs, differences), lengths))
    worst = max(by_row)
    five, their_five = likeliest(row), likeliest(theirs)
    ours, theirs_likeliest = five[0], their_five[0]
    margin = 0.0 if ours == theirs_likeliest else row[five[0]] - row[five[1]]
    shared = len(set(five) & set(their_five))
    return Step(pos, rms(differences) / noise, worst / noise, by_row.index(worst), noise, ours, theirs_likeliest,
                margin, rms(row), divergence(row, theirs), shared)


def likeliest(row: Sequence[float]) -> list[int]:
    """logits (vocab) -> the five likeliest tokens, the first of equal ones first."""
    return nlargest(FIVE, range(len(row)), key=row.__getitem__)


def divergence(row: Sequence[float], other: Sequence[float]) -> float:
    """logits (vocab) each -> the Kullback-Leibler divergence of the probabilities, sum p log(p / q), in nats."""
    highest, other_highest = max(row), max(other)
    e = [exp(v - highest) for v in row]
    total = fsum(e)
    other_total = fsum([exp(v - other_highest) for v in other])
    mean = fsum([p * (a - b) for p, a, b in zip(e, row, other, strict=True)]) / total
    shift = log(other_total) + other_highest - log(total) - highest
    return max(0.0, mean + shift)


def noise_of(noisy: Sequence[Sequence[float]], right: Sequence[float]) -> float:
    """The root mean square of what each draw of noise makes of right results, (n) each."""
    return rms([rms(list(map(sub, draw, right))) for draw in noisy]) or NO_NOISE


def overall(steps: Sequence[Step]) -> float:
    """Root mean square of the differences of steps / that of the noise."""
    total = fsum([step.noise**2 for step in steps])
    return sqrt(fsum([(step.off * step.noise)**2 for step in steps]) / total) if total else 0.0


def limit_of(steps: Sequence[Step]) -> float:
    """Of overall."""
    return OVERALL_OF_FEW if len(steps) <= FEW else OVERALL


def are_wrong(steps: Sequence[Step]) -> bool:
    """Are the logits of some steps farther from the right ones than those of float32 programs?"""
    return bool(steps) and (overall(steps) >= limit_of(steps) or max(step.off for step in steps) >= ONE_STEP
                            or max(step.worst for step in steps) >= ONE_LOGIT)


def not_finite(values: Sequence[float]) -> int | None:
    """The first element that is not finite, or would not be as a float32; None if there is none."""
    if isfinite(sum(values)) and max(map(abs, values)) < 2.0**128:
        return None
    return next((i for i, v in enumerate(values) if not abs(v) < 2.0**128), None)


def element(op: str, at: int, numbers: Numbers, pos: int) -> str:
    """An element of an operation, with its head where it has heads."""
    hs = numbers.config.head_size
    of_head = {"q": hs, "k": hs, "v": hs, "attention": hs, "weights": pos + 1}.get(op)
    if of_head is None:
        return f"element {at} of {size(numbers.config, op, pos)}"
    return f"head {at // of_head}, element {at % of_head} of {of_head}"


def progress(what: str, done: int, of: int) -> None:
    """On a terminal, a line on standard error that says how far it is, and is wiped out at the end."""
    if sys.stderr.isatty():
        say("\r" + (f"{what}: {done} of {of} " if done < of else "").ljust(60) + "\r", end="")


def first_bit(model, tokens: Sequence[int], numbers: Numbers, steps: int) -> str | None:
    """The place of the first number that is not, in every bit, the model's, for the eye; None if all of them are."""
    for pos, token in enumerate(tokens[:steps]):
        events = Events()
        row = model.forward(token, pos, events)
        for l, op, values in [*events, (None, "logits", row)]:
            theirs = numbers.values(op, l, pos)
            if theirs is None:
                continue
            pairs = zip(theirs, values, strict=True)
            at = next((i for i, (a, b) in enumerate(pairs) if pack("f", a) != pack("f", b)), None)
            if at is not None:
                return f"{place(op, l, pos)}, {element(op, at, numbers, pos)}: {theirs[at]:.9g} there, {values[at]:.9g}"
    return None
