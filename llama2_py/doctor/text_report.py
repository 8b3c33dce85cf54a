"""What the doctor says of a text: the verdict, what it rests on, what a text does not show, what to do next."""
import argparse
import contextlib
from collections.abc import Iterator
from math import isinf
from typing import Any, BinaryIO

import llama2
from llama2_py import console
from llama2_py.console import printable
from llama2_py.doctor.text import LIMIT, End, Greedy, Parted, Program, Sampling, Verdict, Walk, walk_along
from llama2_py.doctor.written import LONGEST, Listed, Source, Written
from llama2_py.engine.coins import GENERATORS

SHOWN = 10  # ties at most, of which each has a line


# ----------------------------------------------------------------------------
# For the command line


def fault(args: argparse.Namespace) -> str | None:
    """What a text cannot be judged by."""
    if args.workers > 1 or args.like == "runq":
        return ("--compare-text and --compare-tokens judge float32 programs, in one process: no --workers, and no "
                "--like runq")
    if args.temperature != 0 and not args.seed:
        return "--compare-text and --compare-tokens: give the seed (-s) that the text was sampled with, or -t 0"
    return None


def compare(run: Any, args: argparse.Namespace, out: BinaryIO) -> int:
    """Judge the text or the tokens that the options name -> the exit code. run: command.Run, of the same options."""
    llama2.check_length(run.tokens, run.transformer)
    source = source_of(run, args)
    steps = run.steps if args.steps is not None else run.transformer.config.seq_len
    with contextlib.ExitStack() as models:  # the verdict is about exact arithmetic, whatever --like says
        exact = models.enter_context(llama2.Transformer(run.path)) if run.like else run.transformer
        consistent = judge(exact, run.tokenizer, run.sampler, run.tokens, steps, source, out)
    run.transformer.checkpoint.check_unchanged()
    return 0 if consistent else 1


def source_of(run: Any, args: argparse.Namespace) -> Source:
    """What the other program has written."""
    if args.compare_tokens is not None:
        return Listed(args.compare_tokens, run.tokens, run.transformer.config.vocab_size)
    prompt = run.beginning()
    for previous, token in zip(run.tokens, run.tokens[1:], strict=False):
        prompt += run.tokenizer.decode(previous, token)
    return Written(args.compare_text, console.read_file(args.compare_text, LONGEST), prompt, run.tokenizer)


def judge(model, tokenizer, sampler, prompt: list[int], steps: int, source: Source, out: BinaryIO) -> bool:
    """Walk along another program's text or tokens; print the verdict -> is there nothing that rounding cannot make?

    sampler: with that program's options; steps: positions at most."""
    walk = walk_along(model, prompt, steps, program_of(sampler), source)
    lines = list(report(walk, tokenizer))
    if walk.verdict is Verdict.WRONG and sampler.temperature > 0:
        names = [name for name, program in other_programs(sampler, prompt)
                 if walk_along(model, prompt, steps, program, source).verdict is Verdict.CONSISTENT]
        lines[1:1] = [f"it is consistent if {name}" for name in names]
    for line in lines:
        out.write(line.encode() + b"\n")
    out.flush()
    return walk.verdict is not Verdict.WRONG


def program_of(sampler) -> Program:
    """How a program with these options chooses."""
    if sampler.temperature == 0:
        return Greedy()
    return Sampling(sampler.temperature, sampler.p_value, sampler.seed, sampler.rng)


def other_programs(sampler, prompt: list[int]) -> Iterator[tuple[str, Program]]:
    """What a program may have done in its place, and how it then chooses."""
    temperature, p, seed, rng = sampler.temperature, sampler.p_value, sampler.seed, sampler.rng
    other = next(name for name in GENERATORS if name != rng)
    forced = len(prompt) - 1
    yield "the program takes the likeliest token (-t 0)", Greedy()
    yield f"its coins are those of {other} (--like)", Sampling(temperature, p, seed, other)
    if forced:
        yield "it takes a coin for each token of the prompt, too", Sampling(temperature, p, seed, rng, forced)
    if 0 < p < 1:
        yield "it samples from all tokens (-p 1)", Sampling(temperature, 1.0, seed, rng)
    if temperature != 1:
        yield "it leaves the temperature out (-t 1)", Sampling(1.0, p, seed, rng)


# ----------------------------------------------------------------------------
# The lines


