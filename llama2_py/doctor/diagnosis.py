"""The search for the mistakes that explain another program's wrong operations.

    by_operations(shard, tokens, get, judged, PRECISIONS["float32"], Budget(20))    # ["epsilon is 1e-06, not 1e-05"]

Each known mistake is tried on the wrong operations, given each one's own inputs. It is named only if it turns every
operation that it changes into a right one, in every layer and at every position, and spoils none. What no mistake
explains is looked at more closely: is it a format of few bits, a constant (constants.py), a single row? Is it wrong in
some layers alone, or are two mistakes made together?

search.py looks for the mistakes that explain wrong logits.
"""
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from math import isfinite
from operator import add

from llama2_py.doctor.budget import Budget
from llama2_py.doctor.constants import CONSTANT_OF, EPSILON, Constant, named, nearby
from llama2_py.doctor.errors import SMALLEST
from llama2_py.doctor.mistakes.known import known
from llama2_py.doctor.mistakes.mistake import Kind, both
from llama2_py.doctor.operations import UNLIKELY_ONE, Operations, in_precision, judge, rms
from llama2_py.doctor.precision import FORMATS, Format, Precision
from llama2_py.doctor.singles import Seen, single_logits
from llama2_py.engine.checkpoint import Config
from llama2_py.engine.graph import NORMS, PRODUCTS, ROTATED

# Results are in a format of few bits if all of them are such numbers, and off by no more than so many times half the
# distance of neighbours: what they are made of may have been rounded, too.
ROUNDINGS = 4
SMALLEST_HALF = 2.0**-24  # of the numbers of float16
# Single elements are wrong if there are no more of them in a layer. (Of two, one may be the partner in RoPE's pair.)
SINGLE_ELEMENTS = 2
NAMES = 3         # of mistakes that explain alike, to be told
ELEMENTS = 4      # single elements, to be told
ROWS = 4096       # of the embedding, searched at a time
FAILS = (ValueError, OverflowError, ZeroDivisionError)  # what a wrong operation can end in

Place = tuple[bool, int | None, int]  # is an operation wrong in this layer, at this position?


def by_operations(shard, tokens: Sequence[int], get: Callable, judged: dict[str, list[Place]], precision: Precision,
                  budget: Budget) -> list[str]:
    """The names of the mistakes that explain the wrong operations.

    get(op, layer, pos): another program's results, as for Operations. judged: all that could be judged, by operation.
    """
    search = AmongOperations(shard, tokens, get, judged, precision, budget)
    mistakes = [mistake for mistake in known(shard.config, search.first_wrong("weights"))
                if mistake.in_operations and not (precision.form and mistake.is_format)]
    search.try_all(sorted(mistakes, key=search.turn))
    left = [op for op in search.wrong if not search.is_explained(op)]
    for _ in budget.trials(left, "wrong operations, looked at more closely", search.look_closer):
        pass
    return search.names()


