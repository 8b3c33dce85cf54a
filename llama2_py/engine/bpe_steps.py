"""The steps before and after the model of a tokenizer.json: normalizers, pre-tokenizers, decoders.

Each is read from its part of the file, and is then a function (a decoder: an object with two methods):

    Normalizer   text -> text
    Splitter     pieces, whether the first of them begins the text -> more pieces
    Decoder      the text of a token in the vocabulary -> its bytes

A component that is not known raises ValueError. Letters, numbers and white space are those of unicode_tables.
"""
import functools
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llama2_py.engine import unicode_tables
from llama2_py.engine.bpe_file import Part

# ----------------------------------------------------------------------------
# Classes of characters, of one Unicode version


def spans(table: str) -> Iterator[tuple[int, int]]:
    """A table -> the first and the last code point of each of its ranges."""
    for item in table.split():
        first, _, last = item.partition("-")
        yield int(first, 16), int(last or first, 16)


@functools.cache
def characters(table: str) -> frozenset[str]:
    """The characters of a table."""
    return frozenset(chr(point) for first, last in spans(table) for point in range(first, last + 1))


def in_brackets(table: str) -> str:
    """A table as it stands between the brackets of a regular expression. It holds none of their special characters."""
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in spans(table))


@functools.cache
def compiled(source: str) -> re.Pattern[str]:
    """A regular expression, in which {L}, {N}, {S} stand for letters, numbers and white space within brackets and {D}
    for what Digits takes for a number."""
    numbers = in_brackets(unicode_tables.NUMBERS)
    return re.compile(source.format(
        L=in_brackets(unicode_tables.LETTERS),
        N=numbers,
        S=in_brackets(unicode_tables.SPACES),
        D=numbers + in_brackets(unicode_tables.LATER_NUMBERS),
    ))


# ----------------------------------------------------------------------------
# Normalizers: text -> text

Normalizer = Callable[[str], str]


def prepend(prefix: str, text: str) -> str:
    """Prepend: the prefix in front of a text that is not empty."""
    return prefix + text if text else text


def read_normalizers(top: Part) -> list[Normalizer]:
    """The file's normalizers, in order."""
    found: list[Normalizer] = []
    for part in top.components("normalizer", "normalizers"):
        kind = part.text("type")
        if kind == "Prepend":
            found.append(functools.partial(prepend, part.text("prepend")))
        elif kind == "Replace":
            found.append(operator.methodcaller("replace", part.string_pattern(), part.text("content")))
        else:
            raise part.error("type", "Prepend, Replace, or one Sequence of these")
    return found


# ----------------------------------------------------------------------------
# Pre-tokenizers: pieces -> more pieces. at_start tells whether the first piece begins the text.

Splitter = Callable[[list[str], bool], list[str]]

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?[{L}]+| ?[{N}]+| ?[^{S}{L}{N}]+|[{S}]+(?![^{S}])|[{S}]+"

# Oniguruma's (?i:'s) takes the long s, U+017F, for an s
LLAMA3 = ("'(?:[sS\u017f]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])"
          r"|[^\r\n{L}{N}]?[{L}]+|[{N}]{{1,3}}| ?[^{S}{L}{N}]+[\r\n]*|[{S}]*[\r\n]+|[{S}]+(?![^{S}])|[{S}]+")

SPLITS = {  # the regex as the file has it -> ours
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": GPT2,
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": LLAMA3,
}


def split_all(source: str, pieces: list[str], at_start: bool) -> list[str]:
    """Split, Digits: every piece is cut into the matches of a regular expression, which leaves nothing out."""
    pattern = compiled(source)
    return [part for piece in pieces for part in pattern.findall(piece)]


def metaspace(replacement: str, scheme: str, pattern: re.Pattern[str] | None, pieces: list[str],
              at_start: bool) -> list[str]:
    """Metaspace: the replacement for each space and in front, then a piece for each word, if there is a pattern."""
    found: list[str] = []
    for i, piece in enumerate(pieces):
        first = at_start and i == 0
        piece = piece.replace(" ", replacement)
        if (scheme == "always" or scheme == "first" and first) and not piece.startswith(replacement):
            piece = replacement + piece
        found += pattern.findall(piece) if pattern else [piece]
    return found


def printable_bytes() -> dict[int, str]:
    """GPT-2's table: byte -> the character that stands for it, itself if it is printable, or else U+0100 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    table.update({byte: chr(0x100 + i) for i, byte in enumerate(others)})
    return table


CHARACTERS = printable_bytes()
BYTES = {character: byte for byte, character in CHARACTERS.items()}


def byte_level(prefix_space: bool, use_regex: bool, pieces: list[str], at_start: bool) -> list[str]:
    """ByteLevel: a space in front of every piece and GPT-2's split, if wanted; then a character for each byte."""
    if prefix_space:
        pieces = [piece if piece.startswith(" ") else f" {piece}" for piece in pieces]
    if use_regex:
        pieces = split_all(GPT2, pieces, at_start)
    return [piece.encode("utf-8", "surrogateescape").decode("latin-1").translate(CHARACTERS) for piece in pieces]


def read_split(part: Part) -> Splitter:
    """A Split by one of the known regexes."""
    pattern = part.part("pattern")
    if "String" in pattern.value:
        raise pattern.error("String", "a Regex instead")
    source = SPLITS.get(pattern.text("Regex"))
    if source is None:
        raise pattern.error("Regex", "GPT-2's or Llama 3's")
    if part.text("behavior") != "Isolated":
        raise part.error("behavior", "Isolated")
    if part.flag("invert"):
        raise part.error("invert", "false")
    return functools.partial(split_all, source)


