"""Tests of folders of Hugging Face with all that a run can be asked for: as with files of llama2.c."""
import contextlib
import json
import shutil

import pytest

import llama2
import plain
from llama2_py import trace_command as tracing
from llama2_py.engine import frequencies
from llama2_py.engine.arithmetic import Exact
from llama2_py.engine.checkpoint import Checkpoint, Config
from llama2_py.engine.rows import unpacked_size
from llama2_py.log import formats
from tests.helpers import bits, command, edit, failure, forge, read_lines, rounded, some
from tests.test_bpe import byte_level, template
from tests.test_huggingface import CONFIG, as_folder, random_tensors, write_folder

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8}
KINDS = {  # what a folder's config.json and its weights are
    "float32": ({}, "F32"), "bfloat16, tied": ({"tie_word_embeddings": True}, "BF16"),
    "float16, wide heads": ({"head_dim": 8, "rms_norm_eps": 1e-6}, "F16"),
    "llama3": ({"rope_theta": 500000.0, "rope_scaling": LLAMA3, "bos_token_id": 0, "eos_token_id": [7, 8]}, "BF16"),
    "linear": ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, "F32")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Paths of a folder of every kind, each with a tokenizer of the byte level kind."""
    paths = {}
    for name, (fields, dtype) in KINDS.items():
        path = tmp_path_factory.mktemp("folder")
        c = {**CONFIG, "vocab_size": 300, "max_position_embeddings": 32, **fields}
        paths[name] = write_folder(path, c, random_tensors(c, dtype))
        text = byte_level(post_processor=template(0, "<|bos|>"))
        (path / "tokenizer.json").write_text(json.dumps(text))
    return paths


@pytest.mark.parametrize("kind", some(3, KINDS))
def test_a_run_is_logged_verified_and_proved(folders, kind, tmp_path, capfdbinary):
    log, proof = tmp_path / "log", tmp_path / "proof"
    args = folders[kind], "-s", 3, "-n", 6, "-i", "the thé"
    logs = []
    for workers in 1, 2:
        code, out, err = command(capfdbinary, *args, "--trace", log, "--trace-level", "op", "--workers", workers)
        assert code == 0 and out.decode(errors="replace").startswith("the")
        logs.append(read_lines(log))
    assert logs[0] == logs[1]
    head = formats.read(log).head()
    assert command(capfdbinary, folders[kind], "--verify", log, "--root", head, "-s", 3)[0] == 0
    assert command(capfdbinary, folders[kind], "--verify", log, "-s", 4)[0] == 1
    proof.write_bytes(command(capfdbinary, "prove", log, 3, program=tracing)[1])
    assert command(capfdbinary, "check", proof, "--root", head, program=tracing)[0] == 0


def test_a_run_without_a_prompt_has_an_error_that_says_so(folders, tmp_path, capfdbinary):
    folder = shutil.copytree(folders["float32"], tmp_path / "folder")
    (folder / "tokenizer.json").write_text(json.dumps(byte_level()))  # which puts no BOS in front
    code, out, err = command(capfdbinary, folder, "-n", 3)
    assert (code, out) == (2, b"") and err == (
        "llama2.py: error: the prompt has no token; the encoded empty text has one, BOS\n")


def test_a_header_names_the_constants_that_are_not_llama2_cs(folders, tmp_path, capfdbinary):
    found = {}
    for kind, path in folders.items():
        command(capfdbinary, path, "-t", 0, "-n", 1, "--tokens", "5", "--trace", tmp_path / "t")
        config = json.loads(read_lines(tmp_path / "t")[0])["config"]
        found[kind] = dict(list(config.items())[8:])
    assert found == {
        "float32": {}, "bfloat16, tied": {}, "float16, wide heads": {"head_size": 8, "norm_epsilon": 1e-06},
        "linear": {"rope_scaling": {"factor": 4.0}},
        "llama3": {"rope_theta": 500000.0, "rope_scaling": {name: LLAMA3[name] for name in list(LLAMA3)[1:]}, "bos": 0,
                   "eos": [7, 8]}}


def test_a_folder_and_the_file_of_the_same_weights_have_one_log(files, tmp_path, capfdbinary):
    with contextlib.closing(Checkpoint(files["grouped"])) as checkpoint:
        folder = as_folder(tmp_path / "folder", checkpoint)
    logs = []
    for path in files["grouped"], folder:
        options = "-z", files["tokenizer"], "-s", 5, "-n", 8, "-i", "ab a", "--trace-level", "op"
        assert command(capfdbinary, path, *options, "--trace", tmp_path / "t")[0] == 0
        logs.append([json.loads(line) for line in read_lines(tmp_path / "t")[:-1]])
    assert logs[0][0].pop("model") != logs[1][0].pop("model")
    assert logs[0] == logs[1]


def test_bits_are_the_same_in_memory_and_in_the_map(folders, monkeypatch):
    for path in folders.values():
        rows = []
        for memory in 2**40, 0:
            monkeypatch.setattr(llama2, "free_memory", lambda memory=memory: memory)
            with llama2.Transformer(path) as model:
                rows.append([model.forward(token, pos).tobytes() for pos, token in enumerate([1, 7, 99])])
                assert model.shard.classifier.unpacked == bool(memory)
        assert rows[0] == rows[1]


def test_a_run_ends_at_any_of_the_tokens_that_end_a_text(folders, monkeypatch, tmp_path, capfdbinary):
    for kind, ends in ("llama3", (7, 8)), ("float32", (1, 2)):
        for end in ends:
            chosen = iter([20, 21, end, 22])
            monkeypatch.setattr(llama2.Sampler, "sample", lambda self, logits, chosen=chosen: next(chosen))
            assert command(capfdbinary, folders[kind], "--tokens", "5", "-s", 1, "-n", 9, "--trace",
                           tmp_path / "t")[0] == 0
            log = formats.read(tmp_path / "t")
            assert [log.event(i)["next"] for i in log.steps] == [20, 21, end] and log.root


def test_the_doctor_and_the_page_take_folders(folders, tmp_path, capfdbinary):
    for kind, path in folders.items():
        dump, page = tmp_path / "dump", tmp_path / "page.html"
        assert command(capfdbinary, path, "-t", 0, "-n", 5, "-i", "the", "--dump", dump)[0] == 0
        code, out, err = command(capfdbinary, path, "-i", "the", "--compare", dump)
        assert code == 0 and out.startswith(b"consistent with float32"), (kind, out)
        assert command(capfdbinary, path, "-t", 0, "-n", 5, "-i", "the", "--page", page)[0] == 0
        assert page.read_bytes().startswith(b"<!DOCTYPE html>")


def test_the_doctor_names_constants_by_the_models_own(folders, tmp_path, capfdbinary):
    """The numbers of the same weights with llama2.c's epsilon."""
    other = tmp_path / "other"
    shutil.copytree(folders["float16, wide heads"], other)
    fields = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**fields, "rms_norm_eps": 1e-3}))
    assert command(capfdbinary, other, "-t", 0, "-n", 5, "-i", "the", "--dump", tmp_path / "dump")[0] == 0
    code, out, err = command(capfdbinary, folders["float16, wide heads"], "-i", "the", "--compare", tmp_path / "dump")
    assert code == 1 and b"\nthe mistake: epsilon is 0.001, not 1e-06\n" in out


