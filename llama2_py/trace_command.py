"""The command line of trace.py: what can be asked of a log, of a proof, and of two logs that part.

Each command is a function of its options and of where to print, which returns the exit code.
"""
import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from llama2_py import console
from llama2_py.log import formats
from llama2_py.log.arguments import (hash_argument, head_argument, nonce_argument, root_argument,
                                     steps_argument)
from llama2_py.log.difference import differences
from llama2_py.log.proofs import (checkpoint, prove, prove_growth, read_note, tlog_proof, verify_growth,
                                  verify_proof)
from llama2_py.log.reading import Trace
from llama2_py.log.show import show, show_fields, show_step, text_of

PROGRAM = "trace.py"

# ----------------------------------------------------------------------------
# Of one log


def read_provable(path: str) -> Trace:
    """A log of this program's own format."""
    trace = formats.read(path)
    if not trace.provable:
        raise ValueError(f"{path}: a trace of llama2-rs has no paths as in RFC 6962 that could be drawn or proved")
    return trace


def run_show(args: argparse.Namespace, out: TextIO) -> int:
    """Print a trace, or draw one step's path."""
    if args.step is None:
        show(formats.read(args.file), out)
    else:
        show_step(read_provable(args.file), args.step, out)
    return 0


def run_root(args: argparse.Namespace, out: TextIO) -> int:
    """Print the head."""
    out.write(formats.read(args.file).head() + "\n")
    return 0


def run_text(args: argparse.Namespace, out: TextIO) -> int:
    """Print the text."""
    trace = formats.read(args.file)
    out.write(text_of(trace, trace.like if trace.prints_bos else None) + "\n")
    return 0


def run_page(args: argparse.Namespace, out: TextIO) -> int:
    """Print the page."""
    from llama2_py.log import page  # here, since no other command needs it
    out.write(page.of_trace(read_provable(args.file)).decode())
    return 0


def run_checkpoint(args: argparse.Namespace, out: TextIO) -> int:
    """Print the head as a checkpoint."""
    out.write(checkpoint(read_provable(args.file), args.origin))
    return 0


def run_prove(args: argparse.Namespace, out: TextIO) -> int:
    """Print a proof."""
    trace = read_provable(args.file)
    if args.earlier is not None:
        if args.steps or args.tlog is not None:
            raise ValueError("--from: a proof of growth stands alone, without steps and --tlog")
        out.write(prove_growth(trace, args.earlier).decode() + "\n")
        return 0
    if not args.steps:
        raise ValueError("prove needs a step, steps as N-M, or --from")
    first, last = args.steps
    if args.tlog is None:
        out.write(prove(trace, first, last).decode() + "\n")
        return 0
    if first != last:
        raise ValueError("--tlog proves one step")
    note = checkpoint(trace, "llama2.py")
    if args.tlog:
        note = read_note(args.tlog, console.read_file(args.tlog))
    out.write(tlog_proof(trace, first, note))
    return 0


# ----------------------------------------------------------------------------
# Of a proof, and of two logs


def run_check(args: argparse.Namespace, out: TextIO) -> int:
    """Check a proof, and print what it proves."""
    if args.earlier is not None:
        verify_growth(args.proof, args.root, args.earlier)
        out.write(f"proved: the log with the head\n  {args.root}\nbegins with the one that had the head\n"
                  f"  {args.earlier}\n")
        return 0
    header, steps = verify_proof(args.proof, args.root)
    out.write("proved to be in the log with this root:\n")
    show_fields(header, out)
    for step in steps:
        show_fields(step, out)
    return 0


def run_diff(args: argparse.Namespace, out: TextIO) -> int:
    """Print where two traces differ, or that they do not."""
    a, b = formats.read(args.a), formats.read(args.b)
    found = differences(a, b)
    for error in found:
        out.write(console.escaped(str(error)).encode("ascii", "backslashreplace").decode() + "\n")
    if found:
        return 1
    levels = [trace.header.get("level") for trace in (a, b)]
    of = "" if levels[0] == levels[1] else f" in what both have: {levels[0]} and {levels[1]} are their levels"
    out.write(f"the two traces are equal{of}\n")
    return 0


# ----------------------------------------------------------------------------
# Options


class Commands:
    """The parser, to which commands are added one by one."""

    def __init__(self) -> None:
        self.parser = console.Parser(prog=PROGRAM, description="Read, prove and compare traces of llama2.py and "
                                     "llama2-rs, and settle disputes between two of them.")
        self.commands = self.parser.add_subparsers(dest="command", required=True, metavar="command",
                                                   parser_class=console.Parser)

    def add(self, name: str, run: Callable, text: str, *arguments: str) -> Callable:
        """Add a command -> what adds an option to it."""
        added = self.commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        for argument in arguments:
            added.add_argument(argument)
        return added.add_argument


