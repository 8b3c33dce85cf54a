"""What the doctor says of another program's numbers: the verdict, what it rests on, the mistake's name, and what to do
next.

The verdict is printed before the search for the mistake begins. The last five lines are made for a pull request.
"""
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import fsum
from typing import Any, BinaryIO

from llama2_py.console import VERSION, printable
from llama2_py.doctor.budget import Budget
from llama2_py.doctor.compare import FIVE, Comparison, element, first_bit, progress
from llama2_py.doctor.limits import FEW, ONE_LOGIT, ONE_STEP
from llama2_py.doctor.numbers import Numbers
from llama2_py.doctor.precision import PRECISIONS, Precision
from llama2_py.doctor.simple import bits_of
from llama2_py.engine.graph import ROTATED, place

BUDGET = 20.0      # seconds for the search
SHOWN_TOKENS = 12  # of those that were given


@dataclass
class Diagnosis:
    """What the search found."""
    names: list[str] = field(default_factory=list)    # of the mistakes
    untried: list[str] = field(default_factory=list)  # what it did not get to
    seconds: float = BUDGET                           # that it could take


def compare(model, tokenizer, tokens: Sequence[int], numbers: Numbers, out: BinaryIO, like: Any = None,
            precision: Precision = PRECISIONS["float32"], budget: float = BUDGET, as_json: bool = False) -> bool:
    """Compare a file's numbers with the model's; print the verdict, why, what to do next -> is it consistent?

    like: the model in another dialect, whose bits the numbers may have. precision: what the other program computes in;
    the model's weights are rounded to it. budget: seconds for the search. as_json: print one JSON object instead.
    """
    comparison = Comparison(model, tokens, numbers, precision)
    comparison.run()
    bits = bits_line(like, comparison) if like is not None else None
    if not as_json:
        write(out, [verdict_text(comparison), *([bits] if bits else []), *reasons(comparison)])
    diagnosis = diagnose(comparison, budget)
    if as_json:
        write(out, [json.dumps(as_object(comparison, diagnosis), separators=(",", ":"))])
    else:
        write(out, findings(comparison, diagnosis, tokenizer))
    return comparison.consistent()


def write(out: BinaryIO, lines: Sequence[str] | Iterator[str]) -> None:
    """Print lines."""
    for line in lines:
        out.write(line.encode() + b"\n")
    out.flush()


def diagnose(c: Comparison, seconds: float = BUDGET) -> Diagnosis:
    """Look for the mistakes that explain what is wrong, for so many seconds."""
    if c.consistent():
        return Diagnosis(seconds=seconds)

    def tell(done: int, of: int) -> None:
        progress("looking for the mistake", done, of)

    budget = Budget(seconds, tell)
    names = c.search(budget)
    tell(1, 1)
    return Diagnosis(names, budget.untried, seconds)


def bits_line(like: Any, c: Comparison) -> str:
    """Whether the numbers are, in every bit, those of the model in another dialect."""
    bit = first_bit(like, c.tokens, c.numbers, c.done)
    return f"first bit unlike those of --like: {bit}" if bit else "equal in every bit to those of --like"


def findings(c: Comparison, diagnosis: Diagnosis, tokenizer) -> Iterator[str]:
    """What follows the verdict and its reasons."""
    if not c.consistent():
        yield from named(c, diagnosis)
    if c.judged:
        yield from operations_table(c)
    if c.steps:
        yield from steps_table(c, tokenizer)
    yield from advice(c, diagnosis.names)
    yield from summary(c, diagnosis)


def verdict_text(c: Comparison) -> str:
    """The verdict in a sentence."""
    if c.not_finite:
        return f"not finite at {c.not_finite}"
    if c.consistent():
        return f"consistent with {c.precision.name}: the differences are those of rounding"
    return f"a mistake, not rounding in {c.precision.name}"


def verdict_with_names(c: Comparison, diagnosis: Diagnosis) -> str:
    """The same with the mistakes' names."""
    return ": ".join([verdict_text(c), *(["; ".join(diagnosis.names)] if diagnosis.names else [])])


