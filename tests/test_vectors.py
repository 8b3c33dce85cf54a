"""Tests of the test vectors: correct programs pass, known mistakes do not, and the files are what the generator writes.

The ports that prove it stand in tests/vectors, each with a harness of its own.
"""
import filecmp
import functools
import json
import math
import os
import shutil
import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llama2
import plain
from llama2_py.doctor.mistakes.mistake import Mistake
from llama2_py.doctor.operations import Operations
from llama2_py.engine.arithmetic import ARITHMETIC
from tests.helpers import HERE, any_float
from tests.vectors import mutants
from tools import make_vectors
from tools.vectorgen import catalogue, inputs, models, writing
from tools.vectorgen.operations import DIGITS, Norm, distance

VECTORS = os.path.join(HERE, "vectors")
PORTS = os.path.join(HERE, "tests", "vectors")
OPERATIONS = ["embedding", "rmsnorm", "matvec", "rope", "rope_scaled", "attention_weights", "attention_mix", "swiglu",
              "residual"]
EXACT = ["sampler", "xorshift", "tokenizer"]
FILES = [*OPERATIONS, "model", *EXACT]
MOST_BYTES = 700_000
MOST_USED = 0.6            # of a bound, by correct programs; 0.5 was measured
ROOM = {"embedding", "residual"}  # whose bounds have no room to speak of: one rounding, or none


@functools.cache
def vectors(name):
    with open(os.path.join(VECTORS, f"{name}.json"), encoding="utf-8") as file:
        return json.load(file)


def cases_of(name):
    return [test for group in vectors(name)["testGroups"] for test in group["tests"]]


def f32(value):
    return [f32(v) for v in value] if isinstance(value, list) else struct.unpack("f", struct.pack("f", value))[0]


# ----------------------------------------------------------------------------
# The files


def test_the_files_are_small():
    assert sum(entry.stat().st_size for entry in os.scandir(VECTORS)) < MOST_BYTES


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_its_head_and_numbers_its_tests(name):
    file = vectors(name)
    tests = cases_of(name)
    assert file["algorithm"] == name and file["generatorVersion"] == "1"
    assert file["numberOfTests"] == len(tests) and [t["tcId"] for t in tests] == list(range(1, len(tests) + 1))
    assert {t["result"] for t in tests} <= {"valid", "acceptable"}
    assert {flag for t in tests for flag in t["flags"]} == set(file["notes"])
    assert len({t["comment"] for t in tests}) > len(tests) // 2


@pytest.mark.parametrize("name", OPERATIONS)
def test_expected_numbers_are_those_of_plain(name):
    for t in cases_of(name):
        n = f32(t["expected"])
        if name == "embedding":
            theirs = f32(t["table"])[t["token"]]
        elif name == "rmsnorm":
            theirs = plain.rmsnorm(f32(t["x"]), f32(t["weight"]))
        elif name == "matvec":
            theirs = plain.matvec(f32(t["w"]), f32(t["x"]))
        elif name == "rope" and t["pos"] < 1000:  # plain's sine is slow far out
            theirs = plain.rope(f32(t["x"]), t["pos"], t["head_size"], t["theta"])
        elif name == "swiglu":
            theirs = plain.swiglu(f32(t["gate"]), f32(t["up"]))
        elif name == "residual":
            theirs = plain.add(f32(t["x"]), f32(t["change"]))
        else:
            continue
        assert struct.pack(f"{len(n)}f", *theirs) == struct.pack(f"{len(n)}f", *n), t["comment"]


