"""The mistakes that people make when they write a Llama.

    for mistake in known(config):
        operations = mistake(shard, tokens, get)    # operations.Operations, with that mistake
        print(mistake.name, mistake.changes)

A mistake is a class: Operations with one or two methods replaced. A family of mistakes is a generator that yields such
classes. To add one, write the class into its family; diagnosis.py tries it on another program's numbers.
"""
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from math import exp, fsum, inf, sqrt
from operator import add, mul
from struct import pack, unpack

from llama2_py.doctor.errors import U
from llama2_py.doctor.operations import Operations, dot, rms, sigmoid, softmax
from llama2_py.doctor.precision import FORMATS, Format, float16
from llama2_py.engine.arithmetic import Exact, R
from llama2_py.engine.frequencies import scaled
from llama2_py.engine.graph import NORMS, OPERATIONS, PRODUCTS
from llama2_py.engine.rows import Rows, split

NORM_OPS = tuple(NORMS)
ROPE = ("q", "k")
HEADS = ("weights", "attention")
RESIDUALS = ("attention_residual", "ffn_residual")
PRODUCT_OPS = tuple(PRODUCTS)
MATRICES = tuple([name for name, _ in PRODUCTS.values()])
METHODS = frozenset([name for name in vars(Operations) if not name.startswith("__")])  # what a mistake can replace


class Mistake(Operations):
    """A mistake: the operations of a program that makes it."""

    name = ""                       # what is said of it
    changes: tuple[str, ...] = ()   # the operations whose results it changes
    keeps: tuple[str, ...] = ()     # the operations of which its name says that they are right
    in_logits = True                # is it tried on logits?
    in_operations = True            # is it tried on operations?
    rough = False                   # does it round to few bits?
    is_format = False               # is it about numbers in few bits?
    converts = False                # does it convert whole matrices, which takes long?
    alone = False                   # is it tried by itself, never beside a second mistake?
    replaces: frozenset[str] = frozenset()  # the methods that it replaces
    of_classifier = False           # does it need all logits, or change the classifier?
    has_layers = False              # can it be made in one layer alone?

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.replaces = frozenset([name for name in METHODS if getattr(cls, name) is not getattr(Operations, name)])
        cls.of_classifier = "logits" in cls.changes and bool(cls.replaces & {"logits", "product", "matrix"})
        cls.has_layers = set(cls.changes) <= {*OPERATIONS} and not (cls.rough or cls.converts)


Kind = type[Mistake]


def in_layer(mistake: Kind, layer: int) -> Kind:
    """A mistake that is made in one layer alone."""
    class InLayer(Mistake):
        name = f"{mistake.name} (in layer {layer} alone)"
        changes = mistake.changes

        def __init__(self, shard, tokens, get):
            super().__init__(shard, tokens, get)
            self.mistaken = mistake(shard, tokens, get)

        def result(self, op, l, pos):
            return self.mistaken.result(op, l, pos) if l == layer else super().result(op, l, pos)

        def errors(self, op, l, pos, y):
            return self.mistaken.errors(op, l, pos, y) if l == layer else super().errors(op, l, pos, y)
    return InLayer


def both(a: Kind, b: Kind) -> Kind:
    """Two mistakes made together, which replace no method that is the same."""
    assert not a.replaces & b.replaces
    changes = tuple(dict.fromkeys([*a.changes, *b.changes]))
    return type("Both", (a, b), {"name": f"{a.name}; and {b.name}", "changes": changes})


# ----------------------------------------------------------------------------
# Formats of few bits


def int8(x: Sequence[float], group: int) -> tuple[float, ...]:
    """x (n) -> (n), rounded to 8 bits, in groups of so many numbers with a scale each; 0: all are one group."""
    result: list[float] = []
    for part in split(x, group or len(x)):
        (scale,) = R([max(map(abs, part)) / 127])
        result += [round(v / scale) * scale for v in part] if scale else part
    return R(result)


# ----------------------------------------------------------------------------
# All of them


def known(config, first_wrong: int = 0) -> list[Kind]:
    """The mistakes that can be made with a model; not those with a constant, which diagnosis.py measures. first_wrong:
    the first position that is wrong, from which attention's window is guessed."""
    return [
        *rope_pairs(),
        *rope_angles(),
        *rope_frequencies(),
        *rope_formats(),
        *rope_positions(),
        *rope_loops(),
        *partial_rope(config.head_size),
        *rope_scalings(config),
        *key_heads(),
        *head_orders(),
        *score_changes(),
        *score_scales(),
        *visible_positions(first_wrong),
        *softmax_sums(),
        *cache_shifts(),
        *shared_caches(config.n_layers),
        *softmax_formulas(),
        *softmax_formats(),
        *norm_formulas(),
        *norm_weights(config.n_layers),
        *swapped_norms(),
        *norm_orders(config.n_layers),
        *feed_forward(),
        *residuals(),
        *wrong_matrices(config),
        *wrong_offsets(config),
        *dropped_tails(),
        *vector_tails(config),
        *wrong_layers(config.n_layers),
        *classifiers(config),
        *weight_formats(config),
        *wrong_tokens(),
        *wrong_logits(),
        *result_formats(),
    ]


