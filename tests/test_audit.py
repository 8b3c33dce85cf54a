"""Tests of the audit: what an author does wrong is noticed at its place, honest runs pass, a dump may lack numbers."""
import concurrent.futures
import contextlib
import hashlib
import json
import math
import random
import resource
import struct
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llama2
import merkle
from llama2_py import command as author_command
from llama2_py import console, trace_command
from llama2_py.console import VerificationError
from llama2_py.doctor.numbers import DumpFile
from llama2_py.engine import graph
from llama2_py.engine.arithmetic import Exact, from_bytes, r, to_bytes
from llama2_py.engine.checkpoint import in_tree_order
from llama2_py.engine.models import open_checkpoint
from llama2_py.log import formats, show
from llama2_py.log.weights import weights_root
from llama2_py.log.writing import Writer
from llama2_py.referee import audit as auditing
from llama2_py.referee.freivalds import ROUNDINGS, ROUNDINGS_ROTATED, Probe, part_of_limit, turned_back
from llama2_py.referee.secret import MOST_SECRETS, Secret, draw, make_secret
from tests.helpers import (MODEL, SHAPES, TOKENIZER, command, edit, examples, failure, forge, make_checkpoint,
                           make_tokenizer, read_bytes, read_lines)
from tests.test_huggingface import CONFIG, mutated_bytes, write_folder

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
        self.steps, self.tokens, self.workers = steps, tokens, 1
        self.model = None
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
        with llama2.Transformer(self.path, self.arithmetic, self.workers) as model, contextlib.closing(
                Writer(self.log, self.header())) as log:
            self.model = model
            if type(self).tampered is not Author.tampered:
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


CONSTANTS = [{"rms_norm_eps": 1e-6}, {"rope_theta": 500.0}, {"head_dim": 4}, {"tie_word_embeddings": True},
             {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
             {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                               "original_max_position_embeddings": 8}}]


@pytest.mark.parametrize("constants", CONSTANTS)
def test_a_folder_with_other_constants_passes_and_a_secret_of_another_model_is_refused(tmp_path, constants):
    path = write_folder(tmp_path / "model", {**CONFIG, **constants})
    author = Author(tmp_path, path, tokens=[1, 5], steps=12).run()
    assert llama2.audit(author.log, author.dump, secret_of(path)).whole
    with pytest.raises(ValueError, match="weights are .* was made from a model with"):
        llama2.audit(author.log, author.dump, secret_of(write_folder(tmp_path / "other", CONFIG | {"rms_norm_eps": 1})))


def test_a_secret_of_other_weights_is_refused(files, secrets, tmp_path):
    author = Author(tmp_path, files["grouped"]).run()
    other = make_checkpoint(tmp_path / "other.bin", n_kv_heads=2, shared=False, seed=2)
    with pytest.raises(ValueError, match="weights are .* was made from a model with"):
        llama2.audit(author.log, author.dump, secret_of(other))


def honest_runs(folder, count, workers=(1, 2)):
    """Honest runs of many models, all audited -> the parts of their limits that they used at most."""
    parts = []
    rng = random.Random(1)
    for i in range(count):
        n_heads = rng.choice([2, 4, 6])
        n_kv_heads = rng.choice([n for n in (1, 2, n_heads) if n_heads % n == 0])
        if i % 2:
            fields = {"hidden_size": 24, "intermediate_size": rng.randrange(1, 60), "num_attention_heads": n_heads,
                      "num_key_value_heads": n_kv_heads, "head_dim": rng.choice([2, 6, 8]), "vocab_size": 280,
                      "max_position_embeddings": 300, "tie_word_embeddings": bool(i % 4), "rms_norm_eps": 1e-6}
            path = write_folder(folder / f"{i}", {**CONFIG, **fields})
        else:
            path = make_checkpoint(folder / f"{i}.bin", dim=24, hidden_dim=rng.randrange(1, 60), n_heads=n_heads,
                                   n_kv_heads=n_kv_heads, seq_len=300, shared=bool(i % 4), seed=i,
                                   scale=rng.choice([0.05, 0.4, 2.0]))
        author = Author(folder, path, steps=300 if i == 10 else rng.randrange(4, 12), seed=i + 1,
                        temperature=rng.choice([0.0, 0.7, 1.0]), p_value=rng.choice([0.9, 1.0]))
        author.workers = workers[i % len(workers)]
        found = llama2.audit(author.run().log, author.dump, secret_of(path, 1 + i % 3))
        assert found.whole
        parts.append(found.tally.largest)
    return parts


def test_honest_runs_of_both_kinds_of_checkpoints_pass(tmp_path):
    assert max(honest_runs(tmp_path, 4, [1])) < 1


