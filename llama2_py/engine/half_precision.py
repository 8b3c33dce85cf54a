"""Numbers of 16 bits, float16 and bfloat16, widened to binary32 and to Python's floats. Both are exact.

    rows = widened("BF16", 288, data)    # a tensor's bytes -> its rows, of 288 numbers

Weights of 16 bits take one of 65,536 values. Their rows are tuples of references into one table of floats, 8 bytes a
weight in place of 40. The table stays in the processor's cache, so that a product takes 6.5 ns a weight in place of 7.5
(CPython 3.11; 8.0 and 9.0 on 3.13). Reading them takes as long as reading floats. The same is done with float32 weights
that all are such numbers, as in files that were made of a model in bfloat16.
"""
import functools
from array import array
from collections.abc import Callable
from operator import itemgetter
from struct import iter_unpack, pack, unpack

from llama2_py.engine.arithmetic import BYTE_ORDER, to_bytes


def bfloat16_to_float32(codes: array) -> array:
    """codes (n), an array("H") of bfloat16 -> array("H") (2n): the low and the high half of each as binary32.

    A bfloat16 is the high half of a binary32. (The halves stand in the order of little endian.)
    """
    halves = array("H", bytes(4 * len(codes)))
    halves[1::2] = codes
    return halves


def bfloat16_values() -> tuple[float, ...]:
    """What each of the 65,536 codes of bfloat16 stands for."""
    halves = bfloat16_to_float32(array("H", range(2**16)))
    return unpack("<65536f", little_endian(halves))


def float16_values() -> tuple[float, ...]:
    """What each of the 65,536 codes of float16 stands for."""
    return unpack("<65536e", little_endian(array("H", range(2**16))))


def little_endian(codes: array) -> bytes:
    """codes (n), an array("H") -> their bytes, in little endian."""
    if BYTE_ORDER:
        codes = codes[:]
        codes.byteswap()
    return codes.tobytes()


VALUES: dict[str, Callable[[], tuple[float, ...]]] = {"BF16": bfloat16_values, "F16": float16_values}
WEIGHTS = ("F32", *VALUES)  # the types that a weight can have


@functools.cache
def table(dtype: str) -> tuple[float, ...]:
    """The values of all codes of a type of 16 bits, (65536): one tuple for the whole process, which rows refer to."""
    return VALUES[dtype]()


def to_codes(data: bytes | memoryview) -> array:
    """Numbers of 16 bits in little endian -> their codes, an array("H")."""
    codes = array("H")
    codes.frombytes(data)
    if BYTE_ORDER:
        codes.byteswap()
    return codes


def shared_rows(values: tuple[float, ...], columns: int, codes: array) -> list[tuple[float, ...]]:
    """values: a table; codes (rows * columns), an array("H") -> rows (columns) of references into the table:

        [tuple([values[code] for code in row]) for row in rows of the codes]

    iter_unpack and itemgetter do this in C, at half the time.
    """
    if columns == 1:  # itemgetter of one item gives no tuple
        return [(values[code],) for code in codes]
    return [itemgetter(*row)(values) for row in iter_unpack(f"{columns}H", codes)]


def float32_rows(columns: int, data: bytes | memoryview, keep: bool) -> list[tuple[float, ...]]:
    """Float32 numbers in little endian -> their rows (columns): list(iter_unpack("<%df" % columns, data)).

    keep: whether the rows are to be kept, so that it pays to find out whether each number is one of 16 bits; then they
    refer to a table. Whether that can be is told by the first row: it costs other weights nothing.
    """
    for dtype in VALUES if keep else ():
        if float32_codes(dtype, data[:4 * columns]) is not None:
            codes = float32_codes(dtype, data)
            if codes is not None:
                return shared_rows(table(dtype), columns, codes)
    return list(iter_unpack(f"{BYTE_ORDER}{columns}f", data))


def are_of_16_bits(data: bytes | memoryview) -> bool:
    """Whether some float32 numbers, in little endian, are all bfloat16, or all float16."""
    return any(float32_codes(dtype, data) is not None for dtype in VALUES)


SAMPLE = 16  # rows of a matrix that are looked at, all over it: the first ones may be zeros, of tokens without a use


def all_of_16_bits(read: Callable[[int, int], bytes], rows: int) -> bool:
    """Whether a matrix (rows, d) of float32 seems to have numbers of 16 bits alone; read(first, last) -> rows first ..
    last - 1, in little endian."""
    sample = range(0, rows, max(1, rows // SAMPLE))
    return all(are_of_16_bits(read(i, i + 1)) for i in sample)


def float32_codes(dtype: str, data: bytes | memoryview) -> array | None:
    """Float32 numbers (n), in little endian -> their codes in a type of 16 bits, an array("H"); None if it does not
    have all of them."""
    if dtype == "BF16":
        halves = to_codes(data)
        low = halves[0::2].tobytes()
        return halves[1::2] if low.count(0) == len(low) else None
    numbers = unpack(f"{BYTE_ORDER}{len(data) // 4}f", data)
    try:
        codes = array("H", pack(f"{len(numbers)}e", *numbers))
    except OverflowError:
        return None
    return codes if unpack(f"{len(numbers)}e", codes) == numbers else None


def widened(dtype: str, columns: int, data: bytes | memoryview, keep: bool = True) -> list[tuple[float, ...]]:
    """A tensor's bytes -> its rows (columns). Rows of 16-bit numbers refer to one table; keep: as float32_rows."""
    if dtype == "F32":
        return float32_rows(columns, data, keep)
    return shared_rows(table(dtype), columns, to_codes(data))


def float32_bytes(dtype: str, data: bytes | memoryview) -> bytes:
    """A tensor's bytes -> its numbers as little-endian float32, (n)."""
    if dtype == "F32":
        return bytes(data)
    codes = to_codes(data)
    if dtype == "BF16":
        return little_endian(bfloat16_to_float32(codes))
    return to_bytes(map(table(dtype).__getitem__, codes))
