"""Tests of huggingface.py and safetensors.py: folders are read exactly, and what cannot be read is named."""
import contextlib
import hashlib
import json
import math
import os
import random
import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llama2
from llama2_py.engine.arithmetic import C, Exact
from llama2_py.engine.checkpoint import Checkpoint, Config, in_tree_order
from llama2_py.engine.huggingface import Folder
from llama2_py.engine.half_precision import float32_bytes, table
from llama2_py.engine.safetensors import SIZES, TensorFile
from llama2_py.engine.strict_json import read_object
from llama2_py.engine.workers import Shard, Team
from llama2_py.log.weights import weights_root
from tests.helpers import SHAPES, bits, examples

# ----------------------------------------------------------------------------
# Folders to test with

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 12, "intermediate_size": 10,
          "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 20,
          "max_position_embeddings": 16, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": [2]}
HEAD_SIZE = 6
FORMS = {"F32": "f", "F16": "e", "BF16": "H"}
Q, K = "model.layers.{}.self_attn.q_proj.weight", "model.layers.{}.self_attn.k_proj.weight"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def model_shapes(c):
    """The tensors of a config.json, name -> shape, as transformers has them."""
    dim, hidden, heads = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"]
    kv_heads, hs = c.get("num_key_value_heads", heads), c.get("head_dim", dim // heads)
    tensors = {EMBEDDING: [c["vocab_size"], dim], "model.norm.weight": [dim]}
    for l in range(c["num_hidden_layers"]):
        layer = f"model.layers.{l}."
        tensors |= {layer + "input_layernorm.weight": [dim], layer + "post_attention_layernorm.weight": [dim],
                    Q.format(l): [heads * hs, dim], K.format(l): [kv_heads * hs, dim],
                    layer + "self_attn.v_proj.weight": [kv_heads * hs, dim],
                    layer + "self_attn.o_proj.weight": [dim, heads * hs], layer + "mlp.gate_proj.weight": [hidden, dim],
                    layer + "mlp.up_proj.weight": [hidden, dim], layer + "mlp.down_proj.weight": [dim, hidden]}
    if not c.get("tie_word_embeddings"):
        tensors[HEAD] = [c["vocab_size"], dim]
    return tensors


def random_tensors(c=CONFIG, dtype="F32", seed=1):
    """name -> (dtype, shape, bytes)"""
    rng, tensors = random.Random(seed), {}
    for name, shape in model_shapes(c).items():
        values = [rng.gauss(0, 0.4) for _ in range(math.prod(shape))]
        if dtype == "BF16":
            values = [struct.unpack("<I", struct.pack("<f", v))[0] >> 16 for v in values]
        tensors[name] = dtype, shape, struct.pack(f"<{len(values)}{FORMS[dtype]}", *values)
    return tensors


def header_of(tensors, metadata=None):
    """The header of a file with these tensors, one after the other."""
    header, offset = {} if metadata is None else {"__metadata__": metadata}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    return header


def file_of(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def safetensors(tensors, metadata=None):
    return file_of(header_of(tensors, metadata), b"".join(data for _, _, data in tensors.values()))


def write_json(path, value):
    path.write_text(json.dumps(value))


def write_folder(path, c=CONFIG, tensors=None, shards=1, generation=None):
    """Write a folder of these tensors, or of random ones -> its path."""
    path.mkdir(exist_ok=True)
    write_json(path / "config.json", c)
    if generation is not None:
        write_json(path / "generation_config.json", generation)
    tensors = random_tensors(c) if tensors is None else tensors
    if shards == 1:
        (path / "model.safetensors").write_bytes(safetensors(tensors, {"format": "pt"}))
        return str(path)
    weight_map, names = {}, sorted(tensors)
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        (path / file).write_bytes(safetensors(part))
        weight_map |= dict.fromkeys(part, file)
    write_json(path / "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": weight_map})
    return str(path)


def opened(path):
    return contextlib.closing(Folder(str(path)))


def refusal(path):
    """The one line with which a folder is refused."""
    with pytest.raises((ValueError, OSError)) as error:
        Folder(str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


# ----------------------------------------------------------------------------
# Numbers of 16 bits


def by_definition(code, exponent_bits, fraction_bits):
    """What a code of IEEE 754's kind stands for."""
    sign = -1.0 if code >> 15 else 1.0
    exponent = code >> fraction_bits & 2**exponent_bits - 1
    fraction = (code & 2**fraction_bits - 1) / 2**fraction_bits
    bias = 2 ** (exponent_bits - 1) - 1
    if exponent == 2**exponent_bits - 1:
        return math.nan if fraction else sign * math.inf
    if exponent == 0:
        return sign * math.ldexp(fraction, 1 - bias)
    return sign * math.ldexp(1 + fraction, exponent - bias)


PARTS = {"BF16": (8, 7), "F16": (5, 10)}


@pytest.mark.parametrize("dtype", PARTS)
def test_every_code_of_16_bits_is_widened_exactly(dtype):
    values = [by_definition(code, *PARTS[dtype]) for code in range(2**16)]
    wide = float32_bytes(dtype, struct.pack("<65536H", *range(2**16)))
    for got in table(dtype), struct.unpack("<65536f", wide):
        assert len(got) == 2**16
        for code, value in enumerate(values):
            assert struct.pack("d", got[code]) == struct.pack("d", value) or got[code] != got[code] != value != value


# ----------------------------------------------------------------------------
# Rows

TENSORS = {"embedding": EMBEDDING, "rms_att": "model.layers.{}.input_layernorm.weight", "wq": Q, "wk": K,
           "wv": "model.layers.{}.self_attn.v_proj.weight", "wo": "model.layers.{}.self_attn.o_proj.weight",
           "rms_ffn": "model.layers.{}.post_attention_layernorm.weight", "w1": "model.layers.{}.mlp.gate_proj.weight",
           "w2": "model.layers.{}.mlp.down_proj.weight", "w3": "model.layers.{}.mlp.up_proj.weight",
           "rms_final": "model.norm.weight", "classifier": HEAD}


def rows_by_definition(tensors, name, layer, hs):
    """A tensor's rows in run.c's order, number by number."""
    dtype, shape, data = tensors[TENSORS[name].format(layer)]
    numbers = struct.unpack(f"<{math.prod(shape)}{FORMS[dtype]}", data)
    if dtype == "BF16":
        numbers = [by_definition(code, *PARTS[dtype]) for code in numbers]
    columns = shape[-1]
    rows = [tuple(numbers[i:i + columns]) for i in range(0, len(numbers), columns)]
    if name not in ("wq", "wk"):
        return rows
    turned = [None] * len(rows)
    for head in range(len(rows) // hs):
        for i in range(hs // 2):
            turned[head * hs + 2 * i] = rows[head * hs + i]
            turned[head * hs + 2 * i + 1] = rows[head * hs + i + hs // 2]
    return turned


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("hs", [6, 4])
@pytest.mark.parametrize("dtype", FORMS)
def test_any_range_of_rows_is_that_of_the_definition(tmp_path, dtype, hs, shards):
    c = {**CONFIG, "head_dim": hs}
    tensors = random_tensors(c, dtype)
    with opened(write_folder(tmp_path, c, tensors, shards)) as folder:
        assert folder.config.head_size == hs
        for name, layer in in_tree_order(folder.config):
            wanted = rows_by_definition(tensors, name, layer, hs)
            assert folder.tensors[name][1:] == (len(wanted), len(wanted[0]))
            assert folder.rows(name, layer) == wanted
            for first in range(len(wanted)):
                for last in range(first + 1, len(wanted) + 1):
                    assert folder.rows(name, layer, first, last) == wanted[first:last]


@pytest.mark.parametrize("dtype", FORMS)
def test_rows_of_the_tree_are_the_rows_as_float32(tmp_path, dtype, monkeypatch):
    tensors = random_tensors(CONFIG, dtype)
    with opened(write_folder(tmp_path, CONFIG, tensors)) as folder:
        wanted = [bits(row) for name, layer in in_tree_order(folder.config)
                  for row in rows_by_definition(tensors, name, layer, HEAD_SIZE)]
        assert list(folder.tree_rows()) == wanted
        monkeypatch.setattr("llama2_py.engine.huggingface.CHUNK", 30)  # two rows and a half
        monkeypatch.setattr("llama2_py.engine.huggingface.PIECE", 100)
        assert list(folder.tree_rows()) == wanted


def test_types_may_differ_from_tensor_to_tensor_and_from_what_the_config_says(tmp_path):
    tensors = random_tensors(CONFIG, "F16") | {Q.format(1): random_tensors(CONFIG, "F32")[Q.format(1)],
                                               HEAD: random_tensors(CONFIG, "BF16")[HEAD]}
    with opened(write_folder(tmp_path, {**CONFIG, "torch_dtype": "float64"}, tensors)) as folder:
        for name, layer in in_tree_order(folder.config):
            assert folder.rows(name, layer) == rows_by_definition(tensors, name, layer, HEAD_SIZE)
        shared = {name: folder.is_shared(name) for name in folder.tensors}
        assert [name for name in shared if not shared[name]] == ["wq"]


@pytest.mark.parametrize("dtype", PARTS)
def test_rows_of_16_bits_refer_to_the_floats_of_one_table(tmp_path, dtype):
    known = set(map(id, table(dtype)))
    with opened(write_folder(tmp_path, CONFIG, random_tensors(CONFIG, dtype))) as folder:
        assert {id(weight) for row in folder.rows("wq", 0) for weight in row} <= known
        assert {id(weight) for row in folder.rows("w1", 1) for weight in row} <= known


@pytest.mark.parametrize("dtype", FORMS)
def test_a_matrix_of_one_column_has_rows_of_one_number(tmp_path, dtype):
    c = {**CONFIG, "intermediate_size": 1}
    tensors = random_tensors(c, dtype)
    with opened(write_folder(tmp_path, c, tensors)) as folder:
        assert folder.rows("w2", 1) == rows_by_definition(tensors, "w2", 1, HEAD_SIZE)


WEIGHTS_THAT_ARE_NONE = {"F32": [b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff"],
                         "BF16": [b"\xc0\x7f", b"\x80\x7f", b"\x80\xff"],
                         "F16": [b"\0\x7e", b"\0\x7c", b"\0\xfc"]}


@pytest.mark.parametrize("dtype", FORMS)
def test_a_weight_that_is_not_finite_is_refused_with_its_tensor_named(tmp_path, dtype):
    for i, (tensor, (_, shape, data)) in enumerate(random_tensors(CONFIG, dtype).items()):
        bad = WEIGHTS_THAT_ARE_NONE[dtype][i % 3]
        tensors = random_tensors(CONFIG, dtype) | {tensor: (dtype, shape, data[:-len(bad)] + bad)}
        with opened(write_folder(tmp_path, CONFIG, tensors)) as folder:
            for name, layer in in_tree_order(folder.config):
                if TENSORS[name].format(layer) != tensor:
                    folder.rows(name, layer)
                    continue
                with pytest.raises(ValueError) as error:
                    folder.rows(name, layer)
                assert str(error.value) == f"{tmp_path}/model.safetensors: {tensor} holds a weight that is not finite"
                folder.rows(name, layer, check=False)


# ----------------------------------------------------------------------------
# A folder and a file of the same model


def as_folder(path, checkpoint):
    """Write a checkpoint of llama2.c as a folder, as a converter would."""
    c, tensors = checkpoint.config, {}
    for name, layer in in_tree_order(c):
        rows = checkpoint.rows(name, layer)
        shape = [len(rows[0])] if name.startswith("rms") else [len(rows), len(rows[0])]
        if name in ("wq", "wk"):
            heads = [rows[i:i + c.head_size] for i in range(0, len(rows), c.head_size)]
            rows = [row for head in heads for row in head[0::2] + head[1::2]]
        tensors[TENSORS[name].format(layer)] = "F32", shape, b"".join(map(bits, rows))
    fields = {**CONFIG, "hidden_size": c.dim, "intermediate_size": c.hidden_dim, "num_hidden_layers": c.n_layers,
              "num_attention_heads": c.n_heads, "num_key_value_heads": c.n_kv_heads, "vocab_size": c.vocab_size,
              "max_position_embeddings": c.seq_len, "tie_word_embeddings": c.shared_classifier}
    return write_folder(path, fields, tensors)


def logits_of(checkpoint, arithmetic, unpacked):
    shard = Shard(checkpoint, arithmetic, llama2.forward, 0, 1, unpacked)
    return [logits.tobytes() for _, logits in Team().run(shard, [1, 5, 9, 279], 0, 0, False)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_folder_and_a_file_of_one_model_have_one_config_weights_root_and_logits(files, tmp_path, shape):
    with contextlib.closing(Checkpoint(files[shape])) as file, opened(as_folder(tmp_path, file)) as folder:
        assert folder.config.described() == file.config.described() and folder.config.eos == file.config.eos
        assert {name: place[1:] for name, place in folder.tensors.items()} == {
            name: place[1:] for name, place in file.tensors.items() if name != "rope_tables"}
        assert (weights_root(folder.config.described(), folder.tree_rows())
                == weights_root(file.config.described(), file.tree_rows()))
        for arithmetic, unpacked in (Exact, True), (Exact, False), (C, True):
            assert logits_of(folder, arithmetic, unpacked) == logits_of(file, arithmetic, True)


@pytest.mark.parametrize("dtype", PARTS)
def test_16_bit_weights_give_the_logits_of_the_same_weights_in_32_bits(tmp_path, dtype):
    c = {**CONFIG, "vocab_size": 280}
    narrow = random_tensors(c, dtype)
    wide = {name: ("F32", shape, float32_bytes(dtype, data)) for name, (_, shape, data) in narrow.items()}
    with (opened(write_folder(tmp_path / "narrow", c, narrow)) as one,
          opened(write_folder(tmp_path / "wide", c, wide)) as other):
        assert logits_of(one, Exact, True) == logits_of(other, Exact, True) == logits_of(one, Exact, False)
        assert list(one.tree_rows()) == list(other.tree_rows())


@pytest.mark.parametrize("shards", [1, 3])
def test_the_hash_is_that_of_what_sha256sum_prints(tmp_path, shards):
    path = write_folder(tmp_path, shards=shards)
    names = ["config.json", *sorted(name for name in os.listdir(path) if name.endswith(".safetensors"))]
    assert len(names) == shards + 1
    lines = [f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (tmp_path / "tokenizer.json").write_text("{}")
    if shards > 1:
        (tmp_path / "other.safetensors").write_bytes(b"which the index does not name")
    with opened(path) as folder:
        assert folder.sha256() == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_a_single_file_goes_before_an_index(tmp_path):
    write_folder(tmp_path, shards=2)
    write_folder(tmp_path)
    with opened(tmp_path) as folder:
        assert list(folder.files) == ["model.safetensors"]


# ----------------------------------------------------------------------------
# config.json

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None}

ACCEPTED = [  # what stands in config.json beside CONFIG, and what differs from Config's defaults
    ({}, {}),
    ({"num_key_value_heads": None}, {"n_kv_heads": 2}),
    ({"head_dim": None}, {}),
    ({"head_dim": 6}, {"head_dim": 6}),
    ({"head_dim": 4}, {"head_dim": 4}),
    ({"hidden_size": 13, "head_dim": 6}, {"dim": 13, "head_dim": 6}),
    ({"tie_word_embeddings": True}, {"shared_classifier": True}),
    ({"rms_norm_eps": 1e-6}, {"norm_epsilon": 1e-6}),
    ({"rope_theta": 500000}, {"rope_theta": 500000.0}),
    ({"rope_theta": 1e5, "rope_scaling": None}, {"rope_theta": 1e5}),
    ({"rope_scaling": {"type": "linear", "factor": 2}}, {"rope_scaling": {"factor": 2.0}}),
    ({"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2.5}}, {"rope_scaling": {"factor": 2.5}}),
    ({"rope_scaling": {"type": "default"}}, {}),
    ({"rope_scaling": {}}, {}),
    ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
     {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}, {"rope_theta": 1e5}),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e5, "factor": None}}, {"rope_theta": 1e5}),
    ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}, "rope_scaling": None},
     {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
    ({"rope_theta": 1e5, "rope_parameters": {"rope_type": "default"}}, {"rope_theta": 1e5}),
    ({"rope_theta": 100000, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}, {"rope_theta": 1e5}),
    ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0, "partial_rotary_factor": 1.0}},
     {"rope_scaling": {"factor": 4.0}}),
    ({"bos_token_id": 0, "eos_token_id": 19}, {"bos": 0, "eos": (19,)}),
    ({"eos_token_id": [3, 2, 3]}, {"eos": (3, 2)}),
    ({"attention_bias": False, "mlp_bias": False, "hidden_act": "silu", "quantization_config": None,
      "partial_rotary_factor": 1.0, "pretraining_tp": 1, "use_cache": True, "pad_token_id": -1}, {}),
    ({**MISTRAL}, {}), ({**MISTRAL, "sliding_window": 9}, {"seq_len": 9}),
    ({**MISTRAL, "sliding_window": 4096}, {}),
    ({"sliding_window": 4}, {}),  # a key that a Llama does not have
]


@pytest.mark.parametrize("more, different", ACCEPTED)
def test_a_config_says_what_it_says_to_transformers(tmp_path, more, different):
    c = {**CONFIG, **more}
    c = {key: value for key, value in c.items() if value is not None or key == "sliding_window"}
    path = write_folder(tmp_path, c)
    write_json(tmp_path / "config.json", {**CONFIG, **more})
    with opened(path) as folder:
        usual = dict(dim=12, hidden_dim=10, n_layers=2, n_heads=2, n_kv_heads=1, vocab_size=20, seq_len=16,
                     shared_classifier=False)
        assert folder.config == Config(**{**usual, **different})
        assert type(folder.config.rope_theta) is type(folder.config.norm_epsilon) is float


NUMBERS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
           "max_position_embeddings")
