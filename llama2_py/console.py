"""What every command of this project shares: exit codes, errors of one line, safe printing, safe files.

Errors come in three kinds: ValueError (and OSError, MemoryError) for bad input and files, VerificationError for what is
not as claimed, assert for mistakes of our own.
"""
import argparse
import codecs
import contextlib
import difflib
import itertools
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, NoReturn

if sys.version_info < (3, 10):
    print(f"{os.path.basename(sys.argv[0])}: error: Python 3.10 or newer is needed, this is {sys.version.split()[0]}",
          file=sys.stderr)
    sys.exit(2)

VERSION = "3.0.0"


class VerificationError(Exception):
    """What was checked is not as claimed: says where, which field, what was expected and what was found."""

    def __init__(self, where: str, field: str, expected: Any, got: Any):
        super().__init__(where, field, expected, got)
        self.where, self.field, self.expected, self.got = where, field, expected, got
        self.hint = ""  # what it may only be

    def __str__(self):
        return (f"{self.where}: {self.field}: expected {printable(self.expected, 500)}, got "
                f"{printable(self.got, 500)}{self.hint}")


def need(name: str, value: Any, condition: bool, wanted: str) -> None:
    """Raise ValueError if a value is not as it must be."""
    if not condition:
        raise ValueError(f"{name} is {printable(value, 100)}, must be {wanted}")


def need_integer(name: str, value: Any, low: int, high: int) -> None:
    """Raise ValueError if a value is not an integer from low to high."""
    need(name, value, type(value) is int and low <= value <= high, f"an integer from {low} to {high}")


class Parser(argparse.ArgumentParser):
    """Raises ValueError where argparse would print its usage and exit."""

    prompt = ""  # the option whose text people forget to quote

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """The options. Of those that are not known the error names the nearest."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            given = sys.argv[1:] if args is None else list(args)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._hint(unknown, given)}")
        return found

    def _hint(self, unknown: list[str], given: list[str]) -> str:
        """What may have been meant by arguments that are not known."""
        option = next((argument.split("=")[0] for argument in unknown if argument.startswith("-")), None)
        if option is not None:
            near = difflib.get_close_matches(option, self._option_string_actions, 1, 0.75)
            return f" (is {near[0]} meant?)" if near else ""
        if self.prompt in given:
            words = list(itertools.takewhile(lambda word: word[:1] != "-", given[given.index(self.prompt) + 1:]))
            return f" (a prompt of several words is quoted: {self.prompt} \"{' '.join(words)}\")"
        return ""

    def error(self, message: str) -> NoReturn:
        """Bad usage."""
        raise ValueError(message)

    def option_name(self, attribute: str) -> str:
        """An option as it is given, by the name that its value has."""
        return next(action.option_strings[-1] for action in self._actions if action.dest == attribute)

    def check(self, args: argparse.Namespace, needs: dict[str, str], apart: dict[str, tuple[str, ...]]) -> None:
        """Refuse options without the one that they need, and those beside which another cannot stand."""
        def given(option):
            return getattr(args, option) is not None

        for option, needed in needs.items():
            if given(option) and not given(needed):
                self.error(f"{self.option_name(option)} needs {self.option_name(needed)}")
        for option, others in apart.items():
            for other in others:
                if given(option) and given(other):
                    self.error(f"{self.option_name(other)} and {self.option_name(option)}: one at a time")


def utf8(argument: str) -> str:
    """An argument that the locale could not decode, decoded as UTF-8; bytes that are not UTF-8 stay escaped."""
    if any("\ud800" <= c <= "\udfff" for c in argument):
        return os.fsencode(argument).decode("utf-8", "surrogateescape")
    return argument


def tokens(argument: str) -> list[int]:
    """Tokens as an option gives them: 1,403,407."""
    if not re.fullmatch("[0-9]{1,9}(,[0-9]{1,9})*", argument):
        raise argparse.ArgumentTypeError(f"not tokens as 1,403,407: {printable(argument, 100)}")
    return list(map(int, argument.split(",")))


def exit_code(program: str, command: Callable[[], int]) -> int:
    """Run a command -> the exit code: its own, or, with one line on standard error, 1 for a failed verification and 2
    for bad input, or, quietly, 130 for Ctrl-C and 141 for a standard output that was closed."""
    sys.stderr = sys.stderr or open(os.devnull, "w")  # None if it was closed
    if sys.stdout is None:
        return 141
    message = None
    try:
        if getattr(signal.getsignal(signal.SIGINT), "__name__", "") == "end_quietly":  # set while modules were loading
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = command()
        sys.stdout.flush()
    except BrokenPipeError:
        code = 141
    except KeyboardInterrupt:
        code = 130
        if sys.stdout.isatty():
            print()
    except VerificationError as error:
        code, message = 1, f"verification failed: {error}"
    except (ValueError, OSError, MemoryError) as error:
        code, message = 2, getattr(error, "strerror", None) or str(error) or "out of memory"
        if isinstance(error, OSError) and error.filename is not None:
            message = f"{error.filename}: {message}"
    if message is not None:
        say(f"{program}: error: {escaped(message)}")
    for stream in sys.stdout, sys.stderr:
        try:
            stream.flush()
        except OSError:  # drop what cannot be written, or Python's own flush at exit would fail as well
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


# ----------------------------------------------------------------------------
# Printing


def say(message: str, end: str = "\n") -> None:
    """Print on standard error. What cannot be written there is lost, and changes no exit code."""
    with contextlib.suppress(OSError):
        print(message, end=end, file=sys.stderr, flush=True)


def escaped(text: str) -> str:
    """Text with escapes for what a terminal would not print."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable(value: Any, limit: int | None = None) -> str:
    """A value from a file on one line of ASCII that no terminal can mistake: a plain word as it is, anything else as
    JSON, cut off at the limit. In a string of more than 24 characters spaces are escaped, and runs of spaces in any, so
    that no part of it can pass for a line of ours where the terminal breaks it: those are longer, or indented."""
    if isinstance(value, str):
        text = value if re.fullmatch(r"[\w.:*+-]{1,80}", value, re.ASCII) else json.dumps(value)
        if len(text) > 24 or "  " in text:
            text = text.replace(" ", r"\u0020")
    else:
        text = repr(value) if type(value) is float else json.dumps(value, default=repr)
    return text if limit is None or len(text) <= limit else f"{text[:limit]}.."


