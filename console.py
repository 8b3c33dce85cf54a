"""What every command of this project shares: exit codes, errors of one line, safe printing, safe files.

Errors come in three kinds: ValueError (and OSError, MemoryError) for bad input and files, VerificationError for what is
not as claimed, assert for mistakes of our own.
"""
import argparse
import codecs
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO


class VerificationError(Exception):
    """What was checked is not as claimed: says where, which field, what was expected and what was found."""

    def __init__(self, where: str, field: str, expected: Any, got: Any):
        super().__init__(f"{where}: {field}: expected {printable(expected, 500)}, got {printable(got, 500)}")
        self.field = field


class Parser(argparse.ArgumentParser):
    """Raises ValueError where argparse would print its usage and exit."""

    def error(self, message: str):
        raise ValueError(message)

    def check(self, args: argparse.Namespace, needs: dict[str, str], apart: dict[str, tuple[str, ...]]) -> None:
        """Refuse options without the one that they need, and those beside which another cannot stand."""
        def given(option):
            return getattr(args, option) is not None

        def name(option):
            return f"--{option.replace('_', '-')}"

        for option, needed in needs.items():
            if given(option) and not given(needed):
                self.error(f"{name(option)} needs {name(needed)}")
        for option, others in apart.items():
            for other in others:
                if given(option) and given(other):
                    self.error(f"{name(other)} and {name(option)}: one at a time")


def utf8(argument: str) -> str:
    """An argument that the locale could not decode, decoded as UTF-8; bytes that are not UTF-8 stay escaped."""
    if any("\ud800" <= c <= "\udfff" for c in argument):
        return os.fsencode(argument).decode("utf-8", "surrogateescape")
    return argument


def exit_code(program: str, command: Callable[[], int]) -> int:
    """Run a command -> the exit code: its own, or, with one line on standard error, 1 for a failed verification and 2
    for bad input, or, quietly, 130 for Ctrl-C and 141 for a standard output that was closed."""
    sys.stdout, sys.stderr = sys.stdout or open(os.devnull, "w"), sys.stderr or open(os.devnull, "w")  # None if closed
    message = None
    try:
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
        if getattr(error, "filename", None) is not None:
            message = f"{error.filename}: {message}"
    if message is not None:
        print(f"{program}: error: {escaped(message)}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # drop what cannot be written, or Python's own flush at exit would fail as well
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


# ----------------------------------------------------------------------------
# Printing


def escaped(text: str) -> str:
    """Text with escapes for what a terminal would not print."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable(value: Any, limit: int | None = None) -> str:
    """A value from a file as one line of ASCII that is safe to print on a terminal: a plain string as it is, anything
    else as JSON; cut off at the limit."""
    plain = isinstance(value, str) and value and value.isascii() and value.isprintable() and value[0] != '"'
    text = value if plain else json.dumps(value, default=repr)
    return text if limit is None or len(text) <= limit else f"{text[:limit]}.."


def printer(out: BinaryIO, like: str | None) -> Callable[[bytes], None]:
    """A function that writes pieces of text as their UTF-8 completes (run.c: safe_printf), without control characters
    other than white space. like: the program whose habits it has, or None."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(piece):
        if like == "llama2.c" and len(piece) == 1 and piece > b"\x7e":
            return  # run.c's safe_printf drops a byte that the C locale cannot print
        text = piece.decode(errors="replace") if like == "llama2-rs" else decoder.decode(piece)
        out.write(re.sub("[\x00-\x08\x0e-\x1f\x7f-\x9f]", "", text).encode())
        out.flush()

    return write


class Text:
    """Prints the text of a run, step by step."""

    def __init__(self, out: BinaryIO, like: str | None):
        self.write, self.like = printer(out, like), like

    def step(self, step: Any) -> None:
        """Print the token that follows; BOS, 1, only as llama2-rs does."""
        if step.next != 1 or self.like == "llama2-rs":
            self.write(step.piece)

    def finish(self) -> None:
        """End the line."""
        self.write(b"\n")


# ----------------------------------------------------------------------------
# Files


def read_file(path: str, limit: int = 2**28) -> bytes:
    """A file's bytes. Raises ValueError if they are more than the limit."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size or limit) if size <= limit else b""  # a pipe has no size
        if size > limit or file.read(1):
            raise ValueError(f"{path}: is larger than {limit} bytes")
    return data


def check_outputs(paths: dict[str, str | None], sources: Sequence[str | None]) -> None:
    """Raise ValueError if a file cannot be written, would overwrite one that the run reads, or stands for two.

    paths: option -> the file to write, or None; sources: the files that are read."""
    seen = {}
    for option, path in paths.items():
        if path is None:
            continue
        folder, target = os.path.dirname(os.path.realpath(path)), os.path.realpath(path)
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
    beside = target if os.path.exists(target) and not os.path.isfile(target) else f"{target}.{os.getpid()}.tmp"
    try:
        with open(beside, "wb") as file:
            file.write(data)
        if beside != target:
            os.replace(beside, target)
    except BaseException as error:
        if beside != target and os.path.exists(beside):
            os.remove(beside)
        if isinstance(error, OSError):
            raise OSError(f"{path}: {error.strerror}") from None
        raise
