"""The command line of llama2.py (run.c: main, read_stdin): the run that the options describe, and what is done with it.

    settings = merge(args, log)    # options and, where a trace is verified, its header
    with Run(settings, ...) as run:
        for step in run.generate(): ..
"""
import argparse
import atexit
import contextlib
import functools
import io
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, BinaryIO

import llama2
from llama2_py import console
from llama2_py.console import VerificationError
from llama2_py.engine.checkpoint import SHAPE
from llama2_py.engine.coins import MASK
from llama2_py.engine.models import open_checkpoint
from llama2_py.log import formats, show, verify as verification
from llama2_py.log.events import FORMAT, commitment_of, seed_of
from llama2_py.log.reading import Trace
from llama2_py.log.weights import weights_root
from llama2_py.options import LIKE, PROGRAM, WRITTEN, parse

# ----------------------------------------------------------------------------
# A run: what the options say, and what a trace's header says

OPTIONS = {  # of a run: by its name in a trace's header, its name as an option and its value if nobody gives one
    "temperature": ("temperature", 1.0), "p_value": ("p_value", 0.9), "seed": ("seed", None),
    "nonce": ("nonce", None),
    "steps": ("steps", 256), "level": ("trace_level", "step"), "prompt": ("input_prompt", ""),
    "tokens": ("tokens", None)}


@dataclass
class Settings:
    """How a run is to be made."""
    like: str | None  # the program whose habits it has
    options: dict[str, Any]  # by their names in a header
    claims: set[str] = field(default_factory=set)  # those that were given, and not taken from a trace


def merge(args: argparse.Namespace, log: Trace | None) -> Settings:
    """The options that were given, then those of the trace that is to be verified, then the defaults. (A trace of
    llama2-rs holds no options.) Options given beside a trace are claims: the run is made with them, and differs from
    the trace where they are wrong. Raises VerificationError if --like names another program than the trace's."""
    like = args.like or (log.like if log else None)
    if log and (log.like == "llama2-rs") != (like == "llama2-rs"):
        raise VerificationError(log.path, "format", f"that of --like {like}", log.kind)
    arithmetic, rng = LIKE[like]
    settings = Settings(like, {"arithmetic": arithmetic, "rng": rng}, set())
    if args.like:
        settings.claims |= {"arithmetic", "rng"}
    held = log.options if log else {}
    for name, (option, default) in OPTIONS.items():
        given = getattr(args, option)
        if name == "seed" and given == 0:  # as if none were given
            given = None
        if given is not None:
            settings.claims.add(name)
        settings.options[name] = held.get(name, default) if given is None else given
    options = settings.options
    if options["seed"] is None:
        options["seed"] = 1 if options["temperature"] == 0 else time.time_ns() % MASK + 1
    if options["nonce"] is None:
        del options["nonce"]
    elif not held:
        options["seed"] = None  # it follows from the header; in a trace it does, or the trace is not read
    if args.tokens is None and (options["prompt"] or args.input_prompt is not None or not held):
        options["tokens"] = None  # they follow from the prompt
    return settings


