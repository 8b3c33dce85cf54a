"""The audit: every operation of a run, without the model, by somebody who saw it once.

    python3 llama2.py -s 1 -n 20 --trace tale.trace --trace-level op --dump tale.dump    # the author
    python3 trace.py secret llama2_py/stories/model.bin > S    # the auditor, who keeps S to himself
    python3 trace.py audit tale.trace tale.dump S

The log commits to every number of the dump. In exact arithmetic each operation without weights has one right result,
which is computed again and compared to the bit: norms (whose rows S has), RoPE's angles, the softmax, the mix of
values, SwiGLU, residuals, the sampled token. A product y = W x is tested by a vector s that the author does not know:
s y must be (s W) x, but for the rounding of y. For q and k, which RoPE has turned, the turn is undone first.

What it does not show: a product changed by less than the rounding of a vector of its length. Whoever knows S can cheat;
and the part of a limit that a product used tells of S, so it is not printed.

The audit goes layer by layer, and through a layer position by position, so that it holds one operation's numbers and
one layer's keys and values. Of an executor each job has some positions, and reads the keys and values before them.
"""
import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import llama2
from llama2_py.console import VerificationError
from llama2_py.engine.arithmetic import Arithmetic, Exact, from_bytes, to_bytes
from llama2_py.engine.checkpoint import Config
from llama2_py.engine.graph import NORMS, OPERATIONS, PRODUCTS, ROTATED, inputs, place
from llama2_py.engine.rows import split
from llama2_py.log import formats
from llama2_py.log.events import Layout
from llama2_py.log.reading import Trace
from llama2_py.log.show import text_of
from llama2_py.referee.dispute import compute
from llama2_py.referee.dump import Dump
from llama2_py.referee.freivalds import ROUNDINGS, ROUNDINGS_ROTATED, Probe, part_of_limit, turned_back
from llama2_py.referee.judge import BAD_NUMBERS, need_number
from llama2_py.referee.secret import Secret
from llama2_py.referee.tally import Tally

POSITIONS = 64  # of a job
LIMITS = "difference of the product, in limits"

# ----------------------------------------------------------------------------
# The audit of some positions


class Past:
    """The keys and values of a layer so far, by heads of queries. None in place of one makes all later ones unknown."""

    def __init__(self, A: Arithmetic, config: Config, keys: list, values: list):
        """keys, values: of the positions from 0 on, each (kv_dim)."""
        self.hs = config.head_size
        group = config.n_heads // config.n_kv_heads
        self.keys_known, self.values_known = None not in keys, None not in values
        heads = [slice(h * self.hs, (h + 1) * self.hs) for h in range(config.n_kv_heads)]
        known_keys = keys if self.keys_known else []
        known_values = values if self.values_known else []
        self.kv_keys = [A.Matrix([k[head] for k in known_keys]) for head in heads]
        self.kv_values = [A.Matrix(zip(*[v[head] for v in known_values], strict=True)) for head in heads]
        self.keys = [matrix for matrix in self.kv_keys for _ in range(group)]
        self.values = [matrix for matrix in self.kv_values for _ in range(group)]

    def append(self, k: Sequence[float] | None, v: Sequence[float] | None) -> None:
        """k, v (kv_dim): those of the next position."""
        self.keys_known = self.keys_known and k is not None
        self.values_known = self.values_known and v is not None
        if self.keys_known and k is not None:
            for matrix, key in zip(self.kv_keys, split(k, self.hs), strict=True):
                matrix.add_row(key)
        if self.values_known and v is not None:
            for matrix, value in zip(self.kv_values, split(v, self.hs), strict=True):
                matrix.add_column(value)


