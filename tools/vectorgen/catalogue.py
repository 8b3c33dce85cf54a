"""All known mistakes, numbered: those of doctor/mistakes/, and the constants of doctor/constants.py.

    catalogue()              # {"M017": its name}
    kinds_for(config)        # {"M017": a class}, of those that can be made with a model of this shape

What is added there is here as well.
"""
import functools
from collections import Counter
from collections.abc import Iterator

from llama2_py.doctor.constants import CONSTANTS
from llama2_py.doctor.mistakes.known import known
from llama2_py.doctor.mistakes.mistake import Kind
from llama2_py.engine.checkpoint import Config
from tools.vectorgen.inputs import by_file
from tools.vectorgen.models import MODELS

Key = tuple[str, int]  # a name, and how many have it before: the doctor tells one name for two mistakes
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


def keyed(kinds: list[Kind]) -> dict[Key, Kind]:
    """Mistakes by their names."""
    seen: Counter = Counter()
    found = {}
    for kind in kinds:
        found[kind.name, seen[kind.name]] = kind
        seen[kind.name] += 1
    return found


@functools.cache
def constants() -> list[Kind]:
    """Mistakes with a constant: each number at which the doctor looks first, unless it is the right one."""
    right = (USUAL.norm_epsilon, USUAL.rope_theta)
    return [constant.mistake(value, USUAL) for constant in CONSTANTS for value in constant.grid if value not in right]


@functools.cache
def numbers() -> dict[Key, str]:
    """The numbers of all mistakes that can be made with any of these models."""
    keys: dict[Key, None] = {}
    for config in configs():
        keys.update(dict.fromkeys(keyed(known(config, FIRST_WRONG))))
    keys.update(dict.fromkeys(keyed(constants())))
    return {key: f"M{i:03}" for i, key in enumerate(keys, 1)}


def catalogue() -> dict[str, str]:
    """The names of all mistakes by number."""
    return {number: name for (name, _), number in numbers().items()}


def kinds_for(config: Config) -> dict[str, Kind]:
    """The mistakes that can be made with a model by number."""
    found = {**keyed(known(config, FIRST_WRONG)), **keyed(constants())}
    return {numbers()[key]: kind for key, kind in found.items()}