REFUSED = [  # what stands in config.json beside CONFIG, and how the message goes on after the file's name
    *[({key: None}, f"{key} is null, must be an integer from 1 to 16777215") for key in NUMBERS],
    *[({key: value}, f"{key} is {shown}, must be an integer from 1 to 16777215")
      for key in (*NUMBERS, "num_key_value_heads", "head_dim")
      for value, shown in [(True, "true"), (2.0, "2.0"), ("2", '"2"'), (0, "0"), (-1, "-1"), (2**24, "16777216"),
                           ([2], "[2]")]],
    ({"architectures": ["GPT2LMHeadModel"]}, 'architectures is ["GPT2LMHeadModel"], must be ["LlamaForCausalLM"] or '
                                             '["MistralForCausalLM"]'),
    ({"architectures": None}, "architectures is null, must be"),
    ({"architectures": []}, "architectures is [], must be"),
    ({"architectures": "LlamaForCausalLM"}, 'architectures is "LlamaForCausalLM", must be'),
    ({"architectures": [["LlamaForCausalLM"]]}, 'architectures is [["LlamaForCausalLM"]], must be'),
    ({"model_type": "qwen2"}, 'model_type is "qwen2", must be "llama"'),
    ({"hidden_act": "gelu"}, 'hidden_act is "gelu", must be "silu"'),
    ({"hidden_act": 1}, 'hidden_act is 1, must be "silu"'),
    ({"attention_bias": True}, "attention_bias is true, must be false"),
    ({"attention_bias": 0}, "attention_bias is 0, must be false"),
    ({"mlp_bias": True}, "mlp_bias is true, must be false"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, must be 1.0"),
    ({"partial_rotary_factor": True}, "partial_rotary_factor is true, must be 1.0"),
    ({"quantization_config": {"bits": 4}}, 'quantization_config is {"bits": 4}, must be null'),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1, must be true or false"),
    ({"rms_norm_eps": None}, "rms_norm_eps is null, must be a number from 5.42101e-20 to 1.84467e+19"),
    ({"rms_norm_eps": 5e-20}, "rms_norm_eps is 5e-20, must be a number from 5.42101e-20 to 1.84467e+19"),
    ({"rope_theta": 0.99}, "rope_theta is 0.99, must be a number from 1 to 1.84467e+19"),
    ({"rope_parameters": {"rope_theta": 0.5}}, "rope_parameters.rope_theta is 0.5, must be a number from 1 to"),
    *[({key: value}, f"{key} is {shown}, must be a number from ") for key in ("rms_norm_eps", "rope_theta")
      for value, shown in [(0, "0"), (-1e-5, "-1e-05"), ("1e-5", '"1e-5"'), (True, "true"),
                           (1e30, "1e+30"), ([1], "[1]")]],
    ({"head_dim": 5}, "head_dim is 5, must be even"),
    ({"hidden_size": 10}, "hidden_size is 10, must be num_attention_heads, 2, times an even number, not 5"),
    ({"hidden_size": 13}, "hidden_size is 13, must be a multiple of num_attention_heads, 2"),
    ({"num_attention_heads": 4, "num_key_value_heads": 3, "head_dim": 6},
     "num_attention_heads is 4, must be a multiple of num_key_value_heads, 3"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}},
     'rope_scaling.type is "dynamic", must be "default" or "linear" or "llama3"'),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, 'rope_scaling.rope_type is "yarn", must be'),
    ({"rope_scaling": {"rope_type": ["llama3"]}}, 'rope_scaling.rope_type is ["llama3"], must be'),
    ({"rope_scaling": {"rope_type": "linear", "type": "default", "factor": 2.0}},
     'rope_scaling.type is "default", must be rope_type, "linear"'),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing, must be a number from 1 to"),
    ({"rope_scaling": {"factor": 2.0}}, 'rope_scaling.factor is 2.0, must be missing, where the type is "default"'),
    ({"rope_scaling": {"type": "linear", "factor": 0.9}}, "rope_scaling.factor is 0.9, must be a number from 1 to"),
    ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 1e-30}},
     "rope_scaling.low_freq_factor is 1e-30, must be a number from 5.4"),
    ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4 - 1e-9}},
     "rope_scaling.low_freq_factor is 3.999999999, must be less than high_freq_factor, 4.0"),
    ({"rope_scaling": {"type": "linear", "factor": 2, "attention_factor": 0.1}},
     'rope_scaling.attention_factor is 0.1, must be missing, where the type is "linear"'),
    ({"rope_scaling": [2.0]}, "rope_scaling is [2.0], must be an object of JSON"),
    ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0}},
     "rope_scaling.low_freq_factor is 4.0, must be less than high_freq_factor, 4.0"),
    ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 8192.0}},
     "rope_scaling.original_max_position_embeddings is 8192.0, must be an integer"),
    ({"rope_parameters": {"full_attention": {"rope_type": "default"}}},
     'rope_parameters.full_attention is {"rope_type": "default"}, must be missing'),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}},
     "rope_parameters.partial_rotary_factor is 0.25, must be 1.0"),
    ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e5}},
     "rope_parameters.rope_theta is 100000.0, must be rope_theta outside, 10000.0"),
    ({"rope_parameters": {"rope_theta": 1e5}, "rope_scaling": {"type": "linear", "factor": 2.0}},
     'rope_scaling is {"type": "linear", "factor": 2.0}, must be null beside rope_parameters'),
    ({"bos_token_id": None}, "bos_token_id is null, must be an integer from 0 to 19"),
    ({"bos_token_id": 20}, "bos_token_id is 20, must be an integer from 0 to 19"),
    ({"bos_token_id": [1]}, "bos_token_id is [1], must be an integer from 0 to 19"),
    *[({"eos_token_id": value}, f"eos_token_id is {shown}, must be a token of the vocabulary of 20, or some")
      for value, shown in [(None, "null"), (20, "20"), ([], "[]"), ([2, 20], "[2, 20]"), ([True], "[true]"),
                           (-1, "-1"), (2.0, "2.0"), ([[2]], "[[2]]")]],
    ({**MISTRAL, "num_key_value_heads": None}, "num_key_value_heads is null, must be an integer"),
    ({**MISTRAL, "sliding_window": 0}, "sliding_window is 0, must be an integer"),
    ({**MISTRAL, "model_type": "llama"}, 'model_type is "llama", must be "mistral"'),
]


