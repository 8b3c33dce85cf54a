"""The commands of an audit: an auditor keeps a secret of a model, and audits runs by it (audit.py)."""
import argparse
import contextlib
from typing import TextIO

from llama2_py.console import quoted
from llama2_py.engine.models import open_checkpoint
from llama2_py.log.reading import Trace
from llama2_py.log.show import show_commitment, show_options
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
    if args.commitment and not args.nonce:
        raise ValueError("--commitment needs --nonce")
    found = audit(args.log, args.dump, args.secret, args.root, None, args.tokenizer, args.nonce, args.commitment)
    show_audit(found, args.tokenizer is not None, out)
    return 0 if args.partial or not found.tally.missing else 1


def show_audit(found: Audit, with_texts: bool, out: TextIO) -> None:
    """Print what an audit found."""
    tally = found.tally
    part = " in part" if tally.missing else ""
    out.write(f"audited{part}: {found.steps} steps, without the model\n")
    vectors = "1 secret vector" if found.secrets == 1 else f"{found.secrets} secret vectors"
    out.write(f"{tally.products} products are right to within float32 rounding, by {vectors} for each matrix\n")
    out.write(f"{tally.exact} other operations and {tally.tokens} tokens are right to the bit, given those products\n")
    if tally.missing:
        ops = ", ".join(f"{count} {op}" for op, count in tally.missing.items())
        out.write(f"not audited, for want of numbers: {ops}; the first is {found.first_missing_at}\n")
    if with_texts:
        prompt = "the prompt and " if found.header["prompt"] else ""
        out.write(f"{prompt}{tally.texts} texts are those of the tokens\n")
    else:
        out.write("neither prompt nor texts were compared with the tokens: that takes the tokenizer's file (-z)\n")
    if not found.ended:
        out.write("the log lacks its last line, so its run may have been cut short; it is audited as far as it goes\n")
    claimed = {} if found.nonce is None else {"nonce": found.nonce}
    chosen = {name: found.header[name] for name in SHOWN if name in found.header and name not in claimed}
    show_options(claimed, chosen, Trace.chosen_by, out)
    show_commitment(found.nonce, found.commitment, out)
    out.write(f"the text of these steps:\n    {quoted(found.text, 4)}\n")
    basis = "as published" if found.published else (
        "only recomputed from the file itself; compare it with the one that was published")
    out.write(f"root: {found.head}, {basis}\n")