class Run:
    """A run as its settings say: the model, the tokenizer, the sampler, the encoded prompt, the number of steps."""

    def __init__(self, settings: Settings, path: str, tokenizer: str | None, workers: int,
                 opened: Callable = open_checkpoint):
        """path and tokenizer: the files; None: the tokenizer is looked for. opened: as of llama2.Transformer. Raises
        ValueError or OSError for files or settings that cannot be used."""
        self.like, self.options, self.claims = settings.like, settings.options, settings.claims
        options = self.options
        self.sampler = self._sampler(options["seed"] or 1)
        self.path, self.prompt, self.level = path, options["prompt"], options["level"]
        self.transformer = llama2.Transformer(path, options["arithmetic"], workers, opened)
        try:
            self._check_like()
            config = self.transformer.config
            self.steps = options["steps"] = min(options["steps"] or config.seq_len, config.seq_len)
            self.tokenizer = llama2.load_tokenizer(tokenizer or find_tokenizer(path), config.vocab_size)
            self.tokens = self._encoded()
            if options["seed"] is None:
                seed = seed_of({"format": FORMAT, **self.header()})
                options["seed"] = seed
                self.sampler = self._sampler(seed)
        except BaseException:
            self.transformer.close()
            raise

    def _sampler(self, seed: int) -> llama2.Sampler:
        options = self.options
        return llama2.Sampler(options["temperature"], options["p_value"], seed, options["rng"], options["arithmetic"])

    def _check_like(self) -> None:
        """Raise ValueError if the program that the run is like has not this model's constants."""
        described = self.transformer.config.described()
        if self.like is not None and not self.transformer.config.is_llama2c:
            name, value = list(described.items())[len(SHAPE)]
            raise ValueError(f"{self.path}: {name} is {value}, which {self.like} does not have (--like)")

    def _encoded(self) -> list[int]:
        """The tokens with which the text begins."""
        context, vocab = self.transformer.config.seq_len, self.tokenizer.vocab
        if len(self.prompt) > context * max(map(len, vocab)):  # before much time goes into it
            raise ValueError(f"the prompt has {len(self.prompt)} characters, too many for {self.path}'s context of "
                             f"{context}")
        tokens = self.options["tokens"]
        if tokens is None or self.prompt:
            claimed, tokens = tokens, self.tokenizer.encode(self.prompt)
            if claimed not in (None, tokens):  # beside a trace, whose prompt is another one
                raise VerificationError("--tokens", "tokens", tokens, claimed)
            del self.options["tokens"]
        llama2.check_length(tokens, self.transformer)
        console.need(f"token of {self.path}", max(tokens), max(tokens) < len(vocab),
                     f"in the vocabulary of {len(vocab)}")
        return tokens

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: Any) -> None:
        self.transformer.close()

    def beginning(self) -> bytes:
        """What the first token adds to the text: nothing if it is BOS, which tokenizers put in front, but for those of
        some folders."""
        if isinstance(self.tokenizer, llama2.Tokenizer):
            return b""
        return self.tokenizer.decode(llama2.START, self.tokens[0])

    def header(self) -> dict:
        """What a trace of this run says first."""
        if self.like == "llama2-rs":
            return {"model_path": self.path, "prompt": self.prompt, "steps": self.steps}
        config, s = self.transformer.config.described(), self.sampler
        nonce = {name: value for name, value in self.options.items() if name == "nonce"}
        return {**self._hashes, "config": config, "tokenizer": self.tokenizer.sha256, "arithmetic": s.arithmetic.name,
                "rng": s.rng, "temperature": s.temperature, "p_value": s.p_value, "seed": s.seed, **nonce,
                "steps": self.steps, "level": self.level, "prompt": self.prompt, "tokens": self.tokens}

    @functools.cached_property
    def _hashes(self) -> dict:
        """The hashes of the model, for which all of it is read."""
        checkpoint = self.transformer.checkpoint
        root = weights_root(self.transformer.config.described(), checkpoint.tree_rows())
        return {"model": checkpoint.sha256(), "weights": root}

    def generate(self, observers: Sequence[Callable] = (), logits: bool = True, draft: Sequence[int] = ()
                 ) -> Iterator[llama2.Step]:
        """The steps of the run. observers see their operations; draft are the tokens after the prompt, if known."""
        def observe(*operation: Any) -> None:
            for observer in observers:
                observer(*operation)

        known = [*self.tokens, *draft][:self.steps]
        model = llama2.Drafted(self.transformer, known, 0 if logits else len(self.tokens) - 1)
        return llama2.generate(model, self.tokenizer, self.sampler, self.tokens, self.steps,
                               observe if observers else None, logits)


def open_run(args: argparse.Namespace, log: Trace | None = None) -> Run:
    """The run that the options ask for, or that a trace is of."""
    settings = merge(args, log)
    opened = opener(args)
    if args.checkpoint is None:
        return Run(settings, embedded("model.bin"), args.tokenizer or embedded("tokenizer.bin"), args.workers, opened)
    check_is_there(args.checkpoint)
    return Run(settings, args.checkpoint, args.tokenizer, args.workers, opened)


def opener(args: argparse.Namespace) -> Callable:
    """How the checkpoint is opened: with its weights rounded, if it is compared with a program of that precision."""
    if args.precision in (None, "float32"):
        return open_checkpoint
    from llama2_py.doctor.precision import PRECISIONS, open_rounded
    return functools.partial(open_rounded, PRECISIONS[args.precision])


def check_is_there(checkpoint: str) -> None:
    """Raise ValueError if there is no such file, with what may have been meant."""
    if not os.path.exists(checkpoint):
        is_path = os.path.splitext(checkpoint)[1] or os.sep in checkpoint
        hint = "" if is_path else " (how a text begins is given with -i)"
        raise ValueError(f"{checkpoint}: No such file or directory{hint}")


def find_tokenizer(checkpoint: str) -> str:
    """The tokenizer beside a checkpoint, or in the working directory; that of a folder is in it. Raises ValueError if
    there is none."""
    if os.path.isdir(checkpoint):
        return os.path.join(checkpoint, "tokenizer.json")
    beside = os.path.join(os.path.dirname(checkpoint), "tokenizer.bin")
    for tokenizer in beside, "tokenizer.bin":
        if os.path.exists(tokenizer):
            return tokenizer
    places = "" if beside == "tokenizer.bin" else f"no {beside}, and "
    raise ValueError(f"no tokenizer for {checkpoint}: there is {places}no tokenizer.bin in the working directory; say "
                     "where it is with -z")