@pytest.mark.parametrize("more, message", REFUSED)
def test_a_config_that_is_not_supported_is_refused_by_its_key(tmp_path, more, message):
    write_folder(tmp_path)
    write_json(tmp_path / "config.json", {**CONFIG, **more})
    assert refusal(tmp_path).startswith(f"{tmp_path}/config.json: {message}")


@pytest.mark.parametrize("key", [*NUMBERS, "rms_norm_eps", "architectures", "bos_token_id", "eos_token_id"])
def test_a_key_that_is_missing_is_named(tmp_path, key):
    write_folder(tmp_path)
    write_json(tmp_path / "config.json", {name: value for name, value in CONFIG.items() if name != key})
    assert refusal(tmp_path).startswith(f"{tmp_path}/config.json: {key} is missing, must be ")


def test_a_mistral_must_say_whether_it_has_a_window(tmp_path):
    write_folder(tmp_path)
    write_json(tmp_path / "config.json", {**CONFIG, "architectures": ["MistralForCausalLM"], "model_type": "mistral"})
    assert refusal(tmp_path).startswith(f"{tmp_path}/config.json: sliding_window is missing, must be ")


@pytest.mark.parametrize("generation, bos, eos", [
    ({}, 1, (2,)), ({"bos_token_id": 5, "eos_token_id": [7, 8]}, 5, (7, 8)), ({"eos_token_id": 4}, 1, (4,)),
    ({"bos_token_id": None, "eos_token_id": None}, 1, (2,))])
