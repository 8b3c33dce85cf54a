"""Text to tokens and back as Hugging Face's `tokenizers` does it for Llama models: tokenizer.json, byte pair encoding.

    tokenizer = BytePairTokenizer("SmolLM2-135M/tokenizer.json")
    tokenizer.encode("Once upon a time")   # [6403, 3714, 253, 655]

It follows tokenizers 0.23.3. A text goes through these steps, each of which the file describes:

1. added tokens   <|eot_id|> and the like are cut out where they are written; what is between them goes on
2. normalizer     SentencePiece's kind puts "▁" in front and in place of each space
3. pre_tokenizer  cuts into pieces that never merge with each other; the byte level kind then writes each byte of a
                  piece as one printable character
4. model          the characters of a piece are its first tokens; the pair that stands first in the list of merges
                  becomes one token (the leftmost such pair), until no pair is in the list
5. post_processor puts BOS in front

But:

- a component that is not listed here (Unigram, NFC, another regex, dropout) is a ValueError that names it;
- truncation and padding are ignored, as transformers ignores them;
- decode gives bytes, one token at a time. A token that is not UTF-8 by itself is not replaced by U+FFFD.
"""
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from llama2_py import console
from llama2_py.engine import unicode_tables
from llama2_py.engine.bpe_file import MAX_VALUES, Part, is_unicode, shown
from llama2_py.engine.bpe_steps import characters, read_decoder, read_normalizers, read_splitters
from llama2_py.engine.merging import merge
from llama2_py.engine.strict_json import read_object

MAX_FILE = 2**26       # bytes of a tokenizer.json; Llama 3's has 17 million
MAX_TOKENS = 2**24     # no model has as many
MAX_CACHE = 10_000     # pieces whose tokens are kept, as many as `tokenizers` keeps
MAX_CACHED_PIECE = 64  # characters of such a piece: a whole text is not kept
START = -1             # decode's previous token, where there is none
NO_TOKEN = -1          # stands for the token of what has none


