"""A model's weights and its tokenizer, of whatever kind: files of llama2.c, or a folder of Hugging Face.

    checkpoint = open_checkpoint("stories15M.bin")    # or "SmolLM2-135M/"
"""
import os

from llama2_py.engine.checkpoint import Checkpoint
from llama2_py.engine.huggingface import Folder


def open_checkpoint(path: str) -> Checkpoint | Folder:
    """The checkpoint at a path. Raises ValueError or OSError for what is none."""
    return Folder(path) if os.path.isdir(path) else Checkpoint(path)
