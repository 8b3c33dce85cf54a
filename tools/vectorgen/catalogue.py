"""All known mistakes, numbered: those of doctor/mistakes/, and the constants of doctor/constants.py.

    catalogue()              # {"M017": its name}
    kinds_for(config)        # {"M017": a class}, of those that can be made with a model of this shape

What is added there is here as well. A mistake keeps its number, by which ports may know it: vectors/mistakes.json is
the register. A new one gets the next.
"""
import functools
import itertools
import json
import os
from collections.abc import Iterable, Iterator

from llama2_py.doctor.constants import CONSTANTS
from llama2_py.doctor.mistakes.known import known
from llama2_py.doctor.mistakes.mistake import Kind
from llama2_py.engine.checkpoint import Config
from tools.vectorgen.inputs import by_file
from tools.vectorgen.models import MODELS

REGISTER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "vectors", "mistakes.json")
USUAL = Config(16, 16, 1, 1, 1, 16, 32)  # a model with llama2.c's constants, of which others are mistakes
FIRST_WRONG = 2  # the position from which attention's window is guessed: windows of 1, 2 and 3

# Mistakes that cannot show in any vector, {name: the reason}. make_vectors.py refuses one that is here and shows, and
# one that is not here and does not.
UNSEEN: dict[str, str] = {}


def configs() -> Iterator[Config]:
    """The shapes of all models and tests."""
    yield from MODELS.values()
    for tests in by_file().values():
        yield from [test.config() for test in tests]


def named(kinds: list[Kind]) -> dict[str, Kind]:
    """Mistakes by their names, of which no two have one."""
    return {kind.name: kind for kind in kinds}


@functools.cache
def constants() -> list[Kind]:
    """Mistakes with a constant: each number at which the doctor looks first, unless it is the right one."""
    right = (USUAL.norm_epsilon, USUAL.rope_theta)
    return [constant.mistake(value, USUAL) for constant in CONSTANTS for value in constant.grid if value not in right]


def registered() -> dict[str, str]:
    """The numbers that mistakes have in vectors/mistakes.json, by name."""
    with open(REGISTER, encoding="utf-8") as file:
        return {entry["name"]: number for number, entry in json.load(file).items()}


def numbered(names: Iterable[str], known_numbers: dict[str, str]) -> dict[str, str]:
    """Mistakes with their numbers: those that they have, or else the next ones."""
    following = itertools.count(1 + max([int(number[1:]) for number in known_numbers.values()], default=0))
    return {name: known_numbers.get(name) or f"M{next(following):03}" for name in names}


@functools.cache
def numbers() -> dict[str, str]:
    """The numbers of all mistakes that can be made with any of these models, by name."""
    names: dict[str, None] = {}
    for config in configs():
        names.update(dict.fromkeys(named(known(config, FIRST_WRONG))))
    names.update(dict.fromkeys(named(constants())))
    return numbered(names, registered())


def catalogue() -> dict[str, str]:
    """The names of all mistakes by number, in the order of the numbers."""
    return dict(sorted((number, name) for name, number in numbers().items()))


def kinds_for(config: Config) -> dict[str, Kind]:
    """The mistakes that can be made with a model, in the order of their numbers."""
    found = {**named(known(config, FIRST_WRONG)), **named(constants())}
    return {number: found[name] for number, name in catalogue().items() if name in found}
