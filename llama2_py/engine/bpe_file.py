"""tokenizer.json as JSON whose values are checked as they are read.

    top = Part(path, "", read_object(path, data, MAX_VALUES))
    top.part("model").text("type")   # "BPE"; or ValueError: PATH: model.type is 7, must be a string of Unicode

What is not as wanted raises ValueError with one line: the file, the key, the value, what it must be.
"""
from typing import Any

from llama2_py import console


# That of Llama 3 has about a million: 128,256 tokens, and 280,147 merges of two
MAX_VALUES = 2**21


def shown(value: Any) -> str:
    """A value for a message."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    return console.printable(value, 200)


def is_unicode(text: str) -> bool:
    """Whether a text has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Part:
    """An object of the file, with its name for messages. Its methods raise ValueError if a value is not as it must be,
    or is missing."""

    def __init__(self, path: str, name: str, value: Any):
        if not isinstance(value, dict):
            raise ValueError(f"{path}: {name or 'the file'} is {shown(value)}, must be an object")
        self.path = path
        self.name = name
        self.value = value

    def name_of(self, key: str) -> str:
        """The name of one of its values."""
        key = console.printable(key, 100)  # it may come from the file
        return f"{self.name}.{key}" if self.name else key

    def error(self, key: str, wanted: str) -> ValueError:
        """What to raise if a value is not as wanted."""
        found = shown(self.value[key]) if key in self.value else "missing"
        return ValueError(f"{self.path}: {self.name_of(key)} is {found}, must be {wanted}")

    def text(self, key: str) -> str:
        """A string."""
        value = self.value.get(key)
        if not isinstance(value, str) or not is_unicode(value):
            raise self.error(key, "a string of Unicode")
        return value

    def flag(self, key: str, default: bool | None = None) -> bool:
        """A boolean. Without a default it must be there."""
        value = self.value.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def part(self, key: str) -> "Part":
        """An object."""
        if key not in self.value:
            raise self.error(key, "an object")
        return Part(self.path, self.name_of(key), self.value[key])

    def parts(self, key: str) -> list["Part"]:
        """A list of objects."""
        value = self.value.get(key)
        if not isinstance(value, list):
            raise self.error(key, "a list")
        return [Part(self.path, f"{self.name_of(key)}[{i}]", item) for i, item in enumerate(value)]

    def components(self, key: str, inner: str) -> list["Part"]:
        """The components of a step: none, one, or those that a Sequence lists under the inner key."""
        if self.value.get(key) is None:
            return []
        part = self.part(key)
        if part.text("type") == "Sequence":
            return part.parts(inner)
        return [part]

    def string_pattern(self) -> str:
        """What a Replace looks for: a string."""
        pattern = self.part("pattern")
        if "Regex" in pattern.value:
            raise pattern.error("Regex", "a String instead")
        if not pattern.text("String"):
            raise pattern.error("String", "a string that is not empty")
        return pattern.text("String")

    def character(self, key: str) -> str:
        """A string of one character."""
        value = self.text(key)
        if len(value) != 1:
            raise self.error(key, "one character")
        return value