def test_generation_config_names_the_tokens_where_it_does(tmp_path, generation, bos, eos):
    with opened(write_folder(tmp_path, generation=generation)) as folder:
        assert (folder.config.bos, folder.config.eos) == (bos, eos)


def test_tokens_that_generation_config_cannot_mean_are_refused(tmp_path):
    path = f"{write_folder(tmp_path, generation={'eos_token_id': [2, 99]})}/generation_config.json"
    assert refusal(tmp_path) == f"{path}: eos_token_id is [2, 99], must be a token of the vocabulary of 20, or some"
    write_folder(tmp_path, generation={"bos_token_id": 1.0})
    assert refusal(tmp_path) == f"{path}: bos_token_id is 1.0, must be an integer from 0 to 19"
    write_folder(tmp_path, generation=[])
    assert refusal(tmp_path) == f"{path}: is [], must be an object of JSON"


def test_a_header_says_of_a_config_only_what_differs_from_llama2_c():
    shape = dict(dim=12, hidden_dim=10, n_layers=2, n_heads=2, n_kv_heads=1, vocab_size=20, seq_len=16,
                 shared_classifier=True)
    assert list(Config(**shape).described().items()) == list(shape.items())
    assert Config(**shape, head_dim=6).described() == shape
    every = {"eos": (3,), "bos": 0, "rope_scaling": {"factor": 2.0}, "rope_theta": 1e5, "norm_epsilon": 1e-6}
    assert list(Config(**shape, head_dim=4, **every).described().items()) == [
        *shape.items(), ("head_size", 4), ("norm_epsilon", 1e-6), ("rope_theta", 1e5),
        ("rope_scaling", {"factor": 2.0}), ("bos", 0), ("eos", [3])]
    assert Config(**{**shape, "dim": 13}, head_dim=6).described()["head_size"] == 6


