"""Files of tensors in the format safetensors, read strictly.

    with contextlib.closing(TensorFile("model.safetensors")) as file:
        dtype, shape, start, stop = file.tensors["lm_head.weight"]
        rows = widened(dtype, shape[1], file.data[start:stop])

A file is the length of its header (8 bytes, little endian), the header, and the tensors' bytes, one after the other:

    {"__metadata__":{"format":"pt"},"lm_head.weight":{"dtype":"BF16","shape":[420,64],"data_offsets":[0,53760]},...}
"""
import math
from struct import unpack_from
from typing import Any, NamedTuple

from llama2_py.console import printable
from llama2_py.engine.mapped import MappedFile
from llama2_py.engine.strict_json import MAX_JSON, read_object

# ----------------------------------------------------------------------------
# The file

# The types of numbers that the format has, and their bytes
SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
         "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8}
POINTER = b"version https://git-lfs."  # how a file begins that Git LFS has left in place of a large one
LENGTH = 8           # bytes of the header's length
MAX_DIMENSIONS = 64  # of a tensor: far more than any has


class Tensor(NamedTuple):
    """Where a tensor is in its file."""
    dtype: str
    shape: tuple[int, ...]
    start: int  # its first byte, from the beginning of the file
    stop: int   # behind its last byte


class TensorFile(MappedFile):
    """A safetensors file, mapped into memory.

    Raises ValueError, naming the file, the field and the values, if its header is not as the format wants it, or does
    not account for every byte of the file.
    """

    def __init__(self, path: str):
        super().__init__(path)
        try:
            if self.size < LENGTH:
                raise ValueError(f"{path}: {self.size} bytes are too few for the length of a header, {LENGTH}")
            self.map()
            if self.data[:len(POINTER)] == POINTER:
                raise ValueError(f"{path}: is a pointer of Git LFS, must be the file itself (git lfs pull)")
            self.tensors = self._read_header()  # name -> Tensor
        except BaseException:
            self.close()
            raise

    def _need(self, condition: bool, field: str, value: Any, wanted: str) -> None:
        """Raise ValueError if a field of the header is not as it must be."""
        if not condition:
            raise ValueError(f"{self.path}: {field} is {printable(value, 100)}, must be {wanted}")

    def _read_header(self) -> dict[str, Tensor]:
        length, = unpack_from("<Q", self.data)
        largest = min(MAX_JSON, self.size - LENGTH)
        self._need(length <= largest, "the header's length", length, f"at most {largest}")
        begin = LENGTH + length
        text = self.data[LENGTH:begin]
        self._need(text[:1] == b"{", "the header's first byte", list(text[:1]), "[123], a brace")
        header = read_object(f"{self.path}: the header", text)
        self._check_metadata(header.pop("__metadata__", {}))
        tensors = {}
        for name, entry in header.items():
            tensors[name] = self._read_entry(printable(name, 100), entry, begin)
        self._check_offsets(tensors, begin)
        return tensors

    def _check_metadata(self, metadata: Any) -> None:
        self._need(type(metadata) is dict, "__metadata__", metadata, "an object of JSON")
        for key, value in metadata.items():
            self._need(type(value) is str, f"__metadata__.{printable(key, 100)}", value, "a string")

    def _read_entry(self, name: str, entry: Any, begin: int) -> Tensor:
        """What the header says of a tensor; name: its printable name; begin: where the tensors' bytes begin."""
        self._need(type(entry) is dict and sorted(entry) == ["data_offsets", "dtype", "shape"], name, entry,
                   "an object of dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        self._need(type(dtype) is str and dtype in SIZES, f"{name}.dtype", dtype, "one of " + ", ".join(SIZES))
        self._need(counts(shape) and len(shape) <= MAX_DIMENSIONS, f"{name}.shape", shape,
                   f"at most {MAX_DIMENSIONS} integers from 0 to 2**63 - 1")
        self._need(counts(offsets) and len(offsets) == 2, f"{name}.data_offsets", offsets,
                   "two integers from 0 to 2**63 - 1")
        start, stop = offsets
        self._need(start <= stop <= self.size - begin, f"{name}.data_offsets", offsets,
                   f"in order, and within the file's {self.size - begin} bytes of tensors")
        size = SIZES[dtype] * math.prod(shape)
        self._need(stop - start == size, f"{name}.data_offsets", offsets, f"{size} bytes apart, for {dtype} {shape}")
        return Tensor(dtype, tuple(shape), begin + start, begin + stop)

    def _check_offsets(self, tensors: dict[str, Tensor], begin: int) -> None:
        """Every byte behind the header belongs to one tensor."""
        place, last = begin, "the header"  # where what was looked at last ends
        for name, tensor in sorted(tensors.items(), key=by_offset):
            name = printable(name, 100)
            self._need(tensor.start == place, f"the offset of {name}", tensor.start - begin,
                       f"{place - begin}, where {last} ends")
            place, last = tensor.stop, name
        self._need(place == self.size, "the file's size", self.size, f"{place} bytes, where {last} ends")


def counts(values: Any) -> bool:
    """Whether a value of JSON is a list of integers from 0 to 2**63 - 1."""
    return type(values) is list and all(type(value) is int and 0 <= value < 2**63 for value in values)


def by_offset(item: tuple[str, Tensor]) -> tuple[int, int]:
    """The key that sorts tensors by their place in the file; an empty one stands before what begins where it does."""
    _, tensor = item
    return tensor.start, tensor.stop