class AnyTokenizer(Protocol):
    """What a run needs of a tokenizer: llama2.Tokenizer has it, and BytePairTokenizer."""
    path: str
    sha256: str         # of the file, in hexadecimal
    vocab: list[bytes]  # token -> its bytes
    more: bool          # whether the file has more tokens than these

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Text -> tokens."""

    def decode(self, previous: int, token: int) -> bytes:
        """The bytes of a token after the previous one."""


# ----------------------------------------------------------------------------
# Added tokens


@dataclass
class AddedToken:
    """A token that is found in the text before anything else happens to it."""
    token: int
    content: str
    single_word: bool  # found only where no word goes on before or behind it
    lstrip: bool       # takes the white space before it
    rstrip: bool       # takes the white space behind it
    normalized: bool   # looked for in the normalized text
    special: bool      # decodes to nothing


class Finder:
    """Finds added tokens in a text: the leftmost first, of several at one place the longest."""

    def __init__(self, tokens: dict[str, AddedToken]):
        """tokens: what is written -> the token."""
        self.tokens = tokens
        longest_first = sorted(tokens, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first))) if tokens else None

    def find(self, text: str) -> Iterator[tuple[int | None, int, int]]:
        """Yield an added token, or None for what is between two of them, and where it begins and ends."""
        end = 0
        for match in self.pattern.finditer(text) if self.pattern else ():
            added = self.tokens[match[0]]
            start, stop = match.span()
            if added.single_word and not is_single_word(text, start, stop):
                continue
            if added.lstrip:
                start = before_spaces(text, start)
            if added.rstrip:
                stop = behind_spaces(text, stop)
            if end < start:
                yield None, end, start
            yield added.token, start, stop
            end = stop
        if end != len(text):
            yield None, end, len(text)


def is_single_word(text: str, start: int, stop: int) -> bool:
    """Whether no word goes on before start or at stop."""
    words = characters(unicode_tables.WORDS)
    return (start == 0 or text[start - 1] not in words) and (stop == len(text) or text[stop] not in words)


def before_spaces(text: str, start: int) -> int:
    """Where the white space that ends at start begins."""
    spaces = characters(unicode_tables.SPACES)
    while start > 0 and text[start - 1] in spaces:
        start -= 1
    return start


def behind_spaces(text: str, stop: int) -> int:
    """Where the white space that begins at stop ends."""
    spaces = characters(unicode_tables.SPACES)
    while stop < len(text) and text[stop] in spaces:
        stop += 1
    return stop


# ----------------------------------------------------------------------------
# The model: what is read of it, and the merging


def read_vocabulary(model: Part) -> dict[str, int]:
    """Text -> token. Raises ValueError unless n tokens have the ids 0 to n - 1, each once."""
    vocab = model.part("vocab").value
    seen: set[int] = set()
    for text, token in vocab.items():
        if type(token) is not int or not 0 <= token < len(vocab) or token in seen:
            raise ValueError(f"{model.path}: model.vocab.{console.printable(text, 100)} is {shown(token)}, must be an "
                             f"integer from 0 to {len(vocab) - 1} that no other token has")
        seen.add(token)
    if not vocab or not is_unicode("".join(vocab)):
        raise model.error("vocab", "one of Unicode strings, with one at least")
    return vocab


def read_merges(model: Part, vocab: dict[str, int]) -> tuple[dict[tuple[int, int], int], list[int]]:
    """Two tokens -> the rank of their merge; rank -> the token that they become."""
    entries = model.value.get("merges")
    if not isinstance(entries, list):
        raise model.error("merges", "a list")
    kind = str if entries and isinstance(entries[0], str) else list
    ranks: dict[tuple[int, int], int] = {}
    products: list[int] = []
    for i, entry in enumerate(entries):
        if kind is str and isinstance(entry, str) and entry.startswith("#version"):
            continue
        try:
            first, second = entry.split(" ") if kind is str else entry
            product = vocab[first + second]
            ranks[vocab[first], vocab[second]] = len(products)  # of a pair that stands twice, the last counts
        except (AttributeError, KeyError, TypeError, ValueError):
            raise merge_error(model, i, entry, vocab) from None
        if type(entry) is not kind:
            raise merge_error(model, i, entry, vocab)
        products.append(product)
    return ranks, products


def merge_error(model: Part, i: int, entry: Any, vocab: dict[str, int]) -> ValueError:
    """What to raise for entry i of the merges."""
    pair = entry.split(" ") if isinstance(entry, str) else entry
    if isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair):
        for text in *pair, "".join(pair):
            if text not in vocab:
                return ValueError(f"{model.path}: model.merges[{i}] needs {console.printable(text, 100)}, which "
                                  "model.vocab has not")
    return ValueError(f"{model.path}: model.merges[{i}] is {shown(entry)}, must be two strings, as a list or with a "
                      "space between, as all others are")


class Model:
    """Byte pair encoding: the tokens of a piece."""

    def __init__(self, part: Part, size: int):
        """part: the file's model; size: tokens from this one on are left out."""
        self.texts = read_vocabulary(part)
        self.vocab = self.texts
        self.ranks, self.products = read_merges(part, self.texts)
        if size < len(self.texts):
            self.vocab = {text: token for text, token in self.texts.items() if token < size}
            self.ranks = {pair: rank for pair, rank in self.ranks.items() if max(*pair, self.products[rank]) < size}
        self.ignore_merges = part.flag("ignore_merges", False)
        self.fuse_unknown = part.flag("fuse_unk", False)
        self.unknown = NO_TOKEN  # the token of a character that has none
        if part.value.get("unk_token") is not None:
            self.unknown = self.vocab.get(part.text("unk_token"), NO_TOKEN)
            if self.unknown == NO_TOKEN:
                raise part.error("unk_token", f"one of model.vocab's first {len(self.vocab)} tokens")
        self.byte_tokens = [NO_TOKEN] * 256
        if part.flag("byte_fallback", False):
            self.byte_tokens = [self.vocab.get(f"<0x{byte:02X}>", NO_TOKEN) for byte in range(256)]
        self.cache: dict[str, list[int]] = {}

    def encode(self, piece: str) -> list[int]:
        """The tokens of a piece."""
        if self.ignore_merges and piece in self.vocab:
            return [self.vocab[piece]]
        tokens = self.cache.get(piece)
        if tokens is None:
            tokens = merge(self._characters(piece), self._pair)
            if len(self.cache) < MAX_CACHE and len(piece) <= MAX_CACHED_PIECE:
                self.cache[piece] = tokens
        return tokens

    def _characters(self, piece: str) -> list[int]:
        """The tokens of a piece's characters, before any merge.

        A character without a token becomes its bytes, if all of them have tokens; or else the unknown token, one for a
        whole run of such characters with fuse_unk; or else nothing, so that its neighbours can merge. An unknown token
        waits for the next character that has a token: bytes do not end a run, and come before it. So does `tokenizers`.
        """
        tokens: list[int] = []
        waiting = False
        for character in piece:
            token = self.vocab.get(character)
            if token is not None:
                if waiting:
                    tokens.append(self.unknown)
                    waiting = False
                tokens.append(token)
                continue
            fallback = [self.byte_tokens[byte] for byte in character.encode("utf-8", "surrogateescape")]
            if NO_TOKEN not in fallback:
                tokens += fallback
            elif self.unknown != NO_TOKEN:
                if waiting and not self.fuse_unknown:
                    tokens.append(self.unknown)
                waiting = True
        if waiting:
            tokens.append(self.unknown)
        return tokens

    def _pair(self, first: int, second: int) -> tuple[float, int] | None:
        """Of two neighbours, the rank of their merge and the token that they become; None: they do not merge."""
        rank = self.ranks.get((first, second))
        return None if rank is None else (rank, self.products[rank])