# ----------------------------------------------------------------------------
# JSON


@pytest.mark.parametrize("text, message", [
    (b"", "cannot be read as JSON: "), (b"{", "cannot be read as JSON: "), (b"{} {}", "cannot be read as JSON: "),
    (b"[1]", "is [1], must be an object of JSON"), (b"7", "is 7, must be"),
    (b'{"a": 1, "b": 2, "a": 1}', "cannot be read as JSON: the key a is there twice"),
    (b'{"a": {"b": 1, "b": 2}}', "cannot be read as JSON: the key b is there twice"),
    (b'{"a": NaN}', "cannot be read as JSON: NaN is not"),
    (b'{"a": -Infinity}', "cannot be read as JSON: -Infinity is not"),
    (b"\xff\xfe{\0}\0", "byte 0 is not UTF-8"), (b"\xef\xbb\xbf{}", "cannot be read as JSON: "),
    (b'{"a": ' + b"9" * 10**5 + b"}", "cannot be read as JSON: "),
    (b"[" * 10**5, "is nested too deeply"), (b'{"a":' * 10**5, "is nested too deeply"),
    (b"[" * 2**21, "holds about 2097152 values, must be at most 1048576"),
    (b'{"a":[' + b"1," * 2**21, "holds about 2097154 values, must be at most")])
def test_json_that_is_not_an_object_with_one_value_a_key_is_refused(text, message):
    with pytest.raises(ValueError) as error:
        read_object("some.json", text)
    assert str(error.value).startswith(f"some.json: {message}") and "\n" not in str(error.value)


# ----------------------------------------------------------------------------
# safetensors

PAIR = {"a": ("F32", [2, 3], bytes(24)), "b": ("BF16", [5], bytes(10))}


def changed(name, **fields):
    """The header of PAIR with other fields of a tensor, and its bytes."""
    header = header_of(PAIR)
    header[name] |= fields
    return header, bytes(34)


def without(field):
    header, data = changed("a")
    del header["a"][field]
    return header, data


BAD_FILES = [
    (b"", "0 bytes are too few for the length of a header, 8"), (bytes(7), "7 bytes are too few"),
    (bytes(8), "the header's first byte is [], must be [123], a brace"),
    (struct.pack("<Q", 2**64 - 1) + b"{}", "the header's length is 18446744073709551615, must be at most 2"),
    (struct.pack("<Q", 3) + b"{}", "the header's length is 3, must be at most 2"),
    (struct.pack("<Q", 2**24 + 1) + bytes(2**24 + 1), "the header's length is 16777217, must be at most 16777216"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 13\n", "is a pointer of Git LFS, must be"),
    (file_of(b"[]", b""), "the header's first byte is [91], must be [123], a brace"),
    (file_of(b" {}", b""), "the header's first byte is [32], must be [123], a brace"),
    (file_of(b"{", b""), "the header: cannot be read as JSON: "),
    (file_of(b'{"a":1,"a":1}', b""), "the header: cannot be read as JSON: the key a is there twice"),
    (file_of({"__metadata__": []}, b""), "__metadata__ is [], must be an object of JSON"),
    (file_of({"__metadata__": {"a": 1}}, b""), "__metadata__.a is 1, must be a string"),
    (file_of({"a": []}, b""), "a is [], must be an object of dtype, shape and data_offsets"),
    (file_of({"a": {}}, b""), "a is {}, must be an object of dtype, shape and data_offsets"),
    *[(file_of(*without(field)), "a is {") for field in ("dtype", "shape", "data_offsets")],
    (file_of(*changed("a", more=1)), "a is {"),
    (file_of(*changed("a", dtype="f32")), "a.dtype is f32, must be one of "),
    (file_of(*changed("a", dtype=4)), "a.dtype is 4, must be one of "),
    (file_of(*changed("a", dtype=["F32"])), 'a.dtype is ["F32"], must be one of '),
    *[(file_of(*changed("a", shape=shape)), f"a.shape is {shown}")
      for shape, shown in [(6, "6"), ([6.0], "[6.0]"), ([-6], "[-6]"), ([True, 6], "[true, 6]"), ([2**63], "[92233"),
                           ([1] * 65 + [6], "[1, 1"), ("6", "6"), (None, "null")]],
    *[(file_of(*changed("a", data_offsets=offsets)), f"a.data_offsets is {shown}")
      for offsets, shown in [(24, "24"), ([24], "[24]"), ([0, 24, 34], "[0, 24, 34]"), ([0.0, 24], "[0.0, 24]"),
                             ([False, 24], "[false, 24]"), ([-1, 24], "[-1, 24]"), ({"0": 24}, "{")]],
    (file_of(*changed("a", data_offsets=[24, 0])), "a.data_offsets is [24, 0], must be in order, and within"),
    (file_of(*changed("b", data_offsets=[24, 35])), "b.data_offsets is [24, 35], must be in order, and within the "
                                                    "file's 34 bytes of tensors"),
    (file_of(*changed("a", data_offsets=[0, 20])), "a.data_offsets is [0, 20], must be 24 bytes apart, for F32 [2, 3]"),
    (file_of(*changed("a", shape=[2, 4])), "a.data_offsets is [0, 24], must be 32 bytes apart"),
    (file_of(*changed("a", shape=[2**62, 2**62])), "a.data_offsets is [0, 24], must be"),
    (file_of(*changed("a", dtype="F64")), "a.data_offsets is [0, 24], must be 48 bytes apart"),
    (file_of(*changed("b", data_offsets=[23, 33])), "the offset of b is 23, must be 24, where a ends"),
    (file_of(*changed("b", data_offsets=[0, 10])), "the offset of a is 0, must be 10, where b ends"),
    (file_of({"b": header_of(PAIR)["b"]}, bytes(34)), 'the offset of b is 24, must be 0, where the header ends'),
    (file_of(header_of(PAIR), bytes(35)), "the file's size is 172, must be 171 bytes, where b ends"),
    (file_of(header_of(PAIR), bytes(33)), "b.data_offsets is [24, 34], must be in order, and within"),
    (file_of({}, b"\0"), "the file's size is 11, must be 10 bytes, where the header ends"),
]


@pytest.mark.parametrize("data, message", BAD_FILES, ids=range(len(BAD_FILES)))
def test_a_file_that_is_not_as_safetensors_has_it_is_refused(tmp_path, data, message):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError) as error:
        TensorFile(str(path))
    assert str(error.value).startswith(f"{path}: {message}") and "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [b"", b"   ", b"\n\t "])
