"""The search for the mistakes that explain another program's wrong numbers.

    by_operations(...)    # which known mistakes turn wrong operations into right ones, given each one's own inputs
    by_logits(...)        # which of them, made in a whole model, give the other program's logits

A mistake is named only if with it the numbers come down to rounding: every operation that it is about is right then,
in every layer and at every position; or the logits come within 10 times the noise of float32, and 30 times nearer than
those of the right model. Constants are measured from the numbers first. Of a rounding to few bits (a cache in float16)
the first wrong step tells: later, float32's own noise turns some of those roundings.
"""
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import fsum, inf, isfinite, sqrt
from operator import add, mul, sub
from random import Random

from llama2_py.doctor.mistakes import FORMATS, ROPE, Mistake, known
from llama2_py.doctor.operations import Model, Operations, judge, rms
from llama2_py.engine.graph import NORMS, PRODUCTS
from llama2_py.engine.rows import split

# ----------------------------------------------------------------------------
# Constants, measured


def nearby(value: float) -> list[float]:
    """A measured constant -> the numbers that it may stand for: 0, a power of ten, those with the fewest digits."""
    if value <= 0:
        return [0.0]
    return list(dict.fromkeys([0.0, 10.0**round(math.log10(value)), *[float(f"{value:.{n}g}") for n in range(1, 10)]]))


def epsilon(value: float) -> Mistake:
    """Another epsilon."""
    small = "" if value else ", or so small that it makes no difference here"
    return Mistake(f"epsilon is {value:g}{small}, not 1e-05", tuple(NORMS), {"epsilon": value})


def theta(value: float) -> Mistake:
    """Another base of RoPE's frequencies."""
    return Mistake(f"RoPE's theta is {value:g}, not 10000", ROPE, {"theta": value})


def scale(value: float) -> Mistake:
    """Another factor of the scores."""
    return Mistake(f"scores are multiplied by {value:g}, not by 1/sqrt(hs)", ("weights",), {
        "scale": lambda self: value})


# The constants: where to look for them, on a scale that makes steps even
CONSTANTS = [
    (epsilon, [0.0, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2]),
    (theta, [100.0, 1000.0, 5000.0, 10000.0, 20000.0, 100000.0, 500000.0, 1e6, 1e7]),
    (scale, [2.0**k for k in range(-7, 3)]),
]


def named(constant: Callable, candidate: float, value: float) -> str:
    """The name of a constant, by a number that fits; "about" if what was measured is not that near."""
    name = constant(candidate).name
    return name if not candidate or abs(candidate - value) < 0.2 * candidate else name.replace("is ", "is about ", 1)


def measure_epsilon(operations: Operations, op: str, places: Iterable[tuple]) -> float | None:
    """From the scale of a norm's results: s = 1 / sqrt(mean(x^2) + epsilon). places: (layer, pos, result)."""
    best = None
    for l, pos, y in places:
        x, weight = operations.norm_input(op, l, pos), operations.norm_weight(op, l)
        unscaled = list(map(mul, x, weight))
        s = fsum(map(mul, unscaled, y)) / (fsum(map(mul, unscaled, unscaled)) or inf)
        mean = fsum(map(mul, x, x)) / len(x)
        if s > 0 and (best is None or mean < best[0]):  # the smaller the mean, the more digits epsilon has
            best = mean, 1 / s**2 - mean
    return best and max(best[1], 0.0)


def measure_theta(operations: Operations, op: str, places: Iterable[tuple]) -> float | None:
    """From the angles by which the last pairs of position 1 are turned: theta^(-2i/hs) for pair i."""
    hs, found = operations.hs, []
    for l, pos, y in places:
        if pos != 1 or hs < 4:
            continue
        x, i = operations.product(op, l, pos), 1  # of the later pairs the angles are too small to be exact
        for at in range(2 * i, len(y), hs):
            a, b, c, d = x[at], x[at + 1], y[at], y[at + 1]
            angle = math.atan2(a * d - b * c, a * c + b * d)
            if angle > 1e-6:
                found.append((a * a + b * b, angle ** (-hs / (2 * i))))
    return max(found)[1] if found else None