# ----------------------------------------------------------------------------
# Rotary position embedding


def rope_pairs() -> Iterator[Kind]:
    """What is turned."""
    class Halves(Mistake):
        name = "RoPE turns halves, (i, i + hs/2), not neighbours, (2i, 2i + 1)"
        changes = ROPE

        def pairs(self, n):
            half = self.hs // 2
            return [(h + i, h + i + half, i) for h in range(0, n, self.hs) for i in range(half)]
    yield Halves

    class LeftOut(Mistake):
        name = "RoPE is left out"
        changes = ROPE

        def rotated(self, op, y, pos):
            return y
    yield LeftOut

    yield not_turned("q only, not k", "k")
    yield not_turned("k only, not q", "q")


def not_turned(text: str, which: str) -> Kind:
    """RoPE that leaves q or k as it is."""
    class NotTurned(Mistake):
        name = f"RoPE turns {text}"
        changes = (which,)

        def rotated(self, op, y, pos):
            return y if op == which else super().rotated(op, y, pos)
    return NotTurned


def rope_angles() -> Iterator[Kind]:
    """By how much it is turned."""
    class Backwards(Mistake):
        name = "RoPE turns the other way"
        changes = ROPE

        def turn(self, i, pos):
            c, s = super().turn(i, pos)
            return c, -s
    yield Backwards

    for op in ROPE:
        yield one_backwards(op)

    class CosinesAndSinesSwapped(Mistake):
        name = "RoPE's cosines and sines are swapped"
        changes = ROPE
        alone = True

        def turn(self, i, pos):
            c, s = super().turn(i, pos)
            return s, c
    yield CosinesAndSinesSwapped

    yield angle_times(2, "twice the angle: is it applied twice?")
    yield angle_times(0.5, "half the angle")
    yield angle_times(0.25, "a quarter of the angle")
    yield angle_times(math.pi / 180, "degrees taken for radians")

    class FirstHeadAlone(Mistake):
        name = "RoPE turns the first head alone"
        changes = ROPE
        alone = True

        def pairs(self, n):
            return super().pairs(self.hs)
    yield FirstHeadAlone

    class OverTheLength(Mistake):
        name = "RoPE's pairs are counted from head to head, over the length of q or k"
        changes = ROPE
        alone = True

        def rotated(self, op, y, pos):
            n = len(y)
            result = list(y)
            for i in range(0, n, 2):
                angle = pos * self.theta ** (-i / n)
                c, s = math.cos(angle), math.sin(angle)
                a, b = y[i], y[i + 1]
                result[i] = a * c - b * s
                result[i + 1] = a * s + b * c
            return result
    yield OverTheLength

    class TurnsV(Mistake):
        name = "RoPE turns v too"
        changes = ("v",)

        def v(self, l, pos):
            return self.rotated("v", super().v(l, pos), pos)
    yield TurnsV


def one_backwards(which: str) -> Kind:
    """RoPE that turns q or k by the opposite angles."""
    class OneBackwards(Mistake):
        name = f"RoPE turns {which} the other way"
        changes = (which,)
        alone = True

        def rotated(self, op, y, pos):
            return super().rotated(op, y, -pos if op == which else pos)
    return OneBackwards


def angle_times(factor: float, text: str) -> Kind:
    """RoPE by a multiple of the angle."""
    class AngleTimes(Mistake):
        name = f"RoPE turns by {text}"
        changes = ROPE
        alone = True

        def angle(self, i, pos):
            return factor * super().angle(i, pos)
    return AngleTimes