def test_a_header_may_end_in_white_space_and_have_keys_in_any_order(tmp_path, suffix):
    header = header_of({"empty": ("I64", [3, 0], b""), **PAIR, "none": ("F16", [0], b""), "one": ("U8", [], b"7")})
    text = json.dumps(dict(reversed(header.items()))).encode() + suffix
    (tmp_path / "a").write_bytes(file_of(text, bytes(34) + b"7"))
    with contextlib.closing(TensorFile(str(tmp_path / "a"))) as file:
        begin = 8 + len(text)
        assert dict(sorted(file.tensors.items())) == {
            "a": ("F32", (2, 3), begin, begin + 24), "b": ("BF16", (5,), begin + 24, begin + 34),
            "empty": ("I64", (3, 0), begin, begin), "none": ("F16", (0,), begin + 34, begin + 34),
            "one": ("U8", (), begin + 34, begin + 35)}


def test_numbers_have_as_many_bytes_as_their_types_names_say():
    for dtype, size in SIZES.items():
        bits = re.search("[0-9]+", dtype)
        assert 8 * size == (int(bits[0]) if bits else 8), dtype


entries = st.dictionaries(st.text(max_size=5).filter("__metadata__".__ne__), st.tuples(
    st.sampled_from(sorted(SIZES)), st.lists(st.integers(0, 3), max_size=3)), max_size=5)


def with_bytes(layout):
    return {name: (dtype, shape, bytes(SIZES[dtype] * math.prod(shape))) for name, (dtype, shape) in layout.items()}


@examples(50)
@given(entries, st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2))
def test_any_file_of_tensors_is_read_as_it_was_written(tmp_path_factory, layout, metadata):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    data = safetensors(with_bytes(layout), metadata)
    path.write_bytes(data)
    with contextlib.closing(TensorFile(str(path))) as file:
        assert {name: (dtype, list(shape)) for name, (dtype, shape, _, _) in file.tensors.items()} == layout
        assert sum(stop - start for _, _, start, stop in file.tensors.values()) == len(data) - 8 - struct.unpack_from(
            "<Q", data)[0]


@examples(50)
@given(entries.filter(bool), st.data())
def test_tensors_that_move_overlap_or_leave_a_hole_and_are_refused(tmp_path_factory, layout, data):
    tensors = with_bytes(layout)
    header = header_of(tensors)
    name = data.draw(st.sampled_from(sorted(layout)))
    by = data.draw(st.integers(-9, 9).filter(bool))
    header[name]["data_offsets"] = [offset + by for offset in header[name]["data_offsets"]]
    path = tmp_path_factory.getbasetemp() / "moved.safetensors"
    path.write_bytes(file_of(header, b"".join(content for _, _, content in tensors.values())))
    if tensors[name][2]:
        with pytest.raises(ValueError, match="moved.safetensors: "):
            TensorFile(str(path))


# ----------------------------------------------------------------------------
# The folder


