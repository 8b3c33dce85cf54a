"""Another program's numbers beside this one's: is a difference float32 rounding, or a mistake, and which?

    python3 llama2.py -t 0 -n 50 --logits ours.npy       # write every step's logits
    python3 llama2.py -t 0 -n 6 --dump ours.dump         # write every operation, too
    python3 llama2.py -t 0 --compare theirs              # the verdict: how many steps there are, the file says

No tolerance is asked for. Logits are measured against noise (noise.py). Operations are computed again from the other
program's own inputs (operations.py). If either is not as float32 rounds, diagnosis.py looks for the mistake; report.py
prints what was found.
"""
import contextlib
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nlargest
from math import fsum, hypot, isfinite, sqrt
from operator import mul, sub
from struct import pack

from llama2 import CHUNK
from llama2_py.console import say
from llama2_py.doctor import diagnosis, search
from llama2_py.doctor.noise import Alone, Noisy
from llama2_py.doctor.numbers import Numbers
from llama2_py.doctor.operations import Judgement, Operations, judge, rms
from llama2_py.engine.graph import place, sequence, size
from llama2_py.engine.workers import Team

# ----------------------------------------------------------------------------
# The verdict

# What is consistent with float32. (Of programs that are right the worst had 1.1, 5.6 and 10; of wrong ones the nearest
# 10, 34 and 54, but for those whose mistake is below rounding.)
OVERALL, ONE_STEP, ONE_LOGIT = 2.0, 12.0, 32.0
# The same for an operation whose inputs the file does not have: it has fewer numbers than the logits
OPERATION, ONE_OPERATION = 4.0, 32.0


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