def through(self, n: int) -> list[tuple[int, int, int]]:
    """Operations.pairs, with the pairs numbered from head to head."""
    return [(i, i + 1, i // 2) for i in range(0, n, 2)]


class OtherExponent(Mistake):
    """RoPE's frequency of pair i is theta to the power of something else."""
    changes = ROPE

    def exponent(self, i: int) -> float:
        """The exponent of pair i."""
        raise NotImplementedError

    def frequency(self, i):
        return self.theta ** self.exponent(i)


def rope_frequencies() -> Iterator[Kind]:
    """The frequency of a pair."""
    class HalfTheExponent(OtherExponent):
        name = "RoPE's frequency of pair i is theta^(-i/hs), not theta^(-2i/hs)"

        def exponent(self, i):
            return -i / self.hs
    yield HalfTheExponent

    class TwiceTheExponent(OtherExponent):
        name = "RoPE's frequency of pair i is theta^(-4i/hs), not theta^(-2i/hs)"

        def exponent(self, i):
            return -4 * i / self.hs
    yield TwiceTheExponent

    class OverDim(OtherExponent):
        name = "RoPE's frequency of pair i is theta^(-2i/dim), not theta^(-2i/hs)"

        def exponent(self, i):
            return -2 * i / self.config.dim
    yield OverDim

    class NoExponent(OtherExponent):
        name = "RoPE's frequency of pair i is theta^(0), not theta^(-2i/hs)"

        def exponent(self, i):
            return 0
    yield NoExponent

    class FromOne(OtherExponent):
        name = "RoPE's frequency of pair i is theta^(-2(i + 1)/hs), not theta^(-2i/hs)"

        def exponent(self, i):
            return -2 * (i + 1) / self.hs
    yield FromOne

    class Through(Mistake):
        name = "RoPE's pairs are counted from head to head, not within each"
        changes = ROPE
        pairs = through
    yield Through

    class ThroughOverDim(OverDim):
        name = "RoPE's pairs are counted from head to head, over dim"
        pairs = through
    yield ThroughOverDim


def rope_formats() -> Iterator[Kind]:
    """RoPE in few bits."""
    for form in FORMATS:
        yield from rope_in(form)


def rope_in(form: Format) -> Iterator[Kind]:
    """RoPE's tables, rounded to a format."""
    class Frequencies(Mistake):
        name = f"RoPE's frequencies are rounded to {form.name}"
        changes = ROPE
        is_format = True
        alone = True

        def frequency(self, i):
            return form.round([super().frequency(i)])[0]
    yield Frequencies

    class Angles(Mistake):
        name = f"RoPE's angles are rounded to {form.name}"
        changes = ROPE
        is_format = True
        alone = True

        def angle(self, i, pos):
            return form.round([super().angle(i, pos)])[0]
    yield Angles

    class Turns(Mistake):
        name = f"RoPE's cosines and sines are rounded to {form.name}"
        changes = ROPE
        is_format = True
        alone = True

        def turn(self, i, pos):
            return form.round(super().turn(i, pos))
    yield Turns


def rope_positions() -> Iterator[Kind]:
    """The position by which it turns. (That all positions are shifted changes no logit.)"""
    class FromOne(Mistake):
        name = "RoPE's positions begin at 1, not at 0"
        changes = ROPE
        in_logits = False

        def position(self, pos):
            return pos + 1
    yield FromOne

    class FromMinusOne(Mistake):
        name = "RoPE's positions begin at -1, not at 0"
        changes = ROPE
        in_logits = False

        def position(self, pos):
            return pos - 1
    yield FromMinusOne

    class AlwaysOne(Mistake):
        name = "RoPE's position is always 1"
        changes = ROPE
        in_logits = False

        def position(self, pos):
            return 1
    yield AlwaysOne

    for op in ROPE:
        yield one_shifted(op, 1, "pos + 1")
        yield one_shifted(op, -1, "pos - 1")


def one_shifted(which: str, by: int, text: str) -> Kind:
    """RoPE that turns q or k by another position."""
    class OneShifted(Mistake):
        name = f"RoPE turns {which} by position {text}"
        changes = (which,)

        def rotated(self, op, y, pos):
            return super().rotated(op, y, pos + by if op == which else pos)
    return OneShifted


def rope_loops() -> Iterator[Kind]:
    """The loop that turns."""
    class InPlace(Mistake):
        name = "RoPE overwrites the first of a pair before it turns the second"
        changes = ROPE

        def rotated(self, op, y, pos):
            turned = super().rotated(op, y, pos)
            for first, second, i in self.pairs(len(y)):
                c, s = self.turn(i, pos)
                turned[second] = turned[first] * s + y[second] * c
            return turned
    yield InPlace

    class KeysTwice(Mistake):
        name = "RoPE turns keys twice: when they are stored, and when they are read"
        changes = ("weights",)
        alone = True

        def cached(self, op, l, t, kv, pos):
            x = super().cached(op, l, t, kv, pos)
            return self.rotated("k", list(x), t) if op == "k" else x
    yield KeysTwice

    class KeysAtEachStep(Mistake):
        name = "RoPE turns the keys in the cache again at each later step"
        changes = ("weights",)
        alone = True

        def cached(self, op, l, t, kv, pos):
            x = super().cached(op, l, t, kv, pos)
            return self.rotated("k", list(x), t * (pos - t)) if op == "k" else x
    yield KeysAtEachStep


def partial_rope(hs: int) -> Iterator[Kind]:
    """RoPE of a part of each head."""
    for part in [part for part in (2, 4) if hs % (2 * part) == 0]:
        yield partly_turned(part, "")
        yield partly_turned(part, ", with the frequencies of a head of that size")


def partly_turned(part: int, frequencies: str) -> Kind:
    """RoPE that turns 1/part of each head; frequencies: how its frequencies go, if not as usual."""
    class PartlyTurned(Mistake):
        name = f"RoPE turns the first 1/{part} of each head alone{frequencies}"
        changes = ROPE
        alone = True

        def pairs(self, n):
            return [pair for pair in super().pairs(n) if pair[0] % self.hs < self.hs // part]

        def frequency(self, i):
            return super().frequency(part * i if frequencies else i)
    return PartlyTurned


LLAMA_3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def rope_scalings(config) -> Iterator[Kind]:
    """The scaling of RoPE's frequencies."""
    if config.rope_scaling is not None:
        yield other_scaling("RoPE's scaling is left out", None)
    yield other_scaling("RoPE's frequencies are scaled as Llama 3.1's", LLAMA_3)
    yield other_scaling("RoPE's frequencies are scaled as Llama 3.2's", {**LLAMA_3, "factor": 32.0})
    for factor in 2, 4, 8:
        yield other_scaling(f"RoPE's positions are divided by {factor}", {"factor": factor})


def other_scaling(text: str, scaling: dict | None) -> Kind:
    """RoPE with another scaling than the model's."""
    class OtherScaling(Mistake):
        name = text
        changes = ROPE
        alone = True

        def frequency(self, i):
            return scaled(self.theta ** (-2 * i / self.hs), scaling, float)
    return OtherScaling


# ----------------------------------------------------------------------------
# Attention


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
        changes = ROPE
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
            for beyond_is_zero in True, False:
                yield shifted_cache(kinds, by, beyond_is_zero, f"the cache's {text} are one position {time}", ops)


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


def softmax_formulas() -> Iterator[Kind]:
    """Something else in place of softmax."""
    class Missing(Mistake):
        name = "softmax is missing: the scores are the weights"
        changes = ("weights",)

        def probabilities(self, scores):
            return scores
    yield Missing

    class WithoutExp(Mistake):
        name = "softmax has no exp: the scores are divided by their sum"
        changes = ("weights",)

        def probabilities(self, scores):
            total = fsum(scores) or inf
            return [v / total for v in scores]
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


# ----------------------------------------------------------------------------
# Errors of formulas in which numbers cancel

WIDER = 8      # times the sigma that such a formula adds: what it adds to the bound
OF_A_MEAN = 8  # u by which a mean of some hundred numbers errs


def widened(ops: Sequence[str], extra: Callable) -> Callable:
    """Operations.errors, with room for a formula in which numbers cancel: u extra(self, op, l, pos, y) (n) more in each
    sigma, and WIDER times that in each bound."""
    def errors(self, op, l, pos, y):
        sigma, bound = Operations.errors(self, op, l, pos, y)
        if op not in ops:
            return sigma, bound
        more = [U * abs(v) for v in extra(self, op, l, pos, y)]
        return list(map(add, sigma, more)), [b + WIDER * m for b, m in zip(bound, more, strict=True)]
    return errors


# ----------------------------------------------------------------------------
# The norms


def norm_formulas() -> Iterator[Kind]:
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


def norm_weights(n_layers: int) -> Iterator[Kind]:
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


def swapped_norms() -> Iterator[Kind]:
    """The norms' weights, inputs and number."""
    yield renamed_norms("the weights of attention_norm and ffn_norm are swapped",
                        {"attention_norm": "ffn_norm", "ffn_norm": "attention_norm"})
    yield renamed_norms("ffn_norm has attention_norm's weight", {"ffn_norm": "attention_norm"})
    yield renamed_norms("attention_norm has ffn_norm's weight", {"attention_norm": "ffn_norm"})

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


def norm_orders(n_layers: int) -> Iterator[Kind]:
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


# ----------------------------------------------------------------------------
# The feed-forward network and the residual connections


def gelu(a: float) -> float:
    """By the error function."""
    return a * (1 + math.erf(a / sqrt(2))) / 2


def gelu_by_tanh(a: float) -> float:
    """As GPT-2 has it."""
    return a * (1 + math.tanh(sqrt(2 / math.pi) * (a + 0.044715 * a**3))) / 2


def quick_gelu(a: float) -> float:
    """As CLIP has it."""
    return a * sigmoid(1.702 * a)


def relu(a: float) -> float:
    """0 where a is negative."""
    return max(a, 0.0)


def squared_relu(a: float) -> float:
    """As Primer has it."""
    return max(a, 0.0)**2


def hard_swish(a: float) -> float:
    """As MobileNet has it."""
    return a * max(0.0, min(6.0, a + 3)) / 6


def mish(a: float) -> float:
    """a tanh(log(1 + exp(a)))"""
    return a * math.tanh(math.log1p(exp(min(a, 700.0))))


def identity(a: float) -> float:
    """No activation at all."""
    return a


ACTIVATIONS: tuple[tuple[str, Callable[[float], float]], ...] = (
    ("GELU", gelu),
    ("GELU, by tanh,", gelu_by_tanh),
    ("quick GELU, a * sigmoid(1.702 a),", quick_gelu),
    ("ReLU", relu),
    ("the square of ReLU", squared_relu),
    ("hard swish, a * min(max(a + 3, 0), 6) / 6,", hard_swish),
    ("Mish, a * tanh(log(1 + exp(a))),", mish),
    ("a sigmoid", sigmoid),
    ("tanh", math.tanh),
    ("nothing", identity),
)


def feed_forward() -> Iterator[Kind]:
    """The feed-forward network."""
    for text, function in ACTIVATIONS:
        yield other_activation(text, function)
    yield swapped_matrices("w1", "w3", ("gate", "up"))

    class OfTheOther(Mistake):
        name = "SiLU is applied to w3 x, not to w1 x"
        changes = ("swiglu",)
        in_logits = False

        def swiglu(self, l, pos):
            activated = map(self.activation, self.get("up", l, pos))
            return list(map(mul, activated, self.get("gate", l, pos)))
    yield OfTheOther

    class WithoutUp(Mistake):
        name = "w3 x is left out"
        changes = ("swiglu",)

        def swiglu(self, l, pos):
            return list(map(self.activation, self.get("gate", l, pos)))
    yield WithoutUp


def other_activation(text: str, function: Callable[[float], float]) -> Kind:
    """Another function in place of SiLU."""
    def product_of_both(self, op, l, pos, y):
        """gate * up, (hidden_dim)"""
        return list(map(mul, self.get("gate", l, pos), self.get("up", l, pos)))

    class OtherActivation(Mistake):
        name = f"{text} stands for SiLU"
        changes = ("swiglu",)
        activation = staticmethod(function)
        errors = widened(("swiglu",), product_of_both)
    return OtherActivation


def residuals() -> Iterator[Kind]:
    """The residual connections."""
    yield from one_residual("attention_residual", "attention_out", "attention_norm")
    yield from one_residual("ffn_residual", "ffn_out", "ffn_norm")

    class WithoutAttention(Mistake):
        name = "ffn_residual adds to what entered the layer, without attention"
        changes = ("ffn_residual",)

        def ffn_residual(self, l, pos):
            return list(map(add, self.x(l, pos), self.get("ffn_out", l, pos)))
    yield WithoutAttention


def one_residual(op: str, out: str, norm: str) -> Iterator[Kind]:
    """One of the two connections."""
    def replaced(residual: Callable, text: str, is_alone: bool) -> Kind:
        return type("OneResidual", (Mistake,), {"name": f"{op} {text}", "changes": (op,), "alone": is_alone,
                                                op: residual})

    def without_x(self, l, pos):
        return self.get(out, l, pos)

    def to_norm(self, l, pos):
        return list(map(add, self.get(norm, l, pos), self.get(out, l, pos)))

    def to_embedding(self, l, pos):
        return list(map(add, self.get("embedding", None, pos), self.get(out, l, pos)))

    def twice(self, l, pos):
        x, change = self.parts(op, l, pos)
        return [a + 2 * b for a, b in zip(x, change, strict=True)]

    yield replaced(without_x, "is missing: x is not added", False)
    yield replaced(to_norm, "adds to the result of the norm, not to x", False)
    yield replaced(to_embedding, "adds to the embedding, not to x", True)
    yield replaced(twice, "adds twice", True)


# ----------------------------------------------------------------------------
# The weights: which, in which order, in which precision


def with_rows(names: Sequence[str], other_rows: Callable) -> Callable:
    """Operations.matrix, where the matrices of these names have the rows other_rows(shard, name, l, first, last)."""
    @functools.cache
    def built(shard, name, l):
        _, n, columns = shard.checkpoint.tensors[name]

        def read(first, last, check):
            return other_rows(shard, name, l or 0, first, last)

        return Rows(read, shard.checkpoint.release, Exact, range(n), columns, unpacked=n * columns < 2**16)

    def matrix(self, name, l):
        return built(self.shard, name, l) if name in names else Operations.matrix(self, name, l)
    return matrix


def transposed_rows(shard, name: str, l: int, first: int, last: int) -> list[tuple[float, ...]]:
    """Rows of a matrix that was taken for its transpose."""
    columns = zip(*shard.checkpoint.rows(name, l), strict=True)
    return list(columns)[first:last]


def embedding_rows(shard, name: str, l: int, first: int, last: int) -> list[tuple[float, ...]]:
    """Rows of the embedding."""
    return shard.checkpoint.rows("embedding", 0, first, last)


def layer_matrices() -> list[tuple[str, str]]:
    """(operation, matrix) of those in a layer."""
    return [(op, name) for op, (name, _) in PRODUCTS.items() if name != "classifier"]


def wrong_matrices(config) -> Iterator[Kind]:
    """One matrix in place of another, or of itself."""
    multi_head = config.n_heads == config.n_kv_heads
    square = ("wq", "wo", "wk", "wv") if multi_head else ("wq", "wo")
    for op, name in layer_matrices():
        if name in square:
            yield transposed(op, name)
        if config.n_layers > 1:
            yield matrix_of_layer(op, name, 1, "after", config.n_layers)
            yield matrix_of_layer(op, name, -1, "before", config.n_layers)
        if config.n_layers > 2:
            yield matrix_of_first_layer(op, name)
    yield swapped_matrices("wk", "wv", ("k", "v"))
    yield swapped_matrices("wq", "wo", ("q", "attention_out"))


def dropped_tails() -> Iterator[Kind]:
    """A loop over rows or columns that ends too early."""
    class LastRow(Mistake):
        name = "the last row of every matrix is left out: its result is 0"
        changes = PRODUCT_OPS
        alone = True

        def product(self, op, l, pos):
            result = super().product(op, l, pos)
            result[-1] = 0.0
            return result
    yield LastRow

    def without_last_column(shard, name, l, first, last):
        return [(*row[:-1], 0.0) for row in shard.checkpoint.rows(name, l)[first:last]]

    class LastColumn(Mistake):
        name = "the last column of every matrix is left out"
        changes = PRODUCT_OPS
        alone = True
        converts = True
        matrix = with_rows(MATRICES, without_last_column)
    yield LastColumn


LANES = (4, 8, 16, 32, 64)  # numbers that a processor takes at once


def vector_tails(config) -> Iterator[Kind]:
    """Loops that take several numbers at once, and leave out the rest."""
    lengths = (config.dim, config.hidden_dim, config.n_heads * config.head_size)
    seen = []
    for lanes in LANES:
        rests = [n % lanes for n in lengths]
        if any(rests) and rests not in seen and lanes <= min(lengths):
            seen.append(rests)
            yield vector_tail(lanes)


def vector_tail(lanes: int) -> Kind:
    """Products whose sums end at a multiple of so many numbers."""
    def without_tail(shard, name, l, first, last):
        _, _, columns = shard.checkpoint.tensors[name]
        tail = (0.0,) * (columns % lanes)
        end = columns - len(tail)
        return [row[:end] + tail for row in shard.checkpoint.rows(name, l, first, last)]

    class VectorTail(Mistake):
        name = f"products end at a multiple of {lanes} numbers: the columns behind it are left out"
        changes = PRODUCT_OPS
        alone = True
        converts = True
        matrix = with_rows(MATRICES, without_tail)
    return VectorTail


def transposed(op: str, which: str) -> Kind:
    """A matrix that was taken for its transpose."""
    class Transposed(Mistake):
        name = f"{which} is transposed"
        changes = (op,)
        converts = True
        matrix = with_rows((which,), transposed_rows)
    return Transposed


def matrix_of_layer(op: str, which: str, by: int, text: str, n_layers: int) -> Kind:
    """A matrix, a layer off."""
    class MatrixOfLayer(Mistake):
        name = f"{which} is that of the layer {text}"
        changes = (op,)
        alone = True

        def matrix(self, name, l):
            return super().matrix(name, (l + by) % n_layers if name == which else l)
    return MatrixOfLayer


def matrix_of_first_layer(op: str, which: str) -> Kind:
    """A matrix that is the first layer's in every layer."""
    class MatrixOfFirstLayer(Mistake):
        name = f"{which} is that of layer 0 in every layer"
        changes = (op,)
        alone = True

        def matrix(self, name, l):
            return super().matrix(name, 0 if name == which else l)
    return MatrixOfFirstLayer


def wrong_offsets(config) -> Iterator[Kind]:
    """Matrices that are read at another place of the file."""
    yield w2_and_w3_misread(config)
    if config.n_kv_heads < config.n_heads and config.n_heads * config.head_size == config.dim and config.n_layers > 1:
        yield wide_strides(config)


def w2_and_w3_misread(config) -> Kind:
    """Each of two matrices of as many numbers, read where the other stands."""
    names = {"w2": "w3", "w3": "w2"}

    def other_rows(shard, name, l, first, last):
        numbers = [v for row in shard.checkpoint.rows(names[name], l) for v in row]
        _, _, columns = shard.checkpoint.tensors[name]
        return [tuple(row) for row in split(numbers, columns)[first:last]]

    class Misread(Mistake):
        name = "w2 and w3 are read in each other's place in the file"
        changes = ("up", "ffn_out")
        converts = True
        matrix = with_rows(("w2", "w3"), other_rows)
    return Misread


def wide_strides(config) -> Kind:
    """wk and wv as if they had dim rows a layer: what is read runs on into the tensors behind them."""
    order = ("wk", "wv", "wo", "rms_ffn", "w1")  # of tensors whose rows have dim numbers, as in a file of version 0

    def row_behind(shard, name, l, row):
        number = l * config.dim + row
        for tensor in order[order.index(name):]:
            _, rows, _ = shard.checkpoint.tensors[tensor]
            if number < rows * config.n_layers:
                return shard.checkpoint.rows(tensor, number // rows, number % rows, number % rows + 1)[0]
            number -= rows * config.n_layers
        raise ValueError("beyond the file")

    def other_rows(shard, name, l, first, last):
        return [row_behind(shard, name, l, row) for row in range(first, last)]

    class WideStrides(Mistake):
        name = "wk and wv are read a layer dim * dim numbers apart, not kv_dim * dim"
        changes = ("k", "v")
        converts = True
        matrix = with_rows(("wk", "wv"), other_rows)
    return WideStrides


def swapped_matrices(one: str, other: str, ops: tuple[str, ...]) -> Kind:
    """Each of two matrices in place of the other."""
    names = {one: other, other: one}

    class SwappedMatrices(Mistake):
        name = f"{one} and {other} are swapped"
        changes = ops

        def matrix(self, name, l):
            return super().matrix(names.get(name, name), l)
    return SwappedMatrices


class OtherLayers(Mistake):
    """All weights are those of other layers."""
    changes = (*[op for op, _ in layer_matrices()], "attention_norm", "ffn_norm")
    alone = True

    def other_layer(self, l: int) -> int:
        """The layer whose weights layer l has."""
        raise NotImplementedError

    def matrix(self, name, l):
        return super().matrix(name, l if l is None else self.other_layer(l))

    def norm_weight(self, op, l):
        return super().norm_weight(op, l if l is None else self.other_layer(l))


def wrong_layers(n_layers: int) -> Iterator[Kind]:
    """Layers in another order, or fewer."""
    if n_layers == 1:
        return

    class Reversed(OtherLayers):
        name = "the layers run in reverse order"

        def other_layer(self, l):
            return n_layers - 1 - l
    yield Reversed

    yield skipped_layer(0, "first")
    yield skipped_layer(n_layers - 1, "last")

    class TheFirst(OtherLayers):
        name = "all weights are those of layer 0, in every layer"

        def other_layer(self, l):
            return 0
    yield TheFirst

    class After(OtherLayers):
        name = "all weights are those of the layer after"

        def other_layer(self, l):
            return (l + 1) % n_layers
    yield After

    class Before(OtherLayers):
        name = "all weights are those of the layer before"

        def other_layer(self, l):
            return (l - 1) % n_layers
    yield Before


def skipped_layer(skipped: int, text: str) -> Kind:
    """A layer that gives what entered it."""
    class SkippedLayer(Mistake):
        name = f"the {text} layer is skipped"
        changes = ("ffn_residual",)
        in_operations = False
        alone = True

        def ffn_residual(self, l, pos):
            return self.x(l, pos) if l == skipped else super().ffn_residual(l, pos)
    return SkippedLayer


def classifiers(config) -> Iterator[Kind]:
    """Another classifier."""
    if config.shared_classifier:
        return

    class EmbeddingForClassifier(Mistake):
        name = "the classifier is the embedding, but this model has one of its own"
        changes = ("logits",)
        matrix = with_rows(("classifier",), embedding_rows)
    yield EmbeddingForClassifier


def weight_formats(config) -> Iterator[Kind]:
    """Weights in few bits."""
    for form in FORMATS:
        yield rounded_weights(f"weights are rounded to {form.name}", form.round, embedding_too=True, norms_too=True)
        yield rounded_weights(f"weights, without the norms', are rounded to {form.name}", form.round,
                              embedding_too=True, kept=NORM_OPS)
        yield rounded_weights(f"weights of matrices are rounded to {form.name}", form.round)
        yield rounded_weights(f"weights of the layers' matrices are rounded to {form.name}", form.round,
                              classifier_too=False)
    for group in 0, 32, 64, 128:
        if group < config.dim:
            yield from weights_in_int8(group)
    yield from other_weight_formats()


# Formats of weights that other tools write: name, and x (n) -> (n)


def truncated(x: Sequence[float]) -> tuple[float, ...]:
    """x (n) -> (n): cut to bfloat16, towards zero."""
    n = len(x)
    bits = [i & 0xFFFF0000 for i in unpack(f"{n}I", pack(f"{n}f", *x))]
    return unpack(f"{n}f", pack(f"{n}I", *bits))


def to_mantissa(x: Sequence[float], bits: int, least: int) -> list[float]:
    """x (n) -> (n), rounded to so many bits behind the first; least: the exponent of the smallest that have them."""
    result = []
    for v in x:
        _, exponent = math.frexp(v)
        step = 2.0 ** (max(exponent - 1, least) - bits)
        result.append(round(v / step) * step)
    return result


def tf32(x: Sequence[float]) -> list[float]:
    """x (n) -> (n), rounded to TensorFloat-32: 10 bits behind the first."""
    return to_mantissa(x, 10, -126)


def e4m3(x: Sequence[float]) -> list[float]:
    """x (n) -> (n), rounded to float8 with 4 bits of exponent; 448 is the largest."""
    return [max(-448.0, min(448.0, v)) for v in to_mantissa(x, 3, -6)]


def e5m2(x: Sequence[float]) -> list[float]:
    """x (n) -> (n), rounded to float8 with 5 bits of exponent; 57344 is the largest."""
    return [max(-57344.0, min(57344.0, v)) for v in to_mantissa(x, 2, -14)]


BLOCK = 32  # numbers that share a float16 scale in Q8_0 and Q4_0


def q8_0(x: Sequence[float]) -> tuple[float, ...]:
    """x (n) -> (n), in llama.cpp's Q8_0: the scale is the largest / 127."""
    result: list[float] = []
    for part in split(x, BLOCK):
        scale = max(map(abs, part)) / 127
        (kept,) = float16([scale])
        result += [kept * round(v / scale) for v in part] if scale else part
    return R(result)


def q4_0(x: Sequence[float]) -> tuple[float, ...]:
    """x (n) -> (n), in llama.cpp's Q4_0: the scale is the number farthest from 0 / -8."""
    result: list[float] = []
    for part in split(x, BLOCK):
        scale = max(part, key=abs) / -8
        (kept,) = float16([scale])
        result += [kept * (min(15, math.floor(v / scale + 8.5)) - 8) for v in part] if scale else part
    return R(result)


OTHER_FORMATS: tuple[tuple[str, Callable], ...] = (
    ("cut to bfloat16, not rounded", truncated), ("rounded to TensorFloat-32", tf32),
    ("rounded to float8 (e4m3)", e4m3), ("rounded to float8 (e5m2)", e5m2), ("in Q8_0", q8_0), ("in Q4_0", q4_0))


def other_weight_formats() -> Iterator[Kind]:
    """Weights in those formats, with the norms', with the embedding, and without it."""
    for text, rounded in OTHER_FORMATS:
        yield rounded_weights(f"weights are {text}", rounded, embedding_too=True, norms_too=True)
        yield rounded_weights(f"weights, without the norms', are {text}", rounded, embedding_too=True, kept=NORM_OPS)
        yield rounded_weights(f"weights of matrices are {text}", rounded)
        yield rounded_weights(f"weights of the layers' matrices are {text}", rounded, classifier_too=False)


def weights_in_int8(group: int) -> Iterator[Kind]:
    """Weights in 8 bits, in groups of so many with a scale each; 0: a row is a group."""
    def rounded(row):
        return int8(row, group)

    size = f"groups of {group}" if group else "rows"
    yield rounded_weights(f"weights are rounded to int8, in {size}", rounded, embedding_too=True)
    yield rounded_weights(f"weights of matrices are rounded to int8, in {size}", rounded)
    yield rounded_weights(f"weights of the layers' matrices are rounded to int8, in {size}", rounded,
                          classifier_too=False)


def rounded_weights(text: str, rounded: Callable, embedding_too: bool = False, norms_too: bool = False,
                    kept: tuple[str, ...] = (), classifier_too: bool = True) -> Kind:
    """Weights that are rounded, row by row: those of the matrices, and others; kept: Mistake.keeps."""
    matrices = MATRICES if classifier_too else tuple([name for name in MATRICES if name != "classifier"])
    products = PRODUCT_OPS if classifier_too else tuple([op for op in PRODUCT_OPS if op != "logits"])

    def rounded_rows(shard, name, l, first, last):
        return [tuple(rounded(row)) for row in shard.checkpoint.rows(name, l, first, last)]

    class OfMatrices(Mistake):
        name = text
        changes = products
        alone = True
        is_format = True
        converts = True
        matrix = with_rows(matrices, rounded_rows)
    if not embedding_too:
        return OfMatrices

    class AndOfEmbedding(OfMatrices):
        changes = ("embedding", *PRODUCT_OPS)
        keeps = kept

        def embedding(self, l, pos):
            return tuple(rounded(super().embedding(l, pos)))
    if not norms_too:
        return AndOfEmbedding

    class AndOfNorms(AndOfEmbedding):
        changes = ("embedding", *PRODUCT_OPS, *NORM_OPS)
        keeps = ()

        def norm_weight(self, op, l):
            return tuple(rounded(super().norm_weight(op, l)))
    return AndOfNorms


# ----------------------------------------------------------------------------
# What goes in and comes out


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


def wrong_logits() -> Iterator[Kind]:
    """Something else in place of the logits."""
    class LogProbabilities(Mistake):
        name = "log-probabilities stand for logits"
        changes = ("logits",)

        def logits(self, l, pos):
            return log_softmax(super().logits(l, pos))

        def errors(self, op, l, pos, y):
            sigma, bound = super().errors(op, l, pos, y)
            if op != "logits":
                return sigma, bound
            widest = max(sigma)  # of the sum, which all elements share
            farthest = max(bound)
            return [s + widest for s in sigma], [b + farthest for b in bound]
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

        def errors(self, op, l, pos, y):
            sigma, bound = super().errors(op, l, pos, y)
            if op != "logits":
                return sigma, bound
            return [s + max(sigma) for s in sigma], [b + max(bound) for b in bound]
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


# ----------------------------------------------------------------------------
# Results in few bits


def result_formats() -> Iterator[Kind]:
    """Activations and the cache in few bits."""
    for form in FORMATS:
        for op in ("attention_norm", "q", "attention", "attention_out", "ffn_norm", "swiglu", "ffn_out", "final_norm"):
            yield rounded_results(f"results of {op} are {form.name}", (op,), form)
        yield rounded_results(f"x, the residual stream, is {form.name}", RESIDUALS, form)
        yield rounded_cache(f"keys and values are {form.name}", "kv", HEADS, form)
        yield rounded_cache(f"keys are {form.name}", "k", ("weights",), form)
        yield rounded_cache(f"values are {form.name}", "v", ("attention",), form)


def rounded_results(text: str, ops: tuple[str, ...], form: Format) -> Kind:
    """Operations whose results are rounded."""
    class RoundedResults(Mistake):
        name = text
        changes = ops
        in_operations = False
        rough = True
        is_format = True

        def result(self, op, l, pos):
            y = super().result(op, l, pos)
            return form.round(y) if op in ops else y
    return RoundedResults


def rounded_cache(text: str, kinds: str, ops: tuple[str, ...], form: Format) -> Kind:
    """A cache whose keys or values (kinds: k, v) are rounded."""
    class RoundedCache(Mistake):
        name = text
        changes = ops
        rough = True
        is_format = True

        def cached(self, op, l, t, kv, pos):
            x = super().cached(op, l, t, kv, pos)
            return form.round(x) if op in kinds else x
    return RoundedCache
