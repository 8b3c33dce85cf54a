"""What explains another program's logits without a model: a format, rows that are a step off, a temperature.

    rounded_logits(steps)    # ["logits are float16"]
"""
from collections.abc import Iterable, Sequence
from math import fsum, inf
from operator import mul

from llama2_py.doctor.operations import rms
from llama2_py.doctor.precision import FORMATS
from llama2_py.doctor.singles import DIGITS, SINGLE, Seen

# A format of few bits: its results are off by half the distance of neighbours, and a little of float32's own.
A_LITTLE_MORE = 1.01


def are_constant(rows: Iterable[Sequence[float]]) -> bool:
    """Has every row one number only?"""
    return all(min(row) == max(row) for row in rows)


def constant_logits(steps: Sequence[Seen]) -> list[str]:
    """Logits that nobody has computed."""
    if not are_constant([step.theirs for step in steps]):
        return []
    return [f"every logit of a step is the same number, {steps[0].theirs[0]:g} at the first: nothing was written there"]


def bits_of(rows: Iterable[Sequence[float]]) -> str | None:
    """The format of few bits that all numbers are in."""
    rows = list(rows)
    if are_constant(rows):
        return None
    for form in FORMATS:
        if all(tuple(form.round(row)) == tuple(row) for row in rows):
            return form.name
    return None


def rounded_logits(steps: Sequence[Seen]) -> list[str]:
    """Logits that are the right ones, rounded to few bits."""
    name = bits_of([step.theirs for step in steps])
    form = next((form for form in FORMATS if form.name == name), None)
    if form is None:
        return []
    distance = A_LITTLE_MORE * form.distance
    for step in steps:
        for a, b in zip(step.theirs, step.right, strict=True):
            if abs(a - b) > distance * abs(b) + SINGLE * step.noise:
                return []
    return [f"logits are {name}"]


def out_of_step(steps: Sequence[Seen], near: float) -> list[str]:
    """Rows of logits that are one step early or late."""
    names = []
    for by, name in (1, "early: row t has the logits of step t + 1"), (-1, "late: row t has those of step t - 1"):
        offs = [step.off(steps[i + by].right) for i, step in enumerate(steps) if 0 <= i + by < len(steps)]
        if offs and rms(offs) <= near:
            names.append(f"rows are one step {name}")
    return names


def scaled_logits(steps: Sequence[Seen], rounding: float) -> list[str]:
    """Logits that are a multiple of the right ones."""
    products = fsum([v for step in steps for v in map(mul, step.theirs, step.right)])
    squares = fsum([v * v for step in steps for v in step.right])
    factor = products / (squares or inf)
    offs = [step.off([factor * v for v in step.right]) for step in steps]
    if not (factor > 0 and rms(offs) <= rounding * max(1.0, factor)):
        return []
    return [f"logits are divided by {1 / factor:.{DIGITS}g}: a temperature"]
