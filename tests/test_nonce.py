"""Tests of the nonce: a seed that nobody chose, and the commitment that comes before it."""
import hashlib
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama2_py import trace_command
from llama2_py.console import VerificationError
from llama2_py.log import events, formats
from tests.helpers import command, edit, failure, forge, noticed, read_bytes, read_lines
from tests.test_events import HEADER

NONCE = "0123456789abcdef" * 2
OPTIONS = ["-n", "8", "-i", "ab a"]


def seed_by_definition(header, nonce):
    """The first 8 bytes of the SHA-256 of the header's line, written by hand."""
    text = json.dumps(header, separators=(",", ":"))
    before, after = text.split(f'"seed":{header["seed"]},')
    line = f'{before}"seed":0,"nonce":"{nonce}",{after}'
    (seed,) = struct.unpack("<Q", hashlib.sha256(line.encode()).digest()[:8])
    return seed or 1


def with_nonce(header, nonce, seed=None):
    """A header's line with a nonce, and the seed that follows or another."""
    fields = {}
    for name, value in header.items():
        fields[name] = value
        if name == "seed":
            fields["nonce"] = nonce
    fields["seed"] = seed_by_definition(header, nonce) if seed is None else seed
    return events.encode(fields)


@given(st.binary(min_size=16, max_size=64), st.integers(1, 2**64 - 1))
def test_the_seed_of_a_header_with_a_nonce_follows_from_it(nonce, seed):
    header = events.read_header("line 1", with_nonce(HEADER, nonce.hex()))
    assert header["nonce"] == nonce.hex()
    if seed != header["seed"]:
        with pytest.raises(VerificationError) as caught:
            events.read_header("line 1", with_nonce(HEADER, nonce.hex(), seed))
        assert (caught.value.field, caught.value.expected, caught.value.got) == ("seed", header["seed"], seed)


@pytest.mark.parametrize("nonce", ["", "ab" * 15, "ab" * 65, "a" * 33, "AB" * 16, "xy" * 16, None, 5])
def test_what_is_no_nonce_is_refused(nonce):
    with pytest.raises(ValueError, match="nonce cannot be"):
        events.read_header("line 1", with_nonce(HEADER, nonce, 7))


@pytest.mark.parametrize("place", ["model", "steps"])
def test_a_nonce_stands_after_the_seed_and_nowhere_else(place):
    header = json.loads(with_nonce(HEADER, NONCE))
    nonce = header.pop("nonce")
    fields = {}
    for name, value in header.items():
        fields[name] = value
        if name == place:
            fields["nonce"] = nonce
    with pytest.raises(ValueError, match="not an event"):
        events.read_header("line 1", events.encode(fields))


def tell(capfdbinary, model, path, *options):
    code, out, err = command(capfdbinary, *model, *OPTIONS, "--trace", path, *options)
    assert code == 0, err
    return out, err


@pytest.fixture
def run(capfdbinary, model, tmp_path):
    """A commitment, and the log of the run that it was given for."""
    code, out, err = command(capfdbinary, *model, *OPTIONS, "--commit")
    assert (code, err) == (0, "")
    tell(capfdbinary, model, tmp_path / "log", "--nonce", NONCE.upper())
    return out.decode().strip(), tmp_path / "log"


def test_a_run_with_a_nonce_has_the_seed_that_follows(capfdbinary, model, tmp_path, run):
    header = json.loads(read_lines(run[1])[0])
    plain = {name: value for name, value in header.items() if name != "nonce"}
    assert header["nonce"] == NONCE and header["seed"] == seed_by_definition(plain, NONCE)
    tell(capfdbinary, model, tmp_path / "same", "-s", header["seed"])
    assert read_lines(tmp_path / "same")[1:-1] == read_lines(run[1])[1:-1]  # the same coins
    tell(capfdbinary, model, tmp_path / "again", "--nonce", NONCE)
    assert read_bytes(tmp_path / "again") == read_bytes(run[1])


def test_a_commitment_is_the_hash_of_the_header_without_nonce_and_seed(capfdbinary, model, run):
    header = json.loads(read_lines(run[1])[0])
    del header["nonce"]
    header["seed"] = 0
    assert run[0] == hashlib.sha256(json.dumps(header, separators=(",", ":")).encode()).hexdigest()
    for more in ["-t", "0.5"], ["-p", "0.5"], ["-i", "b"], ["-n", "7"], ["--trace-level", "op"]:
        code, out, _ = command(capfdbinary, *model, *OPTIONS, *more, "--commit")
        assert code == 0 and out.decode().strip() != run[0]


def test_verification_takes_both_as_claims(capfdbinary, model, run):
    commitment, log = run
    code, out, err = command(capfdbinary, *model, "--verify", log, "--nonce", NONCE, "--commitment", commitment)
    assert code == 0, err
    claimed, chosen = out.decode().split("these options were chosen by the log's author:")
    assert f"nonce: {NONCE}" in claimed and "seed: " in claimed and "seed: " not in chosen
    assert f"commitment: {commitment}, as the caller has it" in chosen
    code, out, _ = command(capfdbinary, *model, "--verify", log)
    assert code == 0 and f"  nonce: {NONCE}" in out.decode().split("chosen by the log's author:")[1]


@pytest.mark.parametrize("claim, field", [
    (["--nonce", "ab" * 16], "nonce"), (["--nonce", NONCE, "--commitment", "ab" * 32], "commitment"),
    (["-t", "0.5"], "temperature"), (["-i", "b"], "prompt"), (["-s", "5"], "seed")])