def named(c: Comparison, diagnosis: Diagnosis) -> Iterator[str]:
    """The names of the mistakes, and what was not tried."""
    names = diagnosis.names
    if len(names) == 1:
        yield f"the mistake: {names[0]}"
    elif names:
        yield f"{len(names)} mistakes:"
        yield from (f"  {name}" for name in names)
    elif not c.not_finite:
        yield "none of the known mistakes that were tried explains it" if diagnosis.untried else (
            "none of the known mistakes explains it")
    if diagnosis.untried:
        yield f"not tried, in {diagnosis.seconds:g} s (--budget): {'; '.join(diagnosis.untried)}"


def reasons(c: Comparison) -> Iterator[str]:
    """What the verdict rests on."""
    if c.steps:
        yield reason_of_logits(c)
    if c.numbers.are_float16 and not c.precision.form:
        yield "the file's numbers are float16, which hides what is smaller than their rounding"
    yield from reasons_of_operations(c)
    yield from reasons_apart(c)
    yield from reasons_of_precision(c)
    if c.parted is not None:
        yield f"the programs chose different tokens after step {c.parted}: only the steps up to there were judged"


FAR_BETTER = 0.02  # of the noise of 16 bits: a float32 program came to 0.0004 of bfloat16's at most, others to 0.5


def reasons_of_precision(c: Comparison) -> Iterator[str]:
    """What the precision hides; whether it is another one than was said."""
    if c.steps and c.precision.form and c.consistent():
        if c.overall < FAR_BETTER:
            yield (f"far nearer than {c.precision.name} comes: this looks like float32; compare without --precision, "
                   "which sees more")
        yield f"logits in {c.precision.name} do not show: {c.precision.unseen}"
    if c.steps and not c.precision.form and not c.consistent() and not c.first_wrong:
        bits = bits_of([c.logits_of(step) for step in c.steps])
        if bits:
            yield (f"every logit is a {bits}: the program computes in that format (--precision {bits} judges it as "
                   "that), or writes in it")
        else:
            yield from size_hint(c)


def steps_text(c: Comparison) -> str:
    """How many steps' logits were judged."""
    return f"{len(c.steps)} step" + "s" * (len(c.steps) != 1)


def reason_of_logits(c: Comparison) -> str:
    """How far the logits are."""
    step, logit = max(c.steps, key=lambda s: s.off), max(c.steps, key=lambda s: s.worst)
    return (f"logits of {steps_text(c)}, in units of a {c.precision.name} program's noise: overall {c.overall:.3g} "
            f"(limit {c.limit:g}), worst step {step.off:.3g} (limit {ONE_STEP:g}) at step {step.pos}, worst logit "
            f"{logit.worst:.3g} (limit {ONE_LOGIT:g}) at step {logit.pos}, token {logit.at}")


def reasons_of_operations(c: Comparison) -> Iterator[str]:
    """What the operations say, from their own inputs."""
    if c.judged:
        judgements = [judgement for places in c.judged.values() for judgement, _, _ in places]
        are_wrong = sum(judgement.wrong for judgement in judgements)
        yield f"operations judged from their own inputs: {len(judgements)}, of them wrong: {are_wrong}"
    if c.is_fused:
        yield ("ffn_residual is one sum, x + (attention_out + ffn_out): the same function as two additions, with other "
               "roundings; it was judged as that")
    if c.outranked:
        yield ("the logits are beyond their limit, but every operation that led to them is right: rounding alone, "
               "which this run enlarges, made them so")
    if c.first_wrong:
        wrong, j = c.first_wrong, c.first_wrong.judgement
        name = c.precision.name
        how = (f"impossible in {name}, in any order of summation: {j.bounds:.3g} times the bound" if j.impossible else
               f"unlikely in {name}: {j.worst:.3g} sigma, {j.sigmas:.3g} in the root mean square")
        at = element(wrong.op, j.at, c.numbers, wrong.pos)
        yield (f"first wrong operation: {place(wrong.op, wrong.layer, wrong.pos)}, {at}: {wrong.theirs:.9g} there, "
               f"{wrong.ours:.9g} here; {how}")


