"""The lines of a trace: what one may say, and where it stands.

Whoever reads a log or a proof takes the position of every line from the header by this file's rules, and nothing from
the line itself: so a log has one place for each step, and a line that is elsewhere is refused.

    header = read_header(where, line)          # the first line, its options in their ranges
    Layout(header).check(where, index, read_line(where, other_line))
"""
import hashlib
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from llama2_py.console import VerificationError, printable
from llama2_py.engine import graph
from llama2_py.engine.arithmetic import to_bytes
from llama2_py.engine.checkpoint import MOST, Config, impossible
from llama2_py.engine.graph import OPERATIONS

FORMAT = "llama2.py trace 2"
HASH_AND_END = re.compile(rb'[0-9a-f]{64}"}')
MAX_LINE = 2**22  # bytes: a longer line cannot be a header of any model there is, and would take much memory


def encode(event: Any) -> bytes:
    """An event as the line it has in a log."""
    return json.dumps(event, separators=(",", ":")).encode()


def hash_values(values: Sequence[float]) -> str:
    """values (n) -> the SHA-256 of them as little-endian float32, in hexadecimal."""
    return hashlib.sha256(to_bytes(values)).hexdigest()


# ----------------------------------------------------------------------------
# What a log may say: the fields of every event, and its place

LEVELS = ("step", "layer", "op")

# 64 hexadecimal digits; an integer as a checkpoint's header has it; a float above 0; 16 to 64 bytes in hexadecimal
HEX, SIZE, POSITIVE, NONCE = object(), object(), object(), object()
CONFIG = {"dim": SIZE, "hidden_dim": SIZE, "n_layers": SIZE, "n_heads": SIZE, "n_kv_heads": SIZE, "vocab_size": SIZE,
          "seq_len": SIZE, "shared_classifier": bool}
# What follows there if it is not as in llama2.c, in this order (engine/checkpoint.py: Config)
CONSTANTS = {"head_size": SIZE, "norm_epsilon": POSITIVE, "rope_theta": POSITIVE, "rope_scaling": dict, "bos": int,
             "eos": list}
SCALINGS = [{"factor": POSITIVE}, {"factor": POSITIVE, "low_freq_factor": POSITIVE, "high_freq_factor": POSITIVE,
                                   "original_max_position_embeddings": SIZE}]
HEADER = {"format": (FORMAT,), "model": HEX, "weights": HEX, "config": CONFIG, "tokenizer": HEX,
          "arithmetic": ("exact", "c"), "rng": ("xorshift64*", "llama2-rs"), "temperature": float, "p_value": float,
          "seed": int, "nonce": NONCE, "steps": int, "level": LEVELS, "prompt": str, "tokens": list}
SCHEMAS = [  # the fields of every kind of event: the type, or the values to choose from
    {name: kind for name, kind in HEADER.items() if kind is not NONCE},
    HEADER,
    {"pos": int, "op": ("embedding", "final_norm"), "sha256": HEX},
    {"pos": int, "layer": int, "op": OPERATIONS, "sha256": HEX},
    {"pos": int, "token": int, "next": int, "text": str, "logits": HEX},
    {"size": int, "root": HEX},
]
HEADER_FIELDS = list(HEADER)


def is_hash(value: Any) -> bool:
    """Whether a value is a hash as it is written: 64 hexadecimal digits, in lower case."""
    return type(value) is str and re.fullmatch("[0-9a-f]{64}", value) is not None