class Comparison:
    """The comparison of a file's numbers with a model's: run it, then ask.

    tokens are those that both programs are given. If the file goes on after them, the next are the likeliest ones, as
    long as both programs have the same.
    """

    def __init__(self, model, tokens: Sequence[int], numbers: Numbers):
        self.model, self.shard, self.numbers, self.tokens = model, model.shard, numbers, list(tokens)
        self.get = functools.lru_cache(4096)(numbers.values)  # for keys and values, which all later positions need
        self.operations = Operations(self.shard, self.tokens, self.get)
        self.shares = []         # of each logit in the noise: rms of the classifier's rows' lengths / the row's
        self.steps = []          # those whose logits were judged
        self.done = 0            # positions that were run
        self.exact = {}          # pos -> the right logits, until a mistake has been looked for
        self.parted = None       # the step after which the texts differ
        self.not_finite = None   # the first number that is none: its place, for the eye
        self.judged = {}         # op -> [(Judgement, layer, pos)]: from the other program's own inputs
        self.apart = {}          # (op, layer) -> [(pos, rms of differences, of noise)]: where inputs are missing
        self.first_wrong = None  # op, layer, pos, Judgement, and its worst element there and here

    def run(self) -> None:
        """Compute, beside each other, the exact run and the noisy one, and judge."""
        records, goal = self.numbers.records is not None, self.numbers.steps
        noise_of_all = records and self.numbers.lacks_inputs()  # is there an operation that the noise must judge?
        team, pos = Team(), 0
        with contextlib.closing(team):
            team.start(functools.partial(Alone, self.model.builder(Noisy, self.model.fits(Noisy))), 2)
            ahead = None  # the next chunk, if the other process has begun it
            while pos < goal and self.parted is None and self.not_finite is None:
                progress("running", pos, goal)
                chunk = ahead or self._begin(team, pos, noise_of_all)
                seen = [[] for _ in chunk]
                observers = [lambda *event, seen=events: seen.append(event) for events in seen] if noise_of_all else []
                rows = self.model.forward_chunk(chunk, pos, observers)
                (noisy,) = team.answers()
                first, pos = pos, pos + len(chunk)
                known = pos < min(goal, len(self.tokens))
                ahead = self._begin(team, pos, noise_of_all) if known else None
                for at, (row, events, noise) in enumerate(zip(rows, seen, noisy, strict=True), first):
                    if self.not_finite is None:
                        self._operations(at, events, noise[0])
                        self._logits(at, row, noise[1])
                        self.done = at + 1
                if pos == len(self.tokens) < goal:
                    self._go_on(pos - 1, row)
        progress("running", goal, goal)

    def _begin(self, team, pos, observed):
        """Have the other process run the next chunk of known tokens -> it."""
        chunk = self.tokens[pos:min(pos + CHUNK, self.numbers.steps)]
        team.begin(chunk, pos, 0, observed)
        return chunk

    def _go_on(self, pos, row):
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
        if not self.shares:
            norms = [sqrt(square) or 1e-30 for block in self.shard.classifier.blocks for square in block.squares]
            unit = rms(norms)
            self.shares = [unit / norm for norm in norms]
        differences, noise = list(map(sub, theirs, row)), rms(list(map(sub, noisy, row))) or 1e-30
        if self.numbers.form == "e":  # a file of float16: its rounding comes on top
            noise = hypot(noise, 2.0**-12 * rms(row))
        by_row = list(map(mul, map(abs, differences), self.shares))
        worst, ours, theirs_likeliest = max(by_row), row.index(max(row)), theirs.index(max(theirs))
        margin = 0.0
        if ours != theirs_likeliest:
            first, second = nlargest(2, row)
            margin = first - second
        self.exact[pos] = row
        self.steps.append(Step(pos, rms(differences) / noise, worst / noise, by_row.index(worst), noise, ours,
                               theirs_likeliest, margin))

    def _operations(self, pos, events, noisy_events):
        if self.numbers.records is None:
            return
        get, operations = self.get, self.operations
        noisy = {(op, l): values for l, op, values in noisy_events}
        exact = {(op, l): values for l, op, values in events}
        for op, l in sequence(self.shard.config.n_layers):
            theirs = get(op, l, pos)
            if theirs is None:
                continue
            at = not_finite(theirs)
            if at is not None:
                self.not_finite = f"{place(op, l, pos)}, {element(op, at, self.numbers, pos)}: {theirs[at]}"
                return
            y = operations.result(op, l, pos)
            if y is not None:
                self._judge(op, l, pos, theirs, y, judge(theirs, y, operations.errors(op, l, pos, y)))
            elif op != "logits":  # which are judged anyway
                self.apart.setdefault((op, l), []).append((
                    pos, rms(list(map(sub, theirs, exact[op, l]))), rms(list(map(sub, noisy[op, l], exact[op, l])))))

    def _judge(self, op, l, pos, theirs, y, judgement: Judgement):
        self.judged.setdefault(op, []).append((judgement, l, pos))
        if judgement.wrong and self.first_wrong is None:
            self.first_wrong = op, l, pos, judgement, theirs[judgement.at], y[judgement.at]

    # -- what it says

    @property
    def overall(self) -> float:
        """Root mean square of the differences of all steps / that of the noise."""
        total = fsum([step.noise**2 for step in self.steps])
        return sqrt(fsum([(step.off * step.noise)**2 for step in self.steps]) / total) if total else 0.0

    @property
    def logits_wrong(self) -> bool:
        """Are the logits farther from the right ones than float32 programs' are?"""
        return bool(self.steps) and (self.overall >= OVERALL or max(step.off for step in self.steps) >= ONE_STEP
                                     or max(step.worst for step in self.steps) >= ONE_LOGIT)

    def apart_wrong(self) -> list[tuple]:
        """(op, layer, pos, times the noise) of the operations without inputs that are too far from the right run's."""
        wrong = []
        for (op, l), found in self.apart.items():
            ratios = [(d / (e or 1e-30) if d else 0.0, pos) for pos, d, e in found]
            overall = rms([d for _, d, _ in found]) / (rms([e for _, _, e in found]) or 1e-30)
            if overall >= OPERATION or max(ratios)[0] >= ONE_OPERATION:
                ratio, pos = next((r, p) for r, p in ratios if r >= min(OPERATION, max(ratios)[0]))
                wrong.append((op, l, pos, ratio))
        order = {where: i for i, where in enumerate(sequence(self.shard.config.n_layers))}
        return sorted(wrong, key=lambda w: (w[2], order[w[0], w[1]]))

    def consistent(self) -> bool:
        """Is everything as float32 rounds?"""
        return not (self.logits_wrong or self.first_wrong or self.not_finite or self.apart_wrong())

    def names(self) -> list[str]:
        """The mistakes that explain what is wrong, by name."""
        tell = functools.partial(progress, "looking for the mistake")
        found = []
        if self.first_wrong:
            judged = {op: [(j.wrong, l, pos) for j, l, pos in places] for op, places in self.judged.items()}
            found = diagnosis.by_operations(self.shard, self.tokens, self.get, judged, tell)
        elif self.logits_wrong:
            first = next((i for i, step in enumerate(self.steps) if step.off >= ONE_STEP), 0)
            steps = self.steps[:max(32, first + 12)]
            if [step.pos for step in steps] == list(range(len(steps))):  # no step is missing
                found = search.by_logits(self.shard, self.tokens, [search.Seen(
                    self.numbers.values("logits", None, step.pos), self.exact[step.pos], step.noise)
                    for step in steps], tell)
        progress("looking for the mistake", 1, 1)
        return found


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
        events = []
        row = model.forward(token, pos, lambda layer, op, values, events=events: events.append((op, layer, values)))
        for op, l, values in [*events, ("logits", None, row)]:
            theirs = numbers.values(op, l, pos)
            pairs = [] if theirs is None else zip(theirs, values, strict=True)
            at = next((i for i, (a, b) in enumerate(pairs) if pack("f", a) != pack("f", b)), None)
            if at is not None:
                return f"{place(op, l, pos)}, {element(op, at, numbers, pos)}: {theirs[at]:.9g} there, {values[at]:.9g}"
    return None
