"""Where two events, or two traces, differ."""
from llama2_py.console import VerificationError
from llama2_py.log.events import LEVELS, encode
from llama2_py.log.reading import Trace


def difference(where: str, expected: dict, got: dict) -> VerificationError:
    """The first field in which two events differ, as a VerificationError."""
    names = {"pos": "position", "layer": "layer", "op": "operation"}
    place = ", ".join(f"{name} {expected[key]}" for key, name in names.items() if key in expected) or "header"
    name = next(name for name in [*expected, *got] if encode(expected.get(name)) != encode(got.get(name)))
    return VerificationError(f"{where} ({place})", name, expected.get(name), got.get(name))


def differences(a: Trace, b: Trace) -> list[VerificationError]:
    """The first difference of trace b from trace a, as a list of VerificationErrors, empty if there is none. After a
    difference of the headers, which say nothing about results, the first of the other events follows. Of traces of
    different levels that is compared which both have."""
    found, level = [], None
    levels = [trace.header.get("level") for trace in (a, b)]
    if None not in levels and levels[0] != levels[1]:
        level = min(levels, key=LEVELS.index)
    places = [[i for i in range(len(trace)) if level is None or is_of_level(trace.event(i), level)] for trace in (a, b)]
    for i, j in zip(*places, strict=False):
        one, other = a.event(i), b.event(j)
        if i == 0 and level:
            one["level"] = other["level"]
        if encode(one) != encode(other):
            found.append(difference(b.where(j), one, other))
            if i > 0:
                return found
    if len(places[0]) != len(places[1]):
        i = min(map(len, places))
        where = b.where(places[1][i] if i < len(places[1]) else len(b))
        found.append(VerificationError(where, "number of events", *map(len, places)))
    elif not found and (a.root is None) != (b.root is None):
        found.append(VerificationError(f"{b.path}, at its end", "root", a.root, b.root))
    return found


def is_of_level(event: dict, level: str) -> bool:
    """Whether a trace of a level has this event."""
    return "op" not in event or level == "layer" and event["op"] == "ffn_residual"