def is_nonce(value: Any) -> bool:
    """Whether a value is a nonce as it is written: 16 to 64 bytes in hexadecimal digits, in lower case."""
    return type(value) is str and re.fullmatch("([0-9a-f]{2}){16,64}", value) is not None


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a schema's kind; integers are from 0 to 2**64 - 1, floats 0 or more, and finite."""
    if kind is HEX:
        return is_hash(value)
    if kind is NONCE:
        return is_nonce(value)
    if kind is SIZE:
        return type(value) is int and 0 < value <= MOST
    if kind is POSITIVE:
        return type(value) is float and 0 < value < math.inf
    if kind is CONFIG:
        return fits_config(value)
    if isinstance(kind, dict):
        return (type(value) is dict and list(value) == list(kind)
                and all(fits(value[name], wanted) for name, wanted in kind.items()))
    if isinstance(kind, tuple):
        return value in kind
    if kind is list:
        return type(value) is list and value != [] and all(fits(token, int) for token in value)
    if kind in (str, bool):
        return type(value) is kind
    if kind is float:
        return type(value) is float and 0 <= value < math.inf and math.copysign(1, value) > 0  # -0.0 is another text
    return type(value) is int and 0 <= value < 2**64


def fits_config(value: Any) -> bool:
    """Whether a value is a config: a shape, then those constants that are not llama2.c's, written as they are there."""
    if type(value) is not dict or list(value)[:len(CONFIG)] != list(CONFIG):
        return False
    if not all(fits(value[name], kind) for name, kind in CONFIG.items()):
        return False
    constants = list(value)[len(CONFIG):]
    if any(name not in CONSTANTS for name in constants):
        return False
    for name in constants:
        kind = CONSTANTS[name]
        if not (any(fits(value[name], scaling) for scaling in SCALINGS) if kind is dict else fits(value[name], kind)):
            return False
    return Config.of(value).described() == value and list(Config.of(value).described()) == list(value)


def too_long(where: str, line: bytes) -> ValueError:
    """The error of a line, or of its beginning, that is longer than any line of a log."""
    shown = printable(line[:200].decode(errors="replace"), 100)
    return ValueError(f"{where}: more than the {MAX_LINE} bytes that a line may have: {shown}")


def read_line(where: str, line: bytes) -> dict:
    """A line of a log -> its event. Raises ValueError if it is not the one way to write an event of a known kind."""
    if len(line) > MAX_LINE:
        raise too_long(where, line)
    shown = printable(line[:200].decode(errors="replace"), 100)
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"{where}: not a line of JSON: {shown}") from None
    kind = event.get("format") if isinstance(event, dict) else None
    if type(kind) is str and kind.startswith("llama2.py trace ") and kind != FORMAT:
        raise ValueError(f"{where}: format is {printable(kind, 100)}; this program reads {FORMAT!r}")
    schema = next((s for s in SCHEMAS if isinstance(event, dict) and list(s) == list(event)), None)
    if schema is None:
        raise ValueError(f"{where}: not an event of a trace: {shown}")
    for name, kind in schema.items():
        if not fits(event[name], kind):
            raise ValueError(f"{where}: {name} cannot be {printable(event[name], 100)}")
    if encode(event) != line:
        raise ValueError(f"{where}: not written as a trace writes it: {shown}")
    return event


def read_header(where: str, line: bytes) -> dict:
    """The first line of a log -> its header. Raises ValueError if it is none, or a run cannot have such options."""
    header = read_line(where, line)
    if "format" not in header:
        raise ValueError(f"{where}: not a trace's header")
    tokens, vocab_size, seq_len = header["tokens"], header["config"]["vocab_size"], header["config"]["seq_len"]
    check_config(where, header)
    for name, possible in [("prompt", is_text(header["prompt"])), ("p_value", header["p_value"] <= 1),
                           ("seed", header["seed"] > 0), ("steps", 0 < header["steps"] <= seq_len),
                           ("tokens", len(tokens) <= seq_len), ("tokens", max(tokens) < vocab_size)]:
        if not possible:
            raise ValueError(f"{where}: {name} cannot be {printable(header[name], 100)}, with a vocabulary of "
                             f"{vocab_size} and a context of {seq_len}")
    if "nonce" in header and header["seed"] != seed_of(header):
        raise VerificationError(where, "seed", seed_of(header), header["seed"])
    return header


