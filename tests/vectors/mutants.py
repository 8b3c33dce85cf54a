"""Small mistakes in llama.js, one at a time: python3 mutants.py FOLDER runs the vectors over each, and tells which
live.

Every place where an operator fits is a mutant; of all of them every STRIDE-th is run.
"""
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
PORT, HARNESS = HERE / "llama.js", HERE / "harness.js"
STRIDE = 2
TIMEOUT = 20     # seconds: some mutants never end
TOGETHER = 2     # mutants at a time

OPERATORS = [  # what stands there, what takes its place
    (r" \+ ", " - "), (r" - ", " + "), (r" \* ", " / "), (r" / ", " * "), (r" < ", " <= "), (r" <= ", " < "),
    (r" > ", " >= "), (r" >= ", " > "), (r" === ", " !== "), (r" \+= ", " -= "), (r"\b0\b", "1"), (r"\b1\b", "2"),
    (r"\b2\b", "3"), (r" >> ", " << "), (r" << ", " >> "), (r"-g\b", "g"), (r"Math\.cos", "Math.sin"),
    (r"Math\.sin", "Math.cos"), (r"Math\.exp", "Math.expm1"), (r"Math\.sqrt", "Math.cbrt"), (r"\|\|", "&&"),
    (r"Math\.max", "Math.min"), (r"\bkeys\b", "values"), (r"\bgate\b", "up"), (r"\bw1\b", "w3"), (r"\bwk\b", "wv"),
    (r"\bheads\b", "kvHeads"), (r"\blow\b", "high"), (r"Math\.floor", "Math.ceil"), (r"1e-5", "1e-6"),
    (r"10000", "10001"),
]

# Mutants that are no mistakes, by the line and what it becomes: why
SAME_THERE = "both branches give the same where they meet"
NO_PIECE = "token 0 is no piece of a text"
FOUND = "only its sign is looked at, or nothing"
BEYOND = "beyond the last token nothing is found"
LOWER = "the cutoff saves time, and a lower one less"
EQUIVALENT = {
    "if (turns >= high) return own;": SAME_THERE,
    "if (turns <= low) return slow;": SAME_THERE,
    "m.classifier = vocab <= 0 ? matrix(-vocab, dim) : m.embedding;": "no vocabulary is empty",
    "m.classifier = vocab < 1 ? matrix(-vocab, dim) : m.embedding;": "no vocabulary is empty",
    "const cutoff = f(f(1 - p) / Math.max(1, logits.length + 1));": LOWER,
    "const cutoff = f(f(1 - p) / Math.max(2, logits.length - 1));": LOWER,
    "tokens.push(...(known > 0 ? [known] : [...bytes].map((byte) => byte + 3)));": NO_PIECE,
    "tokens.push(...(known >= 1 ? [known] : [...bytes].map((byte) => byte + 3)));": NO_PIECE,
    "let best = -1e10, at = -2, merged = -1;": FOUND,
    "let best = -1e10, at = -1, merged = -2;": FOUND,
    "for (let i = 0; i - 1 < tokens.length; i++) {": BEYOND,
    "for (let i = 0; i + 1 <= tokens.length; i++) {": BEYOND,
    "if (pair > 0 && scores[pair] > best) [best, at, merged] = [scores[pair], i, pair];": NO_PIECE,
    "if (pair >= 1 && scores[pair] > best) [best, at, merged] = [scores[pair], i, pair];": NO_PIECE,
}


class Mutant(NamedTuple):
    """A line of the port and what stands there now."""
    number: int
    line: str
    source: str

    def run(self, folder: str) -> bool:
        """Do the vectors pass?"""
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "mutant.js"
            path.write_text(self.source)
            command = ["node", str(HARNESS), folder, str(path)]
            try:
                return subprocess.run(command, capture_output=True, timeout=TIMEOUT).returncode == 0
            except subprocess.TimeoutExpired:
                return False


def mutants() -> Iterator[Mutant]:
    """All of them."""
    lines = PORT.read_text().split("\n")
    end = next(i for i, line in enumerate(lines) if line.startswith("module.exports"))
    for number, line in enumerate(lines[:end]):
        code = line.split("//")[0]
        for pattern, replacement in OPERATORS:
            for found in re.finditer(pattern, code):
                changed = code[:found.start()] + replacement + code[found.end():]
                source = "\n".join([*lines[:number], changed, *lines[number + 1:]])
                yield Mutant(number + 1, changed.strip(), source)


def survivors(folder: str, stride: int = STRIDE) -> tuple[int, list[Mutant]]:
    """How many mutants were run, and those with which all vectors pass."""
    chosen = list(mutants())[::stride]
    with ThreadPoolExecutor(TOGETHER) as pool:
        passed = list(pool.map(lambda mutant: mutant.run(folder), chosen))
    return len(chosen), [mutant for mutant, alive in zip(chosen, passed, strict=True) if alive]


def main(folder: str, stride: str = str(STRIDE)) -> int:
    """The command."""
    count, alive = survivors(folder, int(stride))
    for mutant in alive:
        print(f"llama.js:{mutant.number}: {mutant.line}    # {EQUIVALENT.get(mutant.line, 'alive')}")
    print(f"{count} mutants, {len(alive)} pass, {sum([m.line not in EQUIVALENT for m in alive])} of them mistakes")
    return int(any(mutant.line not in EQUIVALENT for mutant in alive))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