@pytest.mark.slow
def test_of_200_honest_runs_none_is_flagged(tmp_path):
    parts = honest_runs(tmp_path, 200)
    print(f"200 honest runs, 0 flagged; they use at most {max(parts):.3f} of a limit")
    assert max(parts) < 1


# ----------------------------------------------------------------------------
# Cheats

PLACES = [(pos, layer, op) for pos, (op, layer) in zip([0, 3, 2, 4, 1, 5, 6] * 5, graph.sequence(2), strict=False)]


@pytest.mark.parametrize("at", PLACES)
def test_one_element_of_any_operation_is_noticed_at_its_place(files, secrets, tmp_path, at):
    author = OneElement(tmp_path, files["grouped"]).change(at, at[0] * 5, 0.01).run()
    error = fault(author, secrets["grouped"])
    pos, layer, op = at
    assert graph.place(op, layer, pos) in error.where
    assert error.field == (auditing.LIMITS if op in graph.PRODUCTS else "sha256")


@pytest.mark.slow
@pytest.mark.parametrize("op, layer", graph.sequence(2))
def test_one_element_is_noticed_in_20_places_of_every_operation(files, secrets, tmp_path, op, layer):
    rng = random.Random(f"{op} {layer}")
    for _ in range(20):
        at = rng.randrange(STEPS), layer, op
        by = rng.choice([-1, 1]) * 10.0**rng.randrange(-3, 2)
        author = OneElement(tmp_path, files["grouped"]).change(at, rng.randrange(10**6), by)
        try:
            author.run()
        except ValueError:  # logits that are too large for the sampler
            continue
        error = fault(author, secrets["grouped"])
        assert graph.place(op, layer, at[0]) in error.where


def test_one_logit_a_step_that_forces_a_text_is_noticed(files, secrets, tmp_path):
    error = fault(Forcing(tmp_path, files["grouped"]).run(), secrets["grouped"])
    assert "position 0, logits" in error.where and error.field == auditing.LIMITS


# Each line of this table is a model that is not the one of the header


def with_one_weight(values):
    return [values[0] + 0.25, *values[1:]]


def as_int8(values):
    """Weights as int8 in groups of 4, with a scale."""
    result = []
    for i in range(0, len(values), 4):
        group = values[i:i + 4]
        scale = max(map(abs, group)) / 127
        result += [round(v / scale) * scale for v in group]
    return result


def changed_weights(path, target, change):
    """A checkpoint of version 0 whose weights, but for the embedding's and the norms', are changed."""
    with contextlib.closing(open_checkpoint(path)) as checkpoint:
        data = bytearray(read_bytes(path))
        for name in ("w1", "w2"):
            offset, rows, columns = checkpoint.tensors[name]
            values = change(list(from_bytes(bytes(data[offset:offset + 4 * rows * columns]))))
            data[offset:offset + 4 * rows * columns] = to_bytes(values)
    target.write_bytes(data)
    return str(target)


@pytest.mark.parametrize("change", [with_one_weight, as_int8])
def test_the_numbers_of_other_weights_are_noticed(files, secrets, tmp_path, change):
    other = changed_weights(files["grouped"], tmp_path / "other.bin", change)
    error = fault(Author(tmp_path, other, files["grouped"]).run(), secrets["grouped"])
    assert error.field == auditing.LIMITS


def test_the_numbers_of_another_model_are_noticed(files, secrets, tmp_path):
    other = make_checkpoint(tmp_path / "other.bin", n_kv_heads=2, shared=False, seed=2)
    error = fault(Author(tmp_path, other, files["grouped"]).run(), secrets["grouped"])
    assert "position 0, embedding" in error.where and error.hint.endswith("more)")


@pytest.mark.parametrize("events, hint", [([40], ""), ([40, 35], " (and 1 more)"), ([40, 35, 50], " (and 2 more)")])
def test_the_first_fault_is_told_and_how_many_there_are(files, tmp_path, events, hint):
    log = formats.read(Author(tmp_path, files["grouped"]).run().log)
    tally = auditing.Tally()
    for event in events:
        tally.fault(event, f"event {event}", "k", 1, 2)
    with pytest.raises(VerificationError) as error:
        auditing.concluded(log, tally, False)
    assert (error.value.where, error.value.hint) == (f"event {min(events)}", hint)


def test_numbers_of_dialect_c_are_noticed(files, secrets, tmp_path):
    assert fault(Author(tmp_path, files["grouped"], arithmetic="c", steps=20).run(), secrets["grouped"])


def test_a_coin_of_another_seed_is_noticed(files, secrets, tmp_path):
    assert fault(OtherCoins(tmp_path, files["grouped"], steps=20).run(), secrets["grouped"]).field == "next"


def at_event(log, pos, op, layer=None):
    """The index of the line of an event in a log of two layers."""
    return pos * graph.count(2) + 1 + graph.index(op, layer, 2)