def read_metaspace(part: Part) -> tuple[str, str]:
    """A Metaspace -> its replacement and its prepend_scheme."""
    scheme = part.text("prepend_scheme") if "prepend_scheme" in part.value else "always"
    if scheme not in ("always", "first", "never"):
        raise part.error("prepend_scheme", "always, first or never")
    if not part.flag("add_prefix_space", True) and scheme != "never":
        raise part.error("add_prefix_space", f"true, since prepend_scheme is {scheme}")
    return part.character("replacement"), scheme


def read_splitter(part: Part) -> Splitter:
    """One pre-tokenizer."""
    kind = part.text("type")
    if kind == "Split":
        return read_split(part)
    if kind == "Digits":
        return functools.partial(split_all, "[{D}]|[^{D}]+" if part.flag("individual_digits") else "[{D}]+|[^{D}]+")
    if kind == "ByteLevel":
        return functools.partial(byte_level, part.flag("add_prefix_space"), part.flag("use_regex", True))
    if kind == "Metaspace":
        replacement, scheme = read_metaspace(part)
        mark = re.escape(replacement)
        words = re.compile(f"{mark}?[^{mark}]+|{mark}") if part.flag("split", True) else None
        return functools.partial(metaspace, replacement, scheme, words)
    raise part.error("type", "Split, Digits, ByteLevel, Metaspace, or one Sequence of these")


def read_splitters(top: Part) -> list[Splitter]:
    """The file's pre-tokenizers, in order."""
    parts = top.components("pre_tokenizer", "pretokenizers")
    for part in parts[:-1]:
        if part.text("type") == "ByteLevel":
            raise part.error("type", "the last of the Sequence")
    return list(map(read_splitter, parts))


# ----------------------------------------------------------------------------
# Decoders: the text of a token in the vocabulary -> its bytes, within a text and at its start


class ByteLevelDecoder:
    """A byte for each character; a token that has other characters is its own text."""

    def piece(self, text: str) -> bytes:
        """A token's bytes."""
        try:
            return bytes(map(BYTES.__getitem__, text))
        except KeyError:
            return text.encode()

    def first(self, text: str) -> bytes:
        """The bytes of a text's first token."""
        return self.piece(text)


@dataclass
class MetaspaceDecoder:
    """A space for each replacement, but in the first token nothing, if the pre-tokenizer puts one in front."""
    replacement: str
    prepended: bool

    def piece(self, text: str) -> bytes:
        """A token's bytes."""
        return text.replace(self.replacement, " ").encode()

    def first(self, text: str) -> bytes:
        """The bytes of a text's first token."""
        return text.replace(self.replacement, "" if self.prepended else " ").encode()


@dataclass
class SequenceDecoder:
    """Replace, ByteFallback, Fuse, Strip: strings are replaced, <0xHH> is a byte, the text loses a first character."""
    replacements: list[Normalizer]
    byte_fallback: bool
    stripped: bytes  # what a text loses if it begins with it

    def piece(self, text: str) -> bytes:
        """A token's bytes."""
        for replace in self.replacements:
            text = replace(text)
        if self.byte_fallback and (match := re.fullmatch("<0x([0-9A-Fa-f]{2})>", text)):
            return bytes.fromhex(match[1])
        return text.encode()

    def first(self, text: str) -> bytes:
        """The bytes of a text's first token."""
        return self.piece(text).removeprefix(self.stripped)


Decoder = ByteLevelDecoder | MetaspaceDecoder | SequenceDecoder
SEQUENCE = "Replace", "ByteFallback", "Fuse", "Strip"  # the order in which a decoder's components must stand


def read_decoder(top: Part) -> Decoder:
    """The file's decoder."""
    parts = top.components("decoder", "decoders")
    if top.value.get("decoder") is None:
        raise top.error("decoder", "an object")
    kinds = [part.text("type") for part in parts]
    if kinds == ["ByteLevel"]:
        return ByteLevelDecoder()
    if kinds == ["Metaspace"]:
        replacement, scheme = read_metaspace(parts[0])
        return MetaspaceDecoder(replacement, scheme != "never")
    return read_sequence(parts, kinds)


def read_sequence(parts: list[Part], kinds: list[str]) -> SequenceDecoder:
    """A decoder of several components, and their types."""
    decoder = SequenceDecoder([], False, b"")
    for i, (part, kind) in enumerate(zip(parts, kinds, strict=True)):
        if kind not in SEQUENCE:
            raise part.error("type", "ByteLevel, Metaspace, or one Sequence of Replace, ByteFallback, Fuse, Strip")
        for earlier in kinds[:i]:
            if SEQUENCE.index(earlier) > SEQUENCE.index(kind) or earlier == kind != "Replace":
                raise part.error("type", "in the order Replace, ByteFallback, Fuse, Strip")
        if kind == "Replace":
            replace = operator.methodcaller("replace", part.string_pattern(), part.text("content"))
            decoder.replacements.append(replace)
        elif kind == "ByteFallback":
            decoder.byte_fallback = True
        elif kind == "Strip":
            decoder.stripped = read_strip(part, "Fuse" in kinds)
    return decoder


def read_strip(part: Part, fused: bool) -> bytes:
    """What a Strip takes off the text's start: one character at most."""
    if not fused:
        raise part.error("type", "behind a Fuse")
    for key, values in ("start", (0, 1)), ("stop", (0,)):
        value = part.value.get(key)
        if type(value) is not int or value not in values:
            raise part.error(key, " or ".join(map(str, values)))
    return part.character("content").encode() * part.value["start"]
