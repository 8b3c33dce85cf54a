"""Tests of tools/plain_page.py: the page of plain.py holds all of it, and the model's own numbers."""
import ast
import html
import math
import os
import re
import subprocess
import sys

import pytest

import plain
from tests.helpers import HERE, MODEL, TOKENIZER, make_checkpoint
from tests.test_page import CONTRAST, DARK, browse_frames, needs_browser

sys.path.append(os.path.join(HERE, "tools"))
import plain_numbers  # noqa: E402
import plain_page  # noqa: E402

with open(os.path.join(HERE, "plain.py"), encoding="utf-8") as file:
    SOURCE = file.read()


@pytest.fixture(scope="module")
def text():
    return plain_page.page(SOURCE, plain_numbers.Run(MODEL, TOKENIZER))


def bare(markup):
    """HTML -> its text."""
    return html.unescape(re.sub("<[^>]*>", "", markup))


def boxes(text):
    """The rows of all boxes of numbers: (label, value), with each value's text in one line."""
    found = re.findall(r"<dt[^>]*>(.*?)</dt><dd[^>]*>(.*?)</dd>", text, re.S)
    return [(bare(label), bare(re.sub("</t[dhr]>", " ", value)).strip()) for label, value in found]


def without_docstrings(source):
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)


def test_the_page_holds_all_code_in_its_order(text):
    code = "".join(map(bare, re.findall(r'<span class="l".*?\n</span>', text, re.S)))
    assert without_docstrings(code) == without_docstrings(SOURCE)
    assert code.count("#") == sum(not line.lstrip().startswith("#") and "  # " in line for line in SOURCE.split(
        '"""', 2)[2].splitlines())  # comments behind code stay there


def test_the_page_holds_all_prose(text):
    said = re.sub(r"\W+", " ", html.unescape(re.sub("<[^>]*>", " ", text)))
    docstrings = [ast.get_docstring(node) for node in ast.walk(ast.parse(SOURCE)) if isinstance(
        node, (ast.Module, ast.FunctionDef, ast.ClassDef))]
    comments = re.findall(r"(?m)^ *# (.*)$", SOURCE.split('"""', 2)[2])
    for piece in [*filter(None, docstrings), *comments]:
        assert re.sub(r"\W+", " ", piece).strip() in said, piece


def test_the_numbers_beside_forward_are_the_models(text):
    model, seen = plain.Model(MODEL), {}

    def see(layer, op, values):
        seen[op if layer in (0, None) else f"{op} {layer}"] = values
        return values

    for pos, token in enumerate(plain.Tokenizer(TOKENIZER, 512).encode("Once upon")):
        seen["logits"] = plain.forward(model, token, pos, see)
    told = {label.split(": ")[-1]: value for label, value in boxes(text)}
    ops = [op for op in seen if " " not in op]
    assert len(ops) == 17
    for op in ops:
        numbers = [float(x) for x in told[op].replace("\u2212", "-").removesuffix(", ..").split(", ")]
        assert numbers == pytest.approx(seen[op][:4], abs=0.0051), op
    lengths = [float(length) for length in re.findall(r"x after layer \d, length ([\d.]+)", text)]
    stream = [seen["ffn_residual"], *[seen[f"ffn_residual {l}"] for l in range(1, 5)]]
    assert lengths == [pytest.approx(math.sqrt(sum(x * x for x in values)), abs=0.0051) for values in stream]


def test_each_part_stands_beside_an_example_of_it(text):
    for name in plain_numbers.EXAMPLES:
        assert callable(getattr(plain, name, None) or getattr(plain.Tokenizer, name))
        assert len(re.findall(f'id="{name}"', text)) == 1, name
    rows = boxes(text)
    assert ("first number", "0.2808") in rows  # 4711630 / 2**24, the first coin of seed 1
    (weights,) = [value for label, value in rows if label == "weights" and "%" in value]
    assert weights.split() == ["BOS", "␣Once", "␣upon", "16.2", "%", "21.6", "%", "62.2", "%"]
    (pairs,) = [value for label, value in rows if label == "head 0 of q, position 2"]
    angles = [float(angle) for angle in re.findall(r"([\d.]+)°", pairs)]
    assert angles == [pytest.approx(math.degrees(2 * 0.1 ** i), abs=0.0051) for i in range(4)]


@pytest.mark.slow
def test_another_model_has_other_numbers(text, tmp_path):
    path = make_checkpoint(tmp_path / "model.bin", dim=32, n_heads=4, n_kv_heads=2, vocab_size=512, seq_len=64)
    other = plain_page.page(SOURCE, plain_numbers.Run(path, TOKENIZER))
    ours, others = dict(boxes(text)), dict(boxes(other))
    of_the_model = ["x: embedding", "q", "k", "attention", "logits", "the largest", "all weights", "dot(a, b)",
                    "x: scores of a head"]
    assert [label for label in of_the_model if ours[label] == others[label]] == []


def test_the_page_needs_no_network_and_no_script(text):
    assert not re.search(r"https?:|src=|@import|url\(|<script", text) and "default-src 'none'" in text
    assert len(text) < 200_000
    anchors, names = re.findall('href="#([^"]*)"', text), re.findall(' id="([^"]*)"', text)
    assert len(anchors) > 4 and set(anchors) <= set(names) and len(names) == len(set(names))


@pytest.mark.slow
def test_the_tool_writes_a_whole_page_or_says_why_not_in_one_line(tmp_path):
    tool = os.path.join(HERE, "tools", "plain_page.py")
    done = subprocess.run([sys.executable, tool, tmp_path / "plain.html"], capture_output=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert (tmp_path / "plain.html").read_text(encoding="utf-8").rstrip().endswith("</main>")
    for path in tmp_path / "none" / "plain.html", os.path.join(HERE, "plain.py"):
        done = subprocess.run([sys.executable, tool, path], capture_output=True)
        assert done.returncode == 2 and done.stderr.startswith(b"plain_page.py: error: "), done.stderr
        assert done.stderr.count(b"\n") == 1 and done.stdout == b""


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("flags", [[], [DARK]], ids=["light", "dark"])
def test_it_fits_a_phone_and_every_text_has_a_contrast_of_4_5(text, flags, tmp_path):
    (result,) = browse_frames([text], CONTRAST + """
        const low = [], walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
        let count = 0;
        while (walker.nextNode()) {
            const element = walker.currentNode.parentElement;
            if (!walker.currentNode.data.trim()) continue;
            const ratio = contrast(numbers(getComputedStyle(element).color), ground(element));
            count++;
            if (ratio < 4.5) low.push([walker.currentNode.data, ratio]);
        }
        const code = [...document.querySelectorAll(".l")].filter(line => line.scrollWidth > line.clientWidth);
        return { count, low, wide: document.documentElement.scrollWidth, cut: code.length,
                 drawn: document.querySelectorAll("svg").length,
                 dark: window.matchMedia("(prefers-color-scheme: dark)").matches };
        """, tmp_path, 390, *flags)
    assert result["dark"] == bool(flags) and result["count"] > 500 and result["drawn"] > 20
    assert result["low"] == [] and result["wide"] <= 390 and result["cut"] == 0