def test_a_dispute_about_a_folder_is_settled(folders, tmp_path, capfdbinary):
    path = folders["llama3"]
    assert command(capfdbinary, path, "-s", 3, "-n", 3, "-i", "the", "--trace", tmp_path / "a", "--trace-level",
                   "op")[0] == 0
    lines = read_lines(tmp_path / "a")[:-1]
    for line in 4, 5, 2, 14:  # k, v, the first norm, the residual
        forge(tmp_path / "b", [*lines[:line], edit(lines[line], sha256="5a" * 32), *lines[line + 1:]])
        code, out, err = command(capfdbinary, "settle", tmp_path / "a", tmp_path / "b", path, program=tracing)
        assert code == 0 and out.endswith(b"A is right\n")


def test_programs_without_these_constants_are_refused(folders, capfdbinary):
    for like in "llama2.c", "llama2-rs":
        path = folders["float16, wide heads"]
        assert failure(capfdbinary, path, "-t", 0, "--like", like) == (
            f"{path}: head_size is 8, which {like} does not have (--like)")
    assert command(capfdbinary, folders["float32"], "-t", 0, "-n", 3, "-i", "the", "--like", "llama2.c")[0] == 0


def test_a_text_begins_with_its_first_token_where_nothing_stands_before_it(folders, tmp_path, capfdbinary):
    path = tmp_path / "folder"
    shutil.copytree(folders["float32"], path)
    (path / "tokenizer.json").write_text(json.dumps(byte_level()))
    log = tmp_path / "t"
    code, out, err = command(capfdbinary, path, "-t", 0, "-n", 4, "-i", "the the", "--trace", log)
    assert code == 0 and out.startswith(b"the the")
    (tmp_path / "text").write_bytes(out)
    assert command(capfdbinary, path, "--verify", log, "--text", tmp_path / "text")[0] == 0


