"""Arrays of logits, (steps, vocabulary): numpy's .npy, or bare numbers.

    array = read_npy(path, data, 512)     # data: the file, mapped
    array = read_bare(path, data, 512)    # little-endian float32, in rows of the vocabulary
    array.row(3)                          # the logits of step 3

Bare numbers say nothing of their form. If they are evidently not what they should be, that is an error which says what
they look like.
"""
import math
import mmap
import re
from collections.abc import Sequence
from struct import calcsize, iter_unpack, unpack, unpack_from
from typing import NamedTuple


class Array:
    """Logits in a file."""

    def __init__(self, data: mmap.mmap, form: str, begin: int, steps: int, vocab_size: int, by_columns: bool = False):
        """form: of a number, for struct, with its byte order; begin: where the first one stands; by_columns: is it in
        Fortran's order, token by token?"""
        self.data = data
        self.form = form
        self.begin = begin
        self.steps = steps
        self.vocab_size = vocab_size
        self.by_columns = by_columns

    def row(self, pos: int) -> Sequence[float]:
        """The logits of a step, (vocab)."""
        width = calcsize(self.form)
        if self.by_columns:
            first = self.begin + width * pos
            last = first + width * self.steps * self.vocab_size
            return [unpack_from(self.form, self.data, at)[0] for at in range(first, last, width * self.steps)]
        size = width * self.vocab_size
        first = self.begin + pos * size
        (row,) = iter_unpack(f"{self.form[0]}{self.vocab_size}{self.form[1]}", self.data[first:first + size])
        return row


# ----------------------------------------------------------------------------
# numpy's format, versions 1 to 3

MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 2**16
LETTERS = {"f2": "e", "f4": "f", "f8": "d"}
HEADER = re.compile(r"\{'descr': ('.*?'|\[.*?\]), 'fortran_order': (True|False), "
                    r"'shape': (\([0-9, ]*\)),? ?\} *\n", re.S)


def read_npy(path: str, data: mmap.mmap, vocab_size: int) -> Array:
    """Raises ValueError, naming what is wrong, for another kind of array, or another shape."""
    version = data[6] if len(data) > 12 and data[7] == 0 else 0
    length = {1: "<H", 2: "<I", 3: "<I"}.get(version)
    if length is None:
        raise ValueError(f"{path}: not an array of numpy's format 1.0, 2.0 or 3.0")
    begin = 8 + calcsize(length)
    text = data[begin:begin + LONGEST_HEADER].decode("latin-1")
    header = HEADER.match(text)
    if not header or unpack(length, data[8:begin])[0] != header.end():
        raise ValueError(f"{path}: not an array of numpy's format {version}.0: its header is not one")
    descr, fortran, shape = header.groups()
    kind = re.fullmatch("'([<>])(f[248])'", descr)
    if not kind:
        raise ValueError(f"{path}: holds {descr}, must be float16, 32 or 64, '<f2' to '<f8' or '>f2' "
                         "to '>f8'")
    steps = steps_of(path, shape, vocab_size)
    form = kind[1] + LETTERS[kind[2]]
    begin += header.end()
    size = begin + calcsize(form) * steps * vocab_size
    if len(data) != size:
        raise ValueError(f"{path}: size is {len(data)} bytes, must be {size} for shape {shape}")
    return Array(data, form, begin, steps, vocab_size, fortran == "True")


def steps_of(path: str, shape: str, vocab_size: int) -> int:
    """The steps of an array of a shape: (steps, vocab), (1, steps, vocab) or (steps, 1, vocab)."""
    sizes = re.findall("[0-9]+", shape)
    if len(sizes) == 3 and "1" in sizes[:2]:
        sizes.remove("1")
    if len(sizes) == 2 and sizes[1] == str(vocab_size) and re.fullmatch("[1-9][0-9]{0,8}", sizes[0]):
        return int(sizes[0])
    padded = len(sizes) == 2 and len(sizes[1]) < 9 and int(sizes[1]) > vocab_size
    hint = f": rows padded to a longer vocabulary? write the first {vocab_size} of each" if padded else ""
    raise ValueError(f"{path}: shape is {shape}, must be (steps, {vocab_size}), the vocabulary{hint}")


# ----------------------------------------------------------------------------
# Bare numbers

# Numbers that were read in another form than their own have binary exponents all over the range: the standard
# deviation of the exponents is large. Those of logits are small, too; doubles that hold float32 have exponents of -1000
# if they are read from the other end.
TAME, WILD, LARGE = 4.0, 8.0, 64
SAMPLE = 4096  # numbers that are looked at


class Look(NamedTuple):
    """What numbers may be."""
    form: str
    name: str


LOOKS = (Look("<d", "float64"), Look("<e", "float16"), Look(">f", "big-endian float32"),
         Look(">d", "big-endian float64"))


def read_bare(path: str, data: mmap.mmap, vocab_size: int) -> Array:
    """Raises ValueError, saying what they look like, for numbers that are not float32 in rows of the vocabulary."""
    row = 4 * vocab_size
    steps, rest = divmod(len(data), row)
    look = look_of(data, vocab_size)
    if look:
        raise ValueError(f"{path}: looks like {look.name}, must be little-endian float32 in rows of {vocab_size} "
                         "(or an array of numpy's)")
    padded = padded_row(data, vocab_size)
    if padded:
        raise ValueError(f"{path}: looks like rows of {padded} float32, a padded vocabulary: must be rows of "
                         f"{vocab_size}")
    if rest:
        is_text = data[:SAMPLE].isascii()
        hint = "it is text: --compare-text?" if is_text else "another vocabulary, or numbers of 16 bits?"
        raise ValueError(f"{path}: size is {len(data)} bytes: neither an array of numpy's, nor records, "
                         f"nor rows of {vocab_size} float32, {row} bytes each ({hint})")
    return Array(data, "<f", 0, steps, vocab_size)


def look_of(data: mmap.mmap, vocab_size: int) -> Look | None:
    """What the numbers look like, if that is evidently not float32; None if they may be that."""
    _, spread = exponents(data, "<f")
    if spread < WILD:
        return None
    for look in LOOKS:
        if len(data) % (calcsize(look.form) * vocab_size) == 0:
            mean, spread = exponents(data, look.form)
            if spread < TAME and abs(mean) < LARGE:
                return look
    return None


def exponents(data: mmap.mmap, form: str) -> tuple[float, float]:
    """The mean and standard deviation of the first numbers' binary exponents; inf if one of them is not finite, or all
    are 0."""
    width = calcsize(form)
    n = min(SAMPLE, len(data) // width)
    numbers = unpack(f"{form[0]}{n}{form[1]}", data[:n * width])
    found = [math.frexp(v)[1] for v in numbers if v]
    if not found or not all(map(math.isfinite, numbers)):
        return math.inf, math.inf
    mean = sum(found) / len(found)
    return mean, math.sqrt(sum([(e - mean)**2 for e in found]) / len(found))


def padded_row(data: mmap.mmap, vocab_size: int) -> int | None:
    """The length of the rows, if they are longer than the vocabulary and all end in the same number."""
    count = len(data) // 4
    if len(data) % 4:
        return None
    for length in range(vocab_size + 1, 2 * vocab_size + 1):
        rows = count // length
        if count % length or rows < 2:
            continue
        pads = [data[4 * (row * length + vocab_size):4 * (row + 1) * length] for row in range(rows)]
        lasts = [data[4 * (row * length + vocab_size - 1):4 * (row * length + vocab_size)] for row in range(rows)]
        pad = pads[0][:4]
        if pad not in lasts and all(found == pad * (length - vocab_size) for found in pads):
            return length
    return None