def test_a_folder_without_its_files_is_refused_with_them_named(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        Folder(str(tmp_path))
    assert error.value.filename == f"{tmp_path}/config.json"
    write_json(tmp_path / "config.json", CONFIG)
    assert refusal(tmp_path).startswith(
        f"{tmp_path}: holds neither model.safetensors nor model.safetensors.index.json")


def test_a_shard_that_is_missing_is_named(tmp_path):
    write_folder(tmp_path, shards=3)
    os.remove(tmp_path / "model-00002-of-00003.safetensors")
    assert refusal(tmp_path) == (f"{tmp_path}/model.safetensors.index.json: weight_map names "
                                 "model-00002-of-00003.safetensors, which is not in the folder")


@pytest.mark.parametrize("weight_map, message", [
    (None, "weight_map is null, must be an object"), ({}, "weight_map is {}, must be an object"),
    (["a"], 'weight_map is ["a"], must be an object'),
    *[({"a": name}, "weight_map.a is ") for name in (
        1, None, ["x.safetensors"], "", ".", "..", "../x.safetensors", "/x.safetensors", "a/x.safetensors",
        "a\\x.safetensors", "x.bin", ".safetensors", "x.safetensors\n", "x\0.safetensors", "é.safetensors")]])
def test_an_index_that_is_none_is_refused(tmp_path, weight_map, message):
    write_folder(tmp_path, shards=2)
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": weight_map})
    assert refusal(tmp_path).startswith(f"{tmp_path}/model.safetensors.index.json: {message}")


def test_an_index_that_is_wrong_about_a_tensor_is_refused(tmp_path):
    write_folder(tmp_path, shards=2)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    right = index["weight_map"][HEAD]
    index["weight_map"][HEAD] = next(name for name in index["weight_map"].values() if name != right)
    write_json(path, index)
    assert refusal(tmp_path).startswith(f"{path}: weight_map.{HEAD} is {index['weight_map'][HEAD]}, which does not")
    index["weight_map"] |= {HEAD: right, "more": right}
    write_json(path, index)
    assert refusal(tmp_path).startswith(f"{path}: weight_map.more is {right}, which does not hold")


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    tensors = random_tensors()
    write_folder(tmp_path, tensors=tensors, shards=2)
    second = {name: tensors[name] for name in [*sorted(tensors)[1::2], sorted(tensors)[0]]}
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(safetensors(second))
    assert refusal(tmp_path) == (f"{tmp_path}/model-00002-of-00002.safetensors: holds {HEAD}, and so does "
                                 f"{tmp_path}/model-00001-of-00002.safetensors")


@pytest.mark.parametrize("name", model_shapes(CONFIG))
def test_a_tensor_that_is_missing_or_of_another_shape_or_type_is_named(tmp_path, name):
    tensors = random_tensors()
    dtype, shape, data = tensors.pop(name)
    write_folder(tmp_path, tensors=tensors)
    assert refusal(tmp_path) == f"{tmp_path}: {name} is missing from model.safetensors"
    for wrong in [shape[0] // 2, *shape[1:], 2], [*shape[:-1], shape[-1] // 2, 2], [math.prod(shape)]:
        if wrong != shape:
            write_folder(tmp_path, tensors={**tensors, name: (dtype, wrong, data)})
            assert refusal(tmp_path) == (f"{tmp_path}/model.safetensors: {name}.shape is {wrong}, must be {shape} by "
                                         "config.json")
    write_folder(tmp_path, tensors={**tensors, name: ("I32", shape, data)})
    assert refusal(tmp_path) == f"{tmp_path}/model.safetensors: {name}.dtype is I32, must be F32 or BF16 or F16"


@pytest.mark.parametrize("name", ["lm_head.bias", "model.layers.0.self_attn.q_proj.bias", "model.layers.0.x",
                                  "model.layers.2.input_layernorm.weight",
                                  "model.layers.0.self_attn.q_proj.weight_scale"])
def test_a_tensor_for_which_the_model_has_no_place_is_refused(tmp_path, name):
    write_folder(tmp_path, tensors={**random_tensors(), name: ("F32", [1], bytes(4))})
    assert refusal(tmp_path) == (f"{tmp_path}/model.safetensors: holds {name}, for which the model of config.json has "
                                 "no place")


def test_buffers_of_old_versions_are_left_out_as_transformers_does(tmp_path):
    names = ["model.rotary_emb.inv_freq", *[f"model.layers.{l}.self_attn.rotary_emb.inv_freq" for l in (0, 1)]]
    tensors = random_tensors() | dict.fromkeys(names, ("F64", [3], bytes(24)))
    with opened(write_folder(tmp_path, tensors=tensors)) as folder:
        assert len(list(folder.tree_rows())) == sum(shape[0] if len(shape) == 2 else 1
                                                    for shape in model_shapes(CONFIG).values())


TIED = {**CONFIG, "tie_word_embeddings": True}


@pytest.mark.parametrize("stored", [None, "BF16", "F32"])
def test_a_tied_classifier_is_the_embedding_also_where_it_is_stored_again(tmp_path, stored):
    tensors = random_tensors(TIED, "BF16")
    dtype, shape, data = tensors[EMBEDDING]
    if stored is not None:
        tensors[HEAD] = stored, shape, data if stored == dtype else float32_bytes(dtype, data)
    with opened(write_folder(tmp_path, TIED, tensors)) as folder:
        assert folder.rows("classifier") == folder.rows("embedding")
        assert folder.tensors["classifier"] == folder.tensors["embedding"] and folder.is_shared("classifier")
        rows = sum(shape[0] if len(shape) == 2 else 1 for shape in model_shapes(TIED).values())
        assert len(list(folder.tree_rows())) == rows


def test_a_classifier_that_is_to_be_the_embedding_and_is_not_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("llama2_py.engine.huggingface.CHUNK", 30)
    tensors = random_tensors(TIED)
    dtype, shape, data = tensors[EMBEDDING]
    for at in 0, len(data) // 2, len(data) - 1:
        other = data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]
        write_folder(tmp_path, TIED, {**tensors, HEAD: (dtype, shape, other)})
        assert refusal(tmp_path) == (f"{tmp_path}/config.json: tie_word_embeddings is true, must be false where {HEAD} "
                                     f"differs from {EMBEDDING}")
    write_folder(tmp_path, TIED, {**tensors, HEAD: (dtype, [19, 12], data[:-48])})
    assert refusal(tmp_path).startswith(f"{tmp_path}/model.safetensors: {HEAD}.shape is [19, 12], must be [20, 12]")


def test_tensors_are_counted_over_all_shards(tmp_path, monkeypatch):
    write_folder(tmp_path, shards=3)  # 21 tensors
    monkeypatch.setattr("llama2_py.engine.huggingface.MAX_TENSORS", 21)
    with opened(tmp_path) as folder:
        assert sum(len(file.tensors) for file in folder.files.values()) == 21
    monkeypatch.setattr("llama2_py.engine.huggingface.MAX_TENSORS", 13)
    assert refusal(tmp_path) == f"{tmp_path}: holds 14 tensors or more, must be at most 13"


def test_a_config_of_many_layers_is_refused_at_the_first_that_is_missing(tmp_path):
    write_folder(tmp_path)
    write_json(tmp_path / "config.json", {**CONFIG, "num_hidden_layers": 2**24 - 1})
    assert refusal(tmp_path) == f"{tmp_path}: model.layers.2.input_layernorm.weight is missing from model.safetensors"


# Files that change under a run

USED = ["config.json", "generation_config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors"]


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path, shards=2, generation={})
    with opened(tmp_path) as folder:
        yield folder