class AmongOperations:
    """The search for the mistakes that explain wrong operations. An explanation is a text, and the operations that it
    makes right: all that the mistake is about, or a part of them."""

    def __init__(self, shard, tokens: Sequence[int], get: Callable, judged: dict[str, list[Place]],
                 precision: Precision, budget: Budget):
        self.shard = shard
        self.precision = precision
        self.budget = budget
        self.tokens = tokens
        self.get = get
        self.judged = judged
        self.wrong: dict[str, list[Place]] = {}  # the wrong places first
        for op, places in judged.items():
            if any(is_wrong for is_wrong, _, _ in places):
                self.wrong[op] = sorted(places, key=is_right)
        self.right = self.made(Operations)
        self.candidates: Sequence[Kind] = []
        self.whole: dict[str, list[str]] = {}    # text -> operations
        self.partial: dict[str, list[str]] = {}
        self.changed: dict[str, tuple[str, ...]] = {}  # text -> all operations that its mistake changes
        self.off: dict[str, set] = {}            # operation -> (layer, element) of those that are wrong alone

    def made(self, kind: type[Operations]) -> Operations:
        """Operations of a class, from the other program's results."""
        return in_precision(kind, self.precision)(self.shard, self.tokens, self.get)

    def turn(self, mistake: Kind) -> bool:
        """What mistakes are sorted by: those that convert whole matrices, which takes long, come last."""
        return mistake.converts

    def expected(self, op: str, l: int | None, pos: int) -> tuple[list[float], list[float], list[float]]:
        """What an operation that was judged should give, its sigmas and its bounds."""
        y = self.right.result(op, l, pos)
        assert y is not None
        return y, *self.right.errors(op, l, pos, y)

    def first_wrong(self, op: str) -> int:
        """The first position at which an operation is wrong."""
        return min([pos for is_wrong, _, pos in self.wrong.get(op, []) if is_wrong], default=0)

    def is_explained(self, op: str) -> bool:
        """Has a mistake been found that explains an operation?"""
        return any(op in ops for ops in [*self.whole.values(), *self.partial.values()])

    # -- does a mistake explain an operation?

    def explains(self, mistake: Kind, op: str, layers: set | None = None) -> bool:
        """Is an operation right everywhere, or in some layers, if the mistake is made?"""
        operations = self.made(mistake)
        for _, l, pos in self.wrong.get(op, self.judged[op]):
            if layers and l not in layers:
                continue
            self.budget.check()
            try:
                y = operations.result(op, l, pos)
                if y is None and op == "embedding":
                    continue  # the token after the last one
                if y is None or judge(self.get(op, l, pos), y, operations.errors(op, l, pos, y)).wrong:
                    return False
            except FAILS:
                return False
        return True

    def try_all(self, mistakes: Sequence[Kind]) -> None:
        """Try mistakes one by one."""
        self.candidates = mistakes
        for _ in self.budget.trials(mistakes, "known mistakes", self.try_one):
            pass

    def try_one(self, mistake: Kind) -> None:
        """Find out which operations a mistake explains."""
        ops = [op for op in mistake.changes if op in self.judged]
        mended = [op for op in ops if op in self.wrong and self.explains(mistake, op)]
        if not mended or self.wrong.keys() & set(mistake.keeps):
            return
        is_whole = all(op in mended or self.leaves_right(mistake, op) for op in ops)
        self.partial.setdefault(mistake.name, mended)
        self.changed[mistake.name] = mistake.changes
        if is_whole:
            self.whole.setdefault(mistake.name, mended)

    def leaves_right(self, mistake: Kind, op: str) -> bool:
        """Is an operation right, and with the mistake as well?"""
        return op not in self.wrong and self.explains(mistake, op)

    # -- what no mistake explains

    def look_closer(self, op: str) -> None:
        """Look for what explains a wrong operation that no mistake does: a format, a constant, single elements; or a
        mistake in some layers alone, or two together, one of which may be a constant."""
        form = None if self.precision.form else self.format_of(op)
        if form:
            self.partial.setdefault(f"results are {form.name}", []).append(op)
            return
        if self.constant(op):
            return
        for texts in self.elements, self.in_some_layers, self.two_together, self.formula_and_constant:
            found = texts(op)
            for text in found:
                self.whole.setdefault(text, []).append(op)
            if found:
                return

    def format_of(self, op: str) -> Format | None:
        """The format of few bits that all values of an operation are in, if they are right but for that."""
        places = [(l, pos) for _, l, pos in self.wrong[op]]
        for form in FORMATS:
            if all(self.is_rounded(op, l, pos, form) for l, pos in places):
                return form
        return None

    def is_rounded(self, op: str, l: int | None, pos: int, form: Format) -> bool:
        """Are results in a format, and right but for that?"""
        row = self.get(op, l, pos)
        if tuple(form.round(row)) != tuple(row):
            return False
        y, _, bound = self.expected(op, l, pos)
        rounding = [ROUNDINGS * form.distance * abs(v) + SMALLEST_HALF for v in y]
        return not judge(row, y, (rounding, list(map(add, bound, rounding)))).impossible

    def constant(self, op: str) -> bool:
        """Is there a constant that makes an operation right, with all others of its kind that are wrong if it can?"""
        constant = CONSTANT_OF.get(op)
        if constant is None:
            return False
        config = self.shard.config
        alike = [other for other in self.judged if CONSTANT_OF.get(other) is constant]
        wrong = [other for other in alike if other in self.wrong]
        for value in self.measured(constant, op, wrong):
            mended = {v: [other for other in wrong if self.explains(constant.mistake(v, config), other)]
                      for v in nearby(value)}
            ops = max([found for found in mended.values() if op in found], key=len, default=None)
            if ops is None:
                continue
            fit = [v for v, found in mended.items() if found == ops]
            text = constant_text(constant, fit, value, self.shard.config)
            if len(ops) < len(wrong):  # the others are wrong, too: perhaps by this constant and more
                text += f" (in {', '.join(ops)})"
            elif not all(other in wrong or self.explains(constant.mistake(fit[0], config), other)
                         for other in alike):
                text += f" (in {', '.join(ops)} alone)"
            self.whole[text] = ops
            return True
        return False

    def measured(self, constant: Constant, op: str, wrong: Sequence[str]) -> list[float]:
        """The values of a constant, by wrong operations: the given one's first."""
        own: list[float] = []
        others: list[float] = []
        for other in wrong:
            places = [(l, pos, self.get(other, l, pos)) for _, l, pos in self.wrong[other]]
            value = constant.measure(self.right, other, places)
            if value is not None and isfinite(value):
                (own if other == op else others).append(value)
        return own + sorted(others)

    def elements(self, op: str) -> list[str]:
        """Single elements that are wrong, or embeddings of other tokens."""
        rows = {(l, pos): self.get(op, l, pos) for _, l, pos in self.wrong[op]}
        if op == "embedding":
            return other_tokens(self.shard, self.tokens, rows)
        if op not in PRODUCTS and op not in NORMS:
            return []
        off = set()
        for l, pos in [place for place in rows if place[1] == 0] or list(rows):  # at 0 RoPE mixes no two rows
            off |= {(l, i) for i in self.off_elements(op, l, pos)}
        if op == "logits":
            self.off[op] = off
            return self.logits(rows)
        layers = {l for l, _ in off}
        if not 0 < len(off) <= SINGLE_ELEMENTS * len(layers):
            return []
        if not all(self.rest_is_right(op, l, pos, {i for layer, i in off if layer == l}) for l, pos in rows):
            return []
        self.off[op] = off
        return [elements_text(op, off)]

    def rest_is_right(self, op: str, l: int | None, pos: int, off: set[int]) -> bool:
        """Is a result right, but for some elements and those that RoPE mixes them with?"""
        y, sigma, bound = self.expected(op, l, pos)
        mixed = {i for first, second, _ in self.right.pairs(len(y)) for i in (first, second)
                 if {first, second} & off} if op in ROTATED else off
        theirs = list(self.get(op, l, pos))
        for i in off | mixed:
            theirs[i] = y[i]
        return not judge(theirs, y, (sigma, bound)).wrong

    def logits(self, rows: dict[tuple[int | None, int], Sequence[float]]) -> list[str]:
        """Single logits that are wrong."""
        positions = sorted([pos for _, pos in rows])
        if positions != list(range(len(positions))):  # a penalty could not be told
            return []
        steps = []
        for pos in positions:
            y, sigma, _ = self.expected("logits", None, pos)
            steps.append(Seen(rows[None, pos], y, rms(sigma)))
        return single_logits(self.shard, self.tokens, steps, is_classifier_alone=True)

    def off_elements(self, op: str, l: int | None, pos: int) -> list[int]:
        """The elements of a result that are wrong."""
        y, sigma, _ = self.expected(op, l, pos)
        theirs = self.get(op, l, pos)
        return [i for i, (a, b, s) in enumerate(zip(theirs, y, sigma, strict=True))
                if abs(a - b) > UNLIKELY_ONE * s + SMALLEST]

    def in_some_layers(self, op: str) -> list[str]:
        """Mistakes that are made in some layers alone."""
        layers = {l for is_wrong, l, _ in self.wrong[op] if is_wrong and l is not None}
        if len(layers) == len({l for _, l, _ in self.wrong[op]}):
            return []
        where = f"(in layer {', '.join(map(str, sorted(layers)))} alone)"
        return [f"{mistake.name} {where}" for mistake in self.candidates
                if op in mistake.changes and self.explains(mistake, op, layers)]

    def two_together(self, op: str) -> list[str]:
        """Two mistakes in one operation."""
        own = [mistake for mistake in self.candidates if op in mistake.changes]
        found = [both(a, b) for a, b in combinations(own, 2) if not a.replaces & b.replaces]
        return self.texts_of([mistake for mistake in found if self.explains(mistake, op)], op)

    def texts_of(self, found: Sequence[Kind], op: str) -> list[str]:
        """The names of mistakes made together that explain an operation: of those that explain whatever else they
        change, or else all, which are said to be in this operation then."""
        whole = [mistake for mistake in found if all(
            self.explains(mistake, other) for other in mistake.changes if other in self.judged)]
        if whole:
            return [mistake.name for mistake in whole]
        return [f"{mistake.name} (in {op})" for mistake in found]

    def formula_and_constant(self, op: str) -> list[str]:
        """A mistake and a constant in one operation."""
        constant = CONSTANT_OF.get(op)
        if constant is None:
            return []
        found = []
        places = [(l, pos, self.get(op, l, pos)) for _, l, pos in self.wrong[op]]
        for formula in self.candidates:
            both_at_once = formula.replaces & constant.mistake(1.0, self.shard.config).replaces
            if op not in formula.changes or formula.rough or both_at_once:
                continue
            try:
                value = constant.measure(self.made(formula), op, places)
            except FAILS:
                continue
            if value is None or not isfinite(value):
                continue
            for candidate in nearby(value):
                mistake = both(formula, constant.mistake(candidate, self.shard.config))
                if self.explains(mistake, op):
                    right = named(constant, candidate, value, self.shard.config)
                    mistake.name = f"{formula.name}; and {right}"
                    found.append(mistake)
                    break
        return self.texts_of(found, op)

    def merge_last_rows(self) -> None:
        """The last row of every matrix that was judged, in every layer, is one mistake."""
        judged = [op for op in self.judged if op in PRODUCTS]
        for op in judged:
            places = {(l, len(self.get(op, l, pos)) - 1) for _, l, pos in self.judged[op]}
            if self.off.get(op) != places:
                return
        if len(judged) > 1:
            self.whole = {text: ops for text, ops in self.whole.items() if not set(ops) <= set(judged)}
            self.whole["the last row of every matrix is not the checkpoint's: is it left out?"] = judged

    # -- what is said

    def names(self) -> list[str]:
        """The fewest texts that explain all wrong operations: whole mistakes, then parts of some, then what is left."""
        self.merge_last_rows()
        names = []
        left = set(self.wrong)
        for explained, texts in largest_first(self.whole, left):
            names.append(one_of(texts))
            left -= explained
        for explained, texts in largest_first(self.partial, left):
            alone = " alone" if all(self.is_right_elsewhere(text, explained) for text in texts) else ""
            names.append(f"{one_of(texts)} (in {', '.join(sorted(explained))}{alone})")
            left -= explained
        if names and left:
            names.append(f"one that is not known, in {', '.join(op for op in self.wrong if op in left)}")
        return names

    def is_right_elsewhere(self, text: str, explained: set[str]) -> bool:
        """Is none of the other operations that a mistake changes wrong?"""
        return not (set(self.changed.get(text, ())) - explained) & self.wrong.keys()


