"""What the options of the commands about logs may say: heads, and steps."""
import argparse
import re

from llama2_py.console import printable
from llama2_py.log.events import is_hash, is_nonce


def root_argument(text: str) -> str:
    """A head, SIZE:ROOT, or a root alone, as an option gives it."""
    if not re.fullmatch("((0|[1-9][0-9]{0,19}):)?[0-9a-f]{64}", text.lower()):
        raise argparse.ArgumentTypeError(f"not a root of 64 hexadecimal digits, or SIZE:ROOT: {printable(text, 200)}")
    return text.lower()


def head_argument(text: str) -> str:
    """A head, SIZE:ROOT, as an option gives it."""
    if ":" not in root_argument(text):
        raise argparse.ArgumentTypeError(f"the size is needed, too, as SIZE:ROOT: {printable(text, 200)}")
    return text.lower()


def nonce_argument(text: str) -> str:
    """A nonce, 16 to 64 bytes in hexadecimal."""
    if not is_nonce(text.lower()):
        raise argparse.ArgumentTypeError(f"not 16 to 64 bytes in hexadecimal digits: {printable(text, 200)}")
    return text.lower()


def hash_argument(text: str) -> str:
    """A hash, 32 bytes in hexadecimal."""
    if not is_hash(text.lower()):
        raise argparse.ArgumentTypeError(f"not 64 hexadecimal digits: {printable(text, 200)}")
    return text.lower()


def steps_argument(text: str) -> tuple[int, int]:
    """N or N-M: a step, or the first and the last of some."""
    match = re.fullmatch("([0-9]{1,18})(?:-([0-9]{1,18}))?", text)
    if not match or match[2] and int(match[2]) < int(match[1]):
        raise argparse.ArgumentTypeError(f"not a step, or steps as N-M: {printable(text, 100)}")
    return int(match[1]), int(match[2] or match[1])
