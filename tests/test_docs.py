"""Tests of the pages: every command prints what they say, every example works."""
import contextlib
import io
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
from llama2_py.log import formats
from tests.helpers import HERE, MODEL, TOKENIZER

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
    shell("python3 llama2.py -s 42 -n 5 --trace tale.trace; sed s/406/407/ tale.trace > forged.trace")
    (tmp_path / "many.py").write_text(example)
    honest, forged = shell("python3 many.py").splitlines()
    assert honest == f"5 steps, {formats.read(tmp_path / 'tale.trace').head()}"
    assert forged.startswith("forged.trace, line 7: root: expected ")


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


# ----------------------------------------------------------------------------
# docs/exercises.md: these solutions print what it says


def changed(before, after):
    """plain.py with a change."""
    source = page("plain.py")
    assert source.count(before) == 1
    names = {"__name__": "plain", "__file__": os.path.join(HERE, "plain.py")}
    exec(compile(source.replace(before, after), "plain.py", "exec"), names)
    return names


def told(names, steps):
    """The likeliest tokens that a changed plain.py tells."""
    out = io.TextIOWrapper(io.BytesIO())
    with contextlib.redirect_stdout(out):
        names["main"]("1", "", steps=steps, temperature=0)
    out.flush()
    return out.buffer.getvalue().decode().rstrip("\n")


def likeliest():
    model, tokenizer = plain.Model(MODEL), plain.Tokenizer(TOKENIZER, 512)
    for pos, token in enumerate(tokenizer.encode("Once upon a time, there was a little")):
        logits = plain.forward(model, token, pos)
    p = plain.softmax(logits)
    best = sorted(range(512), key=lambda token: -p[token])[:5]
    return ", ".join(f'"{tokenizer.pieces[token].decode()}" {p[token]:.3f}' for token in best)


def losses():
    model, tokenizer, found = plain.Model(MODEL), plain.Tokenizer(TOKENIZER, 512), []
    for text in "Lily went to the park with her mom.", "Lily went to the mom with her park.":
        tokens, loss = tokenizer.encode(text), 0.0
        for pos, token in enumerate(tokens[:-1]):
            loss -= math.log(plain.softmax(plain.forward(model, token, pos))[tokens[pos + 1]])
        found.append(f"{loss / (len(tokens) - 1):.2f}")
    return ", ".join(found)


SOLUTIONS = [
    lambda: told(vars(plain), 16),
    lambda: told(changed("for l in range(m.n_layers):\n        n =", "for l in 0, 1, 3, 4:\n        n ="), 16),
    lambda: told(changed("    turned = list(x)\n", "    return x\n    turned = list(x)\n"), 32),
    lambda: told(changed(
        "    weights = softmax([r(dot", "    keys, values = keys[-4:], values[-4:]\n    weights = softmax([r(dot"), 24),
    likeliest,
    losses,
]


@pytest.mark.parametrize("number", range(6))
def test_the_exercises_print_what_it_says(number):
    (expected,) = re.findall(rf"^\| {number + 1}\. .* \| `(.*)` \|$", page("docs/exercises.md"), re.M)
    assert SOLUTIONS[number]() == expected