def measure_scale(operations: Operations, op: str, places: Iterable[tuple]) -> float | None:
    """From the weights of two positions: log(p0 / p1) is the difference of their scores."""
    found = []
    for l, pos, y in places:
        for h, p in enumerate(split(y, pos + 1)):
            scores = operations.scores(l, pos, h)
            for t in range(1, pos + 1):
                difference = (scores[0] - scores[t]) / operations.scale()
                if min(p[0], p[t]) > 1e-3 and difference:
                    found.append((abs(difference), math.log(p[0] / p[t]) / difference))
    return max(found)[1] if found else None


MEASURES = {**{op: (epsilon, measure_epsilon) for op in NORMS}, **{op: (theta, measure_theta) for op in ROPE},
            "weights": (scale, measure_scale)}

# ----------------------------------------------------------------------------
# The search among operations


def by_operations(shard, tokens: Sequence[int], get: Callable, judged: dict[str, list], tell: Callable) -> list[str]:
    """The names of the mistakes that explain the wrong operations.

    get(op, layer, pos): another program's results, as for Operations. judged: op -> [(wrong, layer, pos)], all that
    could be judged. tell(done, of): called from time to time.
    """
    search = AmongOperations(shard, tokens, get, judged)
    search.try_all([m for m in known(shard.config, search.first_wrong("weights")) if m.only != "logits"], tell)
    for op in search.wrong:
        if not search.is_explained(op):
            search.look_closer(op)
    return search.names()


