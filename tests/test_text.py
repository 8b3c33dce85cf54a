"""Tests of the doctor's walk along another program's text: what rounding can make of it, and what is a mistake."""
import math
import os
import random
import shutil
import subprocess
import time
from array import array
from types import SimpleNamespace

import pytest

import llama2
import plain
from llama2_py.doctor import text, text_report
from llama2_py.doctor.assertions import Given
from llama2_py.doctor.choices import Drawn, Likeliest, Unit
from llama2_py.doctor.compare import Comparison
from llama2_py.doctor.noise import Noisy
from llama2_py.doctor.written import Listed, Pieces, Written
from llama2_py.engine.arithmetic import C, r
from llama2_py.engine.checkpoint import Checkpoint
from tests.helpers import HERE, MODEL, TOKENIZER, command, failure, make_checkpoint, plain_c, plain_with, rounded, some

VOCAB = 280
CONSISTENT = "consistent with float32, as far as a text shows: "


# ----------------------------------------------------------------------------
# Ports in plain loops

def halves(x, pos, hs, theta=10000.0):
    """RoPE that turns (i, i + hs / 2)."""
    order = [h + i for h in range(0, len(x), hs) for pair in range(hs // 2) for i in (pair, pair + hs // 2)]
    turned = plain.rope([x[i] for i in order], pos, hs, theta)
    result = [0.0] * len(x)
    for i, value in zip(order, turned, strict=True):
        result[i] = value
    return result


def unscaled(q, keys, values):
    """Attention without 1 / sqrt(hs)."""
    return plain.attend([rounded(v * math.sqrt(len(q))) for v in q], keys, values)


def gelu(gate, up):
    return [rounded(0.5 * g * (1 + math.erf(g / math.sqrt(2))) * u) for g, u in zip(gate, up, strict=True)]


def theta_100000(x, pos, hs, theta=10000.0):
    return plain.rope(x, pos, hs, 100000.0)


MISTAKES = {"halves": {"rope": halves}, "no scale": {"attend": unscaled}, "GELU": {"swiglu": gelu},
            "theta 100000": {"rope": theta_100000}}


def told_by(port, path, steps, sampler=None, prompt=(1,)):
    """The tokens behind the prompt that a port in plain loops chooses."""
    model = port.Model(path)
    tokens = list(prompt)
    while len(tokens) < len(prompt) + steps:
        pos = len(tokens) - 1
        for at in range(0 if pos == len(prompt) - 1 else pos, pos + 1):
            logits = port.forward(model, tokens[at], at)
        tokens.append(sampler.sample(array("f", logits)) if sampler else logits.index(max(logits)))
    return tokens[len(prompt):]


def listed(tokens):
    return ",".join(map(str, tokens))


@pytest.fixture(scope="module")
def lively(tmp_path_factory):
    """A checkpoint of random weights whose greedy text does not repeat itself soon."""
    path = tmp_path_factory.mktemp("lively") / "m.bin"
    return make_checkpoint(path, n_kv_heads=2, shared=False, scale=1.0, seed=7)


@pytest.fixture
def run(lively, files):
    """Its options."""
    return [lively, "-z", files["tokenizer"]]


def test_a_correct_ports_tokens_are_the_exact_programs(run, capfdbinary):
    for port in plain, plain_c:
        tokens = told_by(port, run[0], 20)
        code, out, err = command(capfdbinary, *run, "-t", "0", "--compare-tokens", listed(tokens))
        lines = out.decode().splitlines()
        assert (code, err) == (0, "") and lines[0] == f"{CONSISTENT}20 choices, each the exact program's"
        assert lines[1].startswith("the text ends after 20 choices; the model would go on with ")
        assert lines[2].startswith("closest choice: step ") and "epsilon 1e-06" in lines[3] and len(lines) == 4


@pytest.mark.parametrize("name", some(1, MISTAKES))
def test_a_mistake_is_impossible_at_the_step_where_it_turns_a_choice(run, capfdbinary, name):
    tokens = told_by(plain_with("wrong_port", **MISTAKES[name]), run[0], 12)
    right = told_by(plain, run[0], 12)
    step = next(pos for pos, (a, b) in enumerate(zip(tokens, right, strict=True)) if a != b)
    code, out, _ = command(capfdbinary, *run, "-t", "0", "--compare-tokens", listed(tokens))
    lines = out.decode().splitlines()
    assert code == 1 and lines[0].startswith(f"a mistake, not rounding: step {step} is impossible: ")
    assert lines[1].startswith(f"step {step}: {tokens[step]} ") and f" there, {right[step]} " in lines[1]
    assert f"(--tokens {listed([1, *tokens[:step]])})" in lines[-1]
    assert float(lines[0].split(": ")[2].split()[0]) > 1000


@pytest.mark.parametrize("p, like", [(0.9, "llama2.c"), (1.0, "llama2-rs")])
def test_a_sampled_text_is_judged_by_its_coins(run, capfdbinary, p, like):
    rng = {"llama2.c": "xorshift64*"}.get(like, like)
    options = [*run, "-t", "2.5", "-p", p, "--tokens", "1,5,6", "--like", like, "--compare-tokens"]
    tokens = told_by(plain_c, run[0], 12, llama2.Sampler(2.5, p, 77, rng), [1, 5, 6])
    code, out, _ = command(capfdbinary, *options, listed(tokens), "-s", 77)
    assert code == 0 and out.decode().startswith(f"{CONSISTENT}12 choices, each the exact program's\n")
    code, out, _ = command(capfdbinary, *options, listed(tokens), "-s", 12345)
    assert code == 1 and out.startswith(b"a mistake, not rounding: step ")


LATE = llama2.Sampler(2.5, 0.9, 5)
LATE.coin(), LATE.coin()


@pytest.mark.parametrize("name, sampler", some(1, [
    ("its coins are those of llama2-rs (--like)", llama2.Sampler(2.5, 0.9, 5, "llama2-rs")),
    ("the program takes the likeliest token (-t 0)", None),
    ("it takes a coin for each token of the prompt, too", LATE),
    ("it samples from all tokens (-p 1)", llama2.Sampler(2.5, 1.0, 5)),
    ("it leaves the temperature out (-t 1)", llama2.Sampler(1.0, 0.9, 5))]))
def test_what_else_a_program_may_have_sampled_by_is_named(run, capfdbinary, name, sampler):
    tokens = told_by(plain, run[0], 10, sampler, [1, 5, 6])
    options = [*run, "-t", "2.5", "-p", "0.9", "-s", "5", "--tokens", "1,5,6", "--compare-tokens"]
    code, out, _ = command(capfdbinary, *options, listed(tokens))
    lines = out.decode().splitlines()
    assert code == 1 and lines[1] == f"it is consistent if {name}" and not lines[2].startswith("it is consistent")


# ----------------------------------------------------------------------------
# Texts, as programs print them

STORY = b"Once upon a time, there was a little boy."
STORY_TOKENS = [406, 407, 260, 371, 478, 364, 274, 260, 326, 419, 473, 470]
PROMPT = b"Once upon a time"


@pytest.mark.parametrize("told, prompt", [
    (STORY, 0), (STORY + b"\n", 0), (b"<s> " + STORY, 0), (b"\n<s>\n" + STORY, 0), (b" " + STORY + b"\n\n", 0),
    (b"\xef\xbb\xbf" + STORY + b"\r\n", 0), (STORY + b"\nachieved tok/s: 201.5\n", 0), (STORY, 4), (b"<s>" + STORY, 4),
    (b" " + STORY, 4), (STORY[16:], 4), (b" " + STORY[16:], 4), (STORY[17:], 5), (STORY[18:], 5)])
def test_a_text_may_be_printed_in_many_ways(told, prompt):
    tokenizer = llama2.Tokenizer(TOKENIZER, 512)
    beginning = [tokenizer.decode(a, b) for a, b in zip([1, *STORY_TOKENS], STORY_TOKENS[:prompt], strict=False)]
    source = Written("text", told, b"".join(beginning), tokenizer)
    place = source.start
    for token in STORY_TOKENS[prompt:]:
        assert not source.is_done(place)
        place = source.options(place)[token]
    assert source.is_done(place)


@pytest.mark.parametrize("options", some(1, [[], ["-i", PROMPT.decode()]]))
def test_a_text_is_judged_by_its_options(tmp_path, capfdbinary, options):
    (tmp_path / "text").write_bytes(STORY)
    code, out, _ = command(capfdbinary, "-t", "0", *options, "--compare-text", tmp_path / "text")
    count = len(STORY_TOKENS) - 4 * len(options[1:])
    assert code == 0 and out.decode().startswith(f"{CONSISTENT}{count} choices, each the exact program's\n")
    (tmp_path / "text").write_bytes(STORY.replace(b"boy", b"bug"))
    code, out, _ = command(capfdbinary, "-t", "0", *options, "--compare-text", tmp_path / "text")
    assert code == 1 and out.startswith(b"a mistake, not rounding: step 9 is impossible: ")


def test_a_text_that_goes_on_after_its_steps_is_judged_up_to_there(tmp_path, capfdbinary):
    (tmp_path / "text").write_bytes(STORY)
    code, out, _ = command(capfdbinary, "-t", "0", "-n", "8", "--compare-text", tmp_path / "text")
    lines = out.decode().splitlines()
    assert code == 0 and lines[0] == f"{CONSISTENT}8 choices, each the exact program's"
    assert lines[1].startswith("the text goes on after the 8 steps that were judged (-n): ")


def test_a_text_of_which_no_step_is_left_cannot_be_told(run, capfdbinary):
    code, out, _ = command(capfdbinary, *run, "-t", "0", "-n", "2", "--tokens", "1,5,6", "--compare-tokens", "7")
    assert code == 0 and out.startswith(b"it cannot be told: the text holds no choice of the program's\n")


def test_a_long_file_without_a_text_costs_little():
    begin = time.process_time()
    Written("text", b"\n" * 2**22 + b"Once", b"", llama2.Tokenizer(TOKENIZER, 512))
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("more, code, line", [
    ([], 0, "the text ends where the model ends it, with "),
    ([5, 6], 1, "a mistake, not rounding: the text goes on after 4 choices, where the model ends it")])
def test_a_text_that_goes_on_after_its_end_is_a_mistake(run, capfdbinary, monkeypatch, more, code, line):
    tokens = told_by(plain, run[0], 5)
    assert tokens[4] not in tokens[:4]
    monkeypatch.setattr(Checkpoint, "ends", (tokens[4],))
    for end in [], [tokens[4]]:
        given = listed([*tokens[:4], *end, *more])
        got, out, _ = command(capfdbinary, *run, "-t", "0", "--compare-tokens", given)
        assert got == code and any(found.startswith(line) for found in out.decode().splitlines())


@pytest.mark.parametrize("data, message", [
    (b"", "holds no text"), (b" \n\n", "holds no text"), (b"\xef\xbb\xbf", "holds no text"),
    (b"achieved tok/s: 31.5\n", "holds no text"),
    ("Once".encode("utf-16"), "is UTF-16, must be UTF-8 (in PowerShell, > writes UTF-16)")])
def test_what_is_no_text_is_refused(tmp_path, capfdbinary, data, message):
    (tmp_path / "text").write_bytes(data)
    path = tmp_path / "text"
    assert failure(capfdbinary, "-t", "0", "--compare-text", path) == f"{path}: {message}"


@pytest.mark.parametrize("options, message", [
    (["--compare-text", "x"], "--compare-text and --compare-tokens: give the seed (-s) that the text was sampled with"),
    (["--compare-tokens", "1", "-s", "0"], "--compare-text and --compare-tokens: give the seed"),
    (["--compare-tokens", "1", "-t", "0", "--workers", "2"], "--compare-text and --compare-tokens judge float32"),
    (["--compare-tokens", "1", "-t", "0", "--like", "runq"], "--compare-text and --compare-tokens judge float32"),
    (["--compare-tokens", "1", "--compare-text", "x", "-t", "0"], "--compare-tokens and --compare-text: one at a time"),
    (["--compare-tokens", "1", "--compare", "x", "-t", "0"], "--compare-tokens and --compare: one at a time"),
    (["--compare-tokens", "1,x"], "argument --compare-tokens: not tokens as 1,403,407"),
    (["--compare-tokens", "512", "-t", "0"], "token of --compare-tokens is 512, must be in the vocabulary of 512"),
    (["--compare-text", "no-such-file", "-t", "0"], "no-such-file: No such file or directory"),
    (["--compare-text", "x", "-t", "0", "-m", "chat"], "--compare-text belongs to mode generate, not to chat")])
def test_options_that_do_not_go_with_a_text_are_refused(capfdbinary, options, message):
    assert failure(capfdbinary, *options).startswith(message)


def test_a_sequence_of_looks_is_found_whatever_the_lengths(tokenizer):
    pieces = Pieces(tokenizer)
    assert pieces.lengths == sorted(set(pieces.lengths)) and pieces.lengths[0] == 0
    assert pieces.options(b"", 0).keys() >= {2, 3 + 0xF0}


def test_what_tokens_may_look_like(tokenizer):
    pieces = Pieces(tokenizer)
    found = pieces.options(b"ab", 0)
    assert {tokenizer.tokens[piece] for piece in (b"ab", b"a")} <= set(found)
    assert found[3 + ord("a")] == 1 and found[3] == 0  # a byte token; a byte that nobody prints
    assert pieces.options(b"\xf0\x9f", 0)[3 + 0xF0] == 1 and pieces.options("\N{REPLACEMENT CHARACTER}".encode(), 0)[
        3 + 0xF0] == 3
    assert pieces.options(b"</s>x", 0)[2] == 4 and pieces.options(b"\n</s>\n", 0)[2] == 6


def test_tokens_may_hold_the_prompts_or_not():
    for tokens in [1, 5, 6, 7], [5, 6, 7], [7]:
        assert Listed(tokens, [1, 5, 6], VOCAB).options(Listed.start) == {7: (0, 1)}


# ----------------------------------------------------------------------------
# Ties

D = 274  # the likeliest token where nothing else is said


class Told:
    """A model with given logits by the tokens so far, and noise of 1."""

    def __init__(self, rows):
        self.rows, self.tokens = rows, []
        self.checkpoint = SimpleNamespace(ends=(1,))
        self.shard = SimpleNamespace(classifier=SimpleNamespace(blocks=[SimpleNamespace(squares=[1.0] * VOCAB)]))

    def forward_chunk(self, tokens, pos, skip=0):
        self.tokens = list(tokens)
        return [self.row()]

    def forward(self, token, pos):
        self.tokens = [*self.tokens[:pos], token]
        return self.row()

    def row(self):
        row = array("f", bytes(4 * VOCAB))
        row[D] = 100000.0
        for token, logit in self.rows.get(tuple(self.tokens), {}).items():
            row[token] = logit
        return row


@pytest.fixture
def noise_of_one(monkeypatch):
    monkeypatch.setattr(text.Noise, "unit", lambda self, tokens, pos, right: Unit(1.0, [1.0] * VOCAB))


def test_a_tie_is_one_up_to_the_limit(noise_of_one):
    for gap, end in (1, "WHOLE"), (text.LIMIT, "WHOLE"), (text.LIMIT + 1, "IMPOSSIBLE"):
        model = Told({(1,): {D: 100000.0 + gap, D + 1: 100000.0}})
        walk = text.walk_along(model, [1], 4, text.Greedy(), Listed([D + 1, D, D, D], [1], VOCAB))
        assert walk.end.name == end and walk.parted == [text.Parted(0, D, D + 1, gap)]


def test_a_step_is_told_as_a_tie_up_to_the_limit(tokenizer):
    for ratio, kind in (text.LIMIT, "a tie that rounding can turn"), (text.LIMIT + 1, "rounding cannot have chosen it"):
        assert text_report.parting(text.Parted(3, D, D + 1, ratio), tokenizer).endswith(f"(limit 32): {kind}")


def test_a_text_is_cut_into_the_tokens_that_keep_the_rest_possible(noise_of_one, tokenizer):
    ab, a, b, c = (tokenizer.tokens[piece] for piece in (b"ab", b"a", b"b", b"c"))
    rows = {(1,): {ab: 200001.0, a: 200000.0}, (1, a): {b: 200000.0}, (1, a, b): {c: 200000.0},
            (1, ab): {D: 300000.0}}
    source = Written("text", b"abc\n", b"", tokenizer)
    walk = text.walk_along(Told(rows), [1], 3, text.Greedy(), source)
    assert walk.tokens == [1, a, b, c] and walk.end is text.End.WHOLE
    assert walk.parted == [text.Parted(0, ab, a, 1.0)]
    rows[1, a, b] = {D: 300000.0}
    walk = text.walk_along(Told(rows), [1], 3, text.Greedy(), source)
    assert walk.end is text.End.IMPOSSIBLE and walk.tokens == [1, a, b]  # the walk that came farthest


def test_the_noise_of_a_walk_is_that_of_a_comparison(run):
    tokens = [1, *told_by(plain, run[0], 9)]
    with llama2.Transformer(run[0]) as model:
        rows = model.forward_chunk(tokens, 0)
        comparison = Comparison(model, tokens, Given(rows, model.config))
        comparison.run()
        noise = text.Noise(model)
        for pos in 9, 2, 2, 5, 8:
            unit = noise.unit(tokens, pos, rows[pos])
            assert 1 / 3 < unit.noise / comparison.steps[pos].noise < 3
        shard, _ = noise.noisy.draws[0]
        assert shard.arithmetic is shard.classifier.arithmetic is shard.layers[1].w2.arithmetic
        assert isinstance(shard.arithmetic, Noisy)
        assert list(model.forward_chunk(tokens, 0)) == list(rows)


def test_each_tie_is_taken_up_once_the_last_one_first():
    def fork(tokens, ratio):
        return SimpleNamespace(tokens=tokens, pos=len(tokens), chosen=SimpleNamespace(
            logits=(), ratio=lambda token, unit: ratio))

    walk = SimpleNamespace(noise=SimpleNamespace(unit=lambda tokens, pos, logits: None), forks=[
        fork([1, 2], 0.0), fork([1, 3, 4], 2 * text.LIMIT), fork([1, 3, 5], text.LIMIT)])
    tried = set()
    assert [text.open_fork(walk, tried) for _ in range(3)] == [[1, 3, 5], [1, 2], None]
    assert tried == {(1, 2), (1, 3, 4), (1, 3, 5)}


def test_a_text_that_no_token_goes_on_with_is_impossible(noise_of_one, tokenizer):
    walk = text.walk_along(Told({}), [1], 3, text.Greedy(), Listed([8], [1], VOCAB))
    lines = list(text_report.report(walk, tokenizer))
    assert walk.verdict is text.Verdict.WRONG and lines[-2].startswith("first: are model, tokenizer (-z) and prompt")


# ----------------------------------------------------------------------------
# Coins on flat distributions

def near_equal(rng, n, spread):
    return array("f", [rng.gauss(0, spread) for _ in range(n)])


def float32_choice(logits, temperature, p, coin):
    """run.c's sampler, with running sums in float32 and the sum of all exponentials left to right."""
    sampler = llama2.Sampler(temperature, p, 1, "xorshift64*", "c")
    sampler.coin = lambda: coin
    return sampler.sample(logits)


def double_choice(logits, temperature, p, coin):
    """A sampler in double precision."""
    exponentials = [math.exp(v / temperature) for v in logits]
    total = math.fsum(exponentials)
    order = range(len(logits))
    if 0 < p < 1:
        order = sorted(order, key=exponentials.__getitem__, reverse=True)
    sums, running = [], 0.0
    for token in order:
        running += exponentials[token] / total
        sums.append(running)
        if 0 < p < 1 and running > p:
            break
    place = coin * (sums[-1] if 0 < p < 1 else 1.0)
    return next((order[i] for i, sum_ in enumerate(sums) if place < sum_), order[len(sums) - 1])


def flat_ratios(seed, n, p, spread, noise=1e-6):
    """The ratios of what float32 and double samplers choose from noisy logits, and of a token that neither does."""
    rng = random.Random(seed)
    logits = near_equal(rng, n, spread)
    sampler = llama2.Sampler(1.0, p, rng.randrange(1, 2**60))
    drawn = Drawn(logits, sampler)
    noisy = array("f", [r(v + rng.gauss(0, noise)) for v in logits])
    chosen = [choose(noisy, 1.0, p, drawn.coin) for choose in (float32_choice, double_choice)]
    unit = Unit(noise, [1.0] * n)
    far = (drawn.ranks[drawn.token] + n // 2) % n
    return [drawn.ratio(token, unit) for token in chosen], drawn.ratio(drawn.order[far], unit)


@pytest.mark.parametrize("p, spread", [
    (1.0, 0.0), *[pytest.param(p, spread, marks=pytest.mark.slow) for p in (0.9, 1.0) for spread in (1e-7, 1e-6, 0.1)]])
def test_samplers_of_32000_nearly_equal_logits_are_possible(p, spread):
    ratios, _ = flat_ratios(int(1e7 * spread), 32000, p, spread)
    assert max(ratios) <= text.LIMIT / 2


@pytest.mark.parametrize("p", [0.9, 1.0])
def test_what_noise_of_the_logits_turns_is_possible(p):
    turned = 0
    for seed in range(100):
        ratios, far = flat_ratios(seed, 50, p, 1.0, noise=1e-2)
        assert max(ratios) <= text.LIMIT / 2
        turned += max(ratios) > 0.01
    assert turned > 0


def test_a_token_behind_those_that_top_p_keeps_is_impossible():
    logits = array("f", map(math.log, [0.5, 0.45, 0.05]))
    sampler = llama2.Sampler(1.0, 0.9, 1)
    sampler.coin = lambda: 1 - 2.0**-24
    drawn = Drawn(logits, sampler)
    unit = Unit(1e-7, [1.0] * 3)
    assert drawn.token == 1 and drawn.ratio(2, unit) > 100 * text.LIMIT
    assert drawn.ratio(1, unit) < 1e-2


def test_the_sum_of_all_exponentials_may_drift():
    logits = array("f", [0.0] + [-3e-4] * 31999)
    drawn = Drawn(logits, llama2.Sampler(1.0, 1.0, 5))
    rounded_sum = C.total([r(math.exp(v)) for v in logits])
    drift = abs(rounded_sum / math.fsum(map(math.exp, logits)) - 1)
    assert drawn.drift_of_all == pytest.approx(drift, rel=0.1) and drift > 1e-5
    assert drawn._error(32000, 0.0, 1.0) >= drift + drawn.drifts[32000]


@pytest.mark.parametrize("times, places", [(0.8, (1, 1)), (1, (0, 1)), (2, (0, 2))])
def test_tokens_change_places_if_both_logits_err_towards_each_other(times, places):
    """0.06, the noise of a logit, turns 0.1 and not 0.15."""
    drawn = Drawn(array("f", [0.0, -0.1, -0.25]), llama2.Sampler(1.0, 0.9, 1))
    assert drawn._before(1, 0.06, times) == places


def test_a_token_far_from_the_coin_is_impossible_on_a_distribution_that_is_not_flat():
    for p in 0.9, 1.0:
        ratios, far = flat_ratios(3, 500, p, 2.0)
        assert max(ratios) <= text.LIMIT / 2 and far > text.LIMIT


def test_where_all_tokens_tie_it_cannot_be_told(files, tmp_path, capfdbinary):
    path = make_checkpoint(tmp_path / "m.bin", scale=1e-30)
    tokens = listed(random.Random(1).sample(range(3, 280), 10))
    code, out, _ = command(capfdbinary, path, "-z", files["tokenizer"], "-s", "3", "--compare-tokens", tokens)
    assert code == 0 and out.startswith(b"it cannot be told: of 10 choices ")


def test_the_likeliest_tokens_gap_is_measured_in_the_noise_of_both():
    chosen = Likeliest(array("f", [3.0, 1.0, 2.0]))
    assert chosen.token == 0 and chosen.second() == 2 and chosen.gap(1) == 2.0 and not chosen.is_near(2)
    assert chosen.ratio(1, Unit(0.5, [1.0, 1.0, 1.0])) == pytest.approx(4.0)
    assert chosen.ratio(1, Unit(0.5, [1.0, 2.0, 1.0])) == pytest.approx(2.0 / math.hypot(0.5, 1.0) * math.sqrt(2))


# ----------------------------------------------------------------------------
# A port in C

@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    """The port in C, as several compilers' options build it."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    folder = tmp_path_factory.mktemp("builds")
    paths = []
    for i, options in enumerate((["-O0"], ["-O3"], ["-Ofast", "-march=native"])):
        paths.append(folder / str(i))
        subprocess.run(["gcc", *options, os.path.join(HERE, "tests", "port.c"), "-o", paths[-1], "-lm"], check=True)
    return paths


def told_in_c(build, mistake, options, tokens="1"):
    done = subprocess.run([build, MODEL, TOKENIZER, mistake, *options, *tokens.split(",")], capture_output=True,
                          check=True)
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("seed", [None, 1, 2, 3, 4])
@pytest.mark.parametrize("tokens", ["1", "1,424,260", "1,385,281"])
def test_texts_of_correct_builds_are_consistent(builds, tmp_path, capfdbinary, seed, tokens):
    chosen = ["0", "0.9", "1"] if seed is None else ["1", "0.9" if seed % 2 else "1", str(seed)]
    for build in builds:
        (tmp_path / "text").write_bytes(told_in_c(build, "right", ["120", *chosen], tokens))
        options = ["-t", chosen[0], "-p", chosen[1], "-s", chosen[2], "-n", "120", "--tokens", tokens]
        code, out, _ = command(capfdbinary, *options, "--compare-text", tmp_path / "text")
        assert code == 0 and out.decode().startswith(CONSISTENT)


@pytest.mark.slow
@pytest.mark.parametrize("mistake, most", [("halves", 12), ("gelu", 20), ("noscale", 12), ("theta100000", 35),
                                           ("epsilon", None), ("cache16", None)])
def test_how_soon_a_text_shows_a_mistake(builds, tmp_path, capfdbinary, mistake, most):
    (tmp_path / "text").write_bytes(told_in_c(builds[1], mistake, ["200", "0", "0.9", "1"]))
    code, out, _ = command(capfdbinary, "-t", "0", "--compare-text", tmp_path / "text")
    assert code == (0 if most is None else 1)
    if most is not None:
        step = int(out.split(b"step ")[1].split()[0])
        assert out.startswith(b"a mistake, not rounding: step ") and step <= most