def test_a_token_that_is_swapped_is_noticed(files, secrets, tmp_path):
    author = Author(tmp_path, files["grouped"]).run()
    lines = read_lines(author.log)[:-1]
    last = at_event(lines, STEPS - 1, "logits")
    token = json.loads(lines[last])["next"]
    lines[last] = edit(lines[last], next=(token + 1) % 280)
    forge(author.log, lines)
    error = fault(author, secrets["grouped"])
    assert (error.field, error.expected, error.got) == ("next", token, (token + 1) % 280)


def records_of(path):
    """The records of a dump: their lines and numbers."""
    data, found = read_bytes(path), []
    while data:
        line, rest = data.split(b"\n", 1)
        n = 4 * int(line.split()[3])
        found.append((line, rest[:n]))
        data = rest[n:]
    return found


def write_records(path, records):
    with open(path, "wb") as file:
        for line, numbers in records:
            file.write(line + b"\n" + numbers)


class LaterKey(Author):
    """Attends to a key that is not the one that it had committed to."""

    def tampered(self, pos, layer, op, values):
        if pos == 4 and op == "v":
            matrix = self.model.shard.caches[1].kv_keys[0]
            matrix.rows[2] = tuple(v + 0.5 for v in matrix.rows[2])
        return values


def test_a_key_that_is_replaced_later_is_noticed(files, secrets, tmp_path):
    error = fault(LaterKey(tmp_path, files["grouped"]).run(), secrets["grouped"])
    assert "layer 1, weights" in error.where and error.field == "sha256"


def test_numbers_that_the_log_did_not_commit_to_are_noticed(files, secrets, tmp_path):
    author = Author(tmp_path, files["grouped"]).run()
    records = records_of(author.dump)
    line, numbers = records[40]
    records[40] = line, bytes([numbers[0] ^ 1]) + numbers[1:]
    write_records(author.dump, records)
    error = fault(author, secrets["grouped"])
    assert error.where == f"{author.dump}: position 1, layer 0, ffn_norm" and error.field == "sha256"


def test_numbers_that_the_log_did_not_commit_to_are_not_computed_with(files, secrets, tmp_path):
    author = Author(tmp_path, files["grouped"]).run()
    records = records_of(author.dump)
    i = next(i for i, (line, _) in enumerate(records) if line.startswith(b"2 0 ffn_residual "))
    records[i] = records[i][0], bytes(len(records[i][1]))
    write_records(author.dump, records)
    assert fault(author, secrets["grouped"]).hint == ""  # not those of the next layer, which are right


class NotFinite(Author):
    """Has infinities, whose sums nobody can compare."""

    def tampered(self, pos, layer, op, values):
        return (math.inf, *values[1:]) if (pos, layer, op) == (2, 1, "k") else values


def test_numbers_that_are_not_finite_are_no_way_around_the_limit(files, secrets, tmp_path):
    author = NotFinite(tmp_path, files["grouped"])
    with contextlib.suppress(ValueError):
        author.run()
    author = OneElement(tmp_path, files["grouped"]).change((6, 1, "ffn_out"), 0, 0.5).run()
    lines, records = read_lines(author.log)[:-1], records_of(author.dump)
    event = at_event(lines, 6, "up", 1)
    for value in math.inf, -math.inf, math.nan, 3e38:
        line, numbers = records[event - 1]
        records[event - 1] = line, struct.pack("<f", value) + numbers[4:]
        lines[event] = edit(lines[event], sha256=hashlib.sha256(records[event - 1][1]).hexdigest())
        write_records(author.dump, records)
        forge(author.log, lines)
        assert "position 6, layer 1, up" in fault(author, secrets["grouped"]).where


def test_a_failure_tells_no_digits_of_the_secret(files, secrets, tmp_path):
    author = OneElement(tmp_path, files["grouped"]).change((0, 0, "v"), 3, 1.0).run()
    assert len(fault(author, secrets["grouped"]).got) == len("1e+05")


# ----------------------------------------------------------------------------
# Dumps that lack numbers


def run_again(author, records):
    write_records(author.dump, records)
    return author


@pytest.mark.parametrize("op, missing", [
    ("embedding", {"attention_norm", "attention_residual"}), ("k", {"k", "weights"}),
    ("gate", {"gate", "swiglu"}), ("logits", {"logits", "next"}), ("swiglu", set())])
def test_what_a_dump_lacks_is_said_and_the_rest_is_audited(files, secrets, tmp_path, op, missing):
    author = Author(tmp_path, files["grouped"]).run()
    records = [record for record in records_of(author.dump)
               if record[0].split()[2] != op.encode() or record[0].split()[0] != b"3"]
    found = llama2.audit(run_again(author, records).log, author.dump, secrets["grouped"])
    assert set(found.tally.missing) == missing and found.whole == (not missing)