class Auditor:
    """Audits positions of a run."""

    def __init__(self, log: Trace, dump: Dump, secret: Secret, tokenizer: Any = None):
        """tokenizer: llama2.load_tokenizer's, or None."""
        self.log, self.dump, self.secret, self.tokenizer = log, dump, secret, tokenizer
        self.header = log.header
        self.layout = Layout(log.header)
        self.config = secret.config
        self.arithmetic: Arithmetic = Exact  # type: ignore[assignment]  # a class of static methods
        self.tally = Tally()
        self.angles: dict[int, tuple[list[float], list[float]]] = {}  # position -> cosines, sines
        self.past = Past(self.arithmetic, self.config, [], [])        # of the current layer
        self.known: dict[tuple, Sequence[float] | None] = {}          # (op, layer) -> numbers at the current position

    def audit(self, positions: range) -> Tally:
        """Audit some positions, all operations of each."""
        for l in range(self.config.n_layers):
            self._layer(l, positions)
        self._outside(positions)
        return self.tally

    def _layer(self, l: int, positions: range) -> None:
        probes = {op: self.secret.probes(matrix, l) for op, (matrix, _) in PRODUCTS.items() if op in OPERATIONS}
        norms = {op: self.secret.norm(name, l) for op, name in NORMS.items() if op in OPERATIONS}
        before = range(positions.start)
        keys = [self._numbers(pos, "k", l) for pos in before]
        values = [self._numbers(pos, "v", l) for pos in before]
        self.past = Past(self.arithmetic, self.config, keys, values)
        (x,) = [found[:2] for found in inputs("attention_norm", l, 0, self.config.n_layers)]
        for pos in positions:
            self.known = {x: self._numbers(pos, *x)}
            for op in OPERATIONS:
                self._operation(op, l, pos, probes.get(op, []), norms.get(op))
                if op == "v":
                    self.past.append(self.known["k", l], self.known["v", l])

    def _outside(self, positions: range) -> None:
        probes = self.secret.probes("classifier")
        norm = self.secret.norm("rms_final")
        h = self.header
        sampler = llama2.Sampler(h["temperature"], h["p_value"], h["seed"], h["rng"], h["arithmetic"])
        for pos in range(positions.start):
            self._pass_coin(sampler, pos)
        (x,) = [found[:2] for found in inputs("final_norm", None, 0, self.config.n_layers)]
        for pos in positions:
            self.known = {x: self._numbers(pos, *x)}
            self._operation("embedding", None, pos, [], None)
            self._operation("final_norm", None, pos, [], norm)
            self._operation("logits", None, pos, probes, None)
            self._step(pos, sampler)

    # -- numbers

    def _committed(self, event: int) -> str:
        """The hash that the log has for an event."""
        line = self.log.event(event)
        return line.get("sha256") or line["logits"]

    def _numbers(self, pos: int, op: str, layer: int | None) -> Sequence[float] | None:
        """The numbers of an event, if the dump has those that the log commits to."""
        event = self.layout.operation(pos, op, layer)
        data = self.dump.read(event)
        if data is None or hashlib.sha256(data).hexdigest() != self._committed(event):
            return None
        return tuple(from_bytes(data))

    def _vectors(self, op: str, layer: int | None, pos: int) -> list[Sequence[float]] | None:
        """The inputs of an operation at its own position; None if one is not known."""
        if op == "weights" and not self.past.keys_known or op == "attention" and not self.past.values_known:
            return None
        found = []
        for name, l, positions in inputs(op, layer, pos, self.config.n_layers):
            if isinstance(positions, range):
                continue  # keys or values, which stand in the past
            vector = self.known[name, l]
            if vector is None:
                return None
            found.append(vector)
        return found

    # -- operations

    def _operation(self, op: str, layer: int | None, pos: int, probes: list[Probe], norm: Sequence[float] | None
                   ) -> None:
        """Audit an operation, and keep its numbers for those that follow."""
        event = self.layout.operation(pos, op, layer)
        committed = self._committed(event)
        data = self.dump.read(event)
        self.known[op, layer] = None
        if data is not None and hashlib.sha256(data).hexdigest() != committed:
            got = hashlib.sha256(data).hexdigest()
            self.tally.fault(event, f"{self.dump.path}: {place(op, layer, pos)}", "sha256", committed, got)
            return
        if op == "embedding":
            self._row(event, committed)
        elif op in PRODUCTS:
            self._product(event, op, layer, pos, probes, data)
        else:
            data = self._defined(event, op, layer, pos, norm, data)
        self.known[op, layer] = None if data is None else tuple(from_bytes(data))

    def _where(self, event: int) -> str:
        """The place of an event, for messages."""
        where = self.layout.place(event)
        return f"{self.log.where(event)} ({place(where.get('op', 'logits'), where.get('layer'), where['pos'])})"

    def _row(self, event: int, committed: str) -> None:
        """The embedding: the row that the token names."""
        step = self.log.event(self.layout.step((event - 1) // self.layout.lines))
        own = self.secret.row_hash(step["token"])
        if own == committed:
            self.tally.exact += 1
        else:
            self.tally.fault(event, self._where(event), "sha256", own, committed)

    def _product(self, event: int, op: str, layer: int | None, pos: int, probes: list[Probe], data: bytes | None
                 ) -> None:
        """A product with a matrix: to within rounding."""
        vectors = self._vectors(op, layer, pos)
        if data is None or vectors is None:
            self.tally.lack(event, op)
            return
        y: Sequence[float] = from_bytes(data)
        roundings = ROUNDINGS
        if op in ROTATED:
            y = turned_back(y, *self._angles(pos))
            roundings = ROUNDINGS_ROTATED
        part = max(part_of_limit(probe, vectors[0], y, roundings) for probe in probes)
        if part > 1:  # no more digits: each would tell the author something of s
            self.tally.fault(event, self._where(event), LIMITS, "at most 1", f"{part:.0e}")
            return
        self.tally.products += 1
        self.tally.used(part, place(op, layer, pos))

    def _angles(self, pos: int) -> tuple[list[float], list[float]]:
        """The cosines and sines of a position."""
        if pos not in self.angles:
            self.angles[pos] = llama2.rope_angles(self.arithmetic, pos, self.config)
        return self.angles[pos]

    def _defined(self, event: int, op: str, layer: int | None, pos: int, norm: Sequence[float] | None,
                 data: bytes | None) -> bytes | None:
        """Any other operation: to the bit -> its numbers, the dump's or, if it lacks them, those that have the hash of
        the log."""
        vectors = self._vectors(op, layer, pos)
        if vectors is None:
            self.tally.lack(event, op)
            return data
        try:
            numbers = self._computed(op, pos, vectors, norm)
            need_number(sum(map(abs, numbers)))
            own = to_bytes(numbers)
        except BAD_NUMBERS as error:
            self.tally.fault(event, self._where(event), "inputs", "numbers that a run can have", str(error))
            return data
        if own == data:
            self.tally.exact += 1
            return data
        digest, committed = hashlib.sha256(own).hexdigest(), self._committed(event)
        if digest != committed:
            self.tally.fault(event, self._where(event), "sha256", digest, committed)
            return data
        self.tally.exact += 1
        return own

    def _computed(self, op: str, pos: int, vectors: list[Sequence[float]], norm: Sequence[float] | None
                  ) -> Sequence[float]:
        """An operation without a matrix, by definition."""
        if op == "weights":
            return llama2.attention_weights(self.arithmetic, vectors[0], self.past.keys)
        if op == "attention":
            return llama2.attention(self.arithmetic, vectors[0], self.past.values)
        return compute(self.arithmetic, self.config, op, pos, vectors, [] if norm is None else [norm])

    # -- the line of a step

    def _pass_coin(self, sampler: llama2.Sampler, pos: int) -> None:
        """The coin of a position that is not audited here, if it had one."""
        if pos + 1 >= len(self.header["tokens"]) and sampler.temperature:
            sampler.coin()

    def _step(self, pos: int, sampler: llama2.Sampler) -> None:
        """The token that follows, and its text. (A token of the prompt is the header's: the log's reader saw to it.)"""
        event = self.layout.step(pos)
        line = self.log.event(event)
        logits = self.known["logits", None]
        if pos + 1 < len(self.header["tokens"]):
            self.tally.tokens += 1
        elif logits is None:
            self._pass_coin(sampler, pos)
            self.tally.lack(event, "next")
        else:
            self._sampled(event, line["next"], sampler, logits)
        if self.tokenizer is not None:
            self._text(event, line)

    def _sampled(self, event: int, following: int, sampler: llama2.Sampler, logits: Sequence[float]) -> None:
        try:
            own = sampler.sample(logits)
        except BAD_NUMBERS as error:
            self.tally.fault(event, self._where(event), "logits", "numbers that a run can have", str(error))
            return
        if own != following:
            self.tally.fault(event, self._where(event), "next", own, following)
            return
        self.tally.tokens += 1

    def _text(self, event: int, line: dict) -> None:
        try:
            own = self.tokenizer.decode(line["token"], line["next"]).decode("utf-8", "backslashreplace")
        except ValueError as error:
            self.tally.fault(event, self._where(event), "next", "a token of the tokenizer", str(error))
            return
        if own != line["text"]:
            self.tally.fault(event, self._where(event), "text", own, line["text"])
            return
        self.tally.texts += 1


# ----------------------------------------------------------------------------
# The audit of a run


@dataclass
class Audit:
    """What an audit found to be so."""
    path: str
    steps: int
    whole: bool      # was everything audited, of a run that ended?
    head: str        # SIZE:ROOT
    published: bool  # was this head given by the caller? if not, it was computed from the file alone
    text: str        # what the log says that the run told
    header: dict     # what the log says of the run, which its author chose
    ended: bool      # has the log its last line? if not, its run may have been cut short
    tally: Tally
    secrets: int = 1         # vectors by which each product was tested
    first_missing_at: str = ""      # the place of the first operation that was not audited
    nonce: str | None = None        # the one that the caller gave, which is the header's
    commitment: str | None = None   # the same


def open_log(source: Any, root: str | None, secret: Secret, nonce: str | None = None, commitment: str | None = None
             ) -> Trace:
    """A log that can be audited by a secret. Raises ValueError if it cannot, VerificationError if its head is not the
    published one, or a claim is not the header's."""
    log = formats.read(source)
    if root is not None:
        log.check_head(root)
    log.check_claims(nonce, commitment)
    if not log.provable or log.header["level"] != "op" or log.header["arithmetic"] != Exact.name:
        has = f"level {log.header['level']}, arithmetic {log.header['arithmetic']}" if log.provable else log.kind
        raise ValueError(f"{log.path}: an audit needs a log of level op in arithmetic exact; this one has {has}")
    if log.header["weights"] != secret.weights:
        raise ValueError(f"{log.path}: weights are {log.header['weights']}, but {secret.path} was made from a model "
                         f"with {secret.weights}")
    if log.header["config"] != secret.header["config"]:  # to which weights commits, too
        raise VerificationError(log.where(0), "config", secret.header["config"], log.header["config"])
    if not log.steps:
        raise ValueError(f"{log.path}: has no step to audit")
    return log


def open_tokenizer(path: str, log: Trace) -> Any:
    """The tokenizer of a log. Raises VerificationError if the file, or the prompt's tokens, are not the header's."""
    header = log.header
    tokenizer = llama2.load_tokenizer(path, header["config"]["vocab_size"])
    if tokenizer.sha256 != header["tokenizer"]:
        raise VerificationError(log.where(0), "tokenizer", tokenizer.sha256, header["tokenizer"])
    prompt, tokens = header["prompt"], header["tokens"]
    if len(prompt) > header["config"]["seq_len"] * max(map(len, tokenizer.vocab)):  # before much time goes into it
        raise VerificationError(log.where(0), "prompt", "one that the context holds", f"{len(prompt)} characters")
    if prompt:  # otherwise the tokens may have been given by themselves
        own = tokenizer.encode(prompt)
        if own != tokens:
            raise VerificationError(log.where(0), "tokens", own, tokens)
    return tokenizer


def audit_range(log: Trace, dump: str, secret: Secret, tokenizer: Any, positions: range) -> Tally:
    """Audit positions of a run, whose files but for the dump are open."""
    with contextlib.closing(Dump(dump, Layout(log.header), secret.config, len(log.steps))) as numbers:
        return Auditor(log, numbers, secret, tokenizer).audit(positions)


def audit_job(log: Any, dump: str, secret: Any, head: str, tokenizer: str | None, positions: range) -> Tally:
    """Audit positions of a run in any process."""
    kept = Secret(secret)
    trace = open_log(log, head, kept)
    words = None if tokenizer is None else open_tokenizer(tokenizer, trace)
    return audit_range(trace, dump, kept, words, positions)


def audit(log: str | os.PathLike | bytes, dump: str, secret: str | os.PathLike | bytes, root: str | None = None,
          executor: Any = None, tokenizer: str | None = None, nonce: str | None = None, commitment: str | None = None
          ) -> Audit:
    """Audit a run, by its log, its numbers and a secret of its model -> what was found to be so.

    root is the head that was published, [SIZE:]HEX; tokenizer the tokenizer's file, if the texts are to be compared;
    nonce and commitment are those of the run, if they were given.
    With an executor (concurrent.futures: processes, Dask, Ray, MPI) positions are audited side by side. Operations of
    which the dump lacks numbers are not audited, and counted in the tally's `missing`. Raises VerificationError at the
    first line that is not right, ValueError or OSError for files that cannot be used.
    """
    kept = Secret(secret)
    trace = open_log(log, root, kept, nonce, commitment)
    words = None if tokenizer is None else open_tokenizer(tokenizer, trace)
    positions = range(len(trace.steps))
    total = Tally()
    if executor is None:
        total = audit_range(trace, dump, kept, words, positions)
    else:
        parts = [positions[first:first + POSITIONS] for first in positions[::POSITIONS]]
        jobs = [executor.submit(audit_job, log, dump, secret, trace.head(), tokenizer, part) for part in parts]
        for job in jobs:
            total.add(job.result())
    found = concluded(trace, total, root is not None)
    found.secrets = kept.count
    found.nonce, found.commitment = nonce, commitment
    return found


def concluded(log: Trace, total: Tally, published: bool) -> Audit:
    """What an audit of all steps found. Raises VerificationError if something is not right."""
    steps = len(log.steps)
    rest = len(log) - 1 - steps * log.per_step  # lines of a step that the run did not end
    if rest:
        total.lack(len(log) - rest, "lines after the last step", rest)
    if total.faults:
        _, said = total.first_fault
        error = VerificationError(*said)
        if total.faults > 1:
            error.hint = f" (and {total.faults - 1} more)"
        raise error
    found = Audit(log.path, steps, log.root is not None and not total.missing, log.head(), published, text_of(log),
                  log.header, log.root is not None, total)
    if total.first_missing:
        found.first_missing_at = log.where(total.first_missing)
    return found