def test_weights_of_16_bits_take_8_bytes_each(folders):
    sizes = {}
    for kind in "float32", "bfloat16, tied":
        with llama2.Transformer(folders[kind]) as model:
            sizes[kind] = unpacked_size(Exact, model.checkpoint)
    assert sizes["bfloat16, tied"] < 0.5 * sizes["float32"]


# ----------------------------------------------------------------------------
# RoPE's scaling

def test_scaled_frequencies_are_the_definition():
    """Of 64 pairs some stay, some are divided, some are between: by transformers' formula, in float64."""
    scaling = {name: LLAMA3[name] for name in list(LLAMA3)[1:]} | {"original_max_position_embeddings": 8192}
    shape = dict(dim=256, hidden_dim=8, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=10, seq_len=16)
    plain = frequencies.frequencies(Exact, Config(**shape, rope_theta=500000.0))
    scaled = frequencies.frequencies(Exact, Config(**shape, rope_theta=500000.0, rope_scaling=scaling))
    kinds = set()
    for f, g in zip(plain, scaled, strict=True):
        wavelength = 2 * 3.141592653589793 / f
        smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
        expected = f if smooth > 1 else f / 8 if smooth < 0 else (1 - smooth) * f / 8 + smooth * f
        assert abs(g - expected) <= 4e-7 * expected and rounded(g) == g
        kinds.add("stays" if g == f else "divided" if g == f / 8 else "between")
    assert kinds == {"stays", "divided", "between"} and len(plain) == 64
    linear = frequencies.frequencies(Exact, Config(**shape, rope_theta=500000.0, rope_scaling={"factor": 4.0}))
    assert linear == [f / 4 for f in plain]


# ----------------------------------------------------------------------------
# plain.py, with the constants of another family


def test_other_constants_are_the_definition(files, tmp_path):
    """A folder with its own theta and epsilon, and the file of its weights in plain.py, which is told of them."""
    with contextlib.closing(Checkpoint(files["grouped"])) as checkpoint:
        folder = as_folder(tmp_path / "folder", checkpoint)
    path = tmp_path / "folder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rope_theta": 500000.0, "rms_norm_eps": 1e-3}))
    judge = plain.Model(files["grouped, version 0"])
    judge.theta, judge.epsilon = 500000.0, 1e-3
    with llama2.Transformer(folder) as model:
        for pos, token in enumerate([1, 7, 279, 30]):
            assert model.forward(token, pos).tobytes() == bits(plain.forward(judge, token, pos))