def report(walk: Walk, tokenizer: Any) -> Iterator[str]:
    """The lines of the report."""
    yield verdict(walk)
    for parted in walk.parted[:SHOWN]:
        yield parting(parted, tokenizer)
    if len(walk.parted) > SHOWN:
        yield f"and {len(walk.parted) - SHOWN} more such steps"
    yield from ending(walk, tokenizer)
    yield from closest(walk, tokenizer)
    yield from advice(walk)


def named(token: int | None, tokenizer: Any) -> str:
    """A token, for the eye."""
    if token is None:
        return "no token"
    return f"{token} {printable(tokenizer.vocab[token].decode(errors='replace'), 24)}"


def choices(count: int) -> str:
    """So many choices, in words."""
    return f"{count} choice" + "s" * (count != 1)


def verdict(walk: Walk) -> str:
    """The verdict in a sentence."""
    ties = len(walk.parted)
    if walk.end is End.IMPOSSIBLE:
        wrong = walk.parted[-1]
        return f"a mistake, not rounding: step {wrong.pos} is impossible: {times(wrong)}"
    if walk.end is End.OVERRUN:
        return f"a mistake, not rounding: the text goes on after {choices(walk.walked)}, where the model ends it"
    if walk.end is End.UNSURE:
        return "it cannot be told: the text can be cut into tokens in too many ways, and each tried one is impossible"
    if not walk.walked:
        return "it cannot be told: the text holds no choice of the program's"
    if walk.verdict is Verdict.UNTOLD:
        return f"it cannot be told: of {choices(walk.walked)} {ties} are ties that rounding can turn"
    turned = f", of them {ties} a tie that rounding can turn" if ties else ", each the exact program's"
    return f"consistent with float32, as far as a text shows: {choices(walk.walked)}{turned}"


def times(parted: Parted) -> str:
    """How far a token is from being chosen."""
    if isinf(parted.ratio):
        return "no token goes on with the text"
    return f"{parted.ratio:.3g} times the noise of float32 (limit {LIMIT:g})"


def parting(parted: Parted, tokenizer: Any) -> str:
    """A step that has another token than the exact program chooses."""
    kind = "a tie that rounding can turn" if parted.ratio <= LIMIT else "rounding cannot have chosen it"
    return (f"step {parted.pos}: {named(parted.theirs, tokenizer)} there, {named(parted.ours, tokenizer)} here: "
            f"{times(parted)}: {kind}")


def ending(walk: Walk, tokenizer: Any) -> Iterator[str]:
    """How the text ends, if not as expected."""
    rest = walk.source.rest(walk.place)
    chosen = named(walk.last.token, tokenizer)
    if walk.end is End.SHORT:
        yield f"the text ends after {choices(walk.walked)}; the model would go on with {chosen}"
    elif walk.end is End.LONG:
        yield f"the text goes on after the {walk.steps} steps that were judged (-n): {rest}"
    elif walk.end is End.ENDED:
        yield f"the text ends where the model ends it, with {chosen}"
    elif walk.end is not End.WHOLE:
        yield f"what was not judged begins with: {rest}"


def closest(walk: Walk, tokenizer: Any) -> Iterator[str]:
    """The choice that was least decided: what moves the logits by less than that leaves no mark in the text."""
    if walk.closest is None or walk.verdict is Verdict.WRONG:
        return
    _, pos, chosen = walk.closest
    second = chosen.second()
    ratio = chosen.ratio(second, walk.noise.unit(walk.tokens, pos, chosen.logits))
    yield (f"closest choice: step {pos}, {named(chosen.token, tokenizer)} before {named(second, tokenizer)}: "
           f"{ratio:.3g} times the noise; a mistake that moves the logits by less leaves no mark in this text")


def advice(walk: Walk) -> Iterator[str]:
    """What to do next."""
    if walk.end is End.OVERRUN:
        yield "next: does the program stop at that token? what follows it was not judged"
    elif walk.verdict is Verdict.WRONG:
        yield from advice_on_a_mistake(walk)
    else:
        yield (f"hardly shown by {choices(walk.walked)}: fine mistakes (epsilon 1e-06, theta 10001 and a cache in "
               "float16 leave most texts of 200 steps as they are); logits show them (--compare)")


def advice_on_a_mistake(walk: Walk) -> Iterator[str]:
    """What to write next."""
    if walk.walked == 0:
        yield "first: are model, tokenizer (-z) and prompt (-i) those of the text?"
    tokens = ",".join(map(str, walk.tokens))
    yield (f"next: write the logits of both programs for the same tokens (--tokens {tokens}), or every operation of "
           "the first steps (--dump shows the form), and compare those (--compare): that names the mistake")
