"""A checkpoint file: the formats of llama2.c's export.py, versions 0, which run.c reads, 1, and 2, which runq.c reads
(run.c, runq.c: Config, TransformerWeights, memory_map_weights, read_checkpoint).

    with contextlib.closing(Checkpoint("stories/model.bin")) as checkpoint:
        print(checkpoint.config)
        rows = checkpoint.rows("wq", 2)    # (dim, dim) of layer 2

Version 0 is seven integers and then one tensor after the other; a negative vocab_size says that the classifier is not
the embedding. Version 1 has a header of 256 bytes and the norms first. Version 2 has them, too, and then each layer's
matrix as int8, with a float32 scale for each group of so many of its weights. All numbers are little endian.
"""
import functools
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, repeat
from math import isfinite
from operator import mul
from struct import unpack_from
from typing import NamedTuple

from llama2_py import console
from llama2_py.engine.arithmetic import Arithmetic, R, from_bytes, r, to_bytes
from llama2_py.engine.half_precision import all_of_16_bits, float32_rows
from llama2_py.engine.mapped import PIECE, MappedFile, file_identity


@dataclass
class Config:
    """The shape of a model."""
    dim: int         # of the activations
    hidden_dim: int  # of the feed-forward layers
    n_layers: int
    n_heads: int     # of queries
    n_kv_heads: int  # of keys and values: as many (multi-head), fewer (grouped), one (multi-query)
    vocab_size: int
    seq_len: int     # the longest sequence: the context
    shared_classifier: bool = True  # is it the embedding?
    # What a checkpoint of llama2.c does not say, and means
    head_dim: int | None = None        # the dimensions of a head; None: dim / n_heads
    norm_epsilon: float = 1e-05        # of rmsnorm
    rope_theta: float = 10000.0        # of RoPE
    rope_scaling: dict | None = None   # of RoPE: the factors of llama3, or the factor of linear
    bos: int = 1                       # the token that begins a text
    eos: tuple[int, ...] = (2,)        # the tokens that end one

    @property
    def head_size(self) -> int:
        """hs: the dimensions of a head."""
        return self.head_dim or self.dim // self.n_heads

    @property
    def kv_dim(self) -> int:
        """The length of all keys of a position, and of all values."""
        return self.n_kv_heads * self.head_size

    def described(self) -> dict:
        """What a trace's header says of the model: its shape, then those of its constants that are not llama2.c's."""
        values = {**vars(self), "head_size": self.head_size, "eos": list(self.eos)}
        usual_size = self.dim / self.n_heads if self.head_dim else self.head_size
        defaults = type(self)
        usual = {"head_size": usual_size, "norm_epsilon": defaults.norm_epsilon, "rope_theta": defaults.rope_theta,
                 "rope_scaling": None, "bos": defaults.bos, "eos": list(defaults.eos)}
        different = [name for name, value in usual.items() if values[name] != value]
        return {name: values[name] for name in [*SHAPE, *different]}

    @classmethod
    def of(cls, described: dict) -> "Config":
        """The config that a trace's header describes."""
        values = {"eos": (2,), **described}
        values["head_dim"] = values.pop("head_size", None)
        return cls(**{**values, "eos": tuple(values["eos"])})

    @property
    def must_end(self) -> tuple[int, ...]:
        """The tokens after which a run is over, and which are not printed: BOS, with which another text would begin, as
        in run.c, or those that the config names."""
        return (1,) if self.eos == (2,) else self.eos

    @property
    def may_end(self) -> tuple[int, ...]:
        """The tokens after which a run can be over: where the config names none, EOS as well, at which run.c goes on
        and transformers does not."""
        return (1, 2) if self.eos == (2,) else self.eos

    @property
    def is_llama2c(self) -> bool:
        """Are the constants those of llama2.c?"""
        return list(self.described()) == list(SHAPE)


SHAPE = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len", "shared_classifier")


MOST = 2**24 - 1                                     # of a size, also of that of all heads together
SMALLEST_CONSTANT, LARGEST_CONSTANT = 2.0**-64, 2.0**64  # so that float32 neither overflows nor divides by 0
MOST_ENDS = 64                                       # tokens that end a text: models have one to three