def test_a_claim_that_is_wrong_is_noticed_by_its_name(capfdbinary, model, run, claim, field):
    assert f": {field}: expected" in noticed(capfdbinary, model, run[1], *claim)


def test_a_run_without_the_nonce_that_was_given_is_noticed(capfdbinary, model, traces):
    error = noticed(capfdbinary, model, traces["step"], "--nonce", NONCE)
    assert f"line 1: nonce: expected {NONCE}, got null" in error
    assert ": nonce: expected" in noticed(capfdbinary, model, traces["rust"], "--like", "llama2-rs", "--nonce", NONCE)


def test_a_chosen_seed_is_refused_by_every_reader(capfdbinary, model, run, tmp_path):
    log = run[1]
    root = formats.read(str(log)).head()
    command(capfdbinary, "prove", log, 3, program=trace_command)
    lines = read_lines(log)[:-1]
    forged = forge(tmp_path / "forged", [edit(lines[0], seed=7), *lines[1:]])
    for reader in ["show"], ["root"], ["text"], ["prove", "3"], ["page"]:
        name, *more = reader
        message = failure(capfdbinary, name, forged, *more, program=trace_command, code=1)
        assert "line 1: seed: expected" in message and message.endswith("got 7")
    for reader in ["diff", forged, log], ["ask", log, forged]:
        assert "seed: expected" in failure(capfdbinary, *reader, program=trace_command, code=1)
    assert ": seed: expected" in noticed(capfdbinary, model, forged)
    code, proof, _ = command(capfdbinary, "prove", log, 3, program=trace_command)
    (tmp_path / "proof").write_bytes(proof)
    code, out, _ = command(capfdbinary, "check", tmp_path / "proof", "--root", root, program=trace_command)
    assert code == 0 and f"  nonce: {NONCE}" in out.decode()


def test_a_proof_of_a_header_computes_the_seed_again(capfdbinary, run, tmp_path, monkeypatch):
    lines = read_lines(run[1])[:-1]
    header = edit(lines[0], seed=7)
    with monkeypatch.context() as patch:  # an author who has a program of his own
        patch.setattr(events, "seed_of", lambda header: 7)
        forged = forge(tmp_path / "forged", [header, *lines[1:]])
        code, proof, _ = command(capfdbinary, "prove", forged, 3, program=trace_command)
        root = formats.read(forged).head()
    assert code == 0
    (tmp_path / "proof").write_bytes(proof)
    message = failure(capfdbinary, "check", tmp_path / "proof", "--root", root, program=trace_command, code=1)
    assert "event 0: seed: expected" in message


@pytest.mark.parametrize("options, message", [
    (["--nonce", "ab"], "not 16 to 64 bytes"), (["--nonce", NONCE, "-s", "4"], "--seed and --nonce: one at a time"),
    (["--nonce", NONCE, "--like", "llama2.c"], "takes no seed that follows"), (["--commitment", "ab" * 32], "needs"),
    (["--commit", "--like", "llama2-rs"], "takes no seed that follows"), (["--commit", "-s", "1"], "one at a time"),
    (["--commit", "--nonce", NONCE], "one at a time"), (["--nonce", NONCE, "-m", "chat"], "belongs to mode generate"),
    (["--commit", "-m", "chat"], "belongs to mode generate"), (["--commit", "--trace", "x"], "one at a time"),
    (["--verify", "x", "--commitment", "ab"], "not 64 hexadecimal digits"),
    (["--verify", "x", "--commitment", "ab" * 32], "--commitment needs --nonce")])
def test_options_that_do_not_go_together_are_refused(capfdbinary, model, options, message):
    assert message in failure(capfdbinary, *model, *options)


def test_an_audit_takes_both_as_claims(capfdbinary, model, tmp_path):
    code, out, _ = command(capfdbinary, *model, *OPTIONS, "--trace-level", "op", "--commit")
    commitment = out.decode().strip()
    more = ["--trace-level", "op", "--dump", tmp_path / "dump"]
    tell(capfdbinary, model, tmp_path / "log", "--nonce", NONCE, *more)
    code, secret, _ = command(capfdbinary, "secret", model[0], program=trace_command)
    (tmp_path / "secret").write_bytes(secret)
    audit = ["audit", tmp_path / "log", tmp_path / "dump", tmp_path / "secret"]
    claims = ["--nonce", NONCE, "--commitment", commitment]
    code, out, err = command(capfdbinary, *audit, *claims, program=trace_command)
    assert code == 0 and f"  nonce: {NONCE}" in out.decode(), err
    claimed, follows = out.decode().split("this option follows from the nonce and all others:\n")
    assert claimed.endswith(f"these options were claimed by the caller:\n  nonce: {NONCE}\n")
    assert follows.startswith("  seed: ") and f"commitment: {commitment}, as the caller has it" in follows
    assert b"the author may have chosen the other options when he knew the nonce" in command(
        capfdbinary, *audit, "--nonce", NONCE, program=trace_command)[1]
    for wrong in ["--nonce", "ab" * 16], ["--nonce", NONCE, "--commitment", "ab" * 32]:
        message = failure(capfdbinary, *audit, *wrong, program=trace_command, code=1)
        assert f"line 1: {wrong[-2][2:]}: expected {wrong[-1]}" in message
    assert failure(capfdbinary, *audit, "--commitment", commitment, program=trace_command) == (
        "--commitment needs --nonce")
