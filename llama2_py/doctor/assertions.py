"""For another program's own tests, under any test runner: are its logits as float32 rounds?

    from llama2_py.doctor import assert_consistent
    assert_consistent(logits, "stories15M.bin", [1, 9038, 2501])

logits: (steps, vocabulary), as nested lists, an array of numpy or a tensor of torch. An AssertionError's text is the
doctor's verdict, with the mistake's name if it has one.
"""
import contextlib
import functools
import mmap
import os
import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import llama2
from llama2_py.console import need
from llama2_py.doctor import report
from llama2_py.doctor.arrays import Array, steps_of
from llama2_py.doctor.compare import Comparison
from llama2_py.doctor.numbers import Numbers
from llama2_py.doctor.precision import PRECISIONS, Precision, open_rounded

NAME = "the logits"
FORMS = ("e", "f", "d")      # float16, 32 and 64, as struct and the buffer protocol call them
NATIVE = "<" if sys.byteorder == "little" else ">"


def assert_consistent(logits: Any, model: Any, tokens: Sequence[int], precision: str = "float32") -> None:
    """Raise AssertionError, with the verdict, if logits are not what rounding makes of the model's.

    model: a path, or a llama2.Transformer in exact arithmetic; tokens: those that the program was given. If there are
    more steps of logits, it took the likeliest token after them. precision: in which it computes. Raises ValueError or
    OSError for what cannot be judged.
    """
    need("precision", precision, precision in PRECISIONS, " or ".join(PRECISIONS))
    with contextlib.ExitStack() as models:
        model = models.enter_context(opened(model, PRECISIONS[precision]))
        given = [int(token) for token in listed(tokens)]
        llama2.check_length(given, model)
        comparison = Comparison(model, given, Given(logits, model.config), PRECISIONS[precision])
        comparison.run()
        if comparison.consistent():
            return
        diagnosis = report.diagnose(comparison)
        lines = [report.verdict_with_names(comparison, diagnosis), *report.reasons(comparison)]
        if not diagnosis.names:
            lines += report.named(comparison, diagnosis)  # what was not tried
        lines += report.advice(comparison, diagnosis.names)
    raise AssertionError("\n".join(lines))


@contextlib.contextmanager
def opened(model: Any, precision: Precision) -> Iterator[llama2.Transformer]:
    """A model for a comparison with a program of a precision; one that is open is used as it is, but for one whose
    weights must be rounded."""
    if isinstance(model, (str, os.PathLike)) or precision.form:
        path = os.fspath(model) if isinstance(model, (str, os.PathLike)) else model.checkpoint.path
        with llama2.Transformer(path, opened=functools.partial(open_rounded, precision)) as transformer:
            yield transformer
    else:
        yield model


class Given(Numbers):
    """Logits that a program has in memory, as if they stood in a file."""

    def __init__(self, logits: Any, config):
        """Raises ValueError for another shape or kind."""
        form, shape, data = in_memory(logits)
        self.path = NAME
        self.config = config
        self.records = None
        self.steps = steps_of(NAME, str(shape), config.vocab_size)
        memory = mmap.mmap(-1, len(data))
        memory.write(data)
        self.array = Array(memory, form, 0, self.steps, config.vocab_size)
        if self.steps > config.seq_len:
            raise ValueError(f"{NAME}: have {self.steps} steps, more than the context of {config.seq_len}")


def in_memory(logits: Any) -> tuple[str, tuple[int, ...], bytes]:
    """The form of the numbers, for struct with its byte order, their shape, and their bytes, row by row."""
    with contextlib.suppress(TypeError, ValueError, BufferError):  # numpy's bfloat16, say, offers no buffer
        view = memoryview(logits)
        order, form = view.format[:-1], view.format[-1:]
        if view.shape is not None and form in FORMS and order in ("", "@", "=", "<", ">"):
            return (order if order in ("<", ">") else NATIVE) + form, view.shape, view.tobytes()
    return from_lists(listed(logits))


def listed(values: Any) -> Any:
    """Nested lists of what has tolist (arrays, tensors); other sequences as they are."""
    return values.tolist() if hasattr(values, "tolist") else values


def from_lists(rows: Any) -> tuple[str, tuple[int, ...], bytes]:
    """As in_memory, of rows in a sequence, or in a sequence of one such sequence."""
    numbers = array("d")
    try:
        rows = [listed(row) for row in rows]
        if len(rows) == 1 and len(rows[0]) and hasattr(listed(rows[0][0]), "__len__"):
            rows = [listed(row) for row in rows[0]]
        for row in rows:
            numbers.extend(map(float, row))
        lengths = [len(row) for row in rows]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{NAME}: not rows of numbers: {error}") from None
    need(f"steps of {NAME}", len(lengths), len(lengths) > 0, "one at least")
    for step, length in enumerate(lengths):
        need(f"length of step {step} of {NAME}", length, length == lengths[0], f"{lengths[0]}, that of step 0")
    return f"{NATIVE}d", (len(lengths), lengths[0]), numbers.tobytes()
