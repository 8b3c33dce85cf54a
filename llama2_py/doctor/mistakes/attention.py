"""Mistakes in attention: heads, scores, softmax, and the cache of keys and values."""
import math
from collections.abc import Callable, Iterator, Sequence
from math import exp, fsum, hypot, inf, sqrt

from llama2_py.doctor.errors import U
from llama2_py.doctor.mistakes.mistake import HEADS, Kind, Mistake
from llama2_py.doctor.operations import dot, softmax
from llama2_py.doctor.precision import FORMATS
from llama2_py.engine.graph import ROTATED
from llama2_py.engine.rows import split


def head_orders() -> Iterator[Kind]:
    """Where a head's numbers stand, and which heads are computed."""
    class Reversed(Mistake):
        name = "heads are joined in reverse order"
        changes = ("attention",)
        alone = True

        def attention(self, l, pos):
            heads = split(super().attention(l, pos), self.hs)
            return [v for head in reversed(heads) for v in head]
    yield Reversed

    class Interleaved(Mistake):
        name = "heads are joined element by element: (hs, heads), not (heads, hs)"
        changes = ("attention",)
        alone = True

        def attention(self, l, pos):
            heads = split(super().attention(l, pos), self.hs)
            return [v for element in zip(*heads, strict=True) for v in element]
    yield Interleaved

    class LastMissing(Mistake):
        name = "the last head is left out: its part of attention is 0"
        changes = ("attention",)
        alone = True

        def attention(self, l, pos):
            return [*super().attention(l, pos)[:-self.hs], *[0.0] * self.hs]
    yield LastMissing

    class OneEach(Mistake):
        name = "only as many query heads are computed as there are key heads: the others are 0"
        changes = ("attention",)
        alone = True

        def attention(self, l, pos):
            n = self.config.n_kv_heads * self.hs
            result = super().attention(l, pos)
            return [*result[:n], *[0.0] * (len(result) - n)]
    yield OneEach


CAPS = (50.0, 30.0, 20.0)  # of families of models that have one


def capped(x: Sequence[float], cap: float) -> list[float]:
    """x (n) -> (n): each pressed between -cap and cap."""
    return [cap * math.tanh(v / cap) for v in x]


def score_changes() -> Iterator[Kind]:
    """Something that is done to queries, keys or scores and is not Llama's."""
    for cap in CAPS:
        yield capped_scores(cap)

    class ALiBi(Mistake):
        name = "ALiBi: scores lose by distance, a slope a head"
        changes = ("weights",)

        def scores(self, l, pos, h):
            slope = 2.0 ** (-8 * (h + 1) / self.config.n_heads)
            visible = self.visible(pos)
            return [s - slope * (pos - t) for s, t in zip(super().scores(l, pos, h), visible, strict=True)]
    yield ALiBi

    class NormalizedHeads(Mistake):
        name = "q and k are normalized, head by head"
        changes = ROTATED
        alone = True

        def rotated(self, op, y, pos):
            heads = map(self.normalized, split(y, self.hs))
            return super().rotated(op, [v for head in heads for v in head], pos)
    yield NormalizedHeads


def capped_scores(cap: float) -> Kind:
    """Scores with a soft cap."""
    class CappedScores(Mistake):
        name = f"scores are capped at {cap:g} by tanh"
        changes = ("weights",)
        alone = True

        def probabilities(self, scores):
            return super().probabilities(capped(scores, cap))
    return CappedScores


def key_heads() -> Iterator[Kind]:
    """Which key and value head a query head uses."""
    yield from key_heads_of("kv", "key and value head", HEADS)
    yield from key_heads_of("k", "key head", ("weights",))
    yield from key_heads_of("v", "value head", ("attention",))