def is_right(place: Place) -> bool:
    """What places are sorted by."""
    return not place[0]


def largest_first(table: dict[str, list[str]], left: set[str]) -> Iterator[tuple[set[str], list[str]]]:
    """Of the operations that are left, which are explained at once, and the texts that explain just them; again, until
    the texts explain no more."""
    left = set(left)
    while True:
        explained = max([set(ops) & left for ops in table.values()], key=len, default=set())
        if not explained:
            return
        texts = [text for text, ops in table.items() if set(ops) & left == explained]
        fewest = min(len(table[text]) for text in texts)
        yield explained, [text for text in texts if len(table[text]) == fewest]
        left -= explained


def one_of(texts: Sequence[str]) -> str:
    """Texts of which each explains the same."""
    return "; or ".join(texts[:NAMES]) + ("; or .." if len(texts) > NAMES else "")


def constant_text(constant: Constant, fit: Sequence[float], value: float, config: Config) -> str:
    """The name of a constant that was measured as a value, by the numbers that fit."""
    if constant is EPSILON and fit[0] == 0.0 and len(fit) > 1:
        return f"epsilon is smaller than {config.norm_epsilon:g}, 0 to {max(fit):g}"
    return named(constant, fit[0], value, config)


def elements_text(op: str, off: set[tuple[int | None, int]]) -> str:
    """What is said of single elements, (layer, element) each."""
    what, tensor = ("row", PRODUCTS[op][0]) if op in PRODUCTS else ("weight", op)
    where = []
    for l, i in sorted(off, key=repr):
        where.append(f"{what} {i} of the {tensor}" if l is None else f"{what} {i} of {tensor} in layer {l}")
    verb = " and others are" if len(where) > ELEMENTS else " are" if len(where) > 1 else " is"
    return " and ".join(where[:ELEMENTS]) + verb + " not the checkpoint's"


def other_tokens(shard, tokens: Sequence[int], rows: dict[tuple, Sequence[float]]) -> list[str]:
    """Embeddings that are those of other tokens."""
    for (_, pos), values in rows.items():
        row = tuple(values)
        own = tuple(shard.embedding(tokens[pos]))
        if row == own:
            continue
        token = token_of(shard, row)
        if token is not None:
            return [f"position {pos} has the embedding of token {token}, not of {tokens[pos]}"]
        off = [i for i, (a, b) in enumerate(zip(row, own, strict=True)) if a != b]
        if len(off) <= SINGLE_ELEMENTS:
            return [f"row {tokens[pos]} of the embedding, element {off[0]}, is not the checkpoint's"]
    return []


def token_of(shard, row: tuple[float, ...]) -> int | None:
    """The token that has an embedding; None if there is none."""
    vocab_size = shard.config.vocab_size
    for first in range(0, vocab_size, ROWS):
        block = shard.checkpoint.rows("embedding", 0, first, min(first + ROWS, vocab_size))
        if row in block:
            return first + block.index(row)
    return None