def test_records_may_come_in_any_order_and_in_parts(files, secrets, tmp_path):
    author = Author(tmp_path, files["grouped"]).run()
    records = []
    for line, numbers in records_of(author.dump):
        pos, layer, op, n = line.split()
        if op == b"weights":  # head by head
            size = len(numbers) // 4
            parts = [numbers[i:i + size] for i in range(0, len(numbers), size)]
            records.append([(b"%s %s weights %d" % (pos, layer, size // 4), part) for part in parts])
        else:
            records.append([(line, numbers)])
    random.Random(1).shuffle(records)
    records = [record for parts in records for record in parts]
    found = llama2.audit(run_again(author, records).log, author.dump, secrets["grouped"])
    assert found.whole


def test_a_log_that_was_cut_is_audited_as_far_as_it_goes(files, secrets, tmp_path):
    author = Author(tmp_path, files["grouped"]).run()
    lines, records = read_lines(author.log), records_of(author.dump)
    whole, part = 3 * graph.count(2), 3 * graph.count(2) + 5
    forge(author.log, lines[:1 + whole], root=False)
    found = llama2.audit(run_again(author, records[:whole]).log, author.dump, secrets["grouped"])
    assert not found.whole and not found.ended and not found.tally.missing and found.steps == 3
    forge(author.log, lines[:1 + part], root=False)
    found = llama2.audit(author.log, author.dump, secrets["grouped"])
    assert found.tally.missing == {"lines after the last step": 5}
    write_records(author.dump, records)
    with pytest.raises(ValueError, match="position 3, but the log has 3 steps"):
        llama2.audit(author.log, author.dump, secrets["grouped"])


# ----------------------------------------------------------------------------
# Side by side


@pytest.mark.parametrize("kind", ["processes", pytest.param("threads", marks=pytest.mark.slow)])
def test_an_executor_finds_what_one_process_finds(files, secrets, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(auditing, "POSITIONS", 3)
    (tmp_path / "secret").write_bytes(secrets["grouped"])
    pool = concurrent.futures.ProcessPoolExecutor if kind == "processes" else concurrent.futures.ThreadPoolExecutor
    with pool(2) as executor:
        check_executor(executor, files, tmp_path)


def check_executor(executor, files, folder):
    author = Author(folder, files["grouped"]).run()
    alone = llama2.audit(author.log, author.dump, folder / "secret")
    assert llama2.audit(author.log, author.dump, folder / "secret", executor=executor) == alone and alone.whole
    author = OneElement(folder, files["grouped"]).change((4, 1, "weights"), 0, 0.1).run()
    errors = [str(fault(author, folder / "secret", executor=how)) for how in (None, executor)]
    assert errors[0] == errors[1] and "position 4, layer 1, weights" in errors[0]
    other = make_checkpoint(folder / "other.bin", n_kv_heads=2, shared=False, seed=2)
    author = Author(folder, other, files["grouped"]).run()
    errors = [str(fault(author, folder / "secret", executor=how)) for how in (None, executor)]
    assert errors[0] == errors[1] and errors[0].endswith(" more)")
    author = Author(folder, files["grouped"]).run()
    records = [record for record in records_of(author.dump) if not record[0].startswith(b"1 0 k")]
    found = llama2.audit(run_again(author, records).log, author.dump, folder / "secret", executor=executor)
    assert found == llama2.audit(author.log, author.dump, folder / "secret")
    assert found.tally.missing == {"k": 1, "weights": STEPS - 1}
    assert found.first_missing_at == f"{folder / 'log'}, line 36"


def test_an_audit_runs_on_dask(files, secrets, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="needs dask[distributed]")
    monkeypatch.setattr(auditing, "POSITIONS", 3)
    (tmp_path / "secret").write_bytes(secrets["grouped"])
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        with distributed.Client(cluster) as client, client.get_executor() as executor:
            check_executor(executor, files, tmp_path)


# ----------------------------------------------------------------------------
# The limit


def probe_of(rows):
    """A probe by its definition, as far as float64 goes."""
    s = draw(len(rows))
    image = [math.fsum(a * row[j] for a, row in zip(s, rows, strict=True)) for j in range(len(rows[0]))]
    size = max(math.fsum(abs(a * row[j]) for a, row in zip(s, rows, strict=True)) for j in range(len(rows[0])))
    return Probe(tuple(s), tuple(image), size)


floats = st.one_of(st.floats(-4, 4, width=32), st.floats(-2.0**60, 2.0**60, width=32), st.sampled_from(
    [0.0, 2.0**-149, 2.0**-140, 1 + 2.0**-23, 1 - 2.0**-24, 2.0**24 + 2]))


@given(st.integers(1, 6).flatmap(lambda d: st.tuples(
    st.lists(st.lists(floats, min_size=d, max_size=d), min_size=1, max_size=8), st.lists(floats, min_size=d,
                                                                                         max_size=d))))
@examples(50)
def test_whatever_the_numbers_rounding_stays_within_the_limit(given):
    rows, x = given
    y = [Exact.dot(row, x) for row in rows]
    assert part_of_limit(probe_of(rows), x, y, ROUNDINGS) <= 1


@pytest.mark.parametrize("exponent", [-150, -148, -140, -126])
def test_results_that_are_subnormal_stay_within_the_limit(exponent):
    rng = random.Random(exponent)
    half = 2.0**(exponent // 2)
    for _ in range(50):
        rows = [[r(half * rng.gauss(0, 1)) for _ in range(3)] for _ in range(8)]
        x = [r(2.0**exponent / half * rng.gauss(0, 1)) for _ in range(3)]
        y = [Exact.dot(row, x) for row in rows]
        assert part_of_limit(probe_of(rows), x, y, ROUNDINGS) <= 1
        cos, sin = [Exact.cos(0.5), Exact.cos(2.0)], [Exact.sin(0.5), Exact.sin(2.0)]
        q = llama2.rope(y, cos, sin)
        assert part_of_limit(probe_of(rows), x, turned_back(q, cos, sin), ROUNDINGS_ROTATED) <= 1


@pytest.mark.parametrize("seed", range(4))
def test_what_cancels_leaves_no_more_than_a_float64_sum_may_err_by(seed):
    """Each column stands twice, and its inputs are opposite: all results are 0, so that none was rounded."""
    rng = random.Random(seed)
    order = rng.sample(range(400), 400)
    x = [x * sign for x in [r(rng.gauss(0, 1)) for _ in range(200)] for sign in (1, -1)]
    rows = [[w for w in [r(rng.gauss(0, 1)) for _ in range(200)] for _ in range(2)] for _ in range(3)]
    probe = probe_of([[row[i] for i in order] for row in rows])
    assert 0 <= part_of_limit(probe, [x[i] for i in order], [0.0] * 3, ROUNDINGS) <= 1
    assert part_of_limit(probe, [x[i] for i in order], [0.0, 1e-8, 0.0], ROUNDINGS) > 1


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("d", [1, 16, 400])
def test_what_a_sum_may_err_by_is_that_of_its_parts_times_their_number(size, d):
    """Of d parts, of which no column has more than size: 2^-51 d sqrt(d) size |x|."""
    x = [0.5] * d
    probe = Probe((1.0,), (size,) + (0.0,) * (d - 1), size)
    allowed = 2.0**-51 * d * math.sqrt(d) * size * math.hypot(*x)
    assert part_of_limit(probe, x, [0.0], ROUNDINGS) == pytest.approx(0.5 * size / allowed)


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 3), st.floats(0, 3000, width=32))
@examples(60)
def test_a_turn_and_its_undoing_stay_within_the_limit(seed, heads, half, angle):
    rng = random.Random(seed)
    rows = [[r(rng.gauss(0, 10.0**rng.randrange(-3, 4))) for _ in range(5)] for _ in range(2 * half * heads)]
    x = [r(rng.gauss(0, 1)) for _ in range(5)]
    angles = [r(angle / (i + 1)) for i in range(half)]
    cos, sin = [Exact.cos(a) for a in angles], [Exact.sin(a) for a in angles]
    q = llama2.rope([Exact.dot(row, x) for row in rows], cos, sin)
    assert part_of_limit(probe_of(rows), x, turned_back(q, cos, sin), ROUNDINGS_ROTATED) <= 1


@given(st.lists(st.floats(-10, 10), min_size=8, max_size=8), st.lists(st.floats(0, 100), min_size=2, max_size=2))
def test_turning_back_undoes_a_turn_by_rounded_angles_to_float64(x, angles):
    cos, sin = [Exact.cos(r(a)) for a in angles], [Exact.sin(r(a)) for a in angles]
    turned = []
    for i in range(0, 8, 2):
        a, b, c, s = x[i], x[i + 1], cos[i // 2 % 2], sin[i // 2 % 2]
        turned += [a * c - b * s, a * s + b * c]
    assert turned_back(turned, cos, sin) == pytest.approx(x, abs=1e-13)


@given(st.integers(0, 2**31), st.integers(1, 300), st.floats(2.1, 1000))
@examples(40)
def test_one_element_beyond_twice_the_limit_is_always_seen(seed, n, times):
    rng = random.Random(seed)
    rows = [[r(rng.gauss(0, 1)) for _ in range(4)] for _ in range(n)]
    x = [r(rng.gauss(0, 1)) for _ in range(4)]
    y = [Exact.dot(row, x) for row in rows]
    probe = probe_of(rows)
    limit = 1.25 * 2.0**-24 * min(8, math.sqrt(n)) * math.hypot(*y)
    y[rng.randrange(n)] += times * limit
    assert part_of_limit(probe, x, y, ROUNDINGS) > 1


def test_the_limit_of_a_long_product_is_that_of_random_signs():
    rng = random.Random(1)
    rows = [[r(rng.gauss(0, 1)) for _ in range(2)] for _ in range(4096)]
    x = [1.0, 2.0]
    y = [Exact.dot(row, x) for row in rows]
    probe = probe_of(rows)
    assert part_of_limit(probe, x, y, ROUNDINGS) < 0.5
    y[7] += 3 * 1.25 * 2.0**-24 * 8 * math.hypot(*y)  # of which the root of n would be eight times as much
    assert part_of_limit(probe, x, y, ROUNDINGS) > 1


def test_two_equal_changes_cancel_by_chance_alone():
    rng = random.Random(1)
    rows = [[r(rng.gauss(0, 1)) for _ in range(4)] for _ in range(16)]
    x = [1.0, 2.0, 3.0, 4.0]
    y = [Exact.dot(row, x) for row in rows]
    y[2] += 1.0
    y[9] -= 1.0
    assert sum(part_of_limit(probe_of(rows), x, y, ROUNDINGS) <= 1 for _ in range(1000)) <= 2


# ----------------------------------------------------------------------------
# Secrets


@pytest.mark.parametrize("name", ["grouped", "multi-head", "version 1, unshared"])
def test_a_secret_holds_what_its_docstring_says(files, name):
    count = 2
    with contextlib.closing(open_checkpoint(files[name])) as checkpoint:
        data = make_secret(checkpoint, count)
        c = checkpoint.config
        line, rest = data.split(b"\n", 1)
        assert json.loads(line) == {"format": "llama2.py secret 1", "config": c.described(), "secrets": count,
                                    "weights": weights_root(c.described(), checkpoint.tree_rows())}
        for tensor, l in in_tree_order(c):
            rows = checkpoint.rows(tensor, l)
            if tensor == "embedding":
                size = 32 * len(rows)
                assert rest[:size] == b"".join(hashlib.sha256(to_bytes(row)).digest() for row in rows)
                rest = rest[size:]
            if tensor.startswith("rms"):
                size = 4 * c.dim
                assert rest[:size] == to_bytes(rows[0])
                rest = rest[size:]
            elif tensor != "embedding" or c.shared_classifier:
                for _ in range(count):
                    n, d = len(rows), len(rows[0])
                    s, rest = struct.unpack(f"<{n}f", rest[:4 * n]), rest[4 * n:]
                    *image, size = struct.unpack(f"<{d + 1}d", rest[:8 * d + 8])
                    rest = rest[8 * d + 8:]
                    columns = list(zip(*rows, strict=True))
                    assert all(1 <= abs(v) < 1.25 for v in s) and (n < 20 or min(s) < 0 < max(s))
                    assert image == pytest.approx([math.fsum(map(float.__mul__, s, column)) for column in columns])
                    assert max(map(abs, image)) <= size * (1 + 1e-9)
        assert rest == hashlib.sha256(data[:-32]).digest()


def test_two_secrets_of_a_model_differ(files):
    assert secret_of(files["grouped"]) != secret_of(files["grouped"])


@pytest.mark.parametrize("count", [0, -1, MOST_SECRETS + 1])
def test_a_number_of_secrets_is_in_its_range(files, capfdbinary, count):
    message = failure(capfdbinary, "secret", files["grouped"], "--secrets", count, program=trace_command)
    assert message == f"secrets is {count}, must be an integer from 1 to {MOST_SECRETS}"


def with_digest(data):
    return data + hashlib.sha256(data).digest()


BAD_SECRETS = {
    "nothing": (lambda d: b"", "not a secret"),
    "another file": (lambda d: read_bytes(MODEL), "not a secret"),
    "of another version": (lambda d: d.replace(b"secret 1", b"secret 2"), "format is"),
    "cut": (lambda d: d[:-1], "bytes, must have"),
    "longer": (lambda d: d + b"x", "bytes, must have"),
    "damaged": (lambda d: d[:3000] + bytes([d[3000] ^ 1]) + d[3001:], "damaged"),
    "of a huge model": (lambda d: with_digest(d[:-32].replace(b'"n_layers":2', b'"n_layers":16777215')), "must have"),
    "of no model": (lambda d: with_digest(d[:-32].replace(b'"n_heads":4', b'"n_heads":3')), "is not one that a model"),
    "with many secrets": (lambda d: with_digest(d[:-32].replace(b'"secrets":1', b'"secrets":99')), "secrets is 99"),
    "written otherwise": (lambda d: with_digest(d[:-32].replace(b'"secrets":1', b'"secrets": 1')), "not a secret"),
}


@pytest.mark.parametrize("name", BAD_SECRETS)
def test_a_file_that_is_no_secret_is_refused(files, secrets, traces, tmp_path, capfdbinary, name):
    change, message = BAD_SECRETS[name]
    path = tmp_path / "secret"
    path.write_bytes(change(secrets["grouped"]))
    assert message in failure(capfdbinary, "audit", traces["op"], "dump", path, program=trace_command)


def test_a_weight_that_is_not_finite_makes_no_secret(files, tmp_path, capfdbinary):
    for name, value in ("w3", math.nan), ("rms_ffn", math.inf), ("embedding", -math.inf):
        with contextlib.closing(open_checkpoint(files["multi-head"])) as checkpoint:
            offset, _, _ = checkpoint.tensors[name]
        data = bytearray(read_bytes(files["multi-head"]))
        data[offset + 40:offset + 44] = struct.pack("<f", value)
        (tmp_path / "bad.bin").write_bytes(data)
        message = failure(capfdbinary, "secret", tmp_path / "bad.bin", program=trace_command)
        assert message.endswith(f"{name} of layer 0 holds a weight that is not finite")


# ----------------------------------------------------------------------------
# The command


@pytest.fixture(scope="module")
def whole_run(files, tmp_path_factory):
    """A log, a dump and a secret of a run by the command line, with its model and tokenizer."""
    folder = tmp_path_factory.mktemp("run")
    log, dump, secret = (folder / name for name in ("log", "dump", "secret"))
    options = ["-s", "7", "-n", "9", "-i", "ab a", "--trace", str(log), "--trace-level", "op", "--dump", str(dump)]
    assert author_command.main([files["grouped"], "-z", files["tokenizer"], *options]) == 0
    secret.write_bytes(secret_of(files["grouped"]))
    return log, dump, secret


def test_the_command_says_what_it_computed(files, whole_run, capfdbinary):
    code, out, err = command(capfdbinary, "audit", *whole_run, "-z", files["tokenizer"], program=trace_command)
    lines = out.decode().splitlines()
    assert code == 0 and err == "" and b"verified" not in out
    assert lines[0] == "audited: 9 steps, without the model"
    assert lines[1] == "135 products are right to within float32 rounding, by 1 secret vector for each matrix"
    assert lines[3] == "the prompt and 9 texts are those of the tokens"
    assert lines[2] == "144 other operations and 9 tokens are right to the bit, given those products"
    assert "  seed: 7" in lines and "only recomputed from the file itself" in lines[-1]
    text = console.quoted(show.text_of(formats.read(whole_run[0])))
    assert lines[-3:-1] == ["the text of these steps:", f"    {text}"]
    root = trace_root(whole_run[0])
    code, out, _ = command(capfdbinary, "audit", *whole_run, "--root", root, program=trace_command)
    assert code == 0 and out.decode().splitlines()[-1] == f"root: {root}, as published"
    assert b"neither prompt nor texts were compared with the tokens" in out


def test_a_passing_audit_says_nothing_of_the_secret(files, whole_run, tmp_path, capfdbinary):
    log, dump, _ = whole_run
    said = set()
    for _ in range(3):
        (tmp_path / "S").write_bytes(secret_of(files["grouped"]))
        said.add(command(capfdbinary, "audit", log, dump, tmp_path / "S", program=trace_command))
    assert len(said) == 1


def test_another_config_is_noticed_though_the_weights_root_is_the_same(whole_run, tmp_path, capfdbinary):
    log, dump, secret = whole_run
    lines = read_lines(log)[:-1]
    header = json.loads(lines[0])
    lines[0] = edit(lines[0], config={**header["config"], "seq_len": header["config"]["seq_len"] + 1})
    forged = forge(tmp_path / "log", lines)
    message = failure(capfdbinary, "audit", forged, dump, secret, program=trace_command, code=1)
    assert "line 1: config: expected" in message


def test_a_dump_of_many_small_records_is_refused_at_the_first_number_too_many(whole_run, tmp_path, capfdbinary):
    log, _, secret = whole_run
    (tmp_path / "dump").write_bytes((b"0 0 q 1\n" + bytes(4)) * 100_000)
    message = failure(capfdbinary, "audit", log, tmp_path / "dump", secret, program=trace_command)
    assert "q: has 17 numbers or more, must have 16" in message


def trace_root(path):
    line = json.loads(read_lines(path)[-1])
    return f"{line['size']}:{line['root']}"


def test_another_head_tokenizer_or_text_is_noticed(files, whole_run, tmp_path, capfdbinary):
    log, dump, secret = whole_run
    failure(capfdbinary, "audit", *whole_run, "--root", "280:" + "00" * 32, program=trace_command, code=1)
    other = make_tokenizer(tmp_path / "other.bin", scores=[0.0] * 280)
    message = failure(capfdbinary, "audit", *whole_run, "-z", other, program=trace_command, code=1)
    assert "line 1: tokenizer: expected" in message
    lines = read_lines(log)[:-1]
    for index, fields, field in ((0, {"prompt": "a ba"}, "tokens"), (0, {"prompt": "a" * 500}, "prompt"),
                                 (-1, {"text": "other"}, "text")):
        forged = [*lines]
        forged[index] = edit(forged[index], **fields)
        forge(tmp_path / "forged", forged)
        message = failure(capfdbinary, "audit", tmp_path / "forged", dump, secret, "-z", files["tokenizer"],
                          program=trace_command, code=1)
        assert f": {field}: expected" in message


def test_an_audit_in_part_is_said_and_has_an_exit_code_of_its_own(whole_run, tmp_path, capfdbinary):
    log, dump, secret = whole_run
    write_records(tmp_path / "part", [record for record in records_of(dump) if b" up " not in record[0]])
    for options, expected in ([], 1), (["--partial"], 0):
        code, out, _ = command(capfdbinary, "audit", log, tmp_path / "part", secret, *options, program=trace_command)
        assert code == expected and out.startswith(b"audited in part: 9 steps")
        assert b"not audited, for want of numbers: 18 up, 18 swiglu; the first is " in out


@pytest.mark.parametrize("kind", ["step", "layer", "c", "rust"])
def test_logs_of_other_kinds_are_refused(whole_run, traces, capfdbinary, kind):
    message = failure(capfdbinary, "audit", traces[kind], *whole_run[1:], program=trace_command)
    assert "an audit needs a log of level op in arithmetic exact" in message


BAD_DUMPS = {"empty": b"", "another file": b"hello", "of another position": b"9 -1 logits 1\n1234",
             "beyond the context": b"99 -1 logits 1\n1234", "of another size": b"0 -1 logits 1\n1234",
             "cut": b"0 -1 logits 280\n1234", "of no operation": b"0 0 x 1\n1234"}


@pytest.mark.parametrize("name", BAD_DUMPS)
def test_a_dump_that_is_none_is_refused(whole_run, tmp_path, capfdbinary, name):
    (tmp_path / "bad").write_bytes(BAD_DUMPS[name])
    message = failure(capfdbinary, "audit", whole_run[0], tmp_path / "bad", whole_run[2], program=trace_command)
    assert str(tmp_path / "bad") in message


# ----------------------------------------------------------------------------
# Any other bytes


def mutated_log(rng, data):
    """A log with changes; in half of them its root is that of the changed lines."""
    if rng.random() < 0.5:
        return mutated_bytes(rng, data)
    lines = data.splitlines()[:-1]
    i = rng.randrange(len(lines)) if rng.random() < 0.7 else 0
    lines[i] = mutated_bytes(rng, lines[i]) if rng.random() < 0.5 else lines[rng.randrange(len(lines))]
    tree = [line for line in lines if b"\n" not in line]
    return b"".join(line + b"\n" for line in [*tree, root_of(tree)])


def root_of(lines):
    root = merkle.tree_head(map(merkle.leaf_hash, lines)).hex()
    return json.dumps({"size": len(lines), "root": root}, separators=(",", ":")).encode()


def mutated_secret(rng, data):
    changed = mutated_bytes(rng, data)
    return with_digest(changed[:-32]) if rng.random() < 0.5 else changed


def fuzz(files, run, folder, seed, count):
    """Audit runs of which one file was changed at random -> how many passed, and how many were wrong about it."""
    rng = random.Random(seed)
    originals = [read_bytes(path) for path in run]
    passed = 0
    for i in range(count):
        which = i % 3
        data = (mutated_log, mutated_bytes, mutated_secret)[which](rng, originals[which])
        paths = list(run)
        paths[which] = folder / "changed"
        paths[which].write_bytes(data)
        try:
            found = llama2.audit(*map(str, paths), tokenizer=files["tokenizer"])
        except (VerificationError, ValueError, OSError) as error:
            assert "\n" not in str(error)
            continue
        if found.whole and data != originals[which]:
            passed += 1
            check_is_true(files, paths, which, found)
    return passed


def check_is_true(files, paths, which, found):
    """What passed an audit must be a run of the model: of a log that was changed, verification says so."""
    if which == 0:
        lines = read_lines(paths[0])[:-1]
        lines[0] = edit(lines[0], model=hashlib.sha256(read_bytes(files["grouped"])).hexdigest())
        assert llama2.verify(forge(paths[0], lines), files["grouped"], files["tokenizer"]).whole
    assert found.steps == 9 or which == 0


def test_changed_files_are_refused_or_right(files, whole_run, tmp_path):
    assert fuzz(files, whole_run, tmp_path, 1, 90) < 20


@pytest.mark.slow
def test_many_changed_files_are_refused_or_right(files, whole_run, tmp_path):
    passed = fuzz(files, whole_run, tmp_path, 2, 40000)
    assert passed < 8000 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 300_000
