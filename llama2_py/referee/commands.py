"""A dispute about a run, settled without the model: which of two logs is right where they part?

    python3 llama2.py -t 0 -n 4 --trace a.trace --trace-level op   # two programs log the same run, and disagree
    python3 trace.py ask a.trace b.trace                           # where, and what must be revealed
    python3 trace.py reveal a.trace 15 model.bin > a.reveal        # by a party that has the model
    python3 trace.py rows model.bin w2 0 17 > w2.rows              # by anybody who has it
    python3 trace.py judge a.trace b.trace a.reveal b.reveal w2.rows

A and B are the two logs, in the order in which they are given. They agree up to some event, so its inputs are committed
in both; the header commits to every row of the weights; and in exact arithmetic an operation has one right result. So
the referee needs the inputs of one operation; and, of a product with a matrix, both results, and the one or two rows on
which the first element depends in which they differ. It holds each against its hash, computes that element by
definition, and says who is wrong: A, B or both. Who is right, it says when it has computed the whole result, from all
rows: when a party reveals nothing, or has invented a hash, and always in `settle`, which has the model.

This file is the commands; the messages stand in messages.py, what decides an event in dispute.py, the verdict in
judge.py.

What it does not settle: whose log is right if the headers differ, for those are two runs; whether the model of the
header is the one that was meant; and in the arithmetic `c`, where two C libraries can both be right, more than one
machine's.
"""
import argparse
import contextlib
import hashlib
from collections.abc import Sequence
from typing import TextIO

import llama2
from llama2_py import console
from llama2_py.console import VerificationError, need
from llama2_py.engine.arithmetic import to_bytes
from llama2_py.engine.models import open_checkpoint
from llama2_py.log.formats import read
from llama2_py.log.weights import Leaves, Row, weights_tree
from llama2_py.referee.dispute import MOST_TOKENIZER, Dispute, LoggedEvent
from llama2_py.referee.judge import PARTIES, SHOWN, Evidence, Needed, Ruling, check_input, judge, reveal_command
from llama2_py.referee.messages import Pieces, Scanner, begins_with_rows, write_rows, write_values

SHOWN_INPUTS = 3  # of a list of inputs

# ----------------------------------------------------------------------------
# Whoever has the model


class Replay:
    """The run of a log, made again up to an event by whoever has the model."""

    def __init__(self, event: LoggedEvent, checkpoint: str, tokenizer: str | None = None):
        self.event = event
        self.tokenizer = tokenizer
        wanted = {event.index, *(vector.event for vector in event.task.inputs)}
        self.results: dict[int, bytes] = {}  # index of an event -> its numbers, of the event and its inputs
        log, layout = event.log, event.layout
        with llama2.Transformer(checkpoint, log.header["arithmetic"]) as model:
            if model.config.described() != log.header["config"]:
                raise VerificationError(f"{log.path}, line 1 (header)", "config", model.config.described(),
                                        log.header["config"])
            token = log.header["tokens"][0]
            for pos in range(event.task.pos + 1):
                index = layout.operation(pos, "embedding", None)

                def keep(layer: int | None, op: str, values: Sequence[float]) -> None:
                    nonlocal index
                    if index in wanted:
                        self.results[index] = to_bytes(values)
                    index += 1

                keep(None, "logits", model.forward(token, pos, keep))
                if pos < event.task.pos:
                    token = log.event(layout.step(pos))["next"]

    def inputs(self) -> list[bytes]:
        """The inputs of the event. Raises VerificationError if they are not those of the log."""
        found = []
        for wanted in self.event.task.inputs:
            if wanted.is_file:
                if self.tokenizer is None:
                    raise ValueError("the event is settled by the tokenizer's file: give it with -z")
                data = console.read_file(self.tokenizer)
            else:
                data = self.results[wanted.event]
            check_input(self.event.log.path, wanted, data)
            found.append(data)
        return found

    def output(self) -> bytes:
        """The numbers that the model has for the event; none where it has no numbers of its own."""
        return self.results[self.event.index] if self.event.task.n else b""


# ----------------------------------------------------------------------------
# Messages that are taken