def impossible(c: Config) -> str | None:
    """The field of a config that no model has; None if there is none. The eight sizes are each in their range."""
    possible = {
        "dim": c.head_dim is not None or c.dim % c.n_heads == 0,
        "head_size": c.head_size > 0 and c.head_size % 2 == 0,
        "n_heads": c.n_heads * c.head_size <= MOST,
        "n_kv_heads": c.n_heads % c.n_kv_heads == 0,
        "norm_epsilon": SMALLEST_CONSTANT <= c.norm_epsilon <= LARGEST_CONSTANT,
        "rope_theta": 1 <= c.rope_theta <= LARGEST_CONSTANT,
        "rope_scaling": c.rope_scaling is None or is_scaling(c.rope_scaling),
        "bos": c.bos < c.vocab_size or c.is_llama2c,
        "eos": len(set(c.eos)) == len(c.eos) <= MOST_ENDS and (max(c.eos) < c.vocab_size or c.eos == (2,))}
    return next((name for name, is_so in possible.items() if not is_so), None)


def is_scaling(scaling: dict) -> bool:
    """Whether a scaling of RoPE is one that a model can have: it lengthens the context."""
    constants = [value for name, value in scaling.items() if name != "original_max_position_embeddings"]
    if not all(SMALLEST_CONSTANT <= value <= LARGEST_CONSTANT for value in constants) or scaling["factor"] < 1:
        return False
    return len(scaling) == 1 or r(scaling["low_freq_factor"]) < r(scaling["high_freq_factor"])


def shapes(c: Config) -> dict[str, tuple[int, int, int]]:
    """The tensors of a model, name -> (layers, rows, columns), in the order of a file of version 0; that of the tree
    over the weights is the same, layer by layer. A norm is one row; a shared classifier is not there."""
    one, every = 1, c.n_layers
    tensors = {
        "embedding": (one, c.vocab_size, c.dim),
        "rms_att": (every, 1, c.dim),
        "wq": (every, c.n_heads * c.head_size, c.dim),
        "wk": (every, c.kv_dim, c.dim),
        "wv": (every, c.kv_dim, c.dim),
        "wo": (every, c.dim, c.n_heads * c.head_size),
        "rms_ffn": (every, 1, c.dim),
        "w1": (every, c.hidden_dim, c.dim),
        "w2": (every, c.dim, c.hidden_dim),
        "w3": (every, c.hidden_dim, c.dim),
        "rms_final": (one, 1, c.dim),
        "classifier": (one, c.vocab_size, c.dim),
    }
    if c.shared_classifier:
        del tensors["classifier"]
    return tensors


LAYER = ("rms_att", "wq", "wk", "wv", "wo", "rms_ffn", "w1", "w2", "w3")  # the tensors that every layer has
MATRICES = tuple(name for name in LAYER if name.startswith("w"))


def in_tree_order(c: Config) -> Iterator[tuple[str, int]]:
    """All tensors in the order of the tree over the weights, as (name, layer)."""
    yield "embedding", 0
    for l in range(c.n_layers):
        for name in LAYER:
            yield name, l
    yield "rms_final", 0
    if not c.shared_classifier:
        yield "classifier", 0


class QuantizedRows(NamedTuple):
    """Rows of int8 weights."""
    group: int                     # weights that share a scale
    integers: list[array]          # (n, d)
    scales: list[list[float]]      # (n, d / group)


NORMS_FIRST = ("rms_att", "rms_ffn", "rms_final")  # in versions 1 and 2, before all others; always float32


