"""The numbers of operations, this program's or another's, as records: a line of ASCII, `POS LAYER OP N`, then N
little-endian float32.

LAYER is -1 outside the layers, OP a name of graph.OPERATIONS or graph.OUTSIDE. Records come in any order; the same line
again appends, as run.c's att does, head by head.
"""
import mmap
import re
from array import array
from collections.abc import Iterator, Sequence

from llama2_py.console import printable
from llama2_py.engine.arithmetic import from_bytes, to_bytes
from llama2_py.engine.graph import OPERATIONS, OUTSIDE, inputs, place, size

LINE = re.compile(r"(\d{1,9}) (-?\d{1,9}) ([a-z_]{1,30}) (\d{1,12})")
LIKE_A_LINE = re.compile(rb" *\d{1,9} +-?\d{1,9} +[A-Za-z_][A-Za-z0-9_.]{0,40} +\d{1,12} *\r?\n")
LONGEST_LINE = 100

# What others call the operations: by run.c's weights and buffers, and by their names in transformers
ALIASES = {"wq": "q", "wk": "k", "wv": "v", "wo": "attention_out", "w1": "gate", "w2": "ffn_out", "w3": "up",
           "query": "q", "key": "k", "value": "v", "att": "weights", "scores": "weights", "softmax": "weights",
           "attn": "attention", "xb": "attention", "hb": "swiglu", "silu": "swiglu",
           "rms_att": "attention_norm", "attn_norm": "attention_norm", "input_layernorm": "attention_norm",
           "rms_ffn": "ffn_norm", "post_attention_layernorm": "ffn_norm", "norm": "final_norm",
           "rms_final": "final_norm", "output_norm": "final_norm", "q_proj": "q", "k_proj": "k", "v_proj": "v",
           "o_proj": "attention_out", "gate_proj": "gate", "up_proj": "up", "down_proj": "ffn_out",
           "embed": "embedding", "embed_tokens": "embedding", "tok_embeddings": "embedding",
           "wcls": "logits", "classifier": "logits", "lm_head": "logits", "output": "logits"}

Key = tuple[int, int | None, str]  # position, layer, operation


def record_of(pos: int, layer: int | None, op: str, values: Sequence[float]) -> bytes:
    """An operation as a record."""
    return f"{pos} {-1 if layer is None else layer} {op} {len(values)}\n".encode() + to_bytes(values)


def are_records(data: mmap.mmap) -> bool:
    """Does a file begin as records do, or all but so?"""
    return LIKE_A_LINE.match(data) is not None


class RecordScanner:
    """Finds the records of a file, one after the other."""

    def __init__(self, path: str, data: mmap.mmap, config):
        self.path = path
        self.data = data
        self.config = config

    def scan(self) -> Iterator[tuple[str, Key, int, int]]:
        """The records: where each stands, for messages, its key, where its numbers begin and how many they are. Raises
        ValueError, naming place and fault, for what is no record of this model's."""
        data = self.data
        at = 0
        line = ""  # of the record before
        while at < len(data):
            where = f"{self.path}, record at byte {at}" + (f", after {line}" if line else "")
            line, begin = self._line(where, at)
            pos, layer, op, n = self._fields(where, line)
            if n == 0 or begin + 4 * n > len(data):
                raise ValueError(f"{where}: {op} has {n} numbers, but {(len(data) - begin) // 4} are left")
            yield where, (pos, layer, op), begin, n
            at = begin + 4 * n

    def _line(self, where, at):
        """The line at a byte, without its end; where its numbers begin."""
        end = self.data.find(b"\n", at, at + LONGEST_LINE)
        line = self.data[at:end if end >= 0 else at + LONGEST_LINE].decode("latin-1")
        if end >= 0 and line.endswith("\r"):
            raise ValueError(f"{where}: the line ends in CR LF, must end in LF alone: open the file as a binary one")
        if end < 0 or not LIKE_A_LINE.fullmatch(self.data[at:end + 1]):
            raise ValueError(f"{where}: not a line `POS LAYER OP N`: {printable(line, 60)}")
        return line, end + 1

    def _fields(self, where, line):
        """Position, layer, operation and how many numbers."""
        name = line.split()[2]
        small = name.lower()
        own = ALIASES.get(small, small)
        if name not in OPERATIONS and name not in OUTSIDE and own in (*OPERATIONS, *OUTSIDE):
            raise ValueError(f"{where}: no operation is called {name}; it looks like {own}")
        match = LINE.fullmatch(line)
        if not match:
            raise ValueError(f"{where}: not a line `POS LAYER OP N`: {printable(line, 60)}")
        pos, layer, op, n = int(match[1]), int(match[2]), match[3], int(match[4])
        if pos >= self.config.seq_len:
            raise ValueError(f"{where}: position {pos} is beyond the context of {self.config.seq_len}")
        names = OUTSIDE if layer == -1 else OPERATIONS
        if op not in names or not -1 <= layer < self.config.n_layers:
            raise ValueError(f"{where}: no operation is called {op} in layer {layer}, of {self.config.n_layers}")
        return pos, None if layer == -1 else layer, op, n


class Records:
    """The records of a file."""

    def __init__(self, path: str, data: mmap.mmap, config):
        """Raises ValueError, naming place and fault, for what is no record of this model's."""
        self.path = path
        self.data = data
        self.config = config
        self.parts: dict[Key, list[tuple[int, int]]] = {}  # where its numbers stand, and how many
        for where, key, begin, n in RecordScanner(path, data, config).scan():
            self._add(where, key, begin, n)
        self.steps = max(pos for pos, _, _ in self.parts) + 1
        self._check_beginning()

    def _add(self, where, key, begin, n):
        """Take a record, or a further part of one."""
        pos, layer, op = key
        parts = self.parts.setdefault(key, [])
        parts.append((begin, n))
        most = size(self.config, op, pos)
        if len(parts) > 1 and sum(count for _, count in parts) > most:
            raise ValueError(f"{where}: more than the {most} numbers of {place(op, layer, pos)}")

    def _check_beginning(self):
        """Raises ValueError if positions evidently begin at 1: each has as many weights as the one before it should."""
        weights = [(pos, sum(count for _, count in parts)) for (pos, _, op), parts in self.parts.items()
                   if op == "weights"]
        if weights and all(pos and n == size(self.config, "weights", pos - 1) for pos, n in weights):
            raise ValueError(f"{self.path}: positions look as if they begin at 1, must begin at 0: position "
                             f"{weights[0][0]} has weights of {weights[0][0]} positions")

    def values(self, key: Key) -> array | None:
        """The results of an operation; None if the file does not have them."""
        parts = self.parts.get(key)
        if parts is None:
            return None
        pos, layer, op = key
        found, n = sum(count for _, count in parts), size(self.config, op, pos)
        if found != n:
            raise ValueError(f"{self.path}: {place(op, layer, pos)}: has {found} numbers, must have {n}")
        return from_bytes(b"".join(self.data[begin:begin + 4 * count] for begin, count in parts))

    def lacks_inputs(self) -> bool:
        """Is there an operation whose inputs are not all there?"""
        for pos, layer, op in self.parts:
            for name, l, positions in inputs(op, layer, pos, self.config.n_layers):
                if not all((t, l, name) in self.parts for t in positions):
                    return True
        return False

    def positions(self) -> set[int]:
        """The positions of which there is anything."""
        return {pos for pos, _, _ in self.parts}
