"""All known mistakes, numbered: those of doctor/mistakes.py, and the constants of doctor/constants.py.

    for number, kind in catalogue().items():    # "M017", a class
        print(number, kind.name)

What is added there is here as well.
"""
import functools
from collections import Counter

from llama2_py.doctor.constants import CONSTANTS
from llama2_py.doctor.mistakes import Kind, known
from llama2_py.engine.checkpoint import Config

# Models that can have every mistake between them: with square keys and shared heads, two layers, rows beyond the
# longest group of int8
SHAPES = (Config(160, 160, 2, 4, 4, 160, 32, shared_classifier=False), Config(160, 160, 2, 4, 2, 160, 32))
FIRST_WRONG = 2  # the position from which attention's window is guessed: windows of 1, 2 and 3


@functools.cache
def catalogue() -> dict[str, Kind]:
    """{number: mistake}. Two of the same name are two mistakes: the doctor tells one name for both."""
    found: dict[tuple[str, int], Kind] = {}
    for config in SHAPES:
        seen: Counter = Counter()
        for kind in [*known(config, FIRST_WRONG), *constants(config)]:
            found.setdefault((kind.name, seen[kind.name]), kind)
            seen[kind.name] += 1
    return {f"M{i:03}": kind for i, kind in enumerate(found.values(), 1)}


def constants(config: Config) -> list[Kind]:
    """Mistakes with a constant: each number at which the doctor looks first, unless it is the right one."""
    right = (config.norm_epsilon, config.rope_theta)
    return [constant.mistake(value, config) for constant in CONSTANTS for value in constant.grid
            if value not in right]


# Mistakes that cannot show in any vector, {name: the reason}. make_vectors.py refuses one that is here and shows, and
# one that is not here and does not.
UNSEEN: dict[str, str] = {}