class Checkpoint(MappedFile):
    """A checkpoint file, mapped into memory: its config, and its weights when asked for.

    Raises ValueError, naming the file, the field and the values, if the file is not a whole checkpoint.
    """

    MAGIC = 0x616B3432  # "ak42": version 1 or later; version 0 has no magic

    def __init__(self, path: str):
        super().__init__(path)
        self.group = 0   # weights that share a scale, in version 2
        self.tables = 0  # bytes of RoPE's tables before a classifier that is not the embedding, in version 0
        try:
            if self.size < 28:
                raise ValueError(f"{path}: {self.size} bytes are too few for a checkpoint's header of 28")
            self.map()
            if kind := console.kind_of(self.data[:64]):
                raise ValueError(f"{path}: is {kind}")
            self._read_header()
        except BaseException:
            self.close()
            raise

    def check_unchanged(self, identity: tuple | None = None) -> None:
        """Raise ValueError if the file is no longer as it was when it was opened, here or in another process."""
        if file_identity(self.file) != (identity or self.identity):
            raise ValueError(f"{self.path}: the file was changed or replaced while it was being read")

    def _read_header(self):
        def need(condition, field, value, wanted):
            if not condition:
                raise ValueError(f"{self.path}: {field} is {value}, must be {wanted}")

        magic, version = unpack_from("<Ii", self.data)
        if magic == self.MAGIC:
            need(version in (1, 2), "version", version, "0, 1 or 2")
            need(self.size >= 256, "size", f"{self.size} bytes", "at least the header's 256")
            *fields, shared, group = unpack_from("<7iBi", self.data, 8)
            if version == 2:
                need(0 < group <= MOST, "group size", group, f"1 to {MOST}")
                self.group = group
            need(shared in (0, 1), "shared_classifier", shared, "0 or 1")
        else:
            fields = list(unpack_from("<7i", self.data))
            shared, fields[5] = fields[5] > 0, abs(fields[5])
        self.config = c = Config(*fields, bool(shared))
        for field, value in list(vars(c).items())[:7]:
            need(0 < value <= MOST, field, value, f"1 to {MOST} (is this a checkpoint of llama2.c?)")
        need(c.dim % c.n_heads == 0, "dim", c.dim, f"a multiple of n_heads, {c.n_heads}")
        need(c.n_heads % c.n_kv_heads == 0, "n_heads", c.n_heads, f"a multiple of n_kv_heads, {c.n_kv_heads}")
        need(c.head_size % 2 == 0, "dim / n_heads", c.head_size, "even")

        self.tensors = {}  # name -> where it begins in the file, rows and columns of each layer
        offset = 28
        tensors = shapes(c)
        if magic == self.MAGIC:
            tensors = {**{name: tensors[name] for name in NORMS_FIRST}, **tensors}
            offset = 256
        for name, (layers, rows, columns) in tensors.items():
            if name == "classifier" and magic != self.MAGIC:
                self.tables = self._rope_tables()
                offset += self.tables
            self.tensors[name] = offset, rows, columns
            need(not self._is_quantized(name) or rows * columns % self.group == 0, "group size", self.group,
                 f"a divisor of the {rows * columns} weights of {name}")
            offset += layers * self._size(name)
        if shared and magic != self.MAGIC:
            offset += self._rope_tables()
        need(self.size == offset, "size", f"{self.size} bytes", f"{offset} for " + ", ".join(
            f"{field} {value}" for field, value in c.described().items()))
        self.tensors.setdefault("classifier", self.tensors["embedding"])

    def _is_quantized(self, name: str) -> bool:
        return self.group > 0 and name not in NORMS_FIRST

    def _size(self, name: str) -> int:
        """The bytes of a tensor's layer."""
        _, rows, columns = self.tensors[name]
        n = rows * columns
        return n + 4 * (n // self.group) if self._is_quantized(name) else 4 * n

    @property
    def warning(self) -> str | None:
        """What is odd about the file, for whoever uses it."""
        odd = [name for name, (_, _, columns) in self.tensors.items()
               if self._is_quantized(name) and columns % self.group]
        if not odd:
            return None
        columns = self.tensors[odd[0]][2]
        return (f"{self.path}: groups of {self.group} do not divide the rows of {odd[0]}, of {columns} weights: runq.c "
                "takes other scales for them than they were made with")

    def check_for(self, arithmetic: Arithmetic) -> None:
        """Raise ValueError if an arithmetic cannot use these weights: runq's reads int8, in groups that divide rows."""
        if arithmetic.reads != "quantized":
            return
        if not self.group:
            raise ValueError(f"{self.path}: version is 0 or 1, must be 2, with int8 weights, for runq")
        if self.warning:
            raise ValueError(self.warning)

    def _rope_tables(self) -> int:
        """The bytes of a table of cosines and one of sines that version 0 has before the classifier, unused."""
        return 4 * 2 * self.config.seq_len * (self.config.head_size // 2)

    def rows(self, name: str, layer: int = 0, first: int = 0, last: int | None = None, check: bool = True
             ) -> list[tuple[float, ...]]:
        """Rows first .. last - 1 of a layer's matrix. Raises ValueError if a weight is not finite. check=False: for
        rows that were checked before, and are not kept."""
        self.check_unchanged()  # a map that was cut would end the process
        if self._is_quantized(name):
            result = self._dequantized(name, layer, first, last)
        else:
            _, _, columns = self.tensors[name]
            result = float32_rows(columns, self._bytes(name, layer, first, last), keep=check)
        if check and not all(map(isfinite, map(sum, result))):  # finite binary32 numbers never overflow a binary64 sum
            raise ValueError(f"{self.path}: {name} of layer {layer} holds a weight that is not finite")
        return result

    def _bytes(self, name: str, layer: int, first: int, last: int | None) -> bytes:
        """Rows first .. last - 1 of a layer's matrix of float32, as they are in the file."""
        offset, rows, columns = self.tensors[name]
        start = offset + 4 * columns * (layer * rows + first)
        stop = offset + 4 * columns * (layer * rows + (rows if last is None else last))
        return self.data[start:stop]

    def _integers(self, name: str, layer: int, first: int, last: int | None) -> tuple[array, list[float]]:
        """Rows first .. last - 1 of a layer's matrix, one after the other, and the scale of each of their weights'
        groups; the first scale is that of the first weight."""
        offset, rows, columns = self.tensors[name]
        begin = offset + layer * self._size(name)
        start, stop = first * columns, (rows if last is None else last) * columns
        integers = array("b", self.data[begin + start:begin + stop])
        scales = begin + rows * columns
        data = self.data[scales + 4 * (start // self.group):scales + 4 * -(-stop // self.group)]
        return integers, list(from_bytes(data))

    def _dequantized(self, name: str, layer: int, first: int, last: int | None) -> list[tuple[float, ...]]:
        """The rows as float32: scale * integer, rounded (runq.c: dequantize)."""
        _, _, columns = self.tensors[name]
        integers, scales = self._integers(name, layer, first, last)
        of_each = chain.from_iterable([repeat(scale, self.group) for scale in scales])
        own = islice(of_each, first * columns % self.group, None)
        values = R(list(map(mul, integers, own)))
        return [values[i:i + columns] for i in range(0, len(values), columns)]

    def quantized(self, name: str, layer: int = 0, first: int = 0, last: int | None = None, check: bool = True
                  ) -> QuantizedRows:
        """Rows first .. last - 1 of a layer's matrix as they are in the file, whose groups divide its rows."""
        self.check_unchanged()
        _, _, columns = self.tensors[name]
        integers, scales = self._integers(name, layer, first, last)
        if check and not all(map(isfinite, scales)):
            raise ValueError(f"{self.path}: {name} of layer {layer} holds a scale that is not finite")
        groups = columns // self.group
        return QuantizedRows(self.group, [integers[i:i + columns] for i in range(0, len(integers), columns)],
                             [scales[i:i + groups] for i in range(0, len(scales), groups)])

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end a run, as in run.c."""
        return self.config.must_end

    def is_shared(self, name: str) -> bool:
        """Do the rows of a matrix refer to a table of floats? Told by a sample of them."""
        layers = self.config.n_layers if name in LAYER else 1
        _, rows, _ = self.tensors[name]
        return not self._is_quantized(name) and all(
            all_of_16_bits(functools.partial(self._bytes, name, l), rows) for l in range(layers))

    def tree_rows(self) -> Iterator[bytes]:
        """The rows of all tensors as little-endian float32, in the order of the tree whose root a trace calls
        weights."""
        for name, l in in_tree_order(self.config):
            offset, rows, columns = self.tensors[name]
            if self._is_quantized(name):
                step = max(1, 2**18 // columns)
                for first in range(0, rows, step):
                    yield from map(to_bytes, self.rows(name, l, first, min(first + step, rows), check=False))
                continue
            start, width = offset + 4 * columns * rows * l, 4 * columns
            for begin in range(start, start + rows * width, width):
                yield self.data[begin:begin + width]
                if begin % PIECE < width:  # every 16 MB
                    self.release()
