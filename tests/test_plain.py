"""Tests of plain.py: the judge of the others is judged by what other programs and the mathematics say."""
import hashlib
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import plain
from llama2_py import command as command_line
from tests.helpers import (COINS, HERE, MODEL, STORY, STORY_LOGITS, TOKENIZER, any_float, bits, examples, interruptible,
                           make_checkpoint, process, read_bytes)

# exp, sin and cos of a float32 to twelve digits, and powers of 10,000: from tables
VALUES = [
    (plain.exp, [1.0], 2.718281828459), (plain.exp, [-1.0], 0.367879441171), (plain.exp, [88.0], 1.65163625499e38),
    (plain.exp, [-100.0], 3.72007597602e-44), (plain.exp, [89.0], math.inf), (plain.exp, [-104.0], 0.0),
    (plain.exp, [-1e30], 0.0), (plain.cos, [0.0], 1.0), (plain.sin, [0.0], 0.0), (plain.cos, [1.0], 0.540302305868),
    (plain.sin, [1.0], 0.841470984808), (plain.cos, [355.0], -0.999999999546),
    (plain.sin, [355.0], -0.0000301443533595), (plain.cos, [-2.0], -0.416146836547),
    (plain.sin, [-2.0], -0.909297426826), (plain.power, [10000.0, 0.0], 1.0), (plain.power, [10000.0, 0.25], 10.0),
    (plain.power, [10000.0, 0.5], 100.0), (plain.power, [10000.0, 0.875], 3162.27766017),
]


def test_functions_have_the_values_of_tables():
    for function, arguments, value in VALUES:
        got = function(*arguments)
        assert got == plain.r(value), (function.__name__, arguments, got, value)


@given(st.fractions(-(2**30), 2**30))
@example(1 + Fraction(1, 2**24) + Fraction(1, 2**60))  # beside a midpoint, where rounding twice errs
@example(1 + Fraction(3, 2**24) - Fraction(1, 2**60))
@examples(300)
def test_nearest_has_no_nearer_neighbour(number):
    with localcontext() as context:
        context.prec = 60
        decimal = Decimal(number.numerator) / number.denominator
    got = plain.nearest(decimal)
    (i,) = struct.unpack("i", struct.pack("f", got))
    for j in i - 1, i + 1:
        if j & 0x7FFFFFFF < 0x7F800000:
            (neighbour,) = struct.unpack("f", struct.pack("i", j))
            assert abs(Decimal(got) - decimal) <= abs(Decimal(neighbour) - decimal)


@given(st.lists(st.tuples(any_float, any_float), min_size=1, max_size=8))
def test_a_dot_product_is_the_exact_sum_rounded_once_to_53_bits_and_once_to_24(pairs):
    exact = sum(Fraction(a) * Fraction(b) for a, b in pairs)
    assert plain.dot(*zip(*pairs, strict=True)) == plain.r(exact.numerator / exact.denominator)
    assert plain.total([a for a, _ in pairs]) == plain.r(float(sum(Fraction(a) for a, _ in pairs)))


def test_the_first_coins():
    for seed, coins in COINS["xorshift64*"].items():
        state = seed
        for expected in coins:
            coin, state = plain.random(state)
            assert coin * 2**24 == expected


def test_the_golden_logits():
    model, tokens = plain.Model(MODEL), plain.Tokenizer(TOKENIZER, 512).encode("Once upon a time")
    assert tokens == [1, 406, 407, 260, 371]
    for pos, token in enumerate(tokens):
        logits = plain.forward(model, token, pos)
        assert hashlib.sha256(bits(logits)).hexdigest().startswith(STORY_LOGITS[pos])


def head_3_of_layer_0(text):
    """What that head computes at the text's last position: its weights' steps, and its values' first number."""
    model, q = plain.Model(MODEL), []

    def see(layer, op, values):
        if (layer, op) == (0, "q"):
            q[:] = values[3 * model.hs:4 * model.hs]
        return values

    for pos, token in enumerate(plain.Tokenizer(TOKENIZER, 512).encode(text)):
        plain.forward(model, token, pos, see)
    shared = slice(model.hs, 2 * model.hs)  # heads 2 and 3 share keys and values 1
    products = [plain.dot(q, key[shared]) for key in model.keys[0]]
    scores = [product / math.sqrt(8) for product in products]
    exps = [math.exp(score - max(scores)) for score in scores]
    weights = [e / sum(exps) for e in exps]
    values = [value[shared][0] for value in model.values[0]]
    weighted = [weight * value for weight, value in zip(weights, values, strict=True)]
    return [products, scores, [*exps, sum(exps)], [*weights, 1], values, [*weighted, sum(weighted)]]


def test_the_attention_worked_out_in_numbers_is_the_models():
    table = plain.attend.__doc__.split("In numbers")[1].splitlines()[2:8]
    told = [[float(number) for number in re.findall(r"-?\d\.\d\d", line)] for line in table]
    assert told == [pytest.approx(row, abs=0.0051) for row in head_3_of_layer_0("Once upon")]


@pytest.mark.slow
def test_it_tells_what_llama2_py_tells(capfdbinary):
    plain.main("42", "Once upon a time", steps=24)
    assert capfdbinary.readouterr().out.decode() == STORY[:62].rstrip() + "\n"
    for temperature, p in (0.0, 0.9), (0.7, 1.0):
        plain.main("7", "A dog", steps=10, temperature=temperature, p=p)
        mine = capfdbinary.readouterr().out
        command_line.main(["-s", "7", "-i", "A dog", "-n", "10", "-t", str(temperature), "-p", str(p)])
        assert capfdbinary.readouterr().out == mine


def test_it_stands_alone():
    source = read_bytes(plain.__file__).decode()
    imports = {line.split()[1] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert imports == {"math", "os", "struct", "sys", "decimal", "pathlib"}


# ----------------------------------------------------------------------------
# Its command line


@pytest.mark.parametrize("args, message", [
    (["x"], "a seed from 1 to 2**64 - 1 and a beginning are wanted, not 'x'"),
    (["0"], "a seed from 1 to 2**64 - 1 and a beginning are wanted, not '0'"),
    ([str(2**64)], f"a seed from 1 to 2**64 - 1 and a beginning are wanted, not '{2**64}'"),
    (["1", "Once", "upon"], "a seed from 1 to 2**64 - 1 and a beginning are wanted, not '1 Once upon'")])
def test_what_it_cannot_do_is_said_in_one_line(args, message):
    done = process(*args, program="plain.py")
    assert (done.returncode, done.stdout, done.stderr.decode()) == (2, b"", f"plain.py: error: {message}\n")


def test_a_model_that_overflows_is_said_in_one_line(tmp_path):
    stories = tmp_path / "llama2_py" / "stories"
    stories.mkdir(parents=True)
    shutil.copy(os.path.join(HERE, "plain.py"), tmp_path)
    shutil.copy(TOKENIZER, stories)
    make_checkpoint(stories / "model.bin", vocab_size=512, scale=1e18)
    done = subprocess.run([sys.executable, tmp_path / "plain.py"], capture_output=True)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1) and done.stderr.startswith(b"plain.py: error: ")


def test_ctrl_c_and_a_closed_pipe_end_it_quietly():
    command = [sys.executable, os.path.join(HERE, "plain.py")]
    for send, code in (lambda process: process.send_signal(signal.SIGINT), 130), (
            lambda process: process.stdout.close(), 141):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              preexec_fn=interruptible) as process:
            assert process.stdout.read(4) == b"Once"
            send(process)
            assert process.stderr.read() == b"" and process.wait() == code
