"""The options of llama2.py's command line (run.c: error_usage), and which do not go together.

    args = parse(["-t", "0", "-n", "20"])    # args.temperature == 0.0; None: not given
"""
import argparse
from collections.abc import Sequence

from llama2_py import console
from llama2_py.console import VERSION
from llama2_py.log.arguments import hash_argument, nonce_argument, root_argument
from llama2_py.log.events import LEVELS

PROGRAM = "llama2.py"

# --like: the arithmetic and the generator
LIKE = {None: ("exact", "xorshift64*"), "llama2.c": ("c", "xorshift64*"), "llama2-rs": ("c", "llama2-rs"),
        "runq": ("runq", "xorshift64*")}

# Options that need another one, and those that cannot stand beside another
NEEDS = {"trace_level": "trace", "verify_iteration": "verify", "root": "verify", "text": "verify",
         "commitment": "verify", "precision": "compare", "budget": "compare", "json": "compare"}
WRITTEN = ("trace", "logits", "dump", "page")
COMPARED = ("compare", "compare_text", "compare_tokens")
APART = {"verify": (*WRITTEN, *COMPARED), "input_prompt": ("tokens",), "compare": (*WRITTEN, *COMPARED[1:]),
         "compare_text": (*WRITTEN, "compare_tokens"), "compare_tokens": WRITTEN,
         "explain_text": ("verify", *WRITTEN, *COMPARED), "nonce": ("seed", *COMPARED, "explain_text"),
         "commit": ("seed", "nonce", *WRITTEN, "verify", *COMPARED, "explain_text")}
MAX_BUDGET = 10**6  # seconds
NOT_IN_CHAT = (*WRITTEN, "verify", *COMPARED, "tokens", "nonce", "commit")


