"""A run as one page of HTML: the text, what the model thought at each token, and the proof of its line in the log.

    python3 llama2.py -s 42 -n 100 --page tale.html    # open it in a browser: it needs no network
    python3 trace.py page tale.trace > tale.html       # the part that needs no model

page.html is the page without its script, page.js, and its data. The script takes text, tokens, prompt and options from
the lines of the log, computes every hash by itself, and compares what it shows beside the log (candidates, attention)
with the lines where they could contradict each other. The data stand last, as JSON in which no character can end the
script or begin markup; the script sets text as text only.
"""
import heapq
import json
import math
import re
from collections.abc import Sequence
from importlib import resources
from itertools import repeat
from operator import mul, sub
from typing import Any

from llama2_py.console import write_whole
from llama2_py.log.events import Layout, read_header
from llama2_py.log.reading import Trace
from llama2_py.log.writing import KeptLog, head
from merkle import leaf_hash, tree_head

MAX_PAGE = 20_000_000  # bytes
HASH_ENTRY = 67        # bytes of a hash in the data: 64 digits, two quotes, a comma
TOP = 10               # candidates shown
NO_BOS = 0             # a token after which a piece keeps its space

# Thousandths in two digits of base 32, as the page's parseInt reads them
DIGITS = "0123456789abcdefghijklmnopqrstuv"
PAIRS = [DIGITS[i // 32] + DIGITS[i % 32] for i in range(1000)]


class Page:
    """Collects a run, and writes its page when it is complete. Raises ValueError if that would be larger than 20 MB."""

    def __init__(self, path: str, model: Any, tokenizer: Any, sampler: Any, header: dict):
        """model: llama2.Transformer, in one process; sampler: the one of the run."""
        self.path = path
        self.model = model
        self.tokenizer = tokenizer
        self.sampler = sampler
        self.header = header
        self.log = KeptLog(header)
        self.words: dict[int, str] = {}           # token -> its text, as a line of the log has it
        self.steps: list[dict] = []
        self.outputs: list[Sequence[float]] = []  # of the current step's layers
        self.weights = ""                         # of the current step, two digits each
        heads = header["config"]["n_layers"] * header["config"]["n_heads"]
        steps = header["steps"]
        size = heads * steps * (steps + 1)  # two digits for each weight
        if size > MAX_PAGE:
            most = math.isqrt(MAX_PAGE // heads) - 1
            raise ValueError(f"{path}: the attention of {steps} steps would have {size} bytes, more than {MAX_PAGE}: "
                             f"take at most {most} (-n)")

    def operation(self, layer: int | None, op: str, values: Sequence[float]) -> None:
        """Take an operation of the current step."""
        self.log.operation(layer, op, values)
        if op == "weights":
            self.weights += "".join(map(PAIRS.__getitem__, map(round, map(mul, values, repeat(999.0)))))
        elif op == "ffn_residual":
            self.outputs.append(tuple(values))

    def step(self, step: Any) -> None:
        """Take a step, and see what each layer would have said."""
        self.log.step(step)
        *early, _ = self.outputs
        lens = [self._likeliest(logits, 1)[0] for logits in [*self.model.logits_after(early), step.logits]]
        event = {"lens": lens, "weights": self.weights, **self._choice(step)}
        self.steps.append(event)
        for token in [step.next, *[token for token, *_ in lens + event["top"]]]:
            self.words[token] = self.tokenizer.decode(NO_BOS, token).decode("utf-8", KeptLog.errors)
        self.outputs = []
        self.weights = ""

    def _likeliest(self, logits: Sequence[float], n: int) -> list[tuple[int, float]]:
        """The n likeliest tokens and their probabilities at temperature 1."""
        highest = max(logits)
        total = sum(map(math.exp, map(sub, logits, repeat(highest))))
        if n == 1:
            return [(logits.index(highest), short(1 / total))]
        largest = heapq.nlargest(n, zip(logits, range(0, -len(logits), -1), strict=True))  # the first of equal ones
        return [(-token, short(math.exp(value - highest) / total)) for value, token in largest]

    def _choice(self, step: Any) -> dict:
        """The candidates of a step, [token, probability, kept by top-p?]; if one was drawn, also how many were kept,
        and what they total. (The page has the coin from the seed.)"""
        forced = step.pos + 1 < len(self.header["tokens"])
        if forced or self.sampler.drawn is None:
            return {"top": [[*pair, True] for pair in self._likeliest(step.logits, TOP)]}
        tokens, total, probabilities, _ = self.sampler.drawn
        kept = set(tokens)
        top = heapq.nlargest(TOP, zip(probabilities, range(0, -len(probabilities), -1), strict=True))
        candidates = [[-token, short(p), -token in kept] for p, token in top]
        return {"top": candidates, "kept": len(kept), "total": short(total)}

    def finish(self) -> None:
        """Write the page."""
        leaves = list(map(leaf_hash, self.log.lines))
        published = head(len(leaves), tree_head(leaves))
        write_whole(self.path, html(self.path, self.log.lines, published, self.words, self.steps))


def of_trace(log: Trace) -> bytes:
    """The page of a trace of this program's own format, without what only a model knows. Raises ValueError if the page
    is larger than 20 MB."""
    return html(log.path, log.lines, log.head())


def html(path: str, lines: Sequence[bytes], published: str, words: dict[int, str] | None = None,
         steps: Sequence[dict] | None = None) -> bytes:
    """The page of a log's lines, with their head; words, steps: what is known beside the log, if there is a model: the
    names of tokens, and of each step what Page.step collects. Raises ValueError if the page is larger than 20 MB."""
    shown, leaves = shown_and_hashed(path, lines)
    data = {"head": published, "lines": shown, "leaves": leaves, "words": words, "steps": steps}
    # ASCII, and without < > &: nothing in it can end the script, begin a comment or be markup
    text = json.dumps(data, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    before, between, after = re.split("SCRIPT|DATA", source("page.html"))
    page = (before + source("page.js") + between + text + after).encode()
    if len(page) > MAX_PAGE:
        raise too_large(path, len(page))
    return page


def shown_and_hashed(path: str, lines: Sequence[bytes]) -> tuple[list[str], list[str]]:
    """The lines that a page shows, which are the header and the steps, and the hashes of all lines, in hexadecimal.
    Raises ValueError if there is no step, or, before it keeps them all, if they are too large for a page."""
    per_step = Layout(read_header(path, lines[0])).lines
    if len(lines) <= per_step:
        raise ValueError(f"{path}: the log has no step to show")
    shown: list[str] = []
    leaves: list[str] = []
    size = 0
    for i, line in enumerate(lines):
        leaves.append(leaf_hash(line).hex())
        size += HASH_ENTRY
        if i % per_step == 0:
            shown.append(line.decode())
            size += len(line)
        if size > MAX_PAGE:
            raise too_large(path, size)
    return shown, leaves


def source(name: str) -> str:
    """A file of this folder."""
    return resources.files("llama2_py.log").joinpath(name).read_text("utf-8")


def too_large(path: str, size: int) -> ValueError:
    """The error of a page that has, so far, this size in bytes."""
    return ValueError(f"{path}: the page would have {size} bytes or more, at most {MAX_PAGE} are allowed: take fewer "
                      "steps, or a trace of another level")


def short(number: float) -> float:
    """A probability in the digits that the page shows."""
    return float(f"{number:.4g}")
