"""What an auditor keeps of a model that he saw once: a secret, by which he tests products with matrices that he no
longer has (R. Freivalds, 1979).

    python3 trace.py secret stories15M.bin > S    # one pass over the model; keep S from those whose runs you audit

For each matrix W (n, d) a vector s (n) is drawn from the system's entropy, and s W (d) is kept (freivalds.py).

A secret is a line of JSON, then binary parts in the order of the tree over the weights, then the SHA-256 of all before:

    {"format":"llama2.py secret 1","weights":HEX,"config":{..},"secrets":K}
    embedding    the SHA-256 of each row, since a log has the same hash for a token's embedding
    a norm       its row, as float32
    a matrix     K times: s (n) as float32, s W (d) as float64, and a float64 that bounds the rounding errors of s W

A classifier that is the embedding stands behind the hashes of its rows. All numbers are little endian.
"""
import hashlib
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from math import fsum, isfinite
from operator import mul
from struct import pack, unpack_from

from llama2_py.console import need, need_integer, printable, read_source
from llama2_py.engine.arithmetic import from_bytes, to_bytes
from llama2_py.engine.checkpoint import LAYER, Config, impossible, in_tree_order
from llama2_py.engine.graph import NORMS
from llama2_py.engine.models import AnyCheckpoint
from llama2_py.log.events import MAX_LINE, encode, fits_config, is_hash
from llama2_py.log.weights import Leaves, weights_root
from llama2_py.referee.freivalds import Probe

FORMAT = "llama2.py secret 1"
MOST_SECRETS = 16    # vectors s for each matrix
MOST_BYTES = 2**27   # of a secret: one of a model of 70B has 77 million
STEPS = 2**18        # sizes of s are 1 to 1.25 in steps of 1 / STEPS: times a weight of 24 bits, they are exact
BLOCK = 256          # rows that are summed together: more take more memory, fewer leave more sums to be summed
HASH = 32            # bytes
NORM_NAMES = tuple(NORMS.values())

# ----------------------------------------------------------------------------
# Making


def draw(n: int) -> list[float]:
    """s (n): sizes from 1 to 1.25, signs, from the system's entropy."""
    sizes = array("H", os.urandom(2 * n))
    signs = os.urandom(n)
    return [(1 + size / STEPS) * (1 - 2 * (sign & 1)) for size, sign in zip(sizes, signs, strict=True)]


class Collector:
    """Takes the rows of a matrix (n, d), one by one, and adds up s W for each s."""

    def __init__(self, n: int, count: int):
        self.vectors = [draw(n) for _ in range(count)]
        self.done = 0                          # rows that were added up
        self.block: list[Sequence[float]] = []  # rows that were not
        self.sums: list[list[array]] = [[] for _ in self.vectors]  # of each s: a block's part of s W

    def take(self, row: bytes) -> None:
        """Take a row."""
        self.block.append(from_bytes(row))
        if len(self.block) == BLOCK:
            self._add_up()

    def _add_up(self) -> None:
        columns = list(zip(*self.block, strict=True))
        last = self.done + len(self.block)
        for s, sums in zip(self.vectors, self.sums, strict=True):
            part = s[self.done:last]
            sums.append(array("d", [fsum(map(mul, part, column)) for column in columns]))
        self.done = last
        self.block = []

    def finish(self) -> bytes:
        """The part of the secret. Raises ValueError if a weight was not finite."""
        if self.block:
            self._add_up()
        return b"".join(map(probe_bytes, self.vectors, self.sums))


def probe_bytes(s: list[float], sums: list[array]) -> bytes:
    """s (n), the blocks' parts of s W (d) -> the two, and the bound, as they stand in a secret."""
    columns = list(zip(*sums, strict=True))
    image = list(map(fsum, columns))
    size = max(fsum(map(abs, column)) for column in columns)
    if not all(map(isfinite, image)):
        raise ValueError("a weight is not finite")
    return to_bytes(s) + doubles([*image, size])


def doubles(values: Sequence[float]) -> bytes:
    """values (n) -> little-endian float64."""
    return pack(f"<{len(values)}d", *values)


def make_secret(checkpoint: AnyCheckpoint, count: int = 1) -> bytes:
    """A secret of a model, with `count` vectors s for each matrix. It reads the model once. Raises ValueError if a
    weight is not finite, or the file changes meanwhile."""
    need_integer("secrets", count, 1, MOST_SECRETS)
    config = checkpoint.config.described()
    parts: list[bytes] = []
    root = weights_root(config, watched(checkpoint, count, parts))
    checkpoint.check_unchanged()
    head = encode({"format": FORMAT, "weights": root, "config": config, "secrets": count}) + b"\n"
    digest = hashlib.sha256(head)
    for part in parts:
        digest.update(part)
    return b"".join([head, *parts, digest.digest()])