def check_model(part: Part) -> None:
    """Raise ValueError for a model that is not plain byte pair encoding."""
    if "type" in part.value and part.text("type") != "BPE":  # GPT-2's first files do not have the key
        raise part.error("type", "BPE")
    if part.value.get("dropout") not in (None, 0):
        raise part.error("dropout", "null")
    for key in "continuing_subword_prefix", "end_of_word_suffix":
        if part.value.get(key) not in (None, ""):
            raise part.error(key, "null")


def read_added_tokens(top: Part, vocab: dict[str, int]) -> list[AddedToken]:
    """The added tokens: those of the vocabulary with its ids, new ones with the ids that follow."""
    found = []
    size = len(vocab)
    seen = set()
    for part in top.parts("added_tokens") if top.value.get("added_tokens") is not None else ():
        content = part.text("content")
        if not content or content in seen:
            raise part.error("content", "a string that is not empty, and stands there once")
        seen.add(content)
        token = vocab.get(content, size)
        if type(part.value.get("id")) is not int or part.value["id"] != token:
            raise part.error("id", f"{token}, the next one or the one in model.vocab")
        size = max(size, token + 1)
        flags = [part.flag(key) for key in ("single_word", "lstrip", "rstrip", "normalized", "special")]
        found.append(AddedToken(token, content, *flags))
    return found


def read_template(part: Part, size: int) -> list[int]:
    """The tokens that a TemplateProcessing puts in front of a text; size: how many tokens there are."""
    leading: list[int] = []
    pieces = part.parts("single")
    for piece in pieces[:-1]:
        name = piece.part("SpecialToken").text("id")
        special = part.part("special_tokens").part(name)
        ids = special.value.get("ids")
        if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < size for token in ids):
            raise ValueError(f"{part.path}: {special.name_of('ids')} is {console.printable(ids, 100)}, must be tokens "
                             f"from 0 to {size - 1}")
        leading += ids
    if not pieces or pieces[-1].part("Sequence").value.get("id") != "A":
        raise part.error("single", "a list that ends in Sequence A, the text")
    return leading


def read_leading(top: Part, size: int) -> list[int]:
    """The tokens that the file's post-processor puts in front of a text."""
    templates: list[Part] = []
    for part in top.components("post_processor", "processors"):
        kind = part.text("type")
        if kind == "TemplateProcessing" and not templates:
            templates.append(part)
        elif kind != "ByteLevel":  # which changes offsets alone
            raise part.error("type", "ByteLevel or TemplateProcessing, once, or one Sequence of these")
    return read_template(templates[0], size) if templates else []


# ----------------------------------------------------------------------------
# The tokenizer