def is_text(text: str) -> bool:
    """Whether a string stands for bytes: in it, those that are not UTF-8 are escaped (PEP 383)."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def seed_of(header: dict) -> int:
    """The seed that follows from a header with a nonce, so that nobody chose it: SHA-256(the header's line with
    "seed":0), its first 8 bytes as a little-endian number, 1 in place of 0."""
    digest = hashlib.sha256(encode({**header, "seed": 0})).digest()
    return int.from_bytes(digest[:8], "little") or 1


def commitment_of(header: dict) -> str:
    """What an author gives to a verifier before he knows the nonce: SHA-256(the header's line with "seed":0, without
    nonce), in hexadecimal."""
    event = {name: value for name, value in header.items() if name != "nonce"}
    return hashlib.sha256(encode({**event, "seed": 0})).hexdigest()


def check_config(where: str, header: dict) -> None:
    """Raise ValueError if no model has the config of a header, or no run in its arithmetic."""
    config = Config.of(header["config"])
    name = impossible(config)
    if name is not None:
        value = header["config"].get(name, config.head_size)
        raise ValueError(f"{where}: {name} of the config cannot be {printable(value, 100)}, "
                         f"with {config.n_heads} heads and a vocabulary of {config.vocab_size}")
    if header["arithmetic"] == "c" and not config.is_llama2c:
        raise ValueError(f"{where}: arithmetic cannot be c, with constants that llama2.c does not have")


class Layout:
    """Where the lines of a log stand: what its header says of line after line."""

    def __init__(self, header: dict):
        self.header, self.level = header, header["level"]
        self.n_layers = header["config"]["n_layers"]
        config = Config.of(header["config"])
        self.must_end, self.may_end = config.must_end, config.may_end  # the tokens that do so, of a run
        operations = {"step": 1, "layer": self.n_layers + 1, "op": graph.count(self.n_layers)}
        self.lines = operations[self.level]  # of a step

    def step(self, pos: int) -> int:
        """The index of a step's line; the header's is 0."""
        return (pos + 1) * self.lines

    def operation(self, pos: int, op: str, layer: int | None) -> int:
        """The index of the line of an operation, in a log of level op; that of the logits is the step's."""
        return pos * self.lines + 1 + graph.index(op, layer, self.n_layers)

    def place(self, index: int) -> dict:
        """The fields by which an event says where it stands, at an index from 1 on."""
        pos, offset = divmod(index - 1, self.lines)
        if offset == self.lines - 1:
            return {"pos": pos}
        if self.level == "layer":
            return {"pos": pos, "layer": offset, "op": "ffn_residual"}
        op, layer = graph.operation(offset, self.n_layers)
        return {"pos": pos, "op": op} if layer is None else {"pos": pos, "layer": layer, "op": op}

    def is_operation(self, index: int, line: bytes) -> bool:
        """Whether a line is, byte for byte, the operation that has to stand at an index."""
        if index % self.lines == 0:
            return False
        begin = encode(self.place(index))[:-1] + b',"sha256":"'
        return (line.startswith(begin) and HASH_AND_END.fullmatch(line, len(begin)) is not None
                and index <= self.step(self.header["steps"] - 1))

    def check(self, where: str, index: int, event: dict) -> None:
        """Raise VerificationError if an event cannot stand at an index of this log."""
        for name, value in self.place(index).items():
            if event.get(name) != value:
                raise VerificationError(where, name, value, event.get(name))
        if ("next" in event) != (index % self.lines == 0):
            raise VerificationError(where, "line", "a step" if "op" in event else "an operation",
                                    encode(event).decode())
        if event["pos"] >= self.header["steps"]:
            raise VerificationError(where, "pos", f"at most {self.header['steps'] - 1}, the last of the header's steps",
                                    event["pos"])
        if "next" in event:
            forced = self.header["tokens"][event["pos"]:event["pos"] + 2]
            for name, token in zip(("token", "next"), forced, strict=False):
                if event[name] != token:
                    raise VerificationError(where, name, token, event[name])
            if event["pos"] > 0 and event["token"] in self.must_end:
                raise VerificationError(where, "token", "one after which the run goes on", event["token"])
            for name in "token", "next":
                if event[name] >= self.header["config"]["vocab_size"]:
                    raise VerificationError(where, name, "a token of the vocabulary", event[name])