class AmongOperations:
    """The search for the mistakes that explain wrong operations. An explanation is a text, and the operations that it
    makes right: all that the mistake is about, or a part of them."""

    def __init__(self, shard, tokens: Sequence[int], get: Callable, judged: dict[str, list]):
        self.shard, self.tokens, self.get, self.judged = shard, tokens, get, judged
        self.wrong = {op: sorted(places, key=lambda place: not place[0]) for op, places in judged.items()
                      if any(place[0] for place in places)}  # the wrong places first
        self.right = Operations(shard, tokens, get)
        self.candidates = []
        self.whole, self.partial = {}, {}  # text -> operations

    def first_wrong(self, op: str) -> int:
        """The first position at which an operation is wrong."""
        return min([pos for is_wrong, _, pos in self.wrong.get(op, []) if is_wrong], default=0)

    def is_explained(self, op: str) -> bool:
        """Has a mistake been found that explains an operation?"""
        return any(op in ops for ops in [*self.whole.values(), *self.partial.values()])

    def explains(self, mistake: Mistake, op: str, layers: set | None = None) -> bool:
        """Is an operation right everywhere, or in some layers, if the mistake is made?"""
        operations = mistake.kind()(self.shard, self.tokens, self.get)
        for _, l, pos in self.wrong.get(op, self.judged[op]):
            if layers and l not in layers:
                continue
            try:
                y = operations.result(op, l, pos)
                if y is None and op == "embedding":
                    continue  # the token after the last one
                if y is None or judge(self.get(op, l, pos), y, operations.errors(op, l, pos, y)).wrong:
                    return False
            except (ValueError, OverflowError, ZeroDivisionError):
                return False
        return True

    def try_all(self, mistakes: Sequence[Mistake], tell: Callable) -> None:
        """Try mistakes one by one."""
        self.candidates = mistakes
        for i, mistake in enumerate(mistakes):
            tell(i, len(mistakes))
            ops = [op for op in mistake.ops if op in self.judged]
            mended = [op for op in ops if op in self.wrong and self.explains(mistake, op)]
            if mended:
                self.partial.setdefault(mistake.name, mended)
                if all(op in mended or op not in self.wrong and self.explains(mistake, op) for op in ops):
                    self.whole.setdefault(mistake.name, mended)

    def look_closer(self, op: str) -> None:
        """Look for what explains a wrong operation that no mistake does: a format, a constant, single elements; or a
        mistake in some layers alone, or two together."""
        few_bits = self.format_of(op)
        if few_bits:
            self.partial.setdefault(f"results are {few_bits}", []).append(op)
            return
        text, ops = self.constant(op)
        if text:
            self.whole[text] = ops
            return
        for texts in self.elements, self.in_some_layers, self.two_together:
            found = texts(op)
            for text in found:
                self.whole.setdefault(text, []).append(op)
            if found:
                return

    def names(self) -> list[str]:
        """The fewest texts that explain all wrong operations: whole mistakes, then parts of some, then what is left."""
        names, left = [], set(self.wrong)
        for table, is_whole in (self.whole, True), (self.partial, False):
            while best := max([set(ops) & left for ops in table.values()], key=len, default=None):
                same = [name for name, ops in table.items() if set(ops) & left == best]
                same = [name for name in same if len(table[name]) == min(len(table[n]) for n in same)]
                text = "; or ".join(same[:3]) + ("; or .." if len(same) > 3 else "")
                names.append(text if is_whole else f"{text} (in {', '.join(sorted(best))} alone)")
                left -= best
        if names and left:
            names.append(f"one that is not known, in {', '.join(op for op in self.wrong if op in left)}")
        return names

    # -- what look_closer looks for

    def format_of(self, op: str) -> str | None:
        """The format of few bits that all values of an operation are in, if they are right but for that."""
        for name, (to, distance) in FORMATS.items():
            for _, l, pos in self.wrong[op]:
                row, y = self.get(op, l, pos), self.right.result(op, l, pos)
                if tuple(to(row)) != tuple(row):
                    break
                rounding = [4 * distance * abs(v) + 2.0**-24 for v in y]  # of the result, and of what it is made of
                _, bound = self.right.errors(op, l, pos, y)
                if judge(row, y, (rounding, list(map(add, bound, rounding)))).impossible:
                    break
            else:
                return name
        return None

    def constant(self, op: str) -> tuple[str | None, list[str]]:
        """The name of a constant that makes an operation right, with all others of its kind that are wrong if it can,
        and which they are."""
        constant, measure = MEASURES.get(op, (None, None))
        alike = [other for other in self.judged if MEASURES.get(other, [None])[0] is constant]
        wrong = [other for other in alike if other in self.wrong]
        found = []
        for other in wrong if constant else ():
            places = [(l, pos, self.get(other, l, pos)) for _, l, pos in self.wrong[other]]
            value = measure(self.right, other, places)
            found += [] if value is None or not isfinite(value) else [(other != op, value)]
        for _, value in sorted(found):
            for ops in wrong, [op]:
                fit = [v for v in nearby(value) if all(self.explains(constant(v), other) for other in ops)]
                if fit:
                    text = named(constant, fit[0], value)
                    if constant is epsilon and fit[0] == 0.0 and len(fit) > 1:
                        text = f"epsilon is smaller than 1e-05, 0 to {max(fit):g}"
                    spoilt = [o for o in alike if o not in wrong and not self.explains(constant(fit[0]), o)]
                    return text + f" (in {', '.join(ops)} alone)" * (len(ops) < len(wrong) or bool(spoilt)), ops
        return None, []

    def elements(self, op: str) -> list[str]:
        """Single elements that are wrong, or embeddings of other tokens."""
        rows = {(l, pos): self.get(op, l, pos) for _, l, pos in self.wrong[op]}
        if op == "embedding":
            return other_tokens(self.shard, self.tokens, rows)
        off = set()
        places = [place for place in rows if place[1] == 0] or list(rows)  # at 0 RoPE mixes no two rows
        for l, pos in places:
            y = self.right.result(op, l, pos)
            sigma, _ = self.right.errors(op, l, pos, y)
            off |= {(l, i) for i, (a, b, s) in enumerate(zip(rows[l, pos], y, sigma, strict=True))
                    if abs(a - b) > 16 * s + 2.0**-126}
        if not 0 < len(off) <= 2 * len({l for l, _ in off}) or op not in (*PRODUCTS, *NORMS):
            return []
        what, tensor = ("row", PRODUCTS[op][0]) if op in PRODUCTS else ("weight", op)
        where = [f"{what} {i} of " + (f"the {tensor}" if l is None else f"{tensor} in layer {l}")
                 for l, i in sorted(off, key=repr)]
        verb = " and others are" if len(where) > 4 else " are" if len(where) > 1 else " is"
        return [" and ".join(where[:4]) + verb + " not the checkpoint's"]

    def in_some_layers(self, op: str) -> list[str]:
        """Mistakes that are made in some layers alone."""
        layers = {l for is_wrong, l, _ in self.wrong[op] if is_wrong}
        if len(layers) == len({l for _, l, _ in self.wrong[op]}):
            return []
        where = f"(in layer {', '.join(map(str, sorted(layers)))} alone)"
        return [f"{mistake.name} {where}" for mistake in self.candidates
                if op in mistake.ops and self.explains(mistake, op, layers)]

    def two_together(self, op: str) -> list[str]:
        """Two mistakes in one operation."""
        own = [mistake for mistake in self.candidates if op in mistake.ops]
        return [f"{a.name}; and {b.name}" for a, b in combinations(own, 2) if not set(a.methods) & set(b.methods)
                and self.explains(Mistake("", (op,), a.methods | b.methods), op)]