class BytePairTokenizer:
    """Text to tokens and back: BytePairTokenizer("tokenizer.json").

    path, sha256 (of the file, in hexadecimal); vocab: token -> its bytes, b"" for a row of the model that has no token;
    more: whether the file has more tokens than vocab_size; leading: the tokens that encode puts in front (BOS).
    Raises ValueError, naming the file and the key, if the file is malformed or has a component that is not known.
    """

    def __init__(self, path: str, vocab_size: int | None = None, data: bytes | None = None):
        """vocab_size: how many rows the model has. Tokens beyond are left out, and never encoded to. data: the file's
        bytes, if they are at hand."""
        if vocab_size is not None:
            console.need_integer("vocab_size", vocab_size, 1, MAX_TOKENS)
        data = console.read_file(path, MAX_FILE) if data is None else data
        if len(data) > MAX_FILE:
            raise ValueError(f"{path}: has {len(data)} bytes, must have {MAX_FILE} at most")
        self.path = path
        self.sha256 = hashlib.sha256(data).hexdigest()
        top = Part(path, "", read_object(path, data, MAX_VALUES))
        if "version" in top.value and top.text("version") != "1.0":
            raise top.error("version", "1.0")
        check_model(top.part("model"))
        self._model = Model(top.part("model"), vocab_size or MAX_TOKENS)
        self._normalizers = read_normalizers(top)
        self._splitters = read_splitters(top)
        self._decoder = read_decoder(top)
        self._read_tokens(top, vocab_size)

    def _read_tokens(self, top: Part, vocab_size: int | None) -> None:
        """The table of all tokens, and what is done with the added ones."""
        added = read_added_tokens(top, self._model.texts)
        total = max([len(self._model.texts), *(item.token + 1 for item in added)])
        size = min(total, vocab_size or total)
        self.more = total > size
        self._texts = [""] * (vocab_size or total)
        for text, token in self._model.vocab.items():
            self._texts[token] = text
        kept = [item for item in added if item.token < size]
        written: dict[bool, dict[str, AddedToken]] = {True: {}, False: {}}
        for item in kept:
            form = self._normalize(item.content) if item.normalized else item.content
            if not form or form in written[item.normalized]:
                raise ValueError(f"{self.path}: added_tokens: {console.printable(item.content, 100)} is normalized to "
                                 f"{console.printable(form, 100)}, must be a string that no other is normalized to")
            written[item.normalized][form] = item
            self._texts[item.token] = form
        self._as_written = Finder(written[False])
        self._normalized = Finder(written[True])
        self._special = {item.token for item in kept if item.special}
        self.leading = read_leading(top, size)
        self.vocab = [self._decoder.piece(text) for text in self._texts]
        for item in kept:
            if item.special:
                self.vocab[item.token] = item.content.encode()

    def _normalize(self, text: str) -> str:
        """The text after all normalizers."""
        for normalizer in self._normalizers:
            text = normalizer(text)
        return text

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Text -> tokens, with the leading ones if bos. Bytes that are not UTF-8 (surrogate escapes, PEP 383) count as
        characters that are neither letters nor numbers, and become byte tokens where there are any."""
        console.need("text", text, isinstance(text, str), "a string")
        try:
            text = text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise ValueError(f"text has U+{ord(text[error.start]):04X}, half of a surrogate pair") from None
        tokens = list(self.leading) if bos else []
        for added, start, stop in self._as_written.find(text):
            if added is not None:
                tokens.append(added)
                continue
            part = self._normalize(text[start:stop])
            for inner, begin, end in self._normalized.find(part):
                if inner is not None:
                    tokens.append(inner)
                else:
                    tokens += self._encode_plain(part[begin:end], start == begin == 0)
        return tokens

    def _encode_plain(self, text: str, at_start: bool) -> list[int]:
        """The tokens of a text without added tokens."""
        pieces = [text]
        for splitter in self._splitters:
            pieces = splitter(pieces, at_start)
        tokens = []
        for piece in pieces:
            tokens += self._model.encode(piece)
        return tokens

    def decode(self, previous: int, token: int) -> bytes:
        """The bytes of a token after the previous one, BOS or START at the start of a text, where SentencePiece's kind
        drops the space that it has put there. A special token has none.

        The bytes of a sequence are the text that `tokenizers` decodes it to, without special tokens, if they are UTF-8.
        But BOS within a text begins a new one, and another special token at the start keeps the space behind it.
        """
        console.need_integer("token", token, 0, len(self.vocab) - 1)
        if token in self._special:
            return b""
        if previous == START or previous in self.leading[-1:]:
            return self._decoder.first(self._texts[token])
        return self.vocab[token]