def quoted(text: str, column: int = 0, limit: int = 4000) -> str:
    """A string from a file in quotes, in lines of at most 78 columns, of which the first begins at `column`: every line
    begins with white space and a quote, so none can pass for a line of ours. Runs of spaces are escaped."""
    rest = f" .. ({len(text)} characters)" if len(text) > limit else ""
    body = re.sub("  +", lambda run: r"\u0020" * len(run[0]), json.dumps(text[:limit])[1:-1])
    lines, column = [""], min(column, 40)
    for symbol in re.findall(r"\\u....|\\.|.", body):
        if column + len(lines[-1]) + len(symbol) > 76:  # break the line, if it can be behind its last word
            at = lines[-1].rfind(" ") + 1
            at = at if len(lines[-1]) - at < 20 else len(lines[-1])
            lines, column = [*lines[:-1], lines[-1][:at], lines[-1][at:]], 4
        lines[-1] += symbol
    return "\n    ".join(f'"{line}"' for line in lines) + rest


def printer(out: BinaryIO, like: str | None) -> Callable[[bytes], None]:
    """A function that writes pieces of text as their UTF-8 completes (run.c: safe_printf), without control characters
    other than white space. like: the program whose habits it has, or None."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(piece):
        if like in ("llama2.c", "runq") and len(piece) == 1 and piece > b"\x7e":
            return  # run.c's safe_printf drops a byte that the C locale cannot print
        text = piece.decode(errors="replace") if like == "llama2-rs" else decoder.decode(piece)
        out.write(re.sub("[\x00-\x08\x0e-\x1f\x7f-\x9f]", "", text).encode())
        out.flush()

    return write


class Text:
    """Prints the text of a run, step by step."""

    def __init__(self, out: BinaryIO, like: str | None, ends: Sequence[int]):
        """ends: the tokens that are not printed, since a run is over with them."""
        self.write, self.like, self.ends = printer(out, like), like, ends

    def step(self, step: Any) -> None:
        """Print the token that follows; one that ends the run only as llama2-rs does."""
        if step.next not in self.ends or self.like == "llama2-rs":
            self.write(step.piece)

    def finish(self) -> None:
        """End the line."""
        self.write(b"\n")


# ----------------------------------------------------------------------------
# Files


MAX_FILE = 2**28  # bytes that are read into memory


def read_file(path: str, limit: int = MAX_FILE) -> bytes:
    """A file's bytes: those that it had when it was opened, if it grows. Raises ValueError if they are more than the
    limit."""
    with open(path, "rb") as file:
        return read_open(path, file, limit)


def read_open(path: str, file: BinaryIO, limit: int = MAX_FILE) -> bytes:
    """As read_file, of a file that is open."""
    size = os.fstat(file.fileno()).st_size  # of a pipe 0
    data = file.read(size or limit + 1) if size <= limit else b""
    if max(size, len(data)) > limit:
        raise ValueError(f"{path}: is larger than {limit} bytes")
    return data


def read_source(source: str | os.PathLike | bytes, limit: int = MAX_FILE) -> tuple[str, bytes]:
    """A file or its bytes -> a name for messages, and the bytes."""
    if not isinstance(source, bytes):
        return os.fspath(source), read_file(os.fspath(source), limit)
    if len(source) > limit:
        raise ValueError(f"the bytes: more than {limit}")
    return "the bytes", source


# How files begin that people take for another kind, and what to do about them
KINDS = [
    (rb"GGUF", "a GGUF file, as llama.cpp has it: give a float checkpoint of llama2.c"),
    (rb".{5}\0{3}\{", "a safetensors file: give the folder that it is in"),
    (rb"PK\x03\x04|\x80\x02", "a file of PyTorch's: export it with llama2.c's export.py"),
    (rb"\n.{1,4}\n.{1,2}<unk>", "a SentencePiece model: export it with llama2.c's tokenizer.py"),
    (rb"\s*\{", "a text in JSON, not a file of llama2.c's"),
]


def kind_of(data: bytes) -> str | None:
    """What a file is by its first bytes, and what to do about it; None: nothing that is known."""
    return next((kind for pattern, kind in KINDS if re.match(pattern, data[:64], re.S)), None)


def check_outputs(paths: dict[str, str | None], sources: Sequence[str | None]) -> None:
    """Raise ValueError if a file cannot be written, would overwrite one that the run reads, or stands for two.

    paths: option -> the file to write, or None; sources: the files that are read."""
    seen: dict[str, str] = {}
    for option, path in paths.items():
        if path is None:
            continue
        folder, target = os.path.dirname(os.path.realpath(path)), os.path.realpath(path)
        if not os.path.isdir(folder):
            raise ValueError(f"{path}: the folder {folder} does not exist")
        if os.path.isdir(path or ".") or not os.access(folder, os.W_OK):
            raise ValueError(f"{path}: cannot be written, in {folder}")
        for source in sources:
            if source is not None and os.path.exists(path) and os.path.samefile(path, source):
                raise ValueError(f"{path}: is read, and would be overwritten")
        if target in seen:
            first = seen[target]
            raise ValueError(f"{paths[first]}: is to be both {first} and {option}")
        seen[target] = option


def write_whole(path: str, data: bytes) -> None:
    """Write all of a file or nothing: beside its place, then renamed. (A device or a pipe is written to directly.)"""
    target = os.path.realpath(path)
    try:
        if os.path.exists(target) and not os.path.isfile(target):
            with open(target, "wb") as file:
                file.write(data)
            return
        beside = f"{target}.{os.urandom(4).hex()}.tmp"
        with open(beside, "xb") as file:  # x: never through a link that somebody has laid there
            try:
                file.write(data)
                file.flush()
                os.replace(beside, target)
            except BaseException:
                os.remove(beside)
                raise
    except OSError as error:
        raise OSError(f"{path}: {error.strerror}") from None
