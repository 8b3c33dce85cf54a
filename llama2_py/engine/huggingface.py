"""A checkpoint in a folder of Hugging Face: config.json and weights in safetensors, of the architectures Llama and
Mistral.

    with contextlib.closing(Folder("SmolLM2-135M")) as checkpoint:
        print(checkpoint.config)
        rows = checkpoint.rows("wq", 2)    # (n_heads * hs, dim) of layer 2

It follows transformers (LlamaForCausalLM, MistralForCausalLM), versions 4 and 5, and offers what checkpoint.Checkpoint
offers, so that all else in this project can use either. But:

- the rows of wq and wk stand in run.c's order, in which neighbours turn together: transformers turns row i of a head
  with row i + hs / 2, and here they are rows 2i and 2i + 1. So a folder and a file of the same model have one layout;
- what would change the results and is not supported is an error that names it, where transformers warns: a key of
  config.json, a kind of RoPE scaling, a tensor that the model has no place for, or a classifier that is to be the
  embedding and is not;
- a Mistral's context ends where its window does, since up to there the window leaves nothing out.
"""
import functools
import hashlib
import math
import os
import re
from collections.abc import Iterator
from operator import eq
from typing import Any, NamedTuple

from llama2_py import console
from llama2_py.console import printable
from llama2_py.engine.arithmetic import Arithmetic, r
from llama2_py.engine.checkpoint import (LARGEST_CONSTANT, LAYER, MOST, MOST_ENDS, SMALLEST_CONSTANT, Config,
                                          in_tree_order, shapes)
from llama2_py.engine.half_precision import VALUES, WEIGHTS, all_of_16_bits, float32_bytes, widened
from llama2_py.engine.mapped import PIECE, file_identity
from llama2_py.engine.safetensors import Tensor, TensorFile
from llama2_py.engine.strict_json import MAX_JSON, read_object

# ----------------------------------------------------------------------------
# config.json

REQUIRED = object()         # stands for a default where there is none

# The architectures, and what config.json calls their kind
ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral"}
# Keys with one value that is supported; where the key is missing, transformers takes that value
FIXED = {"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,), "partial_rotary_factor": (1.0, 1),
         "quantization_config": (None,)}


def shown(value: Any) -> str:
    """A value of JSON for a message; a string in quotes, so that it can be told from a number."""
    text = printable(value, 100)
    return f'"{text}"' if isinstance(value, str) and not text.startswith('"') else text


class Fields:
    """An object of JSON whose fields are asked for by name and type. A field that is null counts as missing.

    All methods raise ValueError, naming the file, the field and its value, if it is not as it must be.
    """

    def __init__(self, where: str, values: dict, prefix: str = ""):
        """where: the file; prefix: the names of the objects that hold this one, as "rope_scaling."."""
        self.where, self.values, self.prefix = where, values, prefix

    def need(self, condition: bool, key: str, wanted: str) -> None:
        """Raise ValueError if the field is not as it must be."""
        if not condition:
            value = shown(self.values[key]) if key in self.values else "missing"
            raise ValueError(f"{self.where}: {self.prefix}{printable(key, 100)} is {value}, must be {wanted}")

    def get(self, key: str, default: Any = None) -> Any:
        """The field's value, of any type."""
        value = self.values.get(key)
        return default if value is None else value

    def integer(self, key: str, default: Any = REQUIRED, low: int = 1, high: int = MOST) -> Any:
        """An integer from low to high."""
        value = self.get(key, default)
        if value is not default:
            self.need(type(value) is int and low <= value <= high, key, f"an integer from {low} to {high}")
        self.need(value is not REQUIRED, key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, default: Any = REQUIRED, low: float = SMALLEST_CONSTANT) -> float:
        """A number from low on, as a float."""
        value = self.get(key, default)
        possible = type(value) in (int, float) and low <= value <= LARGEST_CONSTANT
        self.need(possible, key, f"a number from {low:g} to {LARGEST_CONSTANT:g}")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.get(key, default)
        self.need(type(value) is bool, key, "true or false")
        return value

    def inner(self, key: str) -> "Fields | None":
        """The object that a field holds; None if it is missing."""
        value = self.get(key)
        if value is None:
            return None
        self.need(type(value) is dict, key, "an object of JSON")
        return Fields(self.where, value, f"{self.prefix}{key}.")


