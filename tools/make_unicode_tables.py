#!/usr/bin/env python3
"""Writes llama2_py/engine/unicode_tables.py: which code points are letters, numbers, white space, parts of words.

    pip install tokenizers==0.23.3
    python3 tools/make_unicode_tables.py > llama2_py/engine/unicode_tables.py

It asks the `tokenizers` package itself, about every code point. Version 0.23.3 splits with two engines: \\p{L}, \\p{N}
and \\s of a Split are Oniguruma's, of Unicode 16.0 (equal to unicodedata2 16.0.0 at every code point); Digits is Rust's
char::is_numeric, of Unicode 17.0 (equal to unicodedata2 17.0.0). AddedToken's single_word uses \\w of Rust's `regex`.
"""
import sys
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

CHUNK = 4096  # code points in one text that is asked about

HEADER = '''"""Letters, numbers, white space and word characters, as `tokenizers` {version} has them.

Made by tools/make_unicode_tables.py; do not edit. Each table is a text of ranges of code points, in hexadecimal, both
ends included. Python's own tables differ from version to version, and would split a text differently.
"""
'''

TABLES = {
    "LETTERS": "\\p{L} of Unicode 16.0",
    "NUMBERS": "\\p{N} of Unicode 16.0",
    "SPACES": "\\s: White_Space",
    "LATER_NUMBERS": "what the pre-tokenizer Digits takes for a number beyond NUMBERS: those of Unicode 17.0",
    "WORDS": "\\w: letters, marks, decimal digits, connectors, joiners",
}


def code_points() -> Iterator[str]:
    """Every character that a text can hold: all but the surrogates."""
    for point in range(sys.maxunicode + 1):
        if not 0xD800 <= point <= 0xDFFF:
            yield chr(point)


def matches(regex: str) -> set[str]:
    """The characters of a class, by Oniguruma: those that remain when all others are removed."""
    others = normalizers.Replace(Regex(f"[^{regex}]"), "")
    return set(others.normalize_str("".join(code_points())))


def digits() -> set[str]:
    """The characters that Digits isolates between two letters."""
    splitter = pre_tokenizers.Digits(individual_digits=True)
    characters = list(code_points())
    found = set()
    for start in range(0, len(characters), CHUNK):
        text = "".join(f"ab{character}" for character in characters[start:start + CHUNK])
        for piece, _ in splitter.pre_tokenize_str(text):
            if len(piece) == 1:
                found.add(piece)
    return found


def words() -> set[str]:
    """The characters behind which a token that is a single word does not end."""
    tokenizer = Tokenizer(models.BPE(vocab={"x": 0}, merges=[]))
    tokenizer.add_tokens([AddedToken("T", single_word=True, normalized=False)])
    characters = [character for character in code_points() if character != "T"]
    found = {"T"}
    for start in range(0, len(characters), CHUNK):
        chunk = characters[start:start + CHUNK]
        encoding = tokenizer.encode("".join(f"T{character} " for character in chunk))
        seen = {begin for (begin, _), token in zip(encoding.offsets, encoding.ids, strict=True) if token == 1}
        found.update(character for i, character in enumerate(chunk) if 3 * i not in seen)
    return found


def ranges(characters: Iterable[str]) -> list[str]:
    """Characters -> their ranges as FIRST-LAST, or FIRST alone."""
    found: list[list[int]] = []
    for point in sorted(map(ord, characters)):
        if found and found[-1][1] == point - 1:
            found[-1][1] = point
        else:
            found.append([point, point])
    return [f"{first:x}" if first == last else f"{first:x}-{last:x}" for first, last in found]


def main() -> None:
    """Print the module."""
    numbers = matches(r"\p{N}")
    found = {
        "LETTERS": matches(r"\p{L}"),
        "NUMBERS": numbers,
        "SPACES": matches(r"\s"),
        "LATER_NUMBERS": digits() - numbers,
        "WORDS": words(),
    }
    print(HEADER.format(version=tokenizers.__version__), end="")
    for name, meaning in TABLES.items():
        print(f'\n# {meaning}\n{name} = """')
        line = ""
        for item in ranges(found[name]):
            if len(line) + len(item) + 1 > 118:
                print(line.rstrip())
                line = ""
            line += f"{item} "
        print(f'{line.rstrip()}\n"""')


if __name__ == "__main__":
    main()
