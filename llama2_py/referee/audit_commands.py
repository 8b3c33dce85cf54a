"""The commands of an audit: an auditor keeps a secret of a model, and audits runs by it (audit.py)."""
import argparse
import contextlib
from typing import TextIO

from llama2_py.console import quoted
from llama2_py.engine.models import open_checkpoint
from llama2_py.log.formats import read
from llama2_py.log.reading import Trace
from llama2_py.log.show import show_fields
from llama2_py.referee.audit import Audit, audit
from llama2_py.referee.secret import make_secret

SHOWN = ("arithmetic", "rng", "temperature", "p_value", "seed", "nonce", "steps", "prompt", "tokens")


def run_secret(args: argparse.Namespace, out: TextIO) -> int:
    """Write a secret on standard output."""
    if out.isatty():
        raise ValueError("a secret is a file of numbers: trace.py secret CHECKPOINT > S")
    with contextlib.closing(open_checkpoint(args.checkpoint)) as checkpoint:
        out.buffer.write(make_secret(checkpoint, args.secrets))
    return 0


def run_audit(args: argparse.Namespace, out: TextIO) -> int:
    """Audit a run, and print what was found to be so."""
    if args.nonce or args.commitment:
        read(args.log).check_claims(args.nonce, args.commitment)
    found = audit(args.log, args.dump, args.secret, args.root, None, args.tokenizer)
    show_audit(found, args.tokenizer is not None, out)
    return 0 if args.partial or not found.tally.missing else 1


def show_audit(found: Audit, with_texts: bool, out: TextIO) -> None:
    """Print what an audit found."""
    tally = found.tally
    part = " in part" if tally.missing else ""
    out.write(f"audited{part}: {found.steps} steps, without the model\n")
    out.write(f"{tally.products} products are right to within float32 rounding\n")
    out.write(f"{tally.exact} other operations and {tally.tokens} tokens are right to the bit, given those products\n")
    if tally.missing:
        ops = ", ".join(f"{count} {op}" for op, count in tally.missing.items())
        out.write(f"not audited, for want of numbers: {ops}; the first is {found.first_missing}\n")
    if tally.products:
        out.write(f"the largest difference of a product: {tally.largest:.2f} of its limit ({tally.largest_at})\n")
    if not with_texts:
        out.write("the texts were not compared with the tokens: that takes the tokenizer's file (-z)\n")
    if not found.ended:
        out.write("the log is incomplete: its run was cut short, and it is audited as far as it goes\n")
    out.write(f"{Trace.chosen_by}\n")
    show_fields({name: found.header[name] for name in SHOWN if name in found.header}, out)
    out.write(f"the text of these steps:\n    {quoted(found.text, 4)}\n")
    basis = "as published" if found.published else (
        "only recomputed from the file itself; compare it with the one that was published")
    out.write(f"root: {found.head}, {basis}\n")
