"""Tests of the pages: every command prints what they say, every example works."""
import contextlib
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys

import pytest

import llama2
import plain
from llama2_py.engine.checkpoint import Checkpoint
from llama2_py.engine.graph import OPERATIONS, OUTSIDE
from llama2_py.log import formats
from tests.helpers import HERE, MODEL, STORY, TOKENIZER, read_bytes
from tests.test_huggingface import as_folder, random_tensors, write_folder

pytestmark = pytest.mark.slow


def page(name):
    with open(os.path.join(HERE, name), encoding="utf-8") as file:
        return file.read()


@pytest.fixture
def shell(tmp_path):
    """A shell in a copy of the files that the pages' commands use."""
    for name in "llama2.py", "trace.py", "plain.py", "merkle.py", "llama2_py":
        os.symlink(os.path.join(HERE, name), tmp_path / name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "bin" / "python3").chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ.get('PATH', os.defpath)}"

    def run(line):
        return subprocess.run(["bash", "-c", line], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, env={**os.environ, "PATH": path}).stdout

    return run


@pytest.mark.parametrize("name, least", [("README.md", 6), ("docs/porting.md", 5), ("docs/verifying.md", 20)])
def test_the_commands_of_a_page_print_what_it_says(shell, name, least):
    count = 0
    for block in re.findall(r"```console\n(.*?)```", page(name), re.S):
        for line, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.M):
            got = shell(line)
            if "--compare" in line:  # what differs depends on the C library
                got, expected = (re.sub(r"[-\d.e]+|None", "N", output) for output in (got, expected))
            got, expected = (re.sub(r"tok/s: .*", "", output) for output in (got, expected))
            assert got.strip() == expected.strip(), line
            count += 1
    assert count >= least


def test_the_pages_name_files_that_are_there():
    docs = [f"docs/{name}" for name in os.listdir(os.path.join(HERE, "docs")) if name.endswith(".md")]
    for name in ["README.md", *docs]:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page(name)):
            path = os.path.join(HERE, os.path.dirname(name), link)
            assert link.startswith("https://") or os.path.exists(path), (name, link)