def watched(checkpoint: AnyCheckpoint, count: int, parts: list[bytes]) -> Iterator[bytes]:
    """The rows of a model in the order of the tree. What a secret keeps of them is added to parts."""
    config = checkpoint.config
    rows = checkpoint.tree_rows()
    for name, l in in_tree_order(config):
        _, n, _ = checkpoint.tensors[name]
        collector = Collector(n, count) if has_product(config, name) else None
        for _ in range(n):
            row = next(rows)
            if name == "embedding":
                parts.append(hashlib.sha256(row).digest())
            elif name in NORM_NAMES:
                need_finite(checkpoint.path, name, l, row)
                parts.append(row)
            if collector:
                collector.take(row)
            yield row
        if collector:
            try:
                parts.append(collector.finish())
            except (ValueError, OverflowError):  # fsum, of numbers that are not finite
                raise not_finite(checkpoint.path, name, l) from None


def need_finite(path: str, name: str, layer: int, row: bytes) -> None:
    """Raise ValueError if a row has a number that is not finite."""
    if not isfinite(sum(from_bytes(row))):
        raise not_finite(path, name, layer)


def not_finite(path: str, name: str, layer: int) -> ValueError:
    """The error of a weight that is not finite."""
    return ValueError(f"{path}: {name} of layer {layer} holds a weight that is not finite")


def has_product(config: Config, name: str) -> bool:
    """Whether something is multiplied by a tensor; by the embedding, if it is the classifier."""
    return name not in NORM_NAMES and (name != "embedding" or config.shared_classifier)


# ----------------------------------------------------------------------------
# Reading


class Secret:
    """A secret as read. Raises ValueError, naming what is wrong, for a file that is none, or not whole."""

    def __init__(self, source: str | os.PathLike | bytes):
        self.path, self.data = read_source(source, MOST_BYTES)
        end = self.data.find(b"\n", 0, MAX_LINE)
        self.header = self._header(self.data[:max(end, 0)])
        self.weights: str = self.header["weights"]
        self.config = Config.of(self.header["config"])
        self.count: int = self.header["secrets"]
        self.leaves = Leaves(self.header["config"])
        self.begin = end + 1
        self._check_size()
        if hashlib.sha256(memoryview(self.data)[:-HASH]).digest() != self.data[-HASH:]:
            raise ValueError(f"{self.path}: damaged: its SHA-256 is not the one at its end")

    def _header(self, line: bytes) -> dict:
        try:
            header = json.loads(line)
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict) or list(header) != ["format", "weights", "config", "secrets"]:
            raise ValueError(f"{self.path}: not a secret: does not begin with its format, weights, config and secrets")
        need(f"{self.path}: format", header["format"], header["format"] == FORMAT, repr(FORMAT))
        if not is_hash(header["weights"]) or not fits_config(header["config"]) or encode(header) != line:
            raise ValueError(f"{self.path}: not a secret: {printable(line[:100].decode('latin-1'), 100)}")
        fault = impossible(Config.of(header["config"]))
        if fault is not None:
            raise ValueError(f"{self.path}: {fault} of the config is not one that a model can have")
        need_integer(f"{self.path}: secrets", header["secrets"], 1, MOST_SECRETS)
        return header

    def _check_size(self) -> None:
        config = self.config
        self.first: dict[str, int] = {}  # name -> where its part begins; of a layer's tensors, in layer 0
        at = self.begin
        self.first["embedding"] = at
        at += self._size("embedding")
        self.per_layer = 0
        for name in LAYER:
            self.first[name] = at + self.per_layer
            self.per_layer += self._size(name)
        at += config.n_layers * self.per_layer
        self.first["rms_final"] = at
        at += self._size("rms_final")
        if not config.shared_classifier:
            self.first["classifier"] = at
            at += self._size("classifier")
        wanted = at + HASH
        if len(self.data) != wanted:
            raise ValueError(f"{self.path}: has {len(self.data)} bytes, must have {wanted} for its config")

    def _size(self, name: str) -> int:
        """Bytes of a tensor's part, of one layer."""
        rows, columns = self.leaves.shapes[name]
        hashes = HASH * rows if name == "embedding" else 0
        if name in NORM_NAMES:
            return 4 * columns
        return hashes + self.count * (4 * rows + 8 * columns + 8) * has_product(self.config, name)

    def row_hash(self, token: int) -> str:
        """The hash of a token's row of the embedding."""
        begin = self.first["embedding"] + HASH * token
        return self.data[begin:begin + HASH].hex()

    def norm(self, name: str, layer: int = 0) -> tuple[float, ...]:
        """The row of a norm, (dim)."""
        begin = self.first[name] + layer * self.per_layer
        return tuple(from_bytes(self.data[begin:begin + 4 * self.config.dim]))

    def probes(self, name: str, layer: int = 0) -> list[Probe]:
        """Of a matrix, each s and s W."""
        rows, columns = self.leaves.shapes[name]
        if name == "classifier" and self.config.shared_classifier:
            begin = self.first["embedding"] + HASH * rows
        else:
            begin = self.first[name] + layer * self.per_layer
        found = []
        for _ in range(self.count):
            s = tuple(from_bytes(self.data[begin:begin + 4 * rows]))
            *image, size = unpack_from(f"<{columns + 1}d", self.data, begin + 4 * rows)
            found.append(Probe(s, tuple(image), size))
            begin += 4 * rows + 8 * columns + 8
        return found