@functools.cache
def embedded(name: str) -> str:
    """The path of a file of the embedded model. If it stands in an archive, it is unpacked as long as the program runs:
    a checkpoint is mapped, and workers open it as well."""
    source = resources.files("llama2_py") / "stories" / name
    if isinstance(source, pathlib.Path):
        return str(source)
    folder = tempfile.mkdtemp(prefix="llama2-")
    atexit.register(shutil.rmtree, folder, True)  # which worker processes do not run
    path = os.path.join(folder, name)
    with open(path, "xb") as file:
        file.write(source.read_bytes())
    return path


# ----------------------------------------------------------------------------
# What can be done with a run


def compare(run: Run, args: argparse.Namespace, out: BinaryIO) -> int:
    """Compare another program's numbers with this one's -> the exit code."""
    from llama2_py.doctor import numbers, report
    from llama2_py.doctor.precision import PRECISIONS
    llama2.check_length(run.tokens, run.transformer)
    file = numbers.Numbers(args.compare, run.transformer.config)
    if args.steps is not None and file.steps > run.steps:
        raise ValueError(f"{args.compare}: has {file.steps} steps, this run {run.steps}")
    with contextlib.ExitStack() as models:  # the verdict is about exact arithmetic, whatever --like says
        exact = models.enter_context(llama2.Transformer(run.path)) if run.like else run.transformer
        like = run.transformer if run.like else None
        consistent = report.compare(exact, run.tokenizer, run.tokens, file, out, like,
                                    PRECISIONS[args.precision or "float32"],
                                    report.BUDGET if args.budget is None else args.budget, bool(args.json))
    run.transformer.checkpoint.check_unchanged()
    return 0 if consistent else 1


def sinks_of(run: Run, args: argparse.Namespace, out: BinaryIO) -> tuple[list, list[Callable]]:
    """What takes the steps of a run, the printed text first; and the observers of its operations."""
    sinks: list = [console.Text(out, run.like, run.transformer.config.must_end)]
    observers = []
    if args.logits is not None or args.dump is not None:
        from llama2_py.doctor import numbers
        if args.logits is not None:
            sinks.append(numbers.LogitsFile(args.logits, run.transformer.config.vocab_size))
        if args.dump is not None:
            sinks.append(numbers.DumpFile(args.dump))
            observers.append(sinks[-1].operation)
    if args.page is not None:
        from llama2_py.log import page
        sinks.append(page.Page(args.page, run.transformer, run.tokenizer, run.sampler, run.header()))
        observers.append(sinks[-1].operation)
    return sinks, observers


def tell(run: Run, args: argparse.Namespace, out: BinaryIO) -> int:
    """Generate a text, and pass each step to all that is asked for: the printed text, the files of logits and of
    operations, the trace -> the exit code."""
    llama2.check_length(run.tokens, run.transformer)  # generate would check it only after the files have been opened
    outputs = {f"--{name}": getattr(args, name) for name in WRITTEN}
    console.check_outputs(outputs, [run.path, run.tokenizer.path])
    sinks, observers = sinks_of(run, args, out)
    log = None
    sinks[0].write(run.beginning())
    with contextlib.ExitStack() as files:
        if args.trace is not None:
            log = files.enter_context(contextlib.closing(formats.writer(args.trace, run.header(), run.like)))
            sinks.append(log)
            observers += [log.operation] if log.level != "step" else []
        if not args.seed and run.sampler.temperature > 0:
            console.say(f"seed: {run.sampler.seed}")
        if run.steps < len(run.tokens):
            console.say(f"warning: the prompt has {len(run.tokens)} tokens, so that {run.steps} steps (-n) generate "
                        "nothing")
        begin = time.perf_counter()
        for step in run.generate(observers, logits=len(sinks) > 1):
            for sink in sinks:
                sink.step(step)
        run.transformer.checkpoint.check_unchanged()
        for sink in sinks:
            sink.finish()
        if log:
            console.say(f"root: {log.head()}")
    rate = (step.pos + 1) / (time.perf_counter() - begin)  # of all positions; run.c leaves out the first
    console.say(f"achieved tok/s: {rate:.1f}")
    return 0


MAX_INPUT = 2**20  # bytes of a line in chat, or of a prompt on standard input