def other_tokens(shard, tokens, rows) -> list[str]:
    """Embeddings that are those of other tokens."""
    for (_, pos), row in rows.items():
        row = tuple(row)
        if row == tuple(shard.embedding(tokens[pos])):
            continue
        for first in range(0, shard.config.vocab_size, 4096):
            block = shard.checkpoint.rows("embedding", 0, first, min(first + 4096, shard.config.vocab_size))
            if row in block:
                return [f"position {pos} has the embedding of token {first + block.index(row)}, not of {tokens[pos]}"]
        close = [i for i, (a, b) in enumerate(zip(row, shard.embedding(tokens[pos]), strict=True)) if a != b]
        if len(close) <= 2:
            return [f"row {tokens[pos]} of the embedding, element {close[0]}, is not the checkpoint's"]
    return []


# ----------------------------------------------------------------------------
# The search among logits

NEAR, NEARER = 10, 30  # a mistake's logits: within so many times the noise, so many times nearer than the right model's


@dataclass
class Seen:
    """One step: another program's logits, the right ones (vocab each), the root mean square of their noise."""
    theirs: Sequence[float]
    right: Sequence[float]
    noise: float

    def off(self, logits: Sequence[float]) -> float:
        """How far logits are from the other program's: root mean square, in units of the noise."""
        return rms(list(map(sub, self.theirs, logits))) / self.noise


@dataclass
class Fit:
    """How well a mistake explains the logits."""
    noise: float   # how far it is from them, in units of their noise: root mean square over all steps
    nearer: float  # by how many times nearer it is than the right model
    rough: bool    # is it judged by the first wrong step alone?

    @property
    def explains(self) -> bool:
        """Is this rounding, and was it none?"""
        return self.noise <= NEAR and self.nearer >= NEARER