def read_config(fields: Fields, generation: Fields) -> Config:
    """config.json and generation_config.json -> the model's config. (generation has no fields if there is none.)

    Raises ValueError, naming the file, the key and its value, for a model that is not supported.
    """
    kind = read_kind(fields)
    theta, scaling = read_rope(fields)
    heads = fields.integer("num_attention_heads")
    vocab_size = fields.integer("vocab_size")
    bos, eos = read_ends(fields, generation, vocab_size)
    config = Config(
        dim=fields.integer("hidden_size"),
        hidden_dim=fields.integer("intermediate_size"),
        n_layers=fields.integer("num_hidden_layers"),
        n_heads=heads,
        n_kv_heads=fields.integer("num_key_value_heads", heads if kind == "llama" else REQUIRED),
        vocab_size=vocab_size,
        seq_len=fields.integer("max_position_embeddings"),
        shared_classifier=fields.boolean("tie_word_embeddings", False),
        head_dim=fields.integer("head_dim", None),
        norm_epsilon=fields.number("rms_norm_eps"),
        rope_theta=theta, rope_scaling=scaling, bos=bos, eos=eos)
    if kind == "mistral":
        fields.need("sliding_window" in fields.values, "sliding_window", "a number of positions, or null")
        config.seq_len = min(config.seq_len, fields.integer("sliding_window", config.seq_len))
    check_heads(fields, config)
    return config


def read_kind(fields: Fields) -> str:
    """llama or mistral. Raises ValueError for another architecture, and for what this project does not compute."""
    names = fields.get("architectures")
    known = type(names) is list and len(names) == 1 and type(names[0]) is str and names[0] in ARCHITECTURES
    fields.need(known, "architectures", " or ".join(f'["{name}"]' for name in ARCHITECTURES))
    kind = ARCHITECTURES[names[0]]
    fields.need(fields.get("model_type", kind) == kind, "model_type", shown(kind))
    for key, supported in FIXED.items():
        check_fixed(fields, key, supported)
    return kind


def check_fixed(fields: Fields, key: str, supported: tuple) -> None:
    """Raise ValueError if a field is there and has another value than the supported one, or another type."""
    value = fields.get(key)
    same = any(type(value) is type(other) and value == other for other in supported)
    fields.need(value is None or same, key, f"{shown(supported[0])}: nothing else is supported")


def check_heads(fields: Fields, c: Config) -> None:
    """Raise ValueError if the heads do not divide what they share."""
    if c.head_dim is None:
        fields.need(c.dim % c.n_heads == 0, "hidden_size", f"a multiple of num_attention_heads, {c.n_heads}")
        fields.need(c.head_size % 2 == 0, "hidden_size",
                    f"num_attention_heads, {c.n_heads}, times an even number, not {c.head_size}")
    fields.need(c.head_size % 2 == 0, "head_dim", "even")
    fields.need(c.n_heads * c.head_size <= MOST, "num_attention_heads",
                f"at most {MOST} divided by the size of a head, {c.head_size}")
    fields.need(c.n_heads % c.n_kv_heads == 0, "num_attention_heads",
                f"a multiple of num_key_value_heads, {c.n_kv_heads}")


# The fields of a RoPE scaling: those of a kind, and those that may stand beside them
SCALINGS = {"default": (), "linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor",
                                                             "original_max_position_embeddings")}
BESIDE = ("type", "rope_type", "rope_theta", "partial_rotary_factor")


def read_rope(fields: Fields) -> tuple[float, dict | None]:
    """RoPE's theta, and its scaling as a trace's header has it. transformers 4 has rope_theta and rope_scaling in
    config.json, transformers 5 rope_parameters, which holds both."""
    theta = fields.number("rope_theta", 10000.0, low=1.0)
    old, new = fields.inner("rope_scaling"), fields.inner("rope_parameters")
    fields.need(old is None or new is None, "rope_scaling", "null beside rope_parameters")
    rope = old if new is None else new
    if rope is None:
        return theta, None
    if rope.get("rope_theta") is not None:
        inner = rope.number("rope_theta", low=1.0)
        rope.need(fields.get("rope_theta") is None or inner == theta, "rope_theta", f"rope_theta outside, {theta}")
        theta = inner
    check_fixed(rope, "partial_rotary_factor", FIXED["partial_rotary_factor"])
    name = "type" if rope.get("rope_type") is None else "rope_type"
    kind = rope.get(name, "default")
    rope.need(type(kind) is str and kind in SCALINGS, name, " or ".join(map(shown, SCALINGS)))
    rope.need(rope.get("type", kind) == kind, "type", f"rope_type, {shown(kind)}")
    for key in rope.values:
        known = key in BESIDE or key in SCALINGS[kind]
        rope.need(known or rope.get(key) is None, key, f"missing, where the type is {shown(kind)}")
    return theta, read_scaling(rope, kind)