def make_parser() -> console.Parser:
    """The options. Those that a trace holds too are None if not given."""
    parser = console.Parser(prog=PROGRAM, description="Llama 2 inference in plain Python, exact to the bit.",
                            epilog='Example: python3 llama2.py stories42M.bin -i "Once upon a time" -n 100 -s 42')
    parser.prompt = "-i"
    add = parser.add_argument
    add("checkpoint", nargs="?", help="a checkpoint of llama2.c, or a folder of Hugging Face (default: the "
        "embedded model)")
    add("-t", "--temperature", type=float, help="0: always the likeliest token (default: 1.0)")
    add("-p", "--p_value", type=float, help="top-p sampling; 0 or 1: from all tokens (default: 0.9)")
    add("-s", "--seed", type=int, help="1 to 2**64 - 1; 0: from the clock (default: 0, or 1 at temperature 0)")
    add("-n", "--steps", type=int, help="positions, at most the context's; 0: all of them (default: 256)")
    add("-i", "--input_prompt", type=console.utf8, help="how the text begins; -: standard input (default: nothing)")
    add("-z", "--tokenizer", help="(default: tokenizer.bin beside the checkpoint, or in the working directory; a "
        "folder's tokenizer.json)")
    add("-m", "--mode", choices=["generate", "chat"], default="generate", help="tell or talk (default: generate)")
    add("-y", "--system_prompt", type=console.utf8, help="in chat (default: asked for)")
    add("--like", choices=[name for name in LIKE if name], help="be that program, bit for bit (default: exact "
        "arithmetic)")
    add("--workers", type=int, default=1, metavar="N", help="processes that share the work (default: 1)")
    add("--trace", metavar="FILE", help="write a trace of the run")
    add("--trace-level", choices=LEVELS, help="what the trace commits to (default: step)")
    add("--verify", metavar="FILE", help="make the run of a trace again and compare")
    add("--verify-iteration", type=int, metavar="N", help="only up to this step, counted from 0")
    add("--root", type=root_argument, metavar="[SIZE:]HEX", help="the head that was published for that trace")
    add("--text", metavar="FILE", help="the text that it should have")
    add("--explain-text", metavar="FILE", help="print a trace; no model is needed")
    add("--tokens", type=console.tokens, metavar="LIST", help="how the text begins, as tokens: 1,403,407")
    add("--logits", metavar="FILE", help="write every step's logits as an array of numpy, float32 (steps, vocabulary)")
    add("--dump", metavar="FILE", help="write every operation and the logits, as the records that --compare reads")
    add("--compare", metavar="FILE", help="another program's logits or operations: rounding, or a bug?")
    add("--precision", choices=["float32", "bfloat16", "float16"], help="what that program computes in (default: "
        "float32)")
    add("--budget", type=float, metavar="SECONDS", help="for the search for the mistake (default: 20)")
    add("--json", action="store_true", default=None, help="print the verdict as one JSON object")
    add("--compare-text", metavar="FILE", help="another program's text, of these options: rounding, or a bug?")
    add("--compare-tokens", type=console.tokens, metavar="LIST", help="the same of its tokens: 1,403,407")
    add("--page", metavar="FILE", help="write the run as a page of HTML, to look at")
    add("--nonce", type=nonce_argument, metavar="HEX", help="a verifier's number of 16 to 64 bytes, from which, with "
        "the other options, the seed follows")
    add("--commit", action="store_true", default=None, help="print a commitment to the run's options and do nothing "
        "else; it is given away before the nonce is known")
    add("--commitment", type=hash_argument, metavar="HEX", help="the commitment that was given before that trace")
    add("--version", action="version", version=f"{PROGRAM} {VERSION}")
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line -> its options. Raises ValueError for those that cannot be, or not together."""
    parser = make_parser()
    args = parser.parse_args(argv)
    needs = dict(NEEDS)
    if args.commit:  # to a trace that is to be written
        del needs["trace_level"]
    parser.check(args, needs, APART)
    for message in faults_of_mode(parser, args), faults_of_like(args), faults_of_numbers(args):
        if message:
            parser.error(message)
    return args


def faults_of_mode(parser: console.Parser, args: argparse.Namespace) -> str | None:
    """Which option does not fit the mode, or what is asked for."""
    for option in NOT_IN_CHAT:
        if getattr(args, option) is not None and args.mode == "chat":
            return f"{parser.option_name(option)} belongs to mode generate, not to chat"
    if args.system_prompt is not None and args.mode != "chat":
        return "--system_prompt belongs to mode chat"
    if args.commitment is not None and args.nonce is None:
        return "--commitment needs --nonce: it says nothing of the seed"
    if args.page is not None and (args.like == "llama2-rs" or args.workers > 1):
        return ("--page needs a trace of this program's own format, and one process: no --like llama2-rs, and no "
                "--workers")
    if args.compare is not None and (args.temperature or args.workers > 1):
        return ("--compare takes the likeliest tokens, in one process: no --temperature and no --workers; give "
                "the tokens of any other text with --tokens")
    if args.compare_text is not None or args.compare_tokens is not None:
        from llama2_py.doctor import text_report
        return text_report.fault(args)
    return None


def faults_of_like(args: argparse.Namespace) -> str | None:
    """What the program of --like cannot do."""
    if args.trace_level not in (None, "step") and args.like == "llama2-rs":
        return f"argument --trace-level: {args.trace_level}, but llama2-rs's format has steps alone"
    if args.like in ("llama2.c", "runq") and args.seed is not None and args.seed >= 2**31:
        return f"argument -s/--seed: {args.seed}, must be below 2**31 for --like {args.like}: atoi keeps no more"
    if args.like is not None and (args.nonce or args.commit) and args.verify is None:
        name = "--nonce" if args.nonce else "--commit"
        return f"{name}: --like {args.like} takes no seed that follows from a header"
    if args.like == "runq":
        logs = [name for name in ("trace", "verify", "page") if getattr(args, name) is not None]
        if logs:
            return f"--{logs[0]}: a log has no name for the arithmetic of --like runq"
    return None


def faults_of_numbers(args: argparse.Namespace) -> str | None:
    """Which number is out of its range."""
    if args.steps is not None and args.steps < 0:
        return f"argument -n/--steps: {args.steps}, must be 0 or more"
    if args.budget is not None and not 0 <= args.budget <= MAX_BUDGET:
        return f"argument --budget: {args.budget:g}, must be 0 to {MAX_BUDGET} seconds"
    if not 1 <= args.workers <= 1024:
        return f"argument --workers: {args.workers}, must be 1 to 1024"
    return None
