"""JSON read strictly: an object, one value a key, finite numbers, in bounded memory.

    read_object("config.json", data)["hidden_size"]
"""
import json
from typing import Any, NoReturn

from llama2_py.console import printable

# What a JSON file may have, so that none takes more than 300 MB while it is read. The format of safetensors allows
# headers of 100 MB; that of the largest Llama, of 405 billion weights in one file, would have 0.2 MB and 10,000 values.
MAX_JSON = 2**24    # bytes
MAX_VALUES = 2**20


def read_object(where: str, data: bytes, most: int = MAX_VALUES) -> dict[str, Any]:
    """The JSON object that a file holds, of about so many values at most. Raises ValueError, naming `where`, if it is
    anything else, gives a key twice, or holds nan or an infinity."""
    values = sum(map(data.count, (b",", b"[", b"{")))
    if values > most:
        raise ValueError(f"{where}: holds about {values} values, must be at most {most}")
    try:
        result = json.loads(data.decode(), object_pairs_hook=without_repetition, parse_constant=refuse_constant)
    except RecursionError:
        raise ValueError(f"{where}: is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: byte {error.start} is not UTF-8") from None
    except ValueError as error:
        raise ValueError(f"{where}: cannot be read as JSON: {error}") from None
    if type(result) is not dict:
        raise ValueError(f"{where}: is {printable(result, 50)}, must be an object of JSON")
    return result


def without_repetition(pairs: list[tuple[str, Any]]) -> dict:
    """The pairs of a JSON object as a dict. Raises ValueError if a key is there twice."""
    result = dict(pairs)
    if len(result) < len(pairs):
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {printable(key, 100)} is there twice")
            seen.add(key)
    return result


def refuse_constant(name: str) -> NoReturn:
    """What json calls for NaN, Infinity and -Infinity, which JSON does not have."""
    raise ValueError(f"{name} is not a number of JSON")
