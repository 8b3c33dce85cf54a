#!/usr/bin/env python3
"""Writes the test vectors for ports in any language.

    python3 tools/make_vectors.py            # into vectors/, byte for byte as it is there
    python3 tools/make_vectors.py FOLDER

Results are the exact arithmetic's, bounds those of llama2_py/doctor/errors.py, flags the mistakes of
llama2_py/doctor/mistakes/ and constants.py that show in a test by more than twice its bound: a mistake that is added
there is in the vectors once this has run. vectors/README.md describes the files.
"""
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the project's folder
sys.path.insert(0, HERE)

from llama2_py.doctor.operations import Operations  # noqa: E402
from tools.vectorgen import choices, inputs, models, writing  # noqa: E402
from tools.vectorgen.catalogue import UNSEEN, catalogue, kinds_for  # noqa: E402
from tools.vectorgen.operations import Test, differs, distance  # noqa: E402

SHOWS = 2.0  # bounds by which a mistake must be off to show
TOKENIZER = "tiny-tokenizer.bin"


class Unexplained(Exception):
    """A mistake shows nowhere, and nobody says why."""


class Deaths:
    """Which mistake shows where."""

    def __init__(self) -> None:
        self.files: dict[str, list[str]] = {number: [] for number in catalogue()}
        self.of_an_operation: set[str] = set()  # those that change a result in a single operation
        self.logits: dict[str, bool] = {}       # of those that a model can make: does it show in logits?

    def add(self, file: str, flags: Iterable[str]) -> None:
        """Mistakes that show in a test of a file."""
        for number in flags:
            if file not in self.files[number]:
                self.files[number].append(file)

    def missing(self) -> list[str]:
        """The mistakes that show nowhere, or not where they should: one of an operation in that operation."""
        found = []
        for number, name in catalogue().items():
            files = set(self.files[number]) - ({"model"} if number in self.of_an_operation else set())
            if bool(files) == (name in UNSEEN):
                found.append(f"{number} {name}")
        return found


def flags_of(test: Test, deaths: Deaths) -> list[str]:
    """The mistakes that show in a test of an operation."""
    expected, bound = test.expected(), test.bound()
    right = list(test.results(Operations))
    flags = []
    for number, kind in kinds_for(test.config()).items():
        theirs = list(test.results(kind))
        if any(map(differs, theirs, right)):
            deaths.of_an_operation.add(number)
        if max([distance(y, expected, bound) for y in theirs]) > SHOWS:
            flags.append(number)
    if test.result == "valid":
        deaths.add(test.file, flags)
    return flags


def numeric(test: Test, deaths: Deaths) -> dict:
    """A test of an operation."""
    return {"comment": test.comment, "flags": flags_of(test, deaths), **writing.inputs(test.fields),
            "expected": writing.array(test.expected(), writing.nine_digits),
            "bound": writing.array(test.bound(), writing.rounded_up), "result": test.result}


def model_test(run: models.Run, deaths: Deaths) -> dict:
    """A test of a whole model."""
    flags = []
    first: dict[models.Place, list[str]] = {place: [] for place in run.places()}
    for number, kind in kinds_for(run.config).items():
        theirs = run.run(kind)
        seen = [place for place in run.places() if place in theirs and distance(
            theirs[place], run.exact[place], run.bounds[place]) > SHOWS]
        if seen:
            flags.append(number)
            first[seen[0]].append(number)
        in_logits = any(op == "logits" for op, _, _ in seen)
        deaths.logits[number] = deaths.logits.get(number, False) or in_logits
    deaths.add(run.file, flags)
    logits = [("logits", None, pos) for pos in range(len(run.tokens))]
    return {"comment": run.comment, "flags": flags, "model": f"{run.name}.bin", "tokens": run.tokens,
            "expected": writing.array([run.exact[place] for place in logits], writing.nine_digits),
            "bound": writing.array([run.bounds[place] for place in logits], writing.rounded_up),
            "operations": [operation(run, place, first[place]) for place in run.places() if place not in logits],
            "result": "valid"}