def reasons_apart(c: Comparison) -> Iterator[str]:
    """What the operations without inputs say."""
    if not c.apart:
        return
    apart = c.apart_wrong()
    count = sum(map(len, c.apart.values()))
    yield (f"operations whose inputs are not in the file, against the right run's: {count}"
           + ("" if apart else ", all within the noise"))
    if apart:
        op, l, pos, ratio = apart[0]
        yield f"first of them beyond the noise: {place(op, l, pos)}: {ratio:.3g} times the noise"


def size_hint(c: Comparison) -> Iterator[str]:
    """What the size of a difference suggests."""
    if 10 < c.overall < 1000:
        yield "differences of this size often come from a constant, or from a cache in float16"
    elif 1000 <= c.overall < 30000:
        yield "differences of this size often come from half precision, or from weights in int8"
    elif c.overall >= 100000:
        yield "differences of this size come from a wrong formula, wrong weights or wrong tokens"


def operations_table(c: Comparison) -> Iterator[str]:
    """A line for each kind of operation: how many were judged; how far they are from right, at worst."""
    yield f"{'operation':20}{'judged':>8}{'wrong':>7}{'rms sigma':>11}{'one sigma':>11}{'of the bound':>14}"
    for op, places in c.judged.items():
        found = [judgement for judgement, _, _ in places]
        wrong = sum(j.wrong for j in found)
        yield (f"{op:20}{len(found):8}{wrong:7}{max(j.sigmas for j in found):11.3g}"
               f"{max(j.worst for j in found):11.3g}{max(j.bounds for j in found):14.3g}")


def steps_table(c: Comparison, tokenizer) -> Iterator[str]:
    """A line for each step."""
    def text(token):
        return f"{token} {printable(tokenizer.vocab[token].decode(errors='replace'), 24)}"

    yield f"{'step':>5}{'times the noise':>17}{'worst logit':>13}  likeliest token"
    for step in c.steps:
        same = step.ours == step.theirs
        likeliest = text(step.ours) if same else (
            f"{text(step.ours)} here, by {step.margin:.3g}; {text(step.theirs)} there")
        yield f"{step.pos:5}{step.off:17.3g}{step.worst:13.3g}  {likeliest}"


def advice(c: Comparison, names: Sequence[str]) -> Iterator[str]:
    """What to do next."""
    if c.not_finite:
        yield "next: " + ("read that operation's code" if c.not_finite_in_operation else
                          "find the first one, with a dump of every operation (--dump shows the form)")
    elif c.consistent():
        yield ("not shown by this: what happens at later positions, with other tokens, in the tokenizer and the sampler"
               + ("" if c.judged else "; and a mistake that changes no logit, such as RoPE with all positions shifted"))
    elif c.first_wrong:
        if c.first_wrong.op in ROTATED and c.steps and not c.logits_wrong:
            yield ("the logits are right: does the file have q and k in another order? Here neighbours turn together; "
                   "where halves do, numbers i and i + hs/2 of a head stand at 2i and 2i + 1")
        if not names:
            yield ("next: read that operation's code; its inputs are the file's own" + (
                ", and so is the cache: is it read and written by layer and position?"
                if c.first_wrong.op in ("weights", "attention") else ""))
    else:
        if c.parted is not None and len(c.steps) <= FEW:
            yield ("first: give both programs the same 20 tokens (--tokens), whatever they choose: so few steps may "
                   "fit several mistakes")
        elif not names and not c.judged:
            given = ",".join(map(str, c.tokens[:min(SHOWN_TOKENS, len(c.steps))]))
            yield f"first: was the other program given the same tokens, {given}{' ..' * (len(c.steps) > SHOWN_TOKENS)}?"
        yield "next: fix it, and compare again" if names else f"next: {what_to_dump(c)}"


