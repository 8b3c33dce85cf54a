"""Tests of the audit: what an author can do wrong is noticed at its place, honest runs pass, a dump may lack numbers."""
import contextlib
import hashlib
from array import array

import pytest

import llama2
from llama2_py.console import VerificationError
from llama2_py.doctor.numbers import DumpFile
from llama2_py.engine import graph
from llama2_py.engine.models import open_checkpoint
from llama2_py.log.weights import weights_root
from llama2_py.log.writing import Writer
from llama2_py.referee.secret import Secret, make_secret
from tests.helpers import (SHAPES, TOKENIZER, make_checkpoint)

PROMPT = [1, 263, 264]
STEPS = 7

# ----------------------------------------------------------------------------
# Authors, honest and other


class Author:
    """Runs a model, and writes the log and the dump of the run."""

    def __init__(self, folder, path, claimed=None, arithmetic="exact", steps=STEPS, tokens=PROMPT, **options):
        """claimed: the model that the header names; options: of the sampler, as the header has them."""
        self.log, self.dump = str(folder / "log"), str(folder / "dump")
        self.path, self.claimed, self.arithmetic = path, claimed or path, arithmetic
        self.steps, self.tokens = steps, tokens
        self.options = {"temperature": 1.0, "p_value": 0.9, "seed": 7, **options}

    def tampered(self, pos, layer, op, values):
        """What stands in place of a result."""
        return values

    def sampler(self):
        return llama2.Sampler(**self.options)

    def header(self):
        checkpoint = open_checkpoint(self.claimed)
        described = checkpoint.config.described()
        tokenizer = hashlib.sha256(b"").hexdigest()
        return {"model": checkpoint.sha256(), "weights": weights_root(described, checkpoint.tree_rows()),
                "config": described, "tokenizer": tokenizer, "arithmetic": "exact", "rng": "xorshift64*",
                "temperature": self.options["temperature"], "p_value": self.options["p_value"],
                "seed": self.options["seed"], "steps": self.steps, "level": "op", "prompt": "", "tokens": self.tokens}

    async def forward(self, shard, token, pos, see, wanted):
        def shown(layer, op, values):
            return see(layer, op, self.tampered(pos, layer, op, values))

        logits = await llama2.forward(shard, token, pos, shown, wanted)
        return self.tampered(pos, None, "logits", logits)

    def run(self):
        with llama2.Transformer(self.path, self.arithmetic) as model, contextlib.closing(
                Writer(self.log, self.header())) as log:
            model.shard.run_pass = self.forward
            dump = DumpFile(self.dump)

            def observe(*event):
                log.operation(*event)
                dump.operation(*event)

            words = llama2.Tokenizer(TOKENIZER, None)
            words.decode = lambda previous, token: b"x"
            for step in llama2.generate(model, words, self.sampler(), self.tokens, self.steps, observe, logits=True):
                log.step(step)
                dump.step(step)
            log.finish()
        dump.finish()
        return self


class OneElement(Author):
    """Changes one element of one result, and goes on with it."""

    def change(self, at, element, by):
        self.at, self.element, self.by = at, element, by
        return self

    def tampered(self, pos, layer, op, values):
        if (pos, layer, op) != self.at:
            return values
        values = array("f", values)
        values[self.element % len(values)] += self.by
        return tuple(values)


class Forcing(Author):
    """Raises one logit a step, so that a text of its choice follows."""

    def tampered(self, pos, layer, op, values):
        if op != "logits":
            return values
        values = array("f", values)
        values[260 + pos % 4] = max(values) + 1
        return values


class OtherCoins(Author):
    """Draws with another seed than the header's."""

    def sampler(self):
        return llama2.Sampler(**{**self.options, "seed": 8})


def secret_of(path, count=1):
    with contextlib.closing(open_checkpoint(path)) as checkpoint:
        return make_secret(checkpoint, count)


@pytest.fixture(scope="module")
def secrets(files):
    """A secret of each model."""
    return {name: secret_of(files[name]) for name in SHAPES}


def fault(author, secret, **more):
    with pytest.raises(VerificationError) as caught:
        llama2.audit(author.log, author.dump, secret, **more)
    return caught.value


# ----------------------------------------------------------------------------
# Honest runs


@pytest.mark.parametrize("name", SHAPES)
def test_an_honest_run_passes_in_every_operation(files, secrets, tmp_path, name):
    author = Author(tmp_path, files[name]).run()
    found = llama2.audit(author.log, author.dump, secrets[name])
    config = Secret(secrets[name]).config
    assert found.whole and not found.tally.missing and found.steps == STEPS == found.tally.tokens
    assert found.tally.products == STEPS * (7 * config.n_layers + 1)
    assert found.tally.products + found.tally.exact == STEPS * graph.count(config.n_layers)
    assert 0 < found.tally.largest < 1


# ----------------------------------------------------------------------------
# Cheats

PLACES = [(pos, layer, op) for pos, (op, layer) in zip([0, 3, 2, 4, 1, 5, 6] * 5, graph.sequence(2), strict=False)]


@pytest.mark.parametrize("at", PLACES)
def test_one_element_of_any_operation_is_noticed_at_its_place(files, secrets, tmp_path, at):
    author = OneElement(tmp_path, files["grouped"]).change(at, at[0] * 5, 0.01).run()
    error = fault(author, secrets["grouped"])
    pos, layer, op = at
    assert graph.place(op, layer, pos) in error.where
    assert error.field == ("the product's difference" if op in graph.PRODUCTS else "sha256")


def test_one_logit_a_step_that_forces_a_text_is_noticed(files, secrets, tmp_path):
    error = fault(Forcing(tmp_path, files["grouped"]).run(), secrets["grouped"])
    assert "position 0, logits" in error.where and error.field == "the product's difference"


def test_the_numbers_of_another_model_are_noticed(files, secrets, tmp_path):
    other = make_checkpoint(tmp_path / "other.bin", n_kv_heads=2, shared=False, seed=2)
    assert fault(Author(tmp_path, other, files["grouped"]).run(), secrets["grouped"])


def test_a_coin_of_another_seed_is_noticed(files, secrets, tmp_path):
    assert fault(OtherCoins(tmp_path, files["grouped"], steps=20).run(), secrets["grouped"]).field == "next"
