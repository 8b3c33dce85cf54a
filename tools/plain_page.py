#!/usr/bin/env python3
"""Writes plain.py as one page of HTML: prose beside code, and under it the numbers that the embedded model computes.

    python3 tools/plain_page.py plain.html    # open it in a browser: it needs no network

The prose is the file's comments and docstrings, the code is all the rest; nothing is left out, and nothing is copied
here. plain_numbers.py runs the model; plain_page.html is the frame.
"""
import ast
import html
import inspect
import io
import itertools
import keyword
import os
import re
import sys
import textwrap
import tokenize
from collections.abc import Container, Sequence
from typing import NamedTuple

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the project's folder
sys.path[:0] = [HERE, os.path.join(HERE, "tools")]

import plain_numbers  # noqa: E402
from llama2_py import console  # noqa: E402
from plain_numbers import Run, Table, Vector  # noqa: E402

FRAME = os.path.join(HERE, "tools", "plain_page.html")
SOURCE = os.path.join(HERE, "plain.py")
STORIES = os.path.join(HERE, "llama2_py", "stories")
FLAT = 0.02   # the least height of a bar, where the largest is 1
GAP = 0.6     # between groups of bars, each of which is 1 wide

# Tokens of Python -> how they are coloured; from 3.12 on an f-string is several tokens
KINDS = {"STRING": "s", "FSTRING_START": "s", "FSTRING_MIDDLE": "s", "FSTRING_END": "s", "NUMBER": "n", "COMMENT": "c"}

# What a paragraph of plain.py begins with if it gives a reason
REASONS = r"\b(Why[^:.?]*:|Causality:|In numbers:)"


class Row:
    """Prose, and the code that stands beside it."""

    def __init__(self) -> None:
        self.name = ""               # of a function or class that begins here
        self.title = ""              # of a section that begins here
        self.prose: list[str] = []   # paragraphs
        self.code: list[int] = []    # numbers of lines

    def has_body(self, begins: Container[int]) -> bool:
        """Is there code, and more of it than the first line of a function?"""
        return any(i not in begins for i in self.code)


# ----------------------------------------------------------------------------
# plain.py -> rows


class Named(NamedTuple):
    """A function or class that begins a row."""
    name: str
    docstring: str
    inside: range  # the docstring's lines


def named(lines: Sequence[str], tree: ast.Module) -> dict[int, Named]:
    """The line of each function and class that has an empty line or a comment above it."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and lines[node.lineno - 2][:1] in ("", "#"):
            docstring = ast.get_docstring(node) or ""
            first = node.body[0]
            end = (first.end_lineno or 0) + 1 if docstring else first.lineno
            found[node.lineno] = Named(node.name, docstring, range(first.lineno, end))
    return found


def comments(lines: Sequence[str]) -> dict[int, str]:
    """The number of each line that is a comment alone -> its text."""
    alone = {}
    for i, line in enumerate(lines, 1):
        if line.lstrip().startswith("# "):
            alone[i] = line.lstrip()[2:]
    return alone


def rows_of(source: str) -> list[Row]:
    """The file below its own docstring, which is the page's introduction."""
    lines, tree = source.splitlines(), ast.parse(source)
    begins, alone = named(lines, tree), comments(lines)
    docstrings = {i for node in begins.values() for i in node.inside}
    first = tree.body[0].end_lineno or 0
    rows = [Row()]
    for i, line in enumerate(lines[first:], first + 1):
        continued = i - 1 in alone
        if (i in begins or i in alone and not continued) and rows[-1].has_body(begins):
            rows.append(Row())
        row = rows[-1]
        if i in alone:
            tell(row, alone[i], continued, line.startswith("#"))
        elif i not in docstrings and (line or row.code):
            row.code.append(i)
        if i in begins:
            row.name = begins[i].name
            row.prose += paragraphs(begins[i].docstring)
    return rows


def tell(row: Row, text: str, continued: bool, at_margin: bool) -> None:
    """Add a line of a comment to a row. At the margin a comment begins a section: its first sentence is the title."""
    if continued:
        row.prose[-1] = f"{row.prose[-1]} {text}".strip()
        return
    if at_margin:
        row.title, _, text = text.partition(".")
    row.prose.append(text.strip())