class Search:
    """The search for a mistake that explains logits."""

    def __init__(self, shard, tokens: Sequence[int], steps: Sequence[Seen], tell: Callable):
        self.shard, self.tokens, self.steps, self.tell = shard, tokens, steps, tell
        self.before = [step.off(step.right) for step in steps]  # how far the right model is, by step
        self.first = next((pos for pos, off in enumerate(self.before) if off > 12), 0)

    def fit(self, mistake: Mistake, whole: bool = True) -> Fit | None:
        """Make the mistake, step by step; None as soon as it cannot be the one. whole: take all steps, or else the
        first ones after the first wrong one."""
        model, offs = Model(mistake.kind(), self.shard, self.tokens), []
        count = len(self.steps) if whole else min(len(self.steps), max(12, self.first + 6))
        for pos in range(self.first + 1 if mistake.rough else count):
            try:
                logits = model.logits(pos)
            except (KeyError, ValueError, OverflowError, ZeroDivisionError):
                break
            offs.append(self.steps[pos].off(logits))
            if not offs[-1] <= 12 * NEAR or mistake.rough and pos < self.first and offs[-1] > 12:
                return None
        if len(offs) <= self.first or not mistake.rough and len(offs) < min(2, count):
            return None
        if mistake.rough:
            return Fit(offs[-1], self.before[self.first] / (offs[-1] or 1e-9), True)
        noise, nearer = rms(offs), rms(self.before[:len(offs)]) / (rms(offs) or 1e-9)
        if noise > NEAR and nearer >= 1000:  # the mistake may enlarge float32's noise
            noise /= self.amplification(mistake, len(offs))
        return Fit(noise, nearer, False)

    def amplification(self, mistake: Mistake, count: int) -> float:
        """The noise of a model with the mistake, in units of the right one's."""
        random = Random(1)
        noisy = Model(mistake.kind(), self.shard, self.tokens, lambda y, sigma: [
            v + s * random.gauss(0, 1) for v, s in zip(y, sigma, strict=True)])
        quiet = Model(mistake.kind(), self.shard, self.tokens)
        return max(1.0, rms([rms(list(map(sub, noisy.logits(pos), quiet.logits(pos)))) / self.steps[pos].noise
                             for pos in range(count)]))

    def best(self, mistakes: Sequence[Mistake]) -> list[str]:
        """The names of the mistakes that explain the logits alike."""
        found = []
        for i, mistake in enumerate(mistakes):
            self.tell(i, len(mistakes))
            fit = self.fit(mistake, whole=False)
            if fit and fit.explains:
                fit = self.fit(mistake)
                if fit and fit.explains:
                    found.append((fit.noise, mistake))
        if any(mistake.rough for _, mistake in found):  # the first wrong step is explained: what do the others say?
            right = rms(self.before[:max(16, self.first + 8)])
            found = [(self.distance(mistake) if mistake.rough else noise, mistake) for noise, mistake in found]
            found = [(noise, mistake) for noise, mistake in found if noise < 0.8 * right or not mistake.rough]
        limit = 1.5 * max(1.0, min([noise for noise, _ in found], default=0.0))
        return list(dict.fromkeys(self.described(m) for noise, m in sorted(found, key=lambda pair: pair[0])
                                  if noise <= limit))

    def distance(self, mistake: Mistake) -> float:
        """How far it is from the logits of all steps, root mean square, in units of their noise."""
        model = Model(mistake.kind(), self.shard, self.tokens)
        return rms([step.off(model.logits(pos)) for pos, step in enumerate(self.steps[:max(16, self.first + 8)])])

    def described(self, mistake: Mistake) -> str:
        """Its name, and how sure it is."""
        if mistake.rough and len(self.steps) > self.first + 1:
            return f"{mistake.name} (seen at step {self.first}; later, float32's noise turns some of these roundings)"
        return mistake.name

    def constants(self) -> list[str]:
        """The names of constants that explain the logits."""
        found = []
        for constant, grid in CONSTANTS:
            def off(value, constant=constant, far=1e30):
                model = Model(constant(value).kind(), self.shard, self.tokens)
                try:
                    rows = [model.logits(pos) for pos in range(min(len(self.steps), self.first + 3))]
                except (ValueError, OverflowError, ZeroDivisionError):
                    return far, []
                return rms([step.off(row) for step, row in zip(self.steps, rows, strict=False)]), rows

            value = min(grid, key=lambda v: off(v)[0])
            value = self.refined(off, value, linear=constant is epsilon)
            for candidate in nearby(value):
                fit = self.fit(constant(candidate), whole=False)
                if fit and fit.explains and fit.noise < 3:
                    fit = self.fit(constant(candidate))
                if fit and fit.explains and fit.noise < 3:
                    found.append(named(constant, candidate, value))
                    break
        return found

    def refined(self, off: Callable, value: float, linear: bool) -> float:
        """The value of a constant for which the logits are nearest: Newton's method (Gauss-Newton) on its value, or on
        its logarithm."""
        for _ in range(8):
            step = 1e-6 if linear else 1e-4 * value
            distance, rows = off(value)
            _, moved = off(value + step)
            if not rows or not moved:
                return value
            seen = list(zip(self.steps, rows, moved, strict=False))  # rows are of the first steps
            slope = [(b - a) / s.noise for s, r, m in seen for a, b in zip(r, m, strict=True)]
            rest = [(t - a) / s.noise for s, r, _ in seen for a, t in zip(r, s.theirs, strict=True)]
            change = step * fsum(map(mul, slope, rest)) / (fsum(map(mul, slope, slope)) or inf)
            new = max(value + change, 0.0) if linear else value * math.exp(max(-1.0, min(1.0, change / value)))
            if off(new)[0] >= distance:
                return value
            if abs(new - value) < 1e-9 * (1 if linear else value):
                return new
            value = new
        return value