def make_parser() -> console.Parser:
    """The commands and their options."""
    commands = Commands()
    command = commands.add
    option = command("show", run_show, "print a trace", "file")
    option("--step", type=int, metavar="N", help="draw the path from this step's line to the root")
    command("root", run_root, "print a trace's head, SIZE:ROOT", "file")
    command("text", run_text, "print a trace's text alone", "file")
    option = command("prove", run_prove, "print a proof that steps are in the trace, or that it has only grown", "file")
    option("steps", nargs="?", type=steps_argument, metavar="N[-M]", help="a step, or several")
    option("--from", dest="earlier", type=int, metavar="SIZE", help="since the trace had this size")
    option("--tlog", nargs="?", const="", metavar="CHECKPOINT", help="as C2SP's tlog-proof, with this checkpoint, "
           "which may be signed (default: one that is not)")
    option = command("check", run_check, "check such a proof against the head that was published", "proof")
    option("--root", type=head_argument, required=True, metavar="SIZE:HEX")
    option("--from", dest="earlier", type=head_argument, metavar="SIZE:HEX", help="the head that it had before")
    command("diff", run_diff, "find the first event in which two traces differ", "a", "b")
    command("page", run_page, "print a trace as a page of HTML, to look at", "file")
    command("checkpoint", run_checkpoint, "print the head as a C2SP checkpoint, unsigned: any tool that signs notes "
            "can sign it", "file", "origin")
    add_referee(command)
    add_audit(command)
    return commands.parser


def add_referee(command: Callable) -> None:
    """The commands of a dispute (llama2_py/referee)."""
    def run(name: str) -> Callable:
        def call(args: argparse.Namespace, out: TextIO) -> int:
            from llama2_py.referee import commands  # here, since it needs llama2
            return getattr(commands, f"run_{name}")(args, out)
        return call

    def roots(option: Callable) -> None:
        option("--roots", nargs=2, type=root_argument, metavar="HEAD",
               help="the heads that A and B published, SIZE:HEX")

    def tokenizer(option: Callable) -> None:
        option("-z", "--tokenizer", help="its file, from which the text of a step's line "
               "follows")

    roots(command("ask", run("ask"), "where two logs part, and what must be revealed", "a", "b"))
    option = command("reveal", run("reveal"), "a party's message: inputs and result of an event", "trace")
    option("event", type=int)
    option("checkpoint")
    option("--output", action="store_true", help="the result alone, if the inputs are revealed by another")
    option("--of", choices=["logits", "next", "text"], default="logits", help="of a step's line, what is in dispute "
           "(default: logits)")
    tokenizer(option)
    option = command("rows", run("rows"), "rows of the weights, with their paths", "checkpoint", "tensor")
    option("layer", type=int)
    option("row", type=int, nargs="*", help="default: all rows")
    option = command("judge", run("judge"), "who is wrong, or right, by the messages", "a", "b")
    option("messages", nargs="*")
    roots(option)
    tokenizer(option)
    option = command("settle", run("settle"), "play the referee and every party whose log the model reproduces", "a",
                     "b", "checkpoint")
    option("messages", nargs="*", help="of the other party")
    roots(option)
    tokenizer(option)


def add_audit(command: Callable) -> None:
    """The commands of an audit (llama2_py/referee)."""
    def run(name: str) -> Callable:
        def call(args: argparse.Namespace, out: TextIO) -> int:
            from llama2_py.referee import audit_commands  # here, since it needs llama2
            return getattr(audit_commands, f"run_{name}")(args, out)
        return call

    option = command("secret", run("secret"), "what an auditor keeps of a model: to be kept from those whose runs he "
                     "audits", "checkpoint")
    option("--secrets", type=int, default=1, metavar="K", help="vectors for each matrix (default: 1)")
    option = command("audit", run("audit"), "check every operation of a run by its log, its numbers (--dump) and a "
                     "secret, without the model", "log", "dump", "secret")
    option("--root", type=root_argument, metavar="[SIZE:]HEX", help="the head that was published for that log")
    option("--nonce", type=nonce_argument, metavar="HEX", help="the nonce that was given for that run")
    option("--commitment", type=hash_argument, metavar="HEX", help="the commitment that was given before")
    option("-z", "--tokenizer", help="its file, from which the texts follow")
    option("--partial", action="store_true", help="exit 0 even if the dump lacks numbers, so that some operations were "
           "not audited")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line -> the exit code: console.exit_code's, and 1 for traces that differ."""
    def run() -> int:
        args = make_parser().parse_args(argv)
        return args.run(args, sys.stdout)

    return console.exit_code(PROGRAM, run)
