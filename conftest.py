"""Fixtures that all tests share."""
import contextlib
import functools
import gc
import io
import os

import pytest
from hypothesis import HealthCheck, settings

import llama2
from llama2_py import command, options, trace_command
from tests.helpers import OPTIONS, SHARE, SHAPES, make_checkpoint, make_tokenizer
from tests.ports import SHAPE

os.environ.pop("PYTHONUNBUFFERED", None)  # it would hide what is left in a buffer when a process of these tests ends


settings.register_profile("here", max_examples=100 // SHARE, deadline=None,
                          suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("here")


for module in options, trace_command:  # of thousands of commands in one process: their parsers are made once
    module.make_parser = functools.cache(module.make_parser)


def pytest_collection_finish():
    """Thousands of tests and their modules live to the end: the collector need not look at them again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Paths of a checkpoint of every shape, and of a tokenizer for them."""
    folder = tmp_path_factory.mktemp("files")
    paths = {"tokenizer": make_tokenizer(folder / "tokenizer.bin")}
    for i, (name, shape) in enumerate(SHAPES.items()):
        paths[name] = make_checkpoint(folder / f"{i}.bin", **shape)
        paths[f"{name}, version 0"] = make_checkpoint(folder / f"{i}-v0.bin", **{**shape, "version": 0})
    return paths


@pytest.fixture(scope="session")
def tokenizer(files):
    return llama2.Tokenizer(files["tokenizer"], 280)


@pytest.fixture(scope="session")
def traces(files, tmp_path_factory):
    """Paths of traces of the same run: of each level, and of llama2-rs's kind."""
    folder = tmp_path_factory.mktemp("traces")
    paths = {}
    for name, more in {"step": [], "layer": ["--trace-level", "layer"], "op": ["--trace-level", "op"],
                       "c": ["--like", "llama2.c"], "rust": ["--like", "llama2-rs"]}.items():
        paths[name] = str(folder / f"{name}.trace")
        with contextlib.redirect_stderr(io.StringIO()):
            assert command.main([files["grouped"], "-z", files["tokenizer"], *OPTIONS, *more, "--trace",
                                paths[name]]) == 0
    return paths


@pytest.fixture(scope="session")
def ports_path(tmp_path_factory):
    """Path of a checkpoint for the ports."""
    return make_checkpoint(tmp_path_factory.mktemp("ports") / "model.bin", **SHAPE)


@pytest.fixture
def model(files):
    return files["grouped"], "-z", files["tokenizer"]