def paragraphs(docstring: str) -> list[str]:
    """A docstring's paragraphs; lines that are set in stay together as they are."""
    blocks = itertools.groupby(inspect.cleandoc(docstring).splitlines(), kind_of_line)
    return ["\n".join(block) for kind, block in blocks if kind != "blank"]


def kind_of_line(line: str) -> str:
    return "set in" if line.startswith("    ") else "text" if line else "blank"


# ----------------------------------------------------------------------------
# Rows -> HTML


def prose(text: str) -> str:
    """A paragraph, or lines that are set in."""
    if text.startswith("    "):
        return f'<pre tabindex="0" role="group" aria-label="Example">{html.escape(textwrap.dedent(text))}</pre>'
    marked = re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(" ".join(text.split())))
    marked = marked.replace("-&gt;", "→")
    marked = re.sub(REASONS, r"<strong>\1</strong>", marked)
    return f"<p>{marked}</p>"


def marks(source: str) -> dict[int, list[tuple[int, int, str]]]:
    """The number of a line -> what is to be coloured: from, to, and as what."""
    found: dict[int, list[tuple[int, int, str]]] = {}
    before = ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = kind_of(token, before)
        if kind and token.start[0] == token.end[0]:
            found.setdefault(token.start[0], []).append((token.start[1], token.end[1], kind))
        before = token.string
    return found


def kind_of(token: tokenize.TokenInfo, before: str) -> str:
    """The class of a token: keyword, string, number, comment, defined name; or none."""
    if token.type == tokenize.NAME:
        return "k" if keyword.iskeyword(token.string) else "d" if before in ("def", "class") else ""
    return KINDS.get(tokenize.tok_name[token.type], "")


def coloured(line: str, spans: Sequence[tuple[int, int, str]]) -> str:
    """A line of code with its colours."""
    parts, at = [], 0
    for start, end, kind in spans:
        parts += [html.escape(line[at:start]), f'<i class="{kind}">{html.escape(line[start:end])}</i>']
        at = end
    parts.append(html.escape(line[at:]))
    return re.sub(r"([(\[])", r"\1<wbr>", "".join(parts))  # where a line that is too long may break


def code(numbers: Sequence[int], lines: Sequence[str], spans: dict[int, list[tuple[int, int, str]]]) -> str:
    """Lines of code; a long one goes on below its beginning."""
    made = []
    last = max((i for i in numbers if lines[i - 1]), default=0)  # without the empty lines at the end
    for i in itertools.takewhile(last.__ge__, numbers):
        line = lines[i - 1]
        indent = len(line) - len(line.lstrip())
        style = f' style="--in:{indent}ch"' if indent else ""
        made.append(f'<span class="l"{style}>{coloured(line, spans.get(i, []))}\n</span>')
    return "<pre>" + "".join(made) + "</pre>" if made else ""


def bars(vector: Vector) -> str:
    """A drawing of numbers: a bar for each, up or down from zero."""
    largest = max(map(abs, vector.values)) or 1.0
    each = len(vector.values) // vector.groups
    paths = {"up": "", "down": ""}
    for i, x in enumerate(vector.values):
        left = i + i // each * GAP * (vector.groups > 1)
        high = max(FLAT, abs(x) / largest)
        paths["down" if x < 0 else "up"] += f"M{left:.4g} 0v{high if x < 0 else -high:.2f}h.8V0z"
    wide = len(vector.values) + (vector.groups - 1) * GAP
    least, most = plain_numbers.number(min(vector.values)), plain_numbers.number(max(vector.values))
    label = f"{len(vector.values)} numbers from {least} to {most}"
    drawn = "".join(f'<path class="{name}" d="{path}"/>' for name, path in paths.items() if path)
    return (f'<svg role="img" aria-label="{label}" viewBox="0 -1.02 {wide:.4g} 2.04" preserveAspectRatio="none">{drawn}'
            f'</svg>{plain_numbers.list_of(vector.values)}')


