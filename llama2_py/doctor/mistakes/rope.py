"""Mistakes in the rotary position embedding."""
import math
from collections.abc import Iterator

from llama2_py.doctor.mistakes.mistake import Kind, Mistake
from llama2_py.doctor.precision import FORMATS, Format
from llama2_py.engine.frequencies import scaled
from llama2_py.engine.graph import ROTATED


def pairs() -> Iterator[Kind]:
    """What is turned."""
    class Halves(Mistake):
        name = "RoPE turns halves, (i, i + hs/2), not neighbours, (2i, 2i + 1)"
        changes = ROTATED

        def pairs(self, n):
            half = self.hs // 2
            return [(h + i, h + i + half, i) for h in range(0, n, self.hs) for i in range(half)]
    yield Halves

    class LeftOut(Mistake):
        name = "RoPE is left out"
        changes = ROTATED

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


def angles() -> Iterator[Kind]:
    """By how much it is turned."""
    class Backwards(Mistake):
        name = "RoPE turns the other way"
        changes = ROTATED

        def turn(self, i, pos):
            c, s = super().turn(i, pos)
            return c, -s
    yield Backwards

    for op in ROTATED:
        yield one_backwards(op)

    class CosinesAndSinesSwapped(Mistake):
        name = "RoPE's cosines and sines are swapped"
        changes = ROTATED
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
        changes = ROTATED
        alone = True

        def pairs(self, n):
            return super().pairs(self.hs)
    yield FirstHeadAlone

    class OverTheLength(Mistake):
        name = "RoPE's pairs are counted from head to head, over the length of q or k"
        changes = ROTATED
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
        changes = ROTATED
        alone = True

        def angle(self, i, pos):
            return factor * super().angle(i, pos)
    return AngleTimes


def through(self, n: int) -> list[tuple[int, int, int]]:
    """Operations.pairs, with the pairs numbered from head to head."""
    return [(i, i + 1, i // 2) for i in range(0, n, 2)]


class OtherExponent(Mistake):
    """RoPE's frequency of pair i is theta to the power of something else."""
    changes = ROTATED

    def exponent(self, i: int) -> float:
        """The exponent of pair i."""
        raise NotImplementedError

    def frequency(self, i):
        return self.theta ** self.exponent(i)


def frequencies() -> Iterator[Kind]:
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
        changes = ROTATED
        pairs = through
    yield Through

    class ThroughOverDim(OverDim):
        name = "RoPE's pairs are counted from head to head, over dim"
        pairs = through
    yield ThroughOverDim


def formats() -> Iterator[Kind]:
    """RoPE in few bits."""
    for form in FORMATS:
        yield from rope_in(form)


def rope_in(form: Format) -> Iterator[Kind]:
    """RoPE's tables, rounded to a format."""
    class Frequencies(Mistake):
        name = f"RoPE's frequencies are rounded to {form.name}"
        changes = ROTATED
        is_format = True
        alone = True

        def frequency(self, i):
            return form.round([super().frequency(i)])[0]
    yield Frequencies

    class Angles(Mistake):
        name = f"RoPE's angles are rounded to {form.name}"
        changes = ROTATED
        is_format = True
        alone = True

        def angle(self, i, pos):
            return form.round([super().angle(i, pos)])[0]
    yield Angles

    class Turns(Mistake):
        name = f"RoPE's cosines and sines are rounded to {form.name}"
        changes = ROTATED
        is_format = True
        alone = True

        def turn(self, i, pos):
            return form.round(super().turn(i, pos))
    yield Turns


def positions() -> Iterator[Kind]:
    """The position by which it turns. (That all positions are shifted changes no logit.)"""
    class FromOne(Mistake):
        name = "RoPE's positions begin at 1, not at 0"
        changes = ROTATED
        in_logits = False

        def position(self, pos):
            return pos + 1
    yield FromOne

    class FromMinusOne(Mistake):
        name = "RoPE's positions begin at -1, not at 0"
        changes = ROTATED
        in_logits = False

        def position(self, pos):
            return pos - 1
    yield FromMinusOne

    class AlwaysOne(Mistake):
        name = "RoPE's position is always 1"
        changes = ROTATED
        in_logits = False

        def position(self, pos):
            return 1
    yield AlwaysOne

    for op in ROTATED:
        yield one_shifted(op, 1, "pos + 1")
        yield one_shifted(op, -1, "pos - 1")
        yield one_late(op)


def one_shifted(which: str, by: int, text: str) -> Kind:
    """RoPE that turns q or k by another position."""
    class OneShifted(Mistake):
        name = f"RoPE turns {which} by position {text}"
        changes = (which,)

        def rotated(self, op, y, pos):
            return super().rotated(op, y, pos + by if op == which else pos)
    return OneShifted


def one_late(which: str) -> Kind:
    """RoPE that turns q or k by the position before; there is none before the first."""
    class OneLate(Mistake):
        name = f"RoPE turns {which} by position pos - 1, and the first by 0"
        changes = (which,)

        def rotated(self, op, y, pos):
            return super().rotated(op, y, max(0, pos - 1) if op == which else pos)
    return OneLate


def loops() -> Iterator[Kind]:
    """The loop that turns."""
    class InPlace(Mistake):
        name = "RoPE overwrites the first of a pair before it turns the second"
        changes = ROTATED

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
        changes = ROTATED
        alone = True

        def pairs(self, n):
            return [pair for pair in super().pairs(n) if pair[0] % self.hs < self.hs // part]

        def frequency(self, i):
            return super().frequency(part * i if frequencies else i)
    return PartlyTurned


LLAMA_3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def scalings(config) -> Iterator[Kind]:
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
        changes = ROTATED
        alone = True

        def frequency(self, i):
            return scaled(self.theta ** (-2 * i / self.hs), scaling, float)
    return OtherScaling
