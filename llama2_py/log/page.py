"""A run as one page of HTML: the text, what the model thought at each token, and the proof of its line in the log.

    python3 llama2.py -s 42 -n 100 --page tale.html    # open it in a browser: it needs no network
    python3 trace.py page tale.trace > tale.html       # the part that needs no model

page.html is the page without its data. Its script computes every hash that it shows by itself, so that a reader who
changes a digit sees which ones turn. The data stand last, as JSON in which no character can end the script or begin
markup; the script sets text as text only.
"""
import heapq
import json
import math
from collections.abc import Sequence
from importlib import resources
from itertools import repeat
from operator import mul, sub
from typing import Any

from llama2_py.console import write_whole
from llama2_py.log.events import Layout
from llama2_py.log.reading import Trace
from llama2_py.log.writing import KeptLog
from merkle import leaf_hash

MAX_PAGE = 20_000_000  # bytes
TOP = 10               # candidates shown

# Thousandths in two digits of base 32, as the page's parseInt reads them
DIGITS = "0123456789abcdefghijklmnopqrstuv"
PAIRS = [DIGITS[i // 32] + DIGITS[i % 32] for i in range(1000)]


class Page:
    """Collects a run, and writes its page when it is complete. Raises ValueError if that would be larger than 20 MB."""

    def __init__(self, path: str, model: Any, tokenizer: Any, sampler: Any, header: dict):
        """model: llama2.Transformer, in one process; sampler: the one of the run."""
        self.path, self.model, self.tokenizer, self.sampler = path, model, tokenizer, sampler
        self.log, self.header = KeptLog(header), header
        self.steps, self.outputs, self.weights = [], [], ""
        self.words = {}  # token -> text
        heads, steps = header["config"]["n_layers"] * header["config"]["n_heads"], header["steps"]
        if heads * steps * (steps + 1) > MAX_PAGE:  # two digits for each weight
            raise ValueError(f"{path}: the attention of {steps} steps would have {heads * steps * (steps + 1)} bytes, "
                             f"more than {MAX_PAGE}: take at most {math.isqrt(MAX_PAGE // heads) - 1} (-n)")

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
        event = {"next": step.next, "lens": lens, "weights": self.weights, **self._choice(step)}
        self.steps.append(event)
        for token in [step.next, *[token for token, *_ in lens + event["top"]]]:
            self.words[token] = visible(self.tokenizer.vocab[token].decode("utf-8", "backslashreplace"))
        self.outputs, self.weights = [], ""

    def _likeliest(self, logits, n):
        """The n likeliest tokens and their probabilities at temperature 1."""
        highest = max(logits)
        total = sum(map(math.exp, map(sub, logits, repeat(highest))))
        if n == 1:
            return [(logits.index(highest), short(1 / total))]
        largest = heapq.nlargest(n, zip(logits, range(0, -len(logits), -1), strict=True))  # the first of equal ones
        return [(-token, short(math.exp(value - highest) / total)) for value, token in largest]

    def _choice(self, step):
        """The candidates of a step, [token, probability, kept by top-p?], and the coin."""
        forced = step.pos + 1 < len(self.header["tokens"])
        if forced or self.sampler.drawn is None:
            return {"top": [[*pair, True] for pair in self._likeliest(step.logits, TOP)]}
        tokens, total, probabilities, coin = self.sampler.drawn
        kept = set(tokens)
        top = heapq.nlargest(TOP, zip(probabilities, range(0, -len(probabilities), -1), strict=True))
        return {"top": [[-token, short(p), -token in kept] for p, token in top], "kept": len(kept),
                "total": total, "sorted": not isinstance(tokens, range), "coin": coin}

    def finish(self) -> None:
        """Write the page."""
        config = self.header["config"]
        write_whole(self.path, html(self.path, self.log.lines, {
            "model": True, "layers": config["n_layers"], "heads": config["n_heads"], "words": self.words}, self.steps))


def of_trace(log: Trace) -> bytes:
    """The page of a trace of this program's own format, without what only a model knows. Raises ValueError if the page
    is larger than 20 MB."""
    return html(log.path, log.lines, {"model": False, "layers": 0, "heads": 0, "words": {}},
                [{"next": log.event(index)["next"]} for index in log.steps],
                " Nobody has verified it here." + " It was cut short: it has no last line." * (log.root is None))


def html(path: str, lines: Sequence[bytes], data: dict, steps: Sequence[dict], note: str = "") -> bytes:
    """The page of a log's lines; steps: what is known of each step; note: more to say of the log. Raises ValueError if
    it is larger than 20 MB."""
    header = json.loads(lines[0])
    per_step, texts = Layout(header).lines, []
    if not steps:
        raise ValueError(f"{path}: the log has no step to show")
    for pos, step in enumerate(steps):
        step["leaf"] = (pos + 1) * per_step
        texts.append(visible(json.loads(lines[step["leaf"]])["text"]))
    shown = {0, *[step["leaf"] for step in steps]}
    leaves = [line.decode() if i in shown else leaf_hash(line).hex() for i, line in enumerate(lines)]
    data = {**data, "given": len(header["tokens"]), "steps": steps, "texts": texts, "leaves": leaves,
            "header": in_words(header) + note, "about": f"{len(steps)} steps of a model with "
            f"{header['config']['n_layers']} layers and {header['config']['n_heads']} heads"}
    template = resources.files("llama2_py.log").joinpath("page.html").read_text("utf-8")
    before, after = template.split("DATA")
    # ASCII, and without < > &: nothing in it can end the script, begin a comment or be markup
    text = json.dumps(data, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    page = (before + text + after).encode()
    if len(page) > MAX_PAGE:
        raise ValueError(f"{path}: the page would have {len(page)} bytes, more than {MAX_PAGE}: take fewer steps, or a "
                         "trace of another level")
    return page


def in_words(header: dict) -> str:
    """What the first line of a log says."""
    how = "taking the likeliest token" if header["temperature"] == 0 else (
        f"drawing at temperature {header['temperature']}, top-p {header['p_value']}, seed {header['seed']}")
    prompt = visible(json.dumps(header["prompt"][:200]))
    begin = f"after the prompt {prompt}" if header["prompt"] else "without a prompt"
    arithmetic = "exact arithmetic" if header["arithmetic"] == "exact" else "dialect c of the arithmetic"
    level = {"op": "operation"}.get(header["level"], header["level"])
    return (f"The log says: the model with SHA-256 {header['model']} ran at most {header['steps']} steps {begin}, "
            f"{how}, in {arithmetic}. It commits to every {level}.")


def visible(text: str) -> str:
    """Text with escapes for what cannot be seen or turns the direction of other text."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def short(number: float) -> float:
    """A probability in the digits that the page shows."""
    return float(f"{number:.4g}")