def read_scaling(rope: Fields, kind: str) -> dict | None:
    """The scaling of a kind as a trace's header has it."""
    if kind == "default":
        return None
    factors: dict[str, int | float] = {"factor": rope.number("factor", low=1.0)}
    if kind == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        rope.need(r(low) < r(high), "low_freq_factor", f"less than high_freq_factor, {high}")
        original = rope.integer("original_max_position_embeddings")
        factors.update(low_freq_factor=low, high_freq_factor=high, original_max_position_embeddings=original)
    return factors


def read_ends(fields: Fields, generation: Fields, vocab_size: int) -> tuple[int, tuple[int, ...]]:
    """The token that begins a text and those that end one: generation_config.json's, where it names some."""
    source = fields if generation.get("bos_token_id") is None else generation
    bos = source.integer("bos_token_id", low=0, high=vocab_size - 1)
    source = fields if generation.get("eos_token_id") is None else generation
    eos = source.get("eos_token_id")
    tokens = eos if type(eos) is list else [eos]
    possible = all(type(token) is int and 0 <= token < vocab_size for token in tokens)
    source.need(possible and tokens != [], "eos_token_id", f"a token of the vocabulary of {vocab_size}, or some")
    ends = tuple(dict.fromkeys(tokens))
    source.need(len(ends) <= MOST_ENDS, "eos_token_id", f"at most {MOST_ENDS} tokens, not {len(ends)}")
    return bos, ends


# ----------------------------------------------------------------------------
# Tensors: their names, and the order of rows

NAMES = {"embedding": "model.embed_tokens.weight", "rms_att": "model.layers.{}.input_layernorm.weight",
         "wq": "model.layers.{}.self_attn.q_proj.weight", "wk": "model.layers.{}.self_attn.k_proj.weight",
         "wv": "model.layers.{}.self_attn.v_proj.weight", "wo": "model.layers.{}.self_attn.o_proj.weight",
         "rms_ffn": "model.layers.{}.post_attention_layernorm.weight", "w1": "model.layers.{}.mlp.gate_proj.weight",
         "w2": "model.layers.{}.mlp.down_proj.weight", "w3": "model.layers.{}.mlp.up_proj.weight",
         "rms_final": "model.norm.weight", "classifier": "lm_head.weight"}
TURNED = ("wq", "wk")  # whose rows RoPE turns in pairs
# Tables that old versions stored, and that transformers leaves out without a word
IGNORED = re.compile(r"rotary_emb\.inv_freq")