def by_logits(shard, tokens: Sequence[int], steps: Sequence[Seen], tell: Callable) -> list[str]:
    """The names of the mistakes that explain logits which are not the right model's: one, or two made together. Those
    that fit alike are one name, "A; or B"."""
    search = Search(shard, tokens, steps, tell)
    simple = rounded_logits(steps) + out_of_step(steps) + one_row(shard, tokens, steps)
    if simple:
        return ["; or ".join(simple)]
    mistakes = [m for m in known(shard.config, search.first) if m.only != "operations"]
    alike = search.best(mistakes) or search.constants()
    return ["; or ".join(alike)] if alike else pairs(search, mistakes)


def bits_of(rows: Iterable[Sequence[float]]) -> str | None:
    """The format of few bits that all numbers are in."""
    rows = list(rows)
    return next((name for name, (to, _) in FORMATS.items() if all(tuple(to(row)) == tuple(row) for row in rows)), None)


def rounded_logits(steps: Sequence[Seen]) -> list[str]:
    """Logits that are the right ones, rounded to few bits."""
    name = bits_of([step.theirs for step in steps])
    if name is None:
        return []
    distance = 1.01 * FORMATS[name][1]
    right = all(abs(a - b) <= distance * abs(b) + 16 * step.noise for step in steps
                for a, b in zip(step.theirs, step.right, strict=True))
    return [f"logits are {name}"] * right


def out_of_step(steps: Sequence[Seen]) -> list[str]:
    """Rows of logits that are one step early or late."""
    names = []
    for by, name in (1, "early: row t has the logits of step t + 1"), (-1, "late: row t has those of step t - 1"):
        pairs = [(step, steps[i + by]) for i, step in enumerate(steps) if 0 <= i + by < len(steps)]
        if pairs and rms([step.off(other.right) for step, other in pairs]) <= NEAR:
            names.append(f"rows are one step {name}")
    return names


def one_row(shard, tokens: Sequence[int], steps: Sequence[Seen]) -> list[str]:
    """One or two logits that are wrong while all others are right."""
    norms = [sqrt(s) for block in shard.classifier.blocks for s in block.squares]
    unit = rms(norms)
    off, before = set(), []  # tokens whose logits are off; the steps before the first of them enters the model
    for pos, step in enumerate(steps):
        if tokens[pos] in off:
            break
        before.append(step)
        for i, (a, b, w) in enumerate(zip(step.theirs, step.right, norms, strict=True)):
            if abs(a - b) * unit > 16 * w * step.noise:
                off.add(i)
        if len(off) > 2:
            return []
    rest = [rms([a - b for i, (a, b) in enumerate(zip(s.theirs, s.right, strict=True)) if i not in off]) / s.noise
            for s in before]
    if not off or rms(rest) > 2:
        return []
    return ["; and ".join(f"row {i} of the classifier is not the checkpoint's: the logit of token {i} alone is wrong"
                          for i in sorted(off)) + ("" if len(before) == len(steps) else
                                                  ", until that token, whose embedding it is, is an input")]


def pairs(search: Search, mistakes: Sequence[Mistake]) -> list[str]:
    """Two mistakes made together, in a model so small that some thousand steps are soon made.

    The first step needs no search over all pairs: RoPE and attention leave it as it is. So what explains it alone is
    one of the two, and the other is among those that leave it.
    """
    c = search.shard.config
    if c.n_layers * c.dim * (2 * c.dim + 3 * c.hidden_dim) + c.vocab_size * c.dim > 10**6:
        return []
    step, right = search.steps[0], Model(Operations, search.shard, search.tokens).logits(0)
    explain, keep, change = [], [], []  # what they do to the first step
    for mistake in mistakes:
        if mistake.rough or mistake.rare or "rounded" in mistake.name:
            continue
        try:
            logits = Model(mistake.kind(), search.shard, search.tokens).logits(0)
        except (KeyError, ValueError, OverflowError, ZeroDivisionError):
            continue
        kept = rms(list(map(sub, logits, right))) <= NEAR * step.noise
        (keep if kept else explain if step.off(logits) <= NEAR else change).append(mistake)
    if search.before[0] <= NEAR:
        both = list(combinations(keep, 2))
    elif explain:
        both = [(a, b) for a in explain for b in keep]
    else:
        both = list(combinations(change, 2))
    for i, (a, b) in enumerate(both):
        search.tell(i, len(both))
        if set(a.methods) & set(b.methods):
            continue
        fit = search.fit(Mistake("", (), a.methods | b.methods))
        if fit and fit.explains:
            return [a.name, b.name]
    return []
