"""A model's weights, of whatever kind: a file of llama2.c, or a folder of Hugging Face.

    checkpoint = open_checkpoint("stories15M.bin")    # or "SmolLM2-135M/"
"""
import os
from collections.abc import Iterator
from typing import Any, Protocol

from llama2_py import console
from llama2_py.engine.arithmetic import ARITHMETIC, Arithmetic
from llama2_py.engine.checkpoint import Checkpoint, Config


class AnyCheckpoint(Protocol):
    """What a model needs of its weights."""
    path: str
    config: Config
    identity: tuple
    tensors: dict[str, tuple[int, int, int]]  # of which the last two are rows and columns
    group: int  # int8 weights that share a scale; 0: there are none

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end a run."""

    def check_unchanged(self, identity: tuple | None = None) -> None:
        """Raise ValueError if a file is no longer as it was when it was opened, here or in another process."""

    @property
    def warning(self) -> str | None:
        """What is odd about the files, for whoever uses them."""

    def check_for(self, arithmetic: Arithmetic) -> None:
        """Raise ValueError if an arithmetic cannot use these weights."""

    def is_shared(self, name: str) -> bool:
        """Do the rows of a matrix refer to a table of floats, so that they take 8 bytes a weight?"""

    def rows(self, name: str, layer: int = 0, first: int = 0, last: int | None = None, check: bool = True
             ) -> list[tuple[float, ...]]:
        """Rows first .. last - 1 of a layer's matrix; check=False: of rows that were checked before, and are not
        kept."""

    def tree_rows(self) -> Iterator[bytes]:
        """All rows as float32, in the order of the tree over the weights."""

    def sha256(self) -> str:
        """The hash that a trace calls model."""

    def release(self) -> None:
        """Let go of what was read."""

    def close(self) -> None:
        """Let go of the files."""


NAMES = (*ARITHMETIC, "runq")  # of the dialects


def arithmetic_called(name: Any) -> Arithmetic:
    """The arithmetic with a name, of NAMES. Raises ValueError if there is none."""
    console.need("arithmetic", name, name in NAMES, " or ".join(NAMES))
    if name == "runq":
        from llama2_py.engine.runq import Runq  # here, since most runs need none of it
        return Runq  # type: ignore[return-value]  # a class of static methods
    return ARITHMETIC[name]


def open_checkpoint(path: str) -> AnyCheckpoint:
    """The checkpoint at a path. Raises ValueError or OSError for what is none."""
    if not os.path.isdir(path):
        return Checkpoint(path)
    from llama2_py.engine.huggingface import Folder  # here, since most runs need none of it
    return Folder(path)