class Hearing:
    """The messages of a dispute, taken one by one. Values come before rows: rows are computed with the inputs."""

    def __init__(self, dispute: Dispute, out: TextIO | None = None):
        """out: where to print a table of the messages."""
        self.evidence = Evidence(dispute)
        self.out = out
        self.refused: list[Exception] = []  # why messages were left out
        self.values: list[Scanner] = []     # the messages of others, by their kinds
        self.rows: list[Scanner] = []
        self._print("message", "from", f"{'bytes':>10}", "opens")

    def _print(self, kind: str, source: str, size: object, opens: str) -> None:
        if self.out:
            print(f"{kind:14}{source:22}{size:>10}  {opens}", file=self.out)

    def open(self, paths: Sequence[str], stack: contextlib.ExitStack) -> None:
        """Open the files of messages."""
        for path in paths:
            self.add(Scanner(path, stack.enter_context(open(path, "rb"))))

    def add(self, scanner: Scanner) -> None:
        """A message that is to be taken: find its kind."""
        try:
            (self.rows if begins_with_rows(scanner) else self.values).append(scanner)
        except ValueError as error:
            self.refused.append(error)

    def take_values(self) -> None:
        """Take the values that were opened. A message that is refused does not stand in the way of others."""
        for scanner in self.values:
            try:
                self.take_values_from(scanner, "a file")
            except (VerificationError, ValueError) as error:
                self.refused.append(error)

    def take_rows(self) -> None:
        """Take the rows that were opened."""
        for scanner in self.rows:
            try:
                self.take_rows_from(scanner, "a file")
            except (VerificationError, ValueError) as error:
                self.refused.append(error)

    def take_values_from(self, scanner: Scanner, source: str) -> None:
        """Take a message of values."""
        opened = self.evidence.take_values(scanner)
        self._print("values", source, scanner.size, str(opened))

    def take_rows_from(self, scanner: Scanner, source: str) -> None:
        """Take a message of rows."""
        count = self.evidence.take_rows(scanner)
        self._print("rows", source, scanner.size, f"{count} {'row' if count == 1 else 'rows'}")


def conclude(hearing: Hearing, against_heads: bool, out: TextIO) -> int:
    """Print the verdict -> 0, or what must be revealed -> 1. A message that was refused does not stand in its way; if
    one is missing, it is the error."""
    found = judge(hearing.evidence)
    if isinstance(found, Needed) and hearing.refused:
        raise hearing.refused[0]
    for error in hearing.refused:
        console.say(f"trace.py: not taken into account: {error}")
    if not against_heads:
        print("the logs were not held against heads that were published (--roots)", file=out)
    if isinstance(found, Ruling):
        print(*found.reasons, found.conclusion.value, sep="\n", file=out)
        return 0
    print(f"needed: {found.what}", file=out)
    return 1


# ----------------------------------------------------------------------------
# Commands


def read_dispute(args: argparse.Namespace) -> Dispute:
    """The dispute of two log files, held against the heads that were published."""
    logs = [read(args.a), read(args.b)]
    for log, published in zip(logs, args.roots or [], strict=False):
        log.check_head(published)
    return Dispute(*logs)


def run_ask(args: argparse.Namespace, out: TextIO) -> int:
    """Where two logs part, and what must be revealed."""
    print_dispute(read_dispute(args), out)
    return 0


def print_dispute(dispute: Dispute, out: TextIO) -> None:
    """Print what a dispute is about, and what it takes to settle it."""
    task = dispute.task
    print(f"the logs part at event {dispute.index}: {dispute.where()}", file=out)
    for party, claim in zip(PARTIES, dispute.claims, strict=True):
        print(f"  {party}: {console.printable(claim, SHOWN)}", file=out)
    names = [wanted.name for wanted in task.inputs[:SHOWN_INPUTS]]
    if len(task.inputs) > SHOWN_INPUTS:
        names.append(f".. ({len(task.inputs)} in all)")
    what = ", ".join(names) or "no inputs"
    if task.is_product:
        what += ", and the results of both"
    print(f"to be revealed: {what}", file=out)
    print(f"  {reveal_command(dispute)}", file=out)
    if task.tensor:
        row = "ROW, without a ROW all of them" if task.is_product else str(task.tensor.row)
        print(f"  trace.py rows CHECKPOINT {task.tensor.tensor} {task.tensor.layer} {row}", file=out)