def operation(run: models.Run, place: models.Place, first: list[str]) -> dict:
    """What an operation of a model must give; first: the mistakes of which it is the first to show anything."""
    op, l, pos = place
    return {"pos": pos, "layer": -1 if l is None else l, "op": op, "first": first,
            "expected": writing.array(run.exact[place], writing.nine_digits),
            "bound": writing.array(run.bounds[place], writing.rounded_up)}


def notes_of(tests: Sequence[dict]) -> dict[str, str]:
    """The names of the mistakes that tests name."""
    flags = {flag for test in tests for flag in test["flags"]}
    return {number: name for number, name in catalogue().items() if number in flags}


def write(folder: str, name: str, content: str | bytes) -> None:
    """Write a file."""
    data = content.encode() if isinstance(content, str) else content
    with open(os.path.join(folder, name), "wb") as file:
        file.write(data)


def write_operations(folder: str, deaths: Deaths) -> None:
    """The files of operations."""
    for name, tests in inputs.by_file().items():
        written = [numeric(test, deaths) for test in tests]
        groups = [{"type": name, "tests": written}]
        write(folder, f"{name}.json", writing.file_of(name, "numeric", notes_of(written), groups))


def write_models(folder: str, deaths: Deaths) -> None:
    """The checkpoints, and what they must give."""
    written = []
    for name, config in models.MODELS.items():
        write(folder, f"{name}.bin", models.checkpoint(name, config))
        run = models.Run(folder, name)
        written.append(model_test(run, deaths))
        run.close()
    groups = [{"type": "model", "tests": written}]
    write(folder, "model.json", writing.file_of("model", "model", notes_of(written), groups))


def write_choices(folder: str) -> None:
    """The exact files."""
    write(folder, TOKENIZER, choices.tokenizer_bytes())
    tokenizer = {"tokenizer": TOKENIZER, "vocab": choices.VOCAB}
    tests = {"sampler": choices.sampler_tests(), "xorshift": choices.xorshift_tests(),
             "tokenizer": choices.tokenizer_tests(os.path.join(folder, TOKENIZER))}
    for name, found in tests.items():
        written = [{"comment": test.pop("comment"), "flags": [], **writing.inputs(test), "result": "valid"}
                   for test in found]
        group = {"type": name, **(tokenizer if name == "tokenizer" else {}), "tests": written}
        write(folder, f"{name}.json", writing.file_of(name, "exact", {}, [group]))


def write_mistakes(folder: str, deaths: Deaths) -> None:
    """The list of all mistakes: in which files each shows, and whether in logits."""
    lines = []
    for number, name in catalogue().items():
        entry = {"name": name, "files": deaths.files[number], "logits": deaths.logits.get(number)}
        if name in UNSEEN:
            entry["unseen"] = UNSEEN[name]
        lines.append(f'"{number}":{writing.encoded(entry)}')
    write(folder, "mistakes.json", "{\n" + ",\n".join(lines) + "\n}\n")


def make(folder: str) -> Deaths:
    """Write all files. Raises Unexplained, before anything is there, if a mistake shows nowhere."""
    deaths = Deaths()
    with tempfile.TemporaryDirectory() as draft:
        write_operations(draft, deaths)
        write_models(draft, deaths)
        write_choices(draft)
        write_mistakes(draft, deaths)
        if deaths.missing():
            raise Unexplained("these mistakes show in no vector of their operation, or are listed in "
                              f"tools/vectorgen/catalogue.py and show: {'; '.join(deaths.missing())}")
        shutil.copytree(draft, folder, dirs_exist_ok=True)
    return deaths


def main(arguments: Sequence[str]) -> int:
    """The command."""
    if len(arguments) > 1 or arguments and arguments[0].startswith("-"):
        print(__doc__)
        return 2
    try:
        make(arguments[0] if arguments else os.path.join(HERE, "vectors"))
    except (Unexplained, OSError) as error:
        print(f"make_vectors.py: error: {error}", file=sys.stderr)
        return 1 if isinstance(error, Unexplained) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
