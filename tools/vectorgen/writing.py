"""The files of vectors as text.

    text = file_of("swiglu", notes, groups)    # JSON, a test a line
"""
import json
from collections.abc import Iterator, Sequence
from math import floor, log10
from typing import Any

from llama2_py.engine.arithmetic import r

SCHEMAS = {"numeric": "llama_numeric_v1", "model": "llama_model_v1", "exact": "llama_exact_v1"}
VERSION = "1"       # of the files: a new one where a reader has to change
MOST_DIGITS = 9     # that a float32 needs
BOUND_DIGITS = 2    # after the first: bounds are rounded up


class Raw(str):
    """A piece of JSON."""


def shortest(value: float) -> str:
    """The decimal with the fewest digits that is this float32 once it is read and rounded."""
    assert r(value) == value, f"{value} is no float32"
    for digits in range(1, MOST_DIGITS + 1):
        text = f"{value:.{digits}g}"
        if r(float(text)) == value:
            break
    return with_point(text)


def nine_digits(value: float) -> str:
    """A float32 in nine digits: also read as a double it is all but this number."""
    return with_point(f"{value:.{MOST_DIGITS}g}")


def rounded_up(value: float) -> str:
    """A bound in three digits, not below it."""
    if value == 0:
        return "0"
    text = f"{value:.{BOUND_DIGITS}e}"
    if float(text) < value:
        exponent = floor(log10(value)) - BOUND_DIGITS
        text = f"{float(text) + 10.0**exponent:.{BOUND_DIGITS}e}"
    mantissa, exponent_text = text.split("e")
    return f"{mantissa}e{int(exponent_text)}"


def with_point(text: str) -> str:
    """As JSON has it, without an exponent if it is small; -0 with a point: as an integer it would lose its sign."""
    plain = repr(float(text)).removesuffix(".0")
    return "-0.0" if plain == "-0" else plain.replace("e+", "e")


def array(values: Any, write: Any) -> Raw:
    """Numbers, in rows or not, as JSON."""
    if isinstance(values, int):
        return Raw(values)
    if isinstance(values, float):
        return Raw(write(values))
    return Raw("[" + ",".join([array(v, write) for v in values]) + "]")


def inputs(fields: dict) -> dict:
    """The fields of a test, with float32 numbers in the fewest digits."""
    def field(value: Any) -> Any:
        return array(value, shortest) if isinstance(value, list) else value
    return {name: field(value) for name, value in fields.items()}


def encoded(value: Any) -> str:
    """As json.dumps without spaces, but for what is JSON already."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, dict):
        return "{" + ",".join([f"{json.dumps(name)}:{encoded(v)}" for name, v in value.items()]) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(encoded, value)) + "]"
    return json.dumps(value)


def numbered(groups: Sequence[dict]) -> Iterator[dict]:
    """Groups with a number in each test, from 1 on."""
    number = 0
    for group in groups:
        tests = []
        for test in group["tests"]:
            number += 1
            tests.append({"tcId": number, **test})
        yield {**group, "tests": tests}


def file_of(algorithm: str, schema: str, notes: dict[str, str], groups: Sequence[dict]) -> str:
    """A file: its head, then a test a line."""
    groups = list(numbered(groups))
    head = {"algorithm": algorithm, "schema": SCHEMAS[schema], "generatorVersion": VERSION,
            "numberOfTests": sum([len(group["tests"]) for group in groups]), "notes": notes}
    lines = [encoded(head)[:-1] + ',"testGroups":[']
    for i, group in enumerate(groups):
        of_group = {name: value for name, value in group.items() if name != "tests"}
        lines.append(encoded(of_group)[:-1] + ',"tests":[')
        lines.append(",\n".join(map(encoded, group["tests"])))
        lines.append("]}" + ("," if i + 1 < len(groups) else ""))
    return "\n".join([*lines, "]}", ""])