def run_reveal(args: argparse.Namespace, out: TextIO) -> int:
    """Print a message of values."""
    event = LoggedEvent(read(args.trace), args.event, args.of)
    replay = Replay(event, args.checkpoint, args.tokenizer)
    inputs = [] if args.output else replay.inputs()
    output = replay.output()
    digest = hashlib.sha256(output).hexdigest()
    if output and digest != event.claim():
        if args.output:
            raise VerificationError(event.log.path, event.where(), event.claim(), digest)
        output = b""
        console.say("the model does not give what the log says for this event: only its inputs are revealed")
    out.write(write_values(event.index, inputs, output).decode())
    return 0


def run_rows(args: argparse.Namespace, out: TextIO) -> int:
    """Print a message of rows."""
    with contextlib.closing(open_checkpoint(args.checkpoint)) as checkpoint:
        leaves = Leaves(checkpoint.config.described())
        need("tensor", args.tensor, args.tensor in leaves.shapes, ", ".join(leaves.shapes))
        wanted = [Row(args.tensor, args.layer, row) for row in args.row or range(leaves.shapes[args.tensor][0])]
        for row in wanted:
            leaves.index(row)  # refuses what is not there
        for piece in write_rows(weights_tree(checkpoint), checkpoint, wanted):
            out.write(piece.decode())
    return 0


def run_judge(args: argparse.Namespace, out: TextIO) -> int:
    """Print the verdict over messages."""
    hearing = Hearing(read_dispute(args))
    take_tokenizer(hearing, args.tokenizer)
    with contextlib.ExitStack() as stack:
        hearing.open(args.messages, stack)
        hearing.take_values()
        hearing.take_rows()
    return conclude(hearing, bool(args.roots), out)


def run_settle(args: argparse.Namespace, out: TextIO) -> int:
    """Play the referee, and every party whose log the model reproduces. With all rows, so the whole is computed."""
    dispute = read_dispute(args)
    print_dispute(dispute, out)
    hearing = Hearing(dispute, out)
    take_tokenizer(hearing, args.tokenizer)
    with contextlib.ExitStack() as stack:
        checkpoint = stack.enter_context(contextlib.closing(open_checkpoint(args.checkpoint)))
        tree = weights_tree(checkpoint)
        if tree.root().hex() != dispute.header["weights"]:  # before the run is made again
            raise VerificationError(args.checkpoint, "weights", dispute.header["weights"], tree.root().hex())
        hearing.open(args.messages, stack)
        hearing.take_values()
        reveal_to(hearing, Replay(dispute, args.checkpoint, args.tokenizer))
        hearing.take_rows()
        if not hearing.evidence.is_whole():
            missing = hearing.evidence.lacks(range(dispute.task.rows))
            rows = Pieces(write_rows(tree, checkpoint, missing))
            hearing.take_rows_from(Scanner("the model's rows", rows), "whoever has the model")
    return conclude(hearing, bool(args.roots), out)


def take_tokenizer(hearing: Hearing, path: str | None) -> None:
    """Give a hearing the tokenizer's file, if there is one."""
    if path is not None:
        hearing.evidence.take_tokenizer(path, console.read_file(path, MOST_TOKENIZER))


def reveal_to(hearing: Hearing, replay: Replay) -> None:
    """Give a hearing the values of whoever has the model, as far as they are not there."""
    evidence = hearing.evidence
    claims = evidence.dispute.claims
    output = replay.output()
    digest = hashlib.sha256(output).hexdigest()
    source = "whoever has the model"
    if output and digest in claims:
        party = claims.index(digest)
        source = PARTIES[party]
        if evidence.outputs[party] is not None:
            output = b""
    else:
        output = b""
    inputs = replay.inputs() if evidence.inputs is None else []
    if inputs or output:
        message = Pieces([write_values(evidence.dispute.index, inputs, output)])
        hearing.take_values_from(Scanner("the model's values", message), source)