def test_the_observer_of_the_readme_sees_what_it_should(shell, tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", page("README.md"), re.S)
    seen = []
    with llama2.Transformer(MODEL) as model:
        for pos, token in enumerate([1, 406]):
            model.forward(token, pos, lambda layer, op, values: seen.append((layer, op, list(values))))
    (tmp_path / "example.py").write_text(example)
    assert shell("python3 example.py").splitlines() == [
        str([round(v, 3) for v in values[:4]]) for layer, op, values in seen if (layer, op) == (2, "attention")]


def test_the_example_of_many_traces_works(shell, tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", page("docs/verifying.md"), re.S)
    shell('python3 llama2.py -i "Once upon a time" -s 42 -n 100 --trace tale.trace; '
          "sed 's/\" her\"/\" his\"/' tale.trace > forged.trace")
    (tmp_path / "many.py").write_text(example)
    honest, forged = shell("python3 many.py").splitlines()
    assert honest == f"100 steps, {formats.read(tmp_path / 'tale.trace').head()}"
    assert forged.startswith("forged.trace, line 102: root: expected ")


# ----------------------------------------------------------------------------
# docs/porting.md: writers of records

WRITERS = {  # language: what stands around the page's function, the command that runs it
    "c": ("#include <stdio.h>\n%sint main() { float x[] = {1, 2.5, -3}; FILE *f = fopen(\"out\", \"wb\");\n"
          "record(f, 1, 0, \"q\", x, 3); record(f, 1, -1, \"logits\", x, 2); return 0; }", "gcc x.c -o x && ./x"),
    "rust": ("use std::io::Write;\n%sfn main() { let mut f = std::fs::File::create(\"out\").unwrap();\n"
             "let x = [1f32, 2.5, -3.0]; record(&mut f, 1, 0, \"q\", &x).unwrap();\n"
             "record(&mut f, 1, -1, \"logits\", &x[..2]).unwrap(); }", "rustc x.rust -o x && ./x"),
    "go": ("package main\nimport (\"encoding/binary\"; \"fmt\"; \"io\"; \"os\")\n%sfunc main() {\n"
           "f, _ := os.Create(\"out\"); x := []float32{1, 2.5, -3}; record(f, 1, 0, \"q\", x)\n"
           "record(f, 1, -1, \"logits\", x[:2]) }", "mv x.go main.go && go run main.go"),
    "javascript": ("const fs = require(\"fs\");\n%sconst fd = fs.openSync(\"out\", \"w\");\n"
                   "const x = new Float32Array([1, 2.5, -3]); record(fd, 1, 0, \"q\", x);\n"
                   "record(fd, 1, -1, \"logits\", x.subarray(0, 2));", "node x.javascript"),
    "zig": ("const std = @import(\"std\");\n%spub fn main() !void { var buffer: [99]u8 = undefined;\n"
            "var w = std.Io.Writer.fixed(&buffer); const x = [_]f32{ 1, 2.5, -3 };\n"
            "try record(&w, 1, 0, \"q\", &x); try record(&w, 1, -1, \"logits\", x[0..2]);\n"
            "std.debug.print(\"{s}\", .{w.buffered()}); }", "zig run x.zig 2> out"),
    "python": ("import numpy\n%swith open(\"out\", \"wb\") as f:\n    x = numpy.array([1, 2.5, -3])\n"
               "    record(f, 1, 0, \"q\", x)\n    record(f, 1, -1, \"logits\", x[:2])", "python3 x.python"),
}
TOOLS = {"c": "gcc", "rust": "rustc", "javascript": "node", "python": "python3"}  # those that have another name


@pytest.mark.parametrize("language", WRITERS)
def test_the_writers_of_the_porters_page_write_records(tmp_path, language):
    (function,) = re.findall(rf"```{language}\n(.*?)```", page("docs/porting.md"), re.S)
    program, run = WRITERS[language]
    tool = TOOLS.get(language, language)
    if shutil.which(tool) is None:
        pytest.skip(f"no {tool} here")
    if language == "python" and subprocess.run([tool, "-c", "import numpy"], capture_output=True).returncode:
        pytest.skip("no numpy here")
    (tmp_path / f"x.{language}").write_text(program.replace("%s", function, 1))
    cache = {"GOCACHE": str(tmp_path / "cache"), "GO111MODULE": "off"}
    subprocess.run(run, shell=True, cwd=tmp_path, check=True, capture_output=True, env={**os.environ, **cache})
    assert (tmp_path / "out").read_bytes() == (
        b"1 0 q 3\n" + struct.pack("<3f", 1, 2.5, -3) + b"1 -1 logits 2\n" + struct.pack("<2f", 1, 2.5))


def test_the_test_of_the_porters_page_passes_and_fails_as_it_says(tmp_path):
    example, _ = re.findall(r"```py\n(.*?)```", page("docs/porting.md"), re.S)
    model = plain.Model(MODEL)

    def my_port(tokens):
        return [plain.forward(model, token, pos) for pos, token in enumerate(tokens)]

    names = {"my_port": my_port}
    exec(example.replace('"model.bin"', repr(MODEL)), names)
    names["test_my_port"]()
    model.epsilon = 1e-6
    (expected,) = re.findall(r"# AssertionError: (.*)", example)
    with pytest.raises(AssertionError) as error:
        names["test_my_port"]()
    assert str(error.value).splitlines()[0].startswith(expected.removesuffix(".."))


def test_llama_cpps_names_stand_for_all_operations():
    names = re.findall(r'\{"\w+", "(\w+)"\}', page("docs/llama_cpp_record.cpp"))
    assert set(names) == {*OPERATIONS, *OUTSIDE}


# ----------------------------------------------------------------------------
# docs/exercises.md: with its answer, each exercise prints what it says


def parts(name):
    """The sections of docs/exercises.md, number -> text: those of the exercises (##), or of the answers (###)."""
    found = re.split(rf"(?m)^{name} (\d+)\b.*\n", page("docs/exercises.md"))[1:]
    return {int(number): text for number, text in zip(found[::2], found[1::2], strict=True)}


EXERCISES, ANSWERS = parts("##"), parts("###")


def blocks(text, language):
    return re.findall(rf"(?s)```{language}\n(.*?)```", text)


def patched(source, diff):
    """A source with the lines of a diff in place of what they replace."""
    lines = diff.splitlines(keepends=True)
    before, after = ("".join(line[1:] for line in lines if line[0] in kind) for kind in (" -", " +"))
    assert source.count(before) == 1, before
    return source.replace(before, after)


def test_every_exercise_has_a_command_a_hint_and_an_answer():
    assert list(EXERCISES) == list(ANSWERS) == list(range(1, 10))
    for text in EXERCISES.values():
        assert len(blocks(text, "console")) == 1 and text.count("*Hint.*") == 1


@pytest.mark.parametrize("number", EXERCISES)
def test_the_answer_of_an_exercise_prints_what_it_says(number, shell, tmp_path):
    (line, expected), = re.findall(r"(?m)^\$ (.*)\n((?:.*\n)*)", blocks(EXERCISES[number], "console")[0])
    source = page("plain.py")
    for diff in blocks(ANSWERS[number], "diff"):
        source = patched(source, diff)
    (tmp_path / "mine.py").write_text(source)
    for program in blocks(ANSWERS[number], "python"):
        (tmp_path / re.search(r"\w+\.py", line)[0]).write_text(program)
    if "my-llama" in line:
        with contextlib.closing(Checkpoint(MODEL)) as checkpoint:
            as_folder(tmp_path / "my-llama", checkpoint)
    assert shell(line) == expected


@pytest.mark.parametrize("fields, change, told", [
    ({"rms_norm_eps": 1e-6, "rope_theta": 500.0}, "", "all logits are the same"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, "", "all logits are the same"),
    ({}, "neighbours(rows, m.hs)", "the logits differ"), ({"rope_theta": 500.0}, "10000.0)\n", "the logits differ")])
def test_the_answer_of_exercise_9_reads_any_folder_and_sees_a_mistake(fields, change, told, shell, tmp_path):
    (program,) = blocks(ANSWERS[9], "python")
    wrong = {"": "", "neighbours(rows, m.hs)": "rows", "10000.0)\n": "10000.0) + 1\n"}
    assert change in program
    (tmp_path / "folder.py").write_text(program.replace(change, wrong[change]) if change else program)
    with contextlib.closing(Checkpoint(MODEL)) as checkpoint:
        as_folder(tmp_path / "my-llama", checkpoint)
    config = tmp_path / "my-llama" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **fields}))
    assert shell("python3 folder.py my-llama") == f"3 tokens: {told}\n"


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_the_answer_of_exercise_9_reads_both_types(dtype, shell, tmp_path):
    (program,) = blocks(ANSWERS[9], "python")
    (tmp_path / "folder.py").write_text(program)
    write_folder(tmp_path / "my-llama", tensors=random_tensors(dtype=dtype))
    assert shell("python3 folder.py my-llama") == "3 tokens: all logits are the same\n"