def table(rows: Sequence[Sequence[str]]) -> str:
    made = []
    for i, row in enumerate(rows):
        cells = [f"<{tag}>{html.escape(cell)}</{tag}>" for j, cell in enumerate(row)
                 for tag in ["th" if i == 0 or j == 0 else "td"]]
        made.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="wide" tabindex="0" role="group" aria-label="Table"><table>{"".join(made)}</table></div>'


def seen(rows: plain_numbers.Rows) -> str:
    """A box of the model's numbers."""
    items = []
    for label, value in rows:
        kind, shown = shape(value)
        items.append(f'<dt class="{kind}">{html.escape(label)}</dt><dd class="{kind}">{shown}</dd>')
    return f'<div class="seen"><dl>{"".join(items)}</dl></div>' if items else ""


def shape(value: plain_numbers.Shown) -> tuple[str, str]:
    """How much room a value takes, and its markup."""
    if isinstance(value, Vector):
        return "drawn", bars(value)
    if isinstance(value, Table):
        return "whole", table(value.rows)
    return "short", html.escape(value)


def numbers_beside(row: Row, lines: Sequence[str], run: Run) -> plain_numbers.Rows:
    """What the model computed in this row's code."""
    text = "\n".join(lines[i - 1] for i in row.code)
    if "m.classifier, x)" in text:
        return [*plain_numbers.seen_by(run, ops_in(text)[:-1]), *plain_numbers.after_layers(run)]
    if row.name in plain_numbers.EXAMPLES:
        return plain_numbers.EXAMPLES[row.name](run)
    return plain_numbers.seen_by(run, ops_in(text))


def ops_in(text: str) -> list[tuple[str, str]]:
    """Where code calls see: the variable that takes the result, and the operation's name."""
    found = re.findall(r'(?m)^\s*(?:(\w+) = )?see\(\w+, "(\w+)"', text)
    return [(variable or op, op) for variable, op in found]


def section(row: Row, lines: Sequence[str], spans: dict[int, list[tuple[int, int, str]]], run: Run) -> str:
    """A row of the page."""
    identity = f' id="{row.name}"' if row.name else ""
    title = f'<h2 id="{anchor(row.title)}">{html.escape(row.title)}</h2>' if row.title else ""
    told = "".join(prose(text) for text in row.prose if text)
    shown = code(row.code, lines, spans) + seen(numbers_beside(row, lines, run))
    return (f'<div class="row{" begins" if title else ""}"{identity}><div class="prose">{title}{told}</div>'
            f'<div class="code">{shown}</div></div>')


def anchor(title: str) -> str:
    return "s-" + re.sub(r"\W+", "-", title.lower())


def page(source: str, run: Run) -> str:
    """The page of plain.py's source."""
    lines, rows, spans = source.splitlines(), rows_of(source), marks(source)
    introduction = paragraphs(ast.get_docstring(ast.parse(source), clean=False) or "")
    parts = {"INTRODUCTION": "".join(map(prose, introduction)),
             "TEXT": plain_numbers.TEXT,
             "POSITION": str(run.pos),
             "NAME": run.names[-1],
             "CONTENTS": "".join(f'<a href="#{anchor(row.title)}">{row.title}</a> ' for row in rows if row.title),
             "ROWS": "\n".join(section(row, lines, spans, run) for row in rows)}
    with open(FRAME, encoding="utf-8") as file:
        frame = file.read()
    return re.sub("|".join(parts), lambda match: parts[match[0]], frame)


def main() -> int:
    parser = console.Parser(prog="plain_page.py", description="Write plain.py as a page, with the model's numbers.")
    parser.add_argument("file", metavar="FILE", help="the page to write")
    path = parser.parse_args().file
    console.check_outputs({"FILE": path}, [SOURCE, FRAME])
    with open(SOURCE, encoding="utf-8") as file:
        source = file.read()
    run = Run(os.path.join(STORIES, "model.bin"), os.path.join(STORIES, "tokenizer.bin"))
    console.write_whole(path, page(source, run).encode())
    return 0


if __name__ == "__main__":
    sys.exit(console.exit_code("plain_page.py", main))