def place_of_row(row: int, hs: int) -> int:
    """The place in a folder of a row of wq or wk: row 2i of a head is its row i, row 2i + 1 its row i + hs / 2."""
    head, within = divmod(row, hs)
    i, second = divmod(within, 2)
    return head * hs + i + second * (hs // 2)


# ----------------------------------------------------------------------------
# The folder

CONFIG, GENERATION = "config.json", "generation_config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_TENSORS = 2**17  # in all files, so that many small shards take no more memory than one; the largest Llama has 1,137
CHUNK = 2**18        # numbers that are widened together, 1 MB of float32: faster than row by row
SHARD = re.compile(r"[A-Za-z0-9][\w.+@=-]*\.safetensors", re.ASCII)  # a file's name, without a path


class Place(NamedTuple):
    """Where a tensor is."""
    file: TensorFile
    name: str
    tensor: Tensor


class Folder:
    """A folder with a checkpoint: its config, and its weights when asked for.

    Raises ValueError, naming the file, the field and the values, if the folder does not hold a whole model of a kind
    that is supported, and OSError if a file cannot be read.
    """

    group = 0  # no weights are int8

    def __init__(self, path: str):
        self.path = path
        self.opened: dict[str, Any] = {}        # name -> the open file, of all files that are used
        self.identity: tuple = ()               # (name, file_identity), of these, when they were opened
        self.files: dict[str, TensorFile] = {}  # name -> the file, of those with weights
        try:
            self.config_bytes = self._read(CONFIG)
            fields = Fields(self._join(CONFIG), read_object(self._join(CONFIG), self.config_bytes))
            self.config = read_config(fields, self._generation())
            weight_map = self._open_weights()
            self.tensors = shapes(self.config)  # name -> layers, rows and columns of each
            self.places: dict[tuple[str, int], Place] = {}
            self._find(self._contents(weight_map))
        except BaseException:
            self.close()
            raise

    def _join(self, name: str) -> str:
        return os.path.join(self.path, name)

    def _read(self, name: str) -> bytes:
        """A JSON file's bytes. It stays open, so that a change is noticed."""
        path = self._join(name)
        file = self.opened[name] = open(path, "rb")
        self.identity += ((name, file_identity(file)),)
        return console.read_open(path, file, MAX_JSON)

    def _generation(self) -> Fields:
        """The fields of generation_config.json: none, if there is no such file."""
        path = self._join(GENERATION)
        try:
            data = self._read(GENERATION)
        except FileNotFoundError:
            return Fields(path, {})
        return Fields(path, read_object(path, data))

    def _open_weights(self) -> dict[str, str]:
        """Open the files that hold the weights -> the index, tensor -> file; of a single file it is empty."""
        try:
            self._open(SINGLE)
            return {}
        except FileNotFoundError:
            pass
        path = self._join(INDEX)
        try:
            fields = Fields(path, read_object(path, self._read(INDEX)))
        except FileNotFoundError:
            raise ValueError(f"{self.path}: holds neither {SINGLE} nor {INDEX}; weights in other forms are not "
                             f"supported") from None
        shards = fields.get("weight_map")
        fields.need(type(shards) is dict and shards != {}, "weight_map", "an object that names each tensor's file")
        for tensor, name in shards.items():
            possible = type(name) is str and SHARD.fullmatch(name) is not None
            Fields(path, shards, "weight_map.").need(possible, tensor, "the name of a safetensors file beside it")
        for name in sorted(set(shards.values())):
            try:
                self._open(name)
            except FileNotFoundError:
                raise ValueError(f"{path}: weight_map names {name}, which is not in the folder") from None
        return shards

    def _open(self, name: str) -> None:
        file = self.files[name] = TensorFile(self._join(name))
        self.opened[name] = file.file
        self.identity += ((name, file.identity),)
        count = sum(len(file.tensors) for file in self.files.values())
        if count > MAX_TENSORS:
            raise ValueError(f"{self.path}: holds {count} tensors or more, must be at most {MAX_TENSORS}")

    def _contents(self, weight_map: dict[str, str]) -> dict[str, Place]:
        """All tensors of all files. Raises ValueError if a tensor is there twice, or not where the index says."""
        contents: dict[str, Place] = {}
        for file in self.files.values():
            for name, tensor in file.tensors.items():
                if name in contents:
                    raise ValueError(f"{file.path}: holds {printable(name, 100)}, and so does "
                                     f"{contents[name].file.path}")
                contents[name] = Place(file, name, tensor)
        for name, shard in weight_map.items():
            if name not in contents or contents[name].file is not self.files[shard]:
                raise ValueError(f"{self._join(INDEX)}: weight_map.{printable(name, 100)} is {shard}, which does not "
                                 f"hold that tensor")
        return contents

    def _find(self, contents: dict[str, Place]) -> None:
        """Find the place of every tensor. Raises ValueError if one is missing or of another shape or type, or if there
        are others."""
        for tensor, layer in in_tree_order(self.config):
            name = NAMES[tensor].format(layer)
            if name not in contents:
                raise ValueError(f"{self.path}: {name} is missing from {', '.join(self.files)[:200]}")
            self.places[tensor, layer] = place = contents.pop(name)
            self._check_place(tensor, place)
        if self.config.shared_classifier:
            self._tie(contents.pop(NAMES["classifier"], None))
        for name, place in contents.items():
            if not IGNORED.search(name):
                raise ValueError(f"{place.file.path}: holds {printable(name, 100)}, for which the model of {CONFIG} "
                                 f"has no place")

    def _tie(self, stored: Place | None) -> None:
        """Take the embedding as the classifier. stored: a classifier that is there nevertheless; raises ValueError if
        it is not the same, since transformers 4 takes the embedding then, and transformers 5 the classifier."""
        self.tensors["classifier"] = self.tensors["embedding"]
        if stored is not None:
            self._check_place("classifier", stored)
            self.places["classifier", 0] = stored
            if not all(map(eq, self._float32("classifier"), self._float32("embedding"))):
                raise ValueError(f"{self._join(CONFIG)}: tie_word_embeddings is true, must be false where "
                                 f"{stored.name} differs from {NAMES['embedding']}")
            self.release()
        self.places["classifier", 0] = self.places["embedding", 0]

    def _check_place(self, tensor: str, place: Place) -> None:
        dtype, shape = place.tensor.dtype, list(place.tensor.shape)
        _, rows, columns = self.tensors[tensor]
        wanted = [columns] if tensor.startswith("rms") else [rows, columns]
        where = f"{place.file.path}: {place.name}"
        if dtype not in WEIGHTS:
            raise ValueError(f"{where}.dtype is {dtype}, must be {' or '.join(WEIGHTS)}")
        if shape != wanted:
            raise ValueError(f"{where}.shape is {printable(shape, 100)}, must be {wanted} by {CONFIG}")

    def check_unchanged(self, identity: tuple | None = None) -> None:
        """Raise ValueError if a file is no longer as it was when it was opened, here or in another process."""
        expected = identity or self.identity
        now = tuple([(name, file_identity(file)) for name, file in self.opened.items()])
        if expected != now:
            changed = [name for name, of_file in now if (name, of_file) not in expected]
            path = self._join(changed[0]) if changed else self.path
            raise ValueError(f"{path}: the file was changed or replaced while it was being read")

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end a run, as in transformers."""
        return self.config.may_end

    warning = None  # of a folder there is nothing odd to be said

    def check_for(self, arithmetic: Arithmetic) -> None:
        """Raise ValueError if an arithmetic cannot use these weights: runq's reads int8."""
        if arithmetic.reads != "rows":
            raise ValueError(f"{self.path}: is a folder, must be a checkpoint of version 2 for runq")

    def is_shared(self, name: str) -> bool:
        """Do the rows of a matrix refer to a table of floats? Then they take 8 bytes a weight. Float32 weights are
        told by a sample of them."""
        layers = self.config.n_layers if name in LAYER else 1
        _, rows, _ = self.tensors[name]
        return all(self.places[name, l].tensor.dtype in VALUES
                   or all_of_16_bits(functools.partial(self._bytes, name, l), rows) for l in range(layers))

    def _bytes(self, name: str, layer: int, first: int, last: int | None) -> bytes:
        """Rows first .. last - 1 of a tensor, in run.c's order, as they are in the file."""
        self.check_unchanged()  # a map that was cut would end the process
        file, _, tensor = self.places[name, layer]
        _, rows, columns = self.tensors[name]
        last = rows if last is None else last
        size = (tensor.stop - tensor.start) // rows  # of a row
        if name not in TURNED:
            return file.data[tensor.start + size * first:tensor.start + size * last]
        parts = []
        for row in range(first, last):
            start = tensor.start + size * place_of_row(row, self.config.head_size)
            parts.append(file.data[start:start + size])
        return b"".join(parts)

    def rows(self, name: str, layer: int = 0, first: int = 0, last: int | None = None, check: bool = True
             ) -> list[tuple[float, ...]]:
        """Rows first .. last - 1 of a layer's matrix; those of 16-bit weights refer to the floats of one table. Raises
        ValueError if a weight is not finite."""
        place, columns = self.places[name, layer], self.tensors[name][2]
        dtype = place.tensor.dtype
        result = widened(dtype, columns, self._bytes(name, layer, first, last), keep=check)
        if check and not all(map(math.isfinite, map(sum, result))):  # finite binary32 numbers never overflow the sum
            raise ValueError(f"{place.file.path}: {place.name} holds a weight that is not finite")
        return result

    def release(self) -> None:
        """Let the system drop the pages that were read; it reads them from the files again when they are needed."""
        for file in self.files.values():
            file.release()

    def tree_rows(self) -> Iterator[bytes]:
        """The rows of all tensors as little-endian float32, in the order of the tree whose root a trace calls
        weights."""
        read = 0
        for name, layer in in_tree_order(self.config):
            width = 4 * self.tensors[name][2]
            for numbers in self._float32(name, layer):
                for start in range(0, len(numbers), width):
                    yield numbers[start:start + width]
                read += len(numbers)
                if read >= PIECE:
                    self.release()
                    read = 0

    def _float32(self, name: str, layer: int = 0) -> Iterator[bytes]:
        """A tensor's rows as little-endian float32, some rows at a time."""
        _, rows, columns = self.tensors[name]
        dtype = self.places[name, layer].tensor.dtype
        step = max(1, CHUNK // columns)
        for first in range(0, rows, step):
            yield float32_bytes(dtype, self._bytes(name, layer, first, min(first + step, rows)))

    def sha256(self) -> str:
        """The model's hash, in hexadecimal: that of what `sha256sum config.json *.safetensors` prints of the files that
        are used, SHA256(HEX "  config.json\\n" HEX "  model.safetensors\\n")."""
        self.check_unchanged()  # a map that was cut would end the process
        lines = [f"{hashlib.sha256(self.config_bytes).hexdigest()}  {CONFIG}\n"]
        for name, file in sorted(self.files.items()):
            lines.append(f"{file.sha256()}  {name}\n")
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def close(self) -> None:
        """Let go of the files."""
        for file in self.files.values():
            file.close()
        for opened in self.opened.values():
            opened.close()