@pytest.mark.parametrize("name", ["attention_weights", "attention_mix"])
def test_expected_attention_is_that_of_plain(name):
    for t in cases_of(name):
        q, keys = f32(t.get("q", [])), f32(t.get("keys", t.get("values")))
        heads, group = t["n_heads"], t["n_heads"] // t["n_kv_heads"]
        hs = len(keys[0]) // t["n_kv_heads"]
        result = []
        for h in range(heads):
            rows = [key[h // group * hs:(h // group + 1) * hs] for key in keys]
            if q:
                result += plain.attend(q[h * hs:(h + 1) * hs], rows, rows)[0]
            else:
                p = f32(t["weights"])[h * len(rows):(h + 1) * len(rows)]
                result += [plain.dot(p, column) for column in zip(*rows, strict=True)]
        assert result == f32(t["expected"]), t["comment"]


def test_sampler_and_tokenizer_are_those_of_plain():
    for t in cases_of("sampler"):
        assert plain.sample(f32(t["logits"]), t["temperature"], t["p"], t["coin"]) == t["expected"], t["comment"]
    (group,) = vectors("tokenizer")["testGroups"]
    tokenizer = plain.Tokenizer(os.path.join(VECTORS, group["tokenizer"]), group["vocab"])
    for t in group["tests"]:
        tokens = tokenizer.encode(t["text"])
        assert tokens == t["tokens"], t["comment"]
        assert b"".join(map(tokenizer.decode, tokens, tokens[1:])).hex() == t["decoded_hex"]
    for t in cases_of("xorshift"):
        state = int(t["seed"])
        for expected in t["coins"]:
            coin, state = plain.random(state)
            assert coin == f32(expected)
        assert str(state) == t["state"]


def test_the_edges_are_there():
    assert {t["pos"] for t in cases_of("rope")} >= {0, 1, 7, 100, 2047, 2600}
    assert {t["theta"] for t in cases_of("rope")} == {10000.0, 500000.0}
    assert {t["head_size"] for t in cases_of("rope")} >= {2, 4, 6, 64, 128}
    assert {t["n_heads"] // t["n_kv_heads"] for t in cases_of("attention_weights")} >= {1, 2, 4, 8}
    gates = [gate for t in cases_of("swiglu") for gate in t["gate"]]
    assert {-104.0, -89.0, 89.0, 104.0} <= set(gates)
    acceptable = [(name, t["tcId"]) for name in FILES for t in cases_of(name) if t["result"] == "acceptable"]
    assert len(acceptable) == 1
    assert all(gate > -88.7 for t in cases_of("swiglu") if t["result"] == "valid" for gate in t["gate"])


def test_the_checkpoints_tables_are_those_of_rope():
    for name, c in models.MODELS.items():
        with open(os.path.join(VECTORS, f"{name}.bin"), "rb") as file:
            data = file.read()
        pairs = c.head_size // 2
        n = c.seq_len * pairs
        own = 0 if c.shared_classifier else c.vocab_size * c.dim
        tables = struct.unpack(f"<{2 * n}f", data[len(data) - 4 * (2 * n + own):len(data) - 4 * own])
        for pos in range(c.seq_len):
            for i in range(pairs):
                angle = pos * 10000.0 ** (-2 * i / c.head_size)
                turn = tables[pos * pairs + i], tables[n + pos * pairs + i]
                assert turn == pytest.approx((math.cos(angle), math.sin(angle)), abs=1e-5)


@given(any_float)
def test_numbers_are_written_so_that_they_can_be_read(value):
    bits = struct.pack("f", value)
    for text in writing.shortest(value), writing.nine_digits(value):
        assert struct.pack("f", float(text)) == bits
        assert float(json.loads(text)) == float(text)
    assert abs(float(writing.nine_digits(value)) - value) <= DIGITS * abs(value) or abs(value) < 2.0**-126


@given(st.floats(1e-45, 1e38))
def test_bounds_are_rounded_up(value):
    assert value <= float(writing.rounded_up(value)) <= 1.02 * value


def test_the_readme_shows_every_file_and_every_field():
    with open(os.path.join(VECTORS, "README.md"), encoding="utf-8") as file:
        text = file.read()
    for name in {entry.name for entry in os.scandir(VECTORS)} - {"README.md"}:
        assert f"`{name}`" in text, name
    for name in FILES:
        for t in cases_of(name):
            assert all(f"`{field}`" in text for field in t), name


# ----------------------------------------------------------------------------
# Correct programs pass


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_dialect_c_passes(name):
    for test in inputs.by_file()[name]:
        used = distance(test.expected(ARITHMETIC["c"]), test.expected(), test.bound())
        assert used <= 1 if test.result == "valid" and name in ROOM else used <= MOST_USED, test.comment


@pytest.mark.parametrize("name", [*models.MODELS])
def test_the_dialect_c_and_noise_pass_in_models(name):
    (t,) = [case for case in cases_of("model") if case["model"] == f"{name}.bin"]
    listed = {("logits", None, pos): (t["expected"][pos], t["bound"][pos]) for pos in range(len(t["tokens"]))}
    for o in t["operations"]:
        layer = None if o["layer"] < 0 else o["layer"]
        listed[o["op"], layer, o["pos"]] = o["expected"], o["bound"]
    run = models.Run(VECTORS, name)
    c = {}
    with llama2.Transformer(os.path.join(VECTORS, f"{name}.bin"), "c") as model:
        for pos, token in enumerate(run.tokens):
            logits = model.forward(token, pos, lambda l, op, values, pos=pos: c.update({(op, l, pos): values}))
            c["logits", None, pos] = logits
    noisy = [run.run(Operations, models.standard(seed)) for seed in range(1000, 1002)]
    run.close()
    assert set(listed) == set(run.places())
    for theirs in c, *noisy:
        for place, (expected, bound) in listed.items():
            assert distance(theirs[place], expected, bound) <= MOST_USED, place


def judged(command, **more):
    """Run a harness -> {file: (tests, failures, part of a bound)}."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **more)
    assert done.returncode in (0, 1), done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if not line.startswith(" ")]
    return [(name, int(tests), int(failures), float(used or 0)) for name, tests, failures, used in lines], done.stdout


def passes(command, **more):
    """Run a harness whose port is correct, and see how much of the bounds it used."""
    results, text = judged(command, **more)
    assert {name for name, *_ in results} == set(FILES)
    for name, tests, failures, used in results:
        assert tests == len(cases_of(name)) and failures == 0, text
        assert used <= MOST_USED, (name, used)


def needs(program):
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not here")


def compiled(folder, *options):
    """The harness in C."""
    program = str(folder / "harness")
    subprocess.run(["gcc", *options, "-o", program, "harness.c", "-lm"], check=True, cwd=PORTS)
    return [program, VECTORS]


@needs("node")
def test_a_port_to_javascript_passes():
    passes(["node", os.path.join(PORTS, "harness.js"), VECTORS])


@needs("node")
def test_a_port_that_computes_in_double_passes(tmp_path):
    with open(os.path.join(PORTS, "llama.js"), encoding="utf-8") as file:
        source = file.read()
    double = source.replace("const f = Math.fround;", "const f = (x) => x;")
    assert double != source
    (tmp_path / "double.js").write_text(double)
    passes(["node", os.path.join(PORTS, "harness.js"), VECTORS, str(tmp_path / "double.js")])


@needs("gcc")
def test_a_port_to_c_passes(tmp_path):
    passes(compiled(tmp_path, "-O1"))


@pytest.mark.slow
@needs("gcc")
@pytest.mark.parametrize("options", [("-O0",), ("-O3",), ("-O3", "-march=native"), ("-Ofast", "-march=native"),
                                     ("-O3", "-march=native", "-ffp-contract=off"), ("-O2", "-mfpmath=387")])
def test_a_port_to_c_passes_however_it_is_compiled(options, tmp_path):
    passes(compiled(tmp_path, *options))


@pytest.mark.slow
@needs("go")
def test_a_port_to_go_passes():
    passes(["go", "run", "harness.go", "llama.go", VECTORS], cwd=PORTS)


@pytest.mark.slow
@pytest.mark.parametrize("flush", [[], ["flush"]])
def test_a_port_to_numpy_passes_in_every_order_with_and_without_denormals(flush):
    pytest.importorskip("numpy")
    passes([sys.executable, "harness.py", VECTORS, "all", *flush], cwd=PORTS)


# ----------------------------------------------------------------------------
# Mistakes do not


def test_a_mistake_keeps_its_number_and_a_new_one_gets_the_next():
    have = {"a": "M001", "b": "M002", "c": "M004"}
    assert catalogue.numbered(["new", "c", "a", "other"], have) == {
        "new": "M005", "c": "M004", "a": "M001", "other": "M006"}


@pytest.mark.slow
def test_the_mistakes_of_the_register_are_those_that_are_known():
    assert catalogue.registered() == catalogue.numbers()


@pytest.mark.slow
def test_every_known_mistake_is_in_the_vectors_or_is_said_to_be_unseen():
    with open(os.path.join(VECTORS, "mistakes.json"), encoding="utf-8") as file:
        listed = json.load(file)
    known = catalogue.catalogue()
    assert {number: entry["name"] for number, entry in listed.items()} == known, "run tools/make_vectors.py"
    for number, entry in listed.items():
        named = [name for name in [*OPERATIONS, "model"] for t in cases_of(name)
                 if number in t["flags"] and t["result"] == "valid"]
        assert entry["files"] == list(dict.fromkeys(named))
        assert bool(entry["files"]) != ("unseen" in entry), entry["name"]
    for name in [*OPERATIONS, "model"]:
        assert all(text == known[number] for number, text in vectors(name)["notes"].items())


def test_a_mistake_that_is_added_is_flagged_or_refused(monkeypatch):
    class Doubled(Mistake):
        name = "norms are doubled"

        def inverse_root(self, mean):
            return 2 * super().inverse_root(mean)

    class Hidden(Mistake):
        name = "norms are off by what no float32 can show"

        def inverse_root(self, mean):
            return (1 + 1e-12) * super().inverse_root(mean)

    added = {"M998": Doubled, "M999": Hidden}
    monkeypatch.setattr(make_vectors, "kinds_for", lambda config: added)
    monkeypatch.setattr(make_vectors, "catalogue", lambda: {number: kind.name for number, kind in added.items()})
    deaths = make_vectors.Deaths()
    test = Norm("two", x=[1.0, 2.0], weight=[1.0, 1.0])
    assert make_vectors.flags_of(test, deaths) == ["M998"]
    assert deaths.missing() == ["M999 norms are off by what no float32 can show"]
    monkeypatch.setitem(make_vectors.UNSEEN, Hidden.name, "because")
    assert deaths.missing() == []
    monkeypatch.setitem(make_vectors.UNSEEN, Doubled.name, "because")
    assert deaths.missing() == ["M998 norms are doubled"]


def test_the_program_right_is_never_flagged():
    for tests in inputs.by_file().values():
        for test in tests:
            for theirs in test.results(Operations):
                assert distance(theirs, test.expected(), test.bound()) <= 1, test.comment


def test_nothing_that_is_no_number_passes():
    assert distance([1.0, math.nan], [1.0, 1.0], [0.1, 0.1]) == math.inf
    assert distance([math.inf], [1.0], [0.1]) == math.inf
    assert distance([1.0], [1.0, 1.0], [0.1, 0.1]) == math.inf


@needs("node")
def test_a_broken_port_is_told_what_is_wrong(tmp_path):
    with open(os.path.join(PORTS, "llama.js"), encoding="utf-8") as file:
        source = file.read()
    broken = source.replace("f(-g)", "f(g)").replace("Math.exp(-g)", "Math.exp(-1.702 * g)")
    assert broken != source
    (tmp_path / "broken.js").write_text(broken)
    results, text = judged(["node", os.path.join(PORTS, "harness.js"), VECTORS, str(tmp_path / "broken.js")])
    wrong = {name for name, _, failures, _ in results if failures}
    assert wrong == {"swiglu", "model"} and "quick GELU" in text


@needs("node")
def test_a_port_that_joins_right_operations_wrongly_is_told_where(tmp_path):
    with open(os.path.join(PORTS, "llama.js"), encoding="utf-8") as file:
        source = file.read()
    broken = source.replace("matvec(m.w1[l]", "matvec(m.w3[l]")
    assert broken != source
    (tmp_path / "broken.js").write_text(broken)
    results, text = judged(["node", os.path.join(PORTS, "harness.js"), VECTORS, str(tmp_path / "broken.js")])
    assert {name for name, _, failures, _ in results if failures} == {"model"}
    assert "gate of layer 0, position 0, is wrong first" in text
    assert "tiny-mha.bin looks like: w1 and w3 are swapped; " in text


@pytest.mark.slow
@needs("node")
def test_mutants_of_a_port_die():
    count, alive = mutants.survivors(VECTORS)
    assert count >= 100
    assert not [mutant for mutant in alive if mutant.line not in mutants.EQUIVALENT]


# ----------------------------------------------------------------------------
# The generator


@pytest.mark.slow
def test_the_generator_writes_the_files_again_byte_for_byte(tmp_path):
    program = os.path.join(HERE, "tools", "make_vectors.py")
    subprocess.run([sys.executable, program, str(tmp_path)], check=True)
    names = sorted({entry.name for entry in os.scandir(VECTORS)} - {"README.md"})
    assert sorted(os.listdir(tmp_path)) == names
    assert filecmp.cmpfiles(VECTORS, tmp_path, names, shallow=False) == (names, [], [])


def test_the_generator_takes_a_folder_and_nothing_else(capsys):
    assert make_vectors.main(["a", "b"]) == 2
    assert make_vectors.main(["--help"]) == 2
    assert "make_vectors.py FOLDER" in capsys.readouterr().out
