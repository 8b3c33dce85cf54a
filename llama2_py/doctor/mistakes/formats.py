"""Formats of few bits, and results that are rounded to them."""
from collections.abc import Iterator, Sequence

from llama2_py.doctor.mistakes.mistake import HEADS, Kind, Mistake
from llama2_py.doctor.precision import FORMATS, Format
from llama2_py.engine.arithmetic import R
from llama2_py.engine.graph import RESIDUALS
from llama2_py.engine.rows import split


def int8(x: Sequence[float], group: int) -> tuple[float, ...]:
    """x (n) -> (n), rounded to 8 bits, in groups of so many numbers with a scale each; 0: all are one group."""
    result: list[float] = []
    for part in split(x, group or len(x)):
        (scale,) = R([max(map(abs, part)) / 127])
        result += [round(v / scale) * scale for v in part] if scale else part
    return R(result)


def results() -> Iterator[Kind]:
    """Activations and the cache in few bits."""
    for form in FORMATS:
        for op in ("attention_norm", "q", "attention", "attention_out", "ffn_norm", "swiglu", "ffn_out", "final_norm"):
            yield rounded_results(f"results of {op} are {form.name}", (op,), form)
        yield rounded_results(f"x, the residual stream, is {form.name}", RESIDUALS, form)
        yield rounded_cache(f"keys and values are {form.name}", "kv", HEADS, form)
        yield rounded_cache(f"keys are {form.name}", "k", ("weights",), form)
        yield rounded_cache(f"values are {form.name}", "v", ("attention",), form)


def rounded_results(text: str, ops: tuple[str, ...], form: Format) -> Kind:
    """Operations whose results are rounded."""
    class RoundedResults(Mistake):
        name = text
        changes = ops
        in_operations = False
        rough = True
        is_format = True

        def result(self, op, l, pos):
            y = super().result(op, l, pos)
            return form.round(y) if op in ops else y
    return RoundedResults


def rounded_cache(text: str, kinds: str, ops: tuple[str, ...], form: Format) -> Kind:
    """A cache whose keys or values (kinds: k, v) are rounded."""
    class RoundedCache(Mistake):
        name = text
        changes = ops
        rough = True
        is_format = True

        def cached(self, op, l, t, kv, pos):
            x = super().cached(op, l, t, kv, pos)
            return form.round(x) if op in kinds else x
    return RoundedCache