def surprises(tokens):
    """-log p of each target, in nats."""
    model, found = plain.Model(MODEL), []
    for pos, target in enumerate(tokens[1:]):
        p = plain.softmax(plain.forward(model, tokens[pos], pos))
        found.append(-math.log(p[target]))
    return found


def encoded(text):
    return plain.Tokenizer(TOKENIZER, 512).encode(text)


def test_what_the_exercises_say_of_the_loss_is_so():
    for text in "Lily went to the park with her mom.", "Lily went to the mom with her park.":
        assert len(encoded(text)) == 14
    tokens = encoded("Lily went")
    assert plain.Tokenizer(TOKENIZER, 512).pieces[tokens[-1]] == b" went"
    assert f"{surprises(tokens)[-1]:.2f} nats for ` went` alone" in ANSWERS[7]
    likely = math.exp(-surprises(encoded("Lily was"))[-1])
    assert f"{100 * likely:.1f} % sure of ` was`" in ANSWERS[7]
    assert f"{math.log(2):.2f} if it gave one half, {math.log(512):.2f} if" in EXERCISES[7]


def loss_without(layer, path):
    """The loss of the first 79 targets of the story, by a model whose layer adds nothing."""
    data = bytearray(read_bytes(MODEL))
    with contextlib.closing(Checkpoint(MODEL)) as checkpoint:
        for name in "wo", "w2":
            begin, rows, columns = checkpoint.tensors[name]
            size = 4 * rows * columns
            data[begin + size * layer:begin + size * (layer + 1)] = bytes(size)
    path.write_bytes(data)
    tokens, total = encoded(STORY)[:80], 0.0
    with llama2.Transformer(str(path)) as model:
        for pos, target in enumerate(tokens[1:]):
            total -= math.log(plain.softmax(model.forward(tokens[pos], pos))[target])
    return total / 79