def read_input(line: bool) -> str | None:
    """A line of standard input, or all of it; None at its end. Raises ValueError if it is longer than any context."""
    file = sys.stdin.buffer if sys.stdin else io.BytesIO()
    data = file.readline(MAX_INPUT + 1) if line else file.read(MAX_INPUT + 1)
    if len(data) > MAX_INPUT:
        raise ValueError(f"standard input: more than {MAX_INPUT} bytes")
    return data.decode("utf-8", "surrogateescape").rstrip("\r\n") if data else None


def converse(run: Run, args: argparse.Namespace, out: BinaryIO) -> int:
    """Chat on the terminal, or with whoever writes to standard input -> the exit code."""
    if not args.seed and run.sampler.temperature > 0:
        console.say(f"seed: {run.sampler.seed}")
    write = console.printer(out, run.like)

    def read(question: str) -> str:
        out.write(question.encode())
        out.flush()
        line = read_input(line=True)
        if line is None:
            raise EOFError
        return line

    try:
        if not llama2.chat(run.transformer, run.tokenizer, run.sampler, run.steps, read, write, args.input_prompt,
                           args.system_prompt):
            console.say("warning: the model ended no turn by itself: is it one that was trained to chat?")
    except EOFError:
        write(b"\n")
    run.transformer.checkpoint.check_unchanged()
    return 0


def dispatch(args: argparse.Namespace, out: BinaryIO) -> int:
    """Do what the options ask for -> the exit code."""
    if args.explain_text is not None:
        show.show(formats.read(args.explain_text), sys.stdout)
        return 0
    if args.input_prompt == "-":
        args.input_prompt = read_input(line=False) or ""
    if args.verify is not None:
        log, verdict = verify_by(args)
        verification.show_verdict(verdict, log, args.verify_iteration, sys.stdout)
        return 0
    with open_run(args) as run:
        if run.transformer.checkpoint.warning:
            console.say(f"warning: {run.transformer.checkpoint.warning}")
        if run.tokenizer.more:
            console.say(f"warning: {run.tokenizer.path} has more tokens than the {len(run.tokenizer.vocab)} of the "
                        "model: is it the model's own?")
        if args.commit:
            print(commitment_of({"format": FORMAT, **run.header()}))
            return 0
        return action(args)(run, args, out)


def action(args: argparse.Namespace) -> Callable:
    """What is to be done with a run."""
    if args.mode == "chat":
        return converse
    if args.compare is not None:
        return compare
    if args.compare_text is not None or args.compare_tokens is not None:
        from llama2_py.doctor import text_report
        return text_report.compare
    return tell


def verify_by(args: argparse.Namespace) -> tuple[Trace, verification.Verdict]:
    """Verify the trace that the options name -> it, and the verdict."""
    log = formats.read(args.verify)
    text = None if args.text is None else console.read_file(args.text).decode(errors="surrogateescape")
    if args.root:
        log.check_head(args.root)  # before anything is computed
    log.check_claims(args.nonce, args.commitment)
    if args.verify_iteration is not None:
        log.step(args.verify_iteration)
    with open_run(args, log) as run:
        verdict = verification.verify(run, log, args.verify_iteration, args.root, text)
    verdict.commitment = args.commitment
    return log, verdict


def verify(trace: str, checkpoint: str | None = None, tokenizer: str | None = None, root: str | None = None,
           nonce: str | None = None, commitment: str | None = None) -> verification.Verdict:
    """Make the run of a trace again and compare it -> the verdict. For a trace of this program's own format.

    checkpoint and tokenizer are paths as on the command line, root the head that was published, [SIZE:]HEX, nonce and
    commitment those that were given for the run. Raises
    VerificationError at the first difference, ValueError or OSError for files that cannot be used.
    """
    options = {"--verify": trace, "--tokenizer": tokenizer, "--root": root, "--nonce": nonce,
               "--commitment": commitment}
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    return verify_by(parse(given + ([] if checkpoint is None else ["--", checkpoint])))[1]


def verify_many(jobs: Iterable[Sequence], executor: Any) -> Iterator[verification.Verdict | Exception]:
    """verify(*job) for each job, by any concurrent.futures.Executor (processes, Dask, Ray, MPI) -> the verdicts, in the
    jobs' order; what verify raised stands in the place of a verdict."""
    for future in [executor.submit(verify, *job) for job in jobs]:
        try:
            yield future.result()
        except (VerificationError, ValueError, OSError, MemoryError) as error:
            yield error


def main(argv: Sequence[str] | None = None) -> int:
    """The command line -> the exit code: console.exit_code's, and 1 for numbers that are not consistent."""
    return console.exit_code(PROGRAM, lambda: dispatch(parse(argv), sys.stdout.buffer))
