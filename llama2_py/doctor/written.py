"""What another program has written: a text or tokens, and the tokens with which it goes on at any place.

    text = Written(data, prompt, tokenizer)
    text.options(text.start)    # {token: the place behind it}, of all tokens with which the text goes on
"""
import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from llama2_py.console import need, printable

Place = tuple[int, int]  # which of the texts that it may be, and the byte there

LONGEST = 2**24  # bytes of a text
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
# What programs print that is no text: the token BOS before it, and the speed behind it
BEFORE = re.compile(rb"\s*<s>\s?")
BEHIND = re.compile(rb"\n?achieved tok/s: [0-9.]+\s*\Z")
LONGEST_BEHIND = 100
SPECIAL = re.compile(rb"\s*(</?s>|<unk>)\s*")
CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]")
PRINTABLE = range(0x20, 0x7F)
WHITE = b"\t\n\v\f\r"


class Source(Protocol):
    """What has been written, to be walked along."""
    start: Place

    def options(self, place: Place) -> dict[int, Place]:
        """The tokens with which it goes on, and the place behind each."""

    def is_done(self, place: Place) -> bool:
        """Is nothing left but white space?"""

    def rest(self, place: Place) -> str:
        """What follows, for the eye."""


def looks(tokenizer: Any, token: int) -> set[bytes]:
    """What a token may look like in a text: its bytes, or what programs print in their place."""
    piece = tokenizer.decode(token, token)  # as within a text
    name = tokenizer.vocab[token]
    if not piece or SPECIAL.fullmatch(name):
        return {piece, name, name.strip(), b""}
    text = piece.decode(errors="replace")
    found = {piece, text.encode(), CONTROL.sub("", text).encode()}
    if len(piece) == 1 and piece[0] not in PRINTABLE and piece not in WHITE:
        found.add(b"")  # run.c's safe_printf drops it
    return found


class Pieces:
    """What the tokens of a vocabulary look like."""

    def __init__(self, tokenizer: Any):
        self.tokens: dict[bytes, list[int]] = {}
        for token in range(len(tokenizer.vocab)):
            for look in looks(tokenizer, token):
                self.tokens.setdefault(look, []).append(token)
        self.lengths = sorted(set(map(len, self.tokens)))

    def options(self, text: bytes, at: int) -> dict[int, int]:
        """The tokens with which a text goes on, and where each ends: the longest of its looks counts."""
        found: dict[int, int] = {}
        for length in self.lengths:
            if at + length > len(text):
                break
            for token in self.tokens.get(text[at:at + length], ()):
                found[token] = at + length
        return found


class Written:
    """A text. It may hold the prompt or not; a space at its beginning may be there or not."""

    start = 0, -1

    def __init__(self, path: str, data: bytes, prompt: bytes, tokenizer: Any):
        """prompt: as a run prints it. Raises ValueError, naming the file, for what is no text."""
        self.texts = list(dict.fromkeys(beginnings(cleaned(path, data), prompt)))
        self.pieces = Pieces(tokenizer)

    def options(self, place: Place) -> dict[int, Place]:
        """The tokens with which it goes on, and the place behind each."""
        index, at = place
        if place != self.start:
            return {token: (index, end) for token, end in self.pieces.options(self.texts[index], at).items()}
        found: dict[int, Place] = {}
        for index, text in enumerate(self.texts):
            for token, end in self.pieces.options(text, 0).items():
                found.setdefault(token, (index, end))
        return found

    def is_done(self, place: Place) -> bool:
        """Is nothing left but white space?"""
        index, at = place
        return not self.texts[index][max(at, 0):].strip()

    def rest(self, place: Place) -> str:
        """What follows, for the eye."""
        index, at = place
        return printable(self.texts[index][max(at, 0):max(at, 0) + 60].decode(errors="replace"), 60)


class Listed:
    """Tokens. They may hold the prompt's, with or without the first one, or none of them."""

    start = 0, 0

    def __init__(self, tokens: Sequence[int], prompt: Sequence[int], vocab_size: int):
        """tokens: the other program's; prompt: the prompt's. Raises ValueError for one that the model does not have."""
        need("token of --compare-tokens", max(tokens), max(tokens) < vocab_size, f"in the vocabulary of {vocab_size}")
        for beginning in prompt, prompt[1:]:
            if beginning and list(tokens[:len(beginning)]) == list(beginning):
                tokens = tokens[len(beginning):]
                break
        self.tokens = tokens

    def options(self, place: Place) -> dict[int, Place]:
        """The next token, and the place behind it."""
        _, at = place
        return {token: (0, at + 1) for token in self.tokens[at:at + 1]}

    def is_done(self, place: Place) -> bool:
        """Is no token left?"""
        return place[1] == len(self.tokens)

    def rest(self, place: Place) -> str:
        """What follows, for the eye."""
        return ",".join(map(str, self.tokens[place[1]:][:10]))


def cleaned(path: str, data: bytes) -> bytes:
    """A file's text, without what is none. Raises ValueError if there is none."""
    if data.startswith(UTF_16):
        raise ValueError(f"{path}: is UTF-16, must be UTF-8 (in PowerShell, > writes UTF-16)")
    text = data.removeprefix(BYTE_ORDER_MARK)
    if text.count(b"\n") == text.count(b"\r\n"):
        text = text.replace(b"\r\n", b"\n")
    text = text[:-LONGEST_BEHIND] + BEHIND.sub(b"", text[-LONGEST_BEHIND:])
    if not text.strip():
        raise ValueError(f"{path}: holds no text")
    return text


def beginnings(text: bytes, prompt: bytes) -> Iterator[bytes]:
    """What may have been generated: the text behind the prompt, where it holds that; or else all of it."""
    match = BEFORE.match(text)
    if match:
        text = text[match.end():]
    for start in text, text.lstrip():
        for told in prompt, prompt.lstrip():
            if told and start.startswith(told):
                yield start[len(told):]
                return
    yield text
    yield b" " + text
    yield text.lstrip()