def test_what_the_answers_say_of_other_changes_is_so(tmp_path, shell):
    def told(before, after, steps):
        (tmp_path / "mine.py").write_text(page("plain.py").replace(before, after))
        return shell(f"python3 -c 'import mine; mine.main(\"1\", \"\", steps={steps}, temperature=0)'").rstrip("\n")

    layers = "for l in range(m.n_layers):"
    assert f"`{told(layers, 'for l in 0, 1, 2, 4:', 16)}`" in ANSWERS[2]
    assert "`There notenenenen..`" in ANSWERS[2] and told(layers, "for l in 0, 1, 2, 3:", 16).startswith(
        "There notenenenen")
    losses = [f"{loss_without(layer, tmp_path / 'model.bin'):.2f}" for layer in range(5)]
    assert f"gives\n{', '.join(losses[:4])} or {losses[4]} nats" in ANSWERS[2]
    one_pair = told("    for i in range(0, hs, 2):\n        angle", "    for i in [2]:\n        angle", 32)
    assert one_pair.endswith("His name was Jack. One day, Jack went to the p")


def test_the_last_layer_adds_more_than_all_before_it():
    model, lengths = plain.Model(MODEL), {}

    def see(layer, op, values):
        lengths[layer, op] = math.hypot(*values)
        return values

    for pos, token in enumerate(encoded("Once upon")):
        plain.forward(model, token, pos, see)
    before, after = round(lengths[3, "ffn_residual"]), round(lengths[4, "ffn_residual"])
    assert f"the stream has length {before} before it, and {after} after it" in ANSWERS[2]


def test_without_rope_me_is_impossible_after_na(monkeypatch):
    tokens = encoded("Once upon a time, there was a little boy. His name")
    assert f"{math.exp(-surprises(tokens)[-1]):.2f} there" in ANSWERS[3]
    monkeypatch.setattr(plain, "rope", lambda x, *_: x)
    assert f"without it {math.exp(-surprises(tokens)[-1]):.2f}" in ANSWERS[3]


@pytest.mark.parametrize("first, last, told", [
    (0, 1000, "{} nats with all positions"), (0, 4, "{} with the last four"),
    (1, 3, "{} with BOS and the last three"), (2, 3, "and {}\nwith position 1 in place of BOS")])
def test_what_the_answers_say_of_forgetting_is_so(first, last, told, monkeypatch):
    attend = plain.attend

    def forgets(q, keys, values):
        """first: 1 keeps BOS as well, 2 keeps position 1."""
        kept = [i for i in range(len(keys)) if i == first - 1 or i >= len(keys) - last or len(keys) <= last + first - 1]
        return attend(q, [keys[i] for i in kept], [values[i] for i in kept])

    monkeypatch.setattr(plain, "attend", forgets)
    found = surprises(encoded(STORY)[:80])
    assert told.format(f"{sum(found) / 79:.2f}") in ANSWERS[5]