def key_heads_of(kinds: str, text: str, ops: tuple[str, ...]) -> Iterator[Kind]:
    """Another head of keys, of values, or of both (kinds: k, v)."""
    class OtherHead(Mistake):
        changes = ops
        alone = kinds != "kv"

        def other_head(self, h: int) -> int:
            raise NotImplementedError

        def kv_head(self, h, op):
            return self.other_head(h) if op in kinds else super().kv_head(h, op)

    not_it = "not h / (heads / kv_heads)"

    class Modulo(OtherHead):
        name = f"query head h uses {text} h % kv_heads, {not_it}"

        def other_head(self, h):
            return h % self.config.n_kv_heads
    yield Modulo

    class First(OtherHead):
        name = f"query head h uses {text} 0, {not_it}"

        def other_head(self, h):
            return 0
    yield First

    class UpToTheLast(OtherHead):
        name = f"query head h uses {text} min(h, kv_heads - 1), {not_it}"

        def other_head(self, h):
            return min(h, self.config.n_kv_heads - 1)
    yield UpToTheLast

    class ByKeyHeads(OtherHead):
        name = f"query head h uses {text} h / kv_heads, {not_it}"
        alone = True

        def other_head(self, h):
            return min(h // self.config.n_kv_heads, self.config.n_kv_heads - 1)
    yield ByKeyHeads

    class OfTheNext(OtherHead):
        name = f"query head h uses {text} of query head h + 1, {not_it}"
        alone = True

        def other_head(self, h):
            return (h + 1) // self.group % self.config.n_kv_heads
    yield OfTheNext


def score_scales() -> Iterator[Kind]:
    """What scores are multiplied by."""
    class Unscaled(Mistake):
        name = "scores are not divided by sqrt(hs)"
        changes = ("weights",)

        def scale(self):
            return 1.0
    yield Unscaled

    class ByHeadSize(Mistake):
        name = "scores are divided by hs, not by sqrt(hs)"
        changes = ("weights",)

        def scale(self):
            return 1 / self.hs
    yield ByHeadSize

    class ByRootOfDim(Mistake):
        name = "scores are divided by sqrt(dim), not by sqrt(hs)"
        changes = ("weights",)

        def scale(self):
            return 1 / sqrt(self.config.dim)
    yield ByRootOfDim


def visible_positions(first_wrong: int) -> Iterator[Kind]:
    """What a position attends to."""
    class NotItselfButTheFirst(Mistake):
        name = "a position does not attend to itself (the first does)"
        changes = ("weights",)

        def visible(self, pos):
            return range(max(pos, 1))
    yield NotItselfButTheFirst

    class NotItself(Mistake):
        name = "a position does not attend to itself"
        changes = ("weights",)

        def visible(self, pos):
            return range(pos)
    yield NotItself

    class NoMask(Mistake):
        name = "there is no mask: each position attends to all later ones as well"
        changes = HEADS
        in_operations = False
        alone = True
        sees_later = True

        def visible(self, pos):
            return range(len(self.tokens))

        def history(self, op, l, kv, pos):
            found = [self.cached(op, l, t, kv, pos) for t in self.visible(pos)]
            return list(zip(*found, strict=True)) if op == "v" else found

        def weights(self, l, pos):
            heads = range(self.config.n_heads)
            return [p for h in heads for p in self.probabilities(self.scores(l, pos, h))]

        def attention(self, l, pos):
            result = []
            for h, p in enumerate(split(self.get("weights", l, pos), len(self.tokens))):
                result += [dot(p, column) for column in self.history("v", l, self.kv_head(h, "v"), pos)]
            return result
    yield NoMask

    for width in range(max(1, first_wrong - 1), first_wrong + 2):
        yield window(width)

    class ByRootOfKvDim(Mistake):
        name = "scores are divided by sqrt(kv_dim), not by sqrt(hs)"
        changes = ("weights",)
        alone = True

        def scale(self):
            return 1 / sqrt(self.config.n_kv_heads * self.hs)
    yield ByRootOfKvDim

    class NotTheFirst(Mistake):
        name = "later positions do not attend to the first"
        changes = ("weights",)
        alone = True

        def visible(self, pos):
            return range(min(pos, 1), pos + 1)
    yield NotTheFirst


def window(width: int) -> Kind:
    """Attention with a window."""
    class Window(Mistake):
        name = f"attention sees the last {width} positions only"
        changes = ("weights",)

        def visible(self, pos):
            return range(max(0, pos + 1 - width), pos + 1)
    return Window


def softmax_sums() -> Iterator[Kind]:
    """What softmax adds up."""
    class WholeContext(Mistake):
        name = "softmax runs over the whole context, zeros included"
        changes = ("weights",)
        alone = True

        def probabilities(self, scores):
            zeros = [0.0] * (self.config.seq_len - len(scores))
            return softmax([*scores, *zeros])[:len(scores)]
    yield WholeContext

    class OneMore(Mistake):
        name = "softmax adds 1 to its sum"
        changes = ("weights",)
        alone = True

        def probabilities(self, scores):
            return softmax([*scores, 0.0])[:-1]
    yield OneMore

    class TheFirstOnly(Mistake):
        name = "attention sees the first position only"
        changes = ("weights",)

        def visible(self, pos):
            return range(1)
    yield TheFirstOnly


def cache_shifts() -> Iterator[Kind]:
    """A cache that is read or written at a neighbour's position."""
    for kinds, text, ops in [("k", "keys", ("weights",)), ("v", "values", ("attention",)),
                             ("kv", "keys and values", HEADS)]:
        for by, time in (-1, "late"), (1, "early"):
            for beyond_is_zero, edge in (True, "0 at the edge"), (False, "the edge twice"):
                name = f"the cache's {text} are one position {time}, {edge}"
                yield shifted_cache(kinds, by, beyond_is_zero, name, ops)


def shifted_cache(kinds: str, by: int, beyond_is_zero: bool, text: str, ops: tuple[str, ...]) -> Kind:
    """A cache whose keys or values (kinds: k, v) at position t are those of t + by. Beyond the edge there are zeros, or
    what is at the edge."""
    class ShiftedCache(Mistake):
        name = text
        changes = ops

        def cached(self, op, l, t, kv, pos):
            if op not in kinds:
                return super().cached(op, l, t, kv, pos)
            there = t + by
            if beyond_is_zero and not 0 <= there <= pos:
                return (0.0,) * self.hs
            return super().cached(op, l, min(max(there, 0), pos), kv, pos)
    return ShiftedCache


def shared_caches(n_layers: int) -> Iterator[Kind]:
    """One cache for all layers."""
    if n_layers == 1:
        return

    class SharedCache(Mistake):
        name = "all layers share one cache: at earlier positions they see the last layer's keys and values"
        changes = HEADS

        def cached(self, op, l, t, kv, pos):
            return super().cached(op, l if t == pos else n_layers - 1, t, kv, pos)
    yield SharedCache


def score_errors(scores: Sequence[float], of_scores: tuple) -> tuple[list[float], list[float]]:
    """How far scores may be off that no exp was taken of; of_scores: by the dot products in them, as in
    errors.softmax_errors."""
    sigma, bound = of_scores
    return ([hypot(d, 0.6 * U * s) for d, s in zip(sigma, scores, strict=True)],
            [d + 3 * U * abs(s) for d, s in zip(bound, scores, strict=True)])


LARGEST_EXP = 88.722839  # exp of more is no float32


def softmax_formulas() -> Iterator[Kind]:
    """Something else in place of softmax."""
    class Missing(Mistake):
        name = "softmax is missing: the scores are the weights"
        changes = ("weights",)

        def probabilities(self, scores):
            return scores

        def head_errors(self, p, scores, highest, of_scores):
            return score_errors(scores, of_scores)
    yield Missing

    class Overflowing(Mistake):
        name = "softmax takes exp of the scores as they are: that of a large one overflows"
        changes = ("weights",)
        in_logits = False
        in_operations = False

        def probabilities(self, scores):
            e = [exp(v) if v < LARGEST_EXP else inf for v in scores]
            total = sum(e) or 1.0
            return [v / total for v in e]
    yield Overflowing

    class WithoutExp(Mistake):
        name = "softmax has no exp: the scores are divided by their sum"
        changes = ("weights",)

        def probabilities(self, scores):
            total = fsum(scores) or inf
            return [v / total for v in scores]

        def head_errors(self, p, scores, highest, of_scores):
            sigma, bound = score_errors(scores, of_scores)
            total = abs(fsum(scores)) or inf
            return ([hypot(s, v * hypot(*sigma)) / total for s, v in zip(sigma, p, strict=True)],
                    [(b + abs(v) * sum(bound)) / total for b, v in zip(bound, p, strict=True)])
    yield WithoutExp


def softmax_formats() -> Iterator[Kind]:
    """Softmax in few bits."""
    for form in FORMATS:
        yield rounded_softmax(f"softmax is in {form.name}", form.round, form.round, form.round)
        yield rounded_softmax(f"softmax's exponentials and results are {form.name}", list, form.round, form.round)
        yield rounded_softmax(f"softmax's results are {form.name}", list, list, form.round)
        yield rounded_softmax(f"scores are {form.name}", form.round, list, list)


def rounded_softmax(text: str, round_scores: Callable, round_exponentials: Callable, round_results: Callable) -> Kind:
    """A softmax whose numbers are rounded."""
    class RoundedSoftmax(Mistake):
        name = text
        changes = ("weights",)
        rough = True
        is_format = True

        def probabilities(self, scores):
            x = round_scores(scores)
            highest = max(x)
            differences = round_scores([v - highest for v in x])
            e = round_exponentials(list(map(exp, differences)))
            total = fsum(e)
            return round_results([v / total for v in e])
    return RoundedSoftmax
