"""Verification: the run of a trace is made again, and its log compared event by event."""
import contextlib
import itertools
import sys
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Any, TextIO

from llama2_py import console
from llama2_py.console import VerificationError, quoted
from llama2_py.log.checker import EndOfTrace
from llama2_py.log.events import HEADER_FIELDS
from llama2_py.log.formats import checker_of
from llama2_py.log.reading import Trace
from llama2_py.log.show import show_commitment, show_options, text_of


@dataclass
class Verdict:
    """What a verification found to be so."""
    path: str
    steps: int                # computed again and found equal
    whole: bool               # is the trace of a run that ended, and all of it compared?
    ended: bool               # did the run, made again, end where the trace does?
    head: str                 # SIZE:ROOT
    published: bool           # was this head given by the caller? if not, it was computed from the file alone
    text: str                 # of these steps
    claimed: dict = field(default_factory=dict)  # options that the caller gave: they are the run's
    chosen: dict = field(default_factory=dict)   # options that stand in the log, and that its author chose
    commitment: str | None = None                # the one that the caller gave, which is the header's


def verify(run: Any, trace: Trace, last: int | None = None, published: str | None = None, text: str | None = None
           ) -> Verdict:
    """Make the run of a trace again and compare, up to step `last` or, if it is None, to the end.

    run is the run that the trace should be of (llama2_py.command.Run): its header, its prompt's tokens, its steps.
    published is the head, or the root, and text the text that it should have. Raises VerificationError at the first
    difference.
    """
    if published is not None:
        trace.check_head(published)
    steps = len(trace.steps) if last is None else trace.step(last) // trace.per_step
    if not steps:
        raise ValueError(f"{trace.path}: has no step to verify")
    decode = run.tokenizer.decode if trace.provable else None  # a trace of llama2-rs holds the text itself
    told = text_of(trace, run.like, steps, run.beginning(), decode)
    if text is not None and text not in (told, told + "\n"):
        raise VerificationError(trace.path, "text", text, told)
    events = map(trace.event, trace.steps)
    draft = [event["next"] for event in itertools.islice(events, len(run.tokens) - 1, max(0, len(trace.steps) - 1))]
    header = run.header()
    ended = False
    try:
        checker = checker_of(trace, header)
        observers = [checker.operation] if checker.level != "step" else []
        with contextlib.suppress(EndOfTrace), contextlib.closing(
                progress(run.generate(observers, draft=draft), steps)) as steps_again:
            for step in steps_again:
                checker.step(step)
                if step.pos == last:
                    break
            else:
                checker.end()
                ended = True
        checker.conclude()
        run.transformer.checkpoint.check_unchanged()
    except VerificationError as error:
        error.hint += trace.hint(error.field)
        raise
    options = sorted(run.options.items(), key=lambda option: HEADER_FIELDS.index(option[0]))
    claimed, chosen = ({name: value for name, value in options if (name in run.claims) == is_claimed}
                       for is_claimed in (True, False))
    return Verdict(trace.path, steps, bool(trace.root) and last is None, ended, trace.head(), published is not None,
                   told, claimed, chosen)


def show_verdict(verdict: Verdict, trace: Trace, last: int | None, out: TextIO) -> None:
    """Print what was verified, and what of it was claimed by whom."""
    out.write(f"verified: {verdict.steps} steps computed again and found equal\n")
    if last is not None:
        out.write(f"step {last} is leaf {trace.step(last) - trace.leaf_offset} of {trace.size} under the root\n")
    if not trace.root and verdict.ended:
        out.write("the trace lacks its last line; its run is whole\n")
    elif not trace.root:
        out.write("the trace is incomplete: its run was cut short, and it is verified as far as it goes\n")
    show_options(verdict.claimed, verdict.chosen, trace.chosen_by, out)
    show_commitment(verdict.claimed.get("nonce"), verdict.commitment, out)
    out.write(f"the text of these steps:\n    {quoted(verdict.text, 4)}\n")
    basis = "as published" if verdict.published else (
        "only recomputed from the file itself; compare it with the one that was published")
    out.write(f"root: {verdict.head}, {basis}\n")


def progress(steps: Iterable, goal: int) -> Generator:
    """Pass steps on, and on a terminal show how far they are."""
    begin = shown = time.perf_counter()
    try:
        for step in steps:
            yield step
            now = time.perf_counter()
            if sys.stderr.isatty() and now - shown > 0.2:
                done, shown = step.pos + 1, now
                rate = done / (now - begin)
                console.say(f"\r{done} of {goal} steps, {rate:.1f} steps/s, {(goal - done) / rate:.0f} s left  ",
                            end="")
    finally:
        if shown > begin:
            console.say("")
