#!/usr/bin/env python3
"""What the field's yardsticks say of ports that are right and of ports that are not: docs/porting.md has the table.

    python3 tools/yardsticks.py [CHECKPOINT TOKENIZER]    # default: the embedded model

A port's logits are commonly held to a mean Kullback-Leibler divergence, to a normalized mean square error, or to a
largest difference. Each is put beside the doctor's measure, for 64 steps of a greedy text.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import llama2  # noqa: E402
from llama2_py.command import embedded  # noqa: E402
from llama2_py.doctor import compare, report  # noqa: E402
from llama2_py.doctor.constants import EPSILON, THETA  # noqa: E402
from llama2_py.doctor.operations import Model, Operations  # noqa: E402
from llama2_py.engine.arithmetic import R  # noqa: E402

STEPS = 64
KL, NMSE, LOOSE, TIGHT = 2e-3, 1e-4, 2e-2, 1e-5  # what is commonly allowed: nats; relative; of one logit, twice


class Rows:
    """Logits in memory, as compare.Comparison reads them from a file."""

    records, are_float16, path = None, False, "logits"

    def __init__(self, rows: list):
        self.rows = rows
        self.steps = len(rows)

    def values(self, op, layer, pos):
        """A step's logits, (vocab)."""
        return self.rows[pos] if op == "logits" else None

    def positions(self):
        """The steps that are there."""
        return range(self.steps)

    def lacks_inputs(self) -> bool:
        """Is there an operation without its inputs? There are logits alone."""
        return False


def greedy(model, tokens: list, steps: int) -> tuple[list, list]:
    """The tokens of a greedy text and their logits."""
    rows: list = []
    for pos in range(steps):
        rows.append(model.forward(tokens[pos], pos))
        if pos + 1 == len(tokens):
            tokens = [*tokens, max(range(len(rows[-1])), key=rows[-1].__getitem__)]
    return tokens[:steps], rows


def line(name: str, model, tokens: list, exact: list, rows: list) -> str:
    """A row of the table."""
    c = compare.Comparison(model, tokens, Rows(rows))
    c.run()
    kl, nmse = report.mean_divergence(c), report.normalized_error(c)
    largest = max(abs(a - b) for row, other in zip(rows, exact, strict=True) for a, b in zip(row, other, strict=True))
    passes = ["yes" if passed else "no" for passed in (kl < KL, nmse < NMSE, largest < LOOSE, largest < TIGHT)]
    verdict = "consistent" if c.consistent() else "a mistake"
    return f"| {name} | {kl:.1e} {passes[0]} | {nmse:.1e} {passes[1]} | {largest:.1e} {passes[2]} | {passes[3]} | " \
           f"{c.overall:.3g} {verdict} |"


def main() -> int:
    """Print the table."""
    path, tokenizer = sys.argv[1:3] if len(sys.argv) > 2 else (embedded("model.bin"), embedded("tokenizer.bin"))
    print(f"| port | mean KL < {KL:g} | NMSE < {NMSE:g} | difference < {LOOSE:g} | < {TIGHT:g} | the doctor |")
    print("|---|---|---|---|---|---|")
    with llama2.Transformer(path) as model, llama2.Transformer(path, "c") as c:
        begin = llama2.load_tokenizer(tokenizer, model.config.vocab_size).encode("Once upon a time")
        tokens, exact = greedy(model, list(begin), min(STEPS, model.config.seq_len))
        print(line("right: sums from left to right", model, tokens, exact,
                   [c.forward(token, pos) for pos, token in enumerate(tokens)]))
        for name, kind in (("right: every operation rounded once", Operations),
                           ("theta 10001", THETA.mistake(10001.0, model.config)),
                           ("epsilon 1e-6", EPSILON.mistake(1e-6, model.config))):
            wrong = Model(kind, model.shard, tokens)
            print(line(name, model, tokens, exact, [R(wrong.logits(pos)) for pos in range(len(tokens))]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