def what_to_dump(c: Comparison) -> str:
    """What would name a mistake that has no name yet: not what the file has already."""
    settled = c.settled
    if settled:
        wrong = next(step.pos for step in c.steps if step.pos >= settled)
        return (f"every operation of the first {settled} positions is there, and right: dump those of positions "
                f"{settled} to {wrong} as well, where the logits are wrong")
    if c.apart:
        return "dump the inputs of that operation as well" if c.apart_wrong() else (
            "dump the inputs of the operations that are in the file as well")
    if c.judged:
        return "the operations in the file are right: dump all others of the same positions as well"
    return "dump every operation of the first steps, as records; the first wrong one is then named"


# ----------------------------------------------------------------------------
# For a pull request, and for programs


def mean_divergence(c: Comparison) -> float:
    """The mean over all steps of the Kullback-Leibler divergence, in nats."""
    return fsum([step.kl for step in c.steps]) / len(c.steps)


def normalized_error(c: Comparison) -> float:
    """The sum of all squared differences of logits, by that of the right logits' squares (NMSE)."""
    return (fsum([(step.off * step.noise)**2 for step in c.steps])
            / (fsum([step.size**2 for step in c.steps]) or 1.0))


def same_likeliest(c: Comparison) -> int:
    """The steps whose likeliest token is the same."""
    return sum(step.ours == step.theirs for step in c.steps)


def same_five(c: Comparison) -> float:
    """The part of the five likeliest tokens that are the same, over all steps."""
    return sum(step.five for step in c.steps) / (FIVE * len(c.steps))


def summary(c: Comparison, diagnosis: Diagnosis) -> Iterator[str]:
    """Five lines to paste into a pull request."""
    yield f"llama2.py {VERSION}: {verdict_with_names(c, diagnosis)}"
    yield f"model {c.model.checkpoint.sha256()}"
    operations = sum(map(len, c.judged.values()))
    yield f"{steps_text(c)} of logits judged, and {operations} operations, from their own inputs"
    if not c.steps:
        yield "no logits"
        return
    worst, logit = max(step.off for step in c.steps), max(step.worst for step in c.steps)
    yield (f"overall {c.overall:.3g} (limit {c.limit:g}), worst step {worst:.3g} (limit {ONE_STEP:g}), worst logit "
           f"{logit:.3g} (limit {ONE_LOGIT:g}), in units of the noise")
    yield (f"mean KL divergence {mean_divergence(c):.2g} nats; the likeliest token is the same at {same_likeliest(c)} "
           f"of {len(c.steps)} steps, of the five likeliest {100 * same_five(c):.4g} %")


def as_object(c: Comparison, diagnosis: Diagnosis) -> dict[str, Any]:
    """All of it for programs; docs/porting.md says what the keys mean."""
    wrong = c.first_wrong
    first = None if wrong is None else {
        "pos": wrong.pos, "layer": wrong.layer, "op": wrong.op, "element": wrong.judgement.at, "theirs": wrong.theirs,
        "ours": wrong.ours, "bounds": wrong.judgement.bounds, "sigmas": wrong.judgement.sigmas}
    steps = [{"pos": s.pos, "noise": s.off, "worst_logit": s.worst, "likeliest": s.ours, "theirs": s.theirs, "kl": s.kl}
             for s in c.steps]
    logits = None if not c.steps else {
        "steps": len(c.steps), "overall": c.overall, "overall_limit": c.limit,
        "worst_step": max(s.off for s in c.steps), "worst_step_limit": ONE_STEP,
        "worst_logit": max(s.worst for s in c.steps), "worst_logit_limit": ONE_LOGIT,
        "kl_mean": mean_divergence(c), "nmse": normalized_error(c), "same_likeliest": same_likeliest(c),
        "same_five": same_five(c), "by_step": steps}
    return {"consistent": c.consistent(), "precision": c.precision.name, "verdict": verdict_text(c),
            "mistakes": diagnosis.names, "untried": diagnosis.untried, "model": c.model.checkpoint.sha256(),
            "logits": logits, "operations": {op: {"judged": len(found), "wrong": sum(j.wrong for j, _, _ in found)}
                                             for op, found in c.judged.items()},
            "first_wrong": first, "parted": c.parted, "reasons": list(reasons(c))}
