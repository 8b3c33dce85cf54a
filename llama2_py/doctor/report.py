"""What the doctor says: the verdict, what it rests on, and what to do next."""
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from llama2_py.console import printable
from llama2_py.doctor.compare import ONE_LOGIT, ONE_STEP, Comparison, element, first_bit
from llama2_py.doctor.numbers import Numbers
from llama2_py.doctor.search import bits_of
from llama2_py.engine.graph import place


def compare(model, tokenizer, tokens: Sequence[int], numbers: Numbers, out: BinaryIO, like: Any = None) -> bool:
    """Compare a file's numbers with the model's; print the verdict, why, what to do next -> is it consistent?

    like: the model in another dialect, whose bits the numbers may have."""
    comparison = Comparison(model, tokens, numbers)
    comparison.run()
    consistent = comparison.consistent()
    names = [] if consistent else comparison.names()
    lines = list(report(comparison, tokenizer, names))
    if like is not None:
        bit = first_bit(like, comparison.tokens, numbers, comparison.done)
        lines.insert(1, f"first bit unlike those of --like: {bit}" if bit else "equal in every bit to those of --like")
    for line in lines:
        out.write(line.encode() + b"\n")
    out.flush()
    return consistent


def report(c: Comparison, tokenizer, names: Sequence[str]) -> Iterator[str]:
    """The lines of the report."""
    yield from verdict(c, names)
    yield from reasons(c)
    if c.judged:
        yield from operations_table(c)
    if c.steps:
        yield from steps_table(c, tokenizer)
    yield from advice(c, names)


def verdict(c: Comparison, names: Sequence[str]) -> Iterator[str]:
    """The verdict in a sentence, and the names of the mistakes."""
    if c.not_finite:
        yield f"not finite at {c.not_finite}"
    elif c.consistent():
        yield "consistent with float32: the differences are those of rounding"
    elif not names:
        yield "a mistake, not rounding; none of the known mistakes explains it"
    elif len(names) == 1:
        yield f"a mistake, not rounding: {names[0]}"
    else:
        yield f"{len(names)} mistakes, not rounding:"
        yield from (f"  {name}" for name in names)


def reasons(c: Comparison) -> Iterator[str]:
    """What the verdict rests on."""
    if c.steps:
        yield reason_of_logits(c)
    if c.numbers.are_float16:
        yield "the file's numbers are float16, which hides what is smaller than their rounding"
    yield from reasons_of_operations(c)
    yield from reasons_apart(c)
    if c.parted is not None:
        yield f"the texts part after step {c.parted}: only the steps up to there were judged"
    if c.steps and not c.consistent() and not c.first_wrong:
        bits = bits_of([c.logits_of(step) for step in c.steps])
        if bits:
            yield f"every logit is a {bits}: the program works in that format, or writes in it"
        else:
            yield from size_hint(c)


def reason_of_logits(c: Comparison) -> str:
    """How far the logits are."""
    step, logit = max(c.steps, key=lambda s: s.off), max(c.steps, key=lambda s: s.worst)
    count = f"{len(c.steps)} step" + "s" * (len(c.steps) > 1)
    return (f"logits of {count}, in units of a float32 program's noise: overall {c.overall:.3g} (limit "
            f"{c.limit:g}), worst step {step.off:.3g} (limit {ONE_STEP:g}) at step {step.pos}, worst logit "
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
        how = (f"impossible in float32, in any order of summation: {j.bounds:.3g} times the bound" if j.impossible else
               f"unlikely in float32: {j.worst:.3g} sigma, {j.sigmas:.3g} in the root mean square")
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
    if 0 < c.overall - 10 < 990:
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
        if not names:
            yield ("next: read that operation's code; its inputs are the file's own" + (
                ", and so is the cache: is it read and written by layer and position?"
                if c.first_wrong.op in ("weights", "attention") else ""))
    elif names:
        yield "next: mend it, and compare again"
    else:
        yield f"next: {what_to_dump(c)}"


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
