"""The formats in which other programs compute: float32, bfloat16, float16.

    precision = PRECISIONS["bfloat16"]
    model = llama2.Transformer(path, opened=functools.partial(open_rounded, precision))    # its weights are rounded

A program that computes in a format of 16 bits rounds each operation's result to it. Within an operation sums are
float32. Its weights are of that format, too: they are rounded first, to the nearest, ties to even.
"""
from array import array
from collections.abc import Callable, Sequence
from itertools import chain
from struct import pack, unpack
from typing import Any, NamedTuple

from llama2_py.engine.arithmetic import to_bytes
from llama2_py.engine.half_precision import float32_codes, shared_rows, table
from llama2_py.engine.models import AnyCheckpoint, open_checkpoint

# ----------------------------------------------------------------------------
# Formats of few bits


class Format(NamedTuple):
    """A format of numbers."""
    name: str
    round: Callable[[Sequence[float]], Sequence[float]]  # x (n) -> (n)
    distance: float                                      # half the distance of neighbours at 1
    dtype: str                                           # its name in safetensors


def float16(x: Sequence[float]) -> tuple[float, ...]:
    """x (n) -> (n), rounded to float16; what is too large becomes the largest."""
    form = f"{len(x)}e"
    return unpack(form, pack(form, *[max(-65504.0, min(65504.0, v)) for v in x]))


def bfloat16(x: Sequence[float]) -> tuple[float, ...]:
    """x (n) -> (n), rounded to bfloat16, the upper half of a float32."""
    n = len(x)
    bits = [(i + 0x7FFF + (i >> 16 & 1)) & 0xFFFF0000 for i in unpack(f"{n}I", pack(f"{n}f", *x))]
    return unpack(f"{n}f", pack(f"{n}I", *bits))


BFLOAT16 = Format("bfloat16", bfloat16, 2.0**-8, "BF16")
FLOAT16 = Format("float16", float16, 2.0**-11, "F16")
# The one with fewer bits first, since its numbers are in the other as well
FORMATS = (BFLOAT16, FLOAT16)

# ----------------------------------------------------------------------------
# Precisions


class Precision(NamedTuple):
    """What a program computes in."""
    name: str
    form: Format | None  # of its results and weights; None: float32
    smallest: float      # half the distance of the format's smallest numbers: a result may be off by it; 0: float32's
    unseen: str          # what it hides from the logits, measured

    @property
    def u(self) -> float:
        """How much a rounding to the format errs, relative, at most; 0: as float32, which each operation knows."""
        return self.form.distance if self.form else 0.0


PRECISIONS = {precision.name: precision for precision in (
    Precision("float32", None, 0.0, ""),
    Precision("bfloat16", BFLOAT16, 2.0**-134,
              "a theta that is off by 1 %, an epsilon of 1e-4 or less, angles of RoPE in bfloat16"),
    Precision("float16", FLOAT16, 2.0**-25, "a theta that is off by 1 % or less, in short texts; an epsilon of 1e-6"))}


# ----------------------------------------------------------------------------
# Weights


class RoundedCheckpoint:
    """A checkpoint whose weights are rounded to a format. They refer to one table of floats, as 16-bit weights do."""

    def __init__(self, checkpoint: AnyCheckpoint, form: Format):
        self.checkpoint = checkpoint
        self.form = form

    def __getattr__(self, name: str) -> Any:
        return getattr(self.checkpoint, name)

    def is_shared(self, name: str) -> bool:
        """Do the rows of a matrix refer to a table of floats?"""
        return True

    def rows(self, *place: Any, **options: Any) -> list[tuple[float, ...]]:
        """As the checkpoint's rows, rounded. Raises ValueError if a weight is too large for the format."""
        rows = self.checkpoint.rows(*place, **options)
        numbers = array("f", chain.from_iterable(rows))
        if float32_codes(self.form.dtype, to_bytes(numbers)) is not None:
            return rows
        return shared_rows(table(self.form.dtype), len(rows[0]), self._codes(numbers))

    def _codes(self, numbers: array) -> array:
        """numbers (n), an array("f") -> their codes in the format, an array("H")."""
        if self.form is BFLOAT16:
            bits = array("I", numbers.tobytes())
            codes = array("H", [(i + 0x7FFF + (i >> 16 & 1)) >> 16 for i in bits])
            finite = max(map(abs, self.form.round([max(numbers), min(numbers)]))) < 2.0**128
        else:
            finite = max(max(numbers), -min(numbers)) < 65520
            codes = array("H", pack(f"{len(numbers)}e", *numbers)) if finite else array("H")
        if not finite:
            raise ValueError(f"{self.checkpoint.path}: a weight is too large for {self.form.name}")
        return codes


def open_rounded(precision: Precision, path: str) -> AnyCheckpoint:
    """The checkpoint at a path, with the weights of a program that computes in a precision."""
    checkpoint = open_checkpoint(path)
    return RoundedCheckpoint(checkpoint, precision.form) if precision.form else checkpoint  # type: ignore[return-value]