@pytest.mark.parametrize("name", USED)
@pytest.mark.parametrize("how", ["touch", "replace", "cut"])
def test_a_change_of_any_file_that_is_used_is_noticed(folder, tmp_path, name, how):
    folder.rows("wq", 0)
    folder.check_unchanged()
    path = tmp_path / name
    if how == "touch":
        os.utime(path)
    elif how == "replace":
        (tmp_path / "other").write_bytes(path.read_bytes())
        os.replace(tmp_path / "other", path)
    else:
        os.truncate(path, 1)
    message = f"{path}: the file was changed or replaced while it was being read"
    for use in folder.check_unchanged, lambda: folder.rows("wq", 0), lambda: list(folder.tree_rows()), folder.sha256:
        with pytest.raises(ValueError) as error:
            use()
        assert str(error.value) == message


def test_a_file_that_is_not_used_may_change(folder, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    folder.check_unchanged()


@pytest.mark.parametrize("name", USED)
def test_another_process_must_have_opened_the_same_files(folder, tmp_path, name):
    with opened(tmp_path) as same:
        same.check_unchanged(folder.identity)
    data = (tmp_path / name).read_bytes()
    (tmp_path / "other").write_bytes(data)
    os.replace(tmp_path / "other", tmp_path / name)
    with opened(tmp_path) as other:
        other.check_unchanged()
        with pytest.raises(ValueError, match=f"{name}: the file was changed or replaced"):
            other.check_unchanged(folder.identity)


def test_a_file_that_appears_is_noticed_by_another_process(tmp_path):
    write_folder(tmp_path)
    with opened(tmp_path) as first:
        write_json(tmp_path / "generation_config.json", {"eos_token_id": 3})
        with opened(tmp_path) as second, pytest.raises(ValueError, match="generation_config.json: the file was"):
            second.check_unchanged(first.identity)
    with opened(tmp_path) as first:
        os.remove(tmp_path / "generation_config.json")
        with opened(tmp_path) as second, pytest.raises(ValueError, match="the file was changed"):
            second.check_unchanged(first.identity)


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="counts open files where Linux lists them")
def test_what_is_closed_or_refused_leaves_no_file_open(tmp_path):
    write_folder(tmp_path, shards=2)
    before = len(os.listdir("/proc/self/fd"))
    Folder(str(tmp_path)).close()
    assert len(os.listdir("/proc/self/fd")) == before
    (tmp_path / USED[-1]).write_bytes(bytes(100))
    with pytest.raises(ValueError) as error:  # which keeps the frames, and what they hold
        Folder(str(tmp_path))
    assert "first byte" in str(error.value) and len(os.listdir("/proc/self/fd")) == before


# ----------------------------------------------------------------------------
# Any other bytes

VALUES = [None, True, False, 0, 1, -1, 2, 12, 2**24, 2**63, 2**70, 1.5, 1e999, "", "silu", "F16", [], {}, [0, 4],
          {"type": "linear", "factor": 2.0}, ["LlamaForCausalLM"], "../x", "\ud800", [[]] * 3]


def mutated_value(rng, value):
    """A value of JSON with one change somewhere within."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        result = dict(value)
        if rng.random() < 0.2:
            result[rng.choice(list(value))] = result.pop(key)
        else:
            result[key] = mutated_value(rng, value[key])
        return result
    if isinstance(value, list) and value and rng.random() < 0.7:
        i = rng.randrange(len(value))
        return [*value[:i], *[mutated_value(rng, value[i])] * rng.randrange(3), *value[i + 1:]]
    if type(value) is int and rng.random() < 0.6:
        return value + rng.choice([-8, -4, -2, -1, 1, 2, 4, 8, 2**20])
    return rng.choice(VALUES)


def mutated_bytes(rng, data):
    """Bytes with some of them changed, cut off, or repeated."""
    data = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data)) if data else 0
        kind = rng.randrange(4)
        if kind == 0:
            data[at:at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del data[at:at + rng.choice([1, 2, 40, 10**4])]
        elif kind == 2:
            data[at:at] = rng.choice([b"{", b"[", b'"', b",", b"0", b"\xff", b"-", data[at:at + 30]])
        else:
            data[at:at + 1] = bytes([rng.choice(b'{}[]",:0123456789')])
    return bytes(data)


def mutated_tensors(rng, data):
    """A safetensors file with a change in its header, or anywhere."""
    length, = struct.unpack_from("<Q", data)
    if rng.random() < 0.5:
        return file_of(mutated_value(rng, json.loads(data[8:8 + length])), data[8 + length:])
    if rng.random() < 0.7:
        return file_of(mutated_bytes(rng, data[8:8 + length]), data[8 + length:])
    return mutated_bytes(rng, data)


def mutated_json(rng, data):
    if rng.random() < 0.7:
        return json.dumps(mutated_value(rng, json.loads(data))).encode()
    return mutated_bytes(rng, data)


def whole(folder):
    """What a folder that was accepted must be."""
    rows = 0
    with contextlib.suppress(ValueError):  # a weight that is not finite
        for name, layer in in_tree_order(folder.config):
            _, height, columns = folder.tensors[name]
            assert [len(row) for row in folder.rows(name, layer)] == [columns] * height
    for row in folder.tree_rows():
        assert len(row) % 4 == 0 and row
        rows += 1
    assert rows == sum(folder.tensors[name][1] for name, _ in in_tree_order(folder.config))
    json.dumps(folder.config.described(), allow_nan=False)


def fuzz(path, seed, count):
    """Open folders of which one file was changed at random -> how many were accepted."""
    rng, accepted = random.Random(seed), 0
    single, sharded = path / "single", path / "sharded"
    write_folder(single, tensors=random_tensors(CONFIG, "BF16"), generation={"eos_token_id": 2})
    write_folder(sharded, tensors=random_tensors(CONFIG, "F16"), shards=2)
    targets = [single / "config.json", single / "generation_config.json", single / "model.safetensors",
               sharded / "model.safetensors.index.json", sharded / USED[-1]]
    originals = [target.read_bytes() for target in targets]
    for i in range(count):
        target, original = targets[i % len(targets)], originals[i % len(targets)]
        mutate = mutated_json if target.suffix == ".json" else mutated_tensors
        target.write_bytes(mutate(rng, original))
        try:
            with opened(target.parent) as folder:
                whole(folder)
            accepted += 1
        except (ValueError, OSError) as error:
            assert str(path) in str(error) and "\n" not in str(error)
        target.write_bytes(original)
    return accepted


def test_changed_folders_are_refused_or_whole(tmp_path):
    assert 0 < fuzz(tmp_path, 1, 200) < 100


@pytest.mark.slow
def test_many_changed_folders_are_refused_or_whole(tmp_path):
    assert 0 < fuzz(tmp_path, 2, 20000) < 10000
