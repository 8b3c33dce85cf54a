"""Another program's numbers beside this one's: is a difference float32 rounding, or a mistake, and which?

    python3 llama2.py -t 0 -n 50 --logits ours.npy       # write every step's logits
    python3 llama2.py -t 0 -n 6 --dump ours.dump         # write every operation, too
    python3 llama2.py -t 0 --compare theirs              # the verdict: how many steps there are, the file says

No tolerance is asked for. Logits are measured against noise: beside the exact run goes a noisy one, whose every
operation errs at random by as much as a float32 program's does. Operations are computed again from the other program's
own inputs (operations.py). If either is not as float32 rounds, diagnosis.py looks for the mistake.

Three kinds of files are read, and told apart by how they begin:

    numpy's .npy, format 1.0: float16, 32 or 64, little endian, of shape (steps, vocab) or (1, steps, vocab)
    records: a line of ASCII, `POS LAYER OP N`, then N little-endian float32; LAYER is -1 outside the layers, OP a name
        of events.OPERATIONS, embedding, final_norm or logits. They come in any order; the same line again appends, as
        run.c's att does, head by head.
    anything else: bare little-endian float32, in rows of the vocabulary
"""
import contextlib
import functools
import itertools
import mmap
import os
import re
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import nlargest
from math import cos, dist, exp, fsum, hypot, isfinite, sin, sqrt
from operator import mul, sub
from random import Random
from struct import iter_unpack, pack, unpack
from typing import Any, BinaryIO

import diagnosis
from arithmetic import Exact, from_bytes, to_bytes
from console import printable, say, write_whole
from events import OPERATIONS
from operations import U, Judgement, Operations, inputs, judge, place, rms, sequence, size
from workers import CHUNK, Team, run_together

OUTSIDE = ("embedding", "final_norm", "logits")  # operations outside the layers

# ----------------------------------------------------------------------------
# Writing


class LogitsFile:
    """Collects a run's logits and writes them, once the run is complete, as an array of shape (steps, vocabulary)."""

    def __init__(self, path: str, vocab_size: int):
        self.path, self.vocab_size, self.numbers = path, vocab_size, array("f")

    def step(self, step: Any) -> None:
        """Take a step's logits."""
        self.numbers += step.logits

    def finish(self) -> None:
        """Write the file."""
        shape = len(self.numbers) // self.vocab_size, self.vocab_size
        head = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).encode()
        head = b"\x93NUMPY\x01\x00" + pack("<H", 118) + head.ljust(117) + b"\n"  # 128 bytes, a multiple of 64
        write_whole(self.path, head + to_bytes(self.numbers))


class DumpFile:
    """Collects a run's operations and logits, and writes them as records once the run is complete."""

    def __init__(self, path: str):
        self.path, self.pos, self.records = path, 0, bytearray()

    def operation(self, layer: int | None, op: str, values: Sequence[float]) -> None:
        """Take an operation of the current step."""
        self.records += f"{self.pos} {-1 if layer is None else layer} {op} {len(values)}\n".encode()
        self.records += to_bytes(values)

    def step(self, step: Any) -> None:
        """Take a step's logits."""
        self.operation(None, "logits", step.logits)
        self.pos += 1

    def finish(self) -> None:
        """Write the file."""
        write_whole(self.path, self.records)


# ----------------------------------------------------------------------------
# Reading: the file is mapped, and read step by step


class Numbers:
    """Another program's numbers: operations and logits by position.

    Raises ValueError, naming what is wrong, for a file that is none of the three kinds, of another vocabulary, or with
    more positions than the context has.
    """

    def __init__(self, path: str, config):
        self.path, self.config, self.vocab_size = path, config, config.vocab_size
        self.form = "f"      # of a number, for struct
        self.records = None  # (pos, layer or None, op) -> [(offset, how many numbers)], in a file of records
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ValueError(f"{path}: the file is empty")
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if self.data[:6] == b"\x93NUMPY":
            self.steps = self._read_npy_header()
        elif re.match(rb"\d+ -?\d+ [a-z_]+ \d+\n", self.data):
            self.steps = self._index_records()
        else:
            self.begin = 0
            self.steps, rest = divmod(len(self.data), 4 * self.vocab_size)
            if rest:
                raise ValueError(f"{path}: size is {len(self.data)} bytes: neither an array of numpy's, nor records, "
                                 f"nor rows of {self.vocab_size} float32, {4 * self.vocab_size} bytes each")
        if self.steps > config.seq_len:
            raise ValueError(f"{path}: has {self.steps} steps, more than the context of {config.seq_len}")

    def _read_npy_header(self):
        path = self.path
        header = re.match(rb"\x93NUMPY\x01\x00(..)\{'descr': ('.*?'|\[.*?\]), 'fortran_order': (True|False), "
                          rb"'shape': (\([0-9, ]*\)),? ?\} *\n", self.data[:2**16 + 10], re.S)
        if not header or unpack("<H", header[1])[0] != header.end() - 10:
            raise ValueError(f"{path}: not an array of numpy's format 1.0")
        kind, fortran, shape = (value.decode("latin-1") for value in header.groups()[1:])
        forms = {"'<f2'": "e", "'<f4'": "f", "'<f8'": "d"}
        if kind not in forms:
            raise ValueError(f"{path}: holds {kind}, must be float16, 32 or 64 in little-endian order, '<f2' to '<f8'")
        if fortran != "False":
            raise ValueError(f"{path}: fortran_order is {fortran}, must be False")
        rows = re.fullmatch(rf"\((?:1, )?([1-9][0-9]{{0,8}}), {self.vocab_size}\)", shape)
        if not rows:
            raise ValueError(f"{path}: shape is {shape}, must be (steps, {self.vocab_size}), the vocabulary")
        self.form, self.begin = forms[kind], header.end()
        size = self.begin + {"e": 2, "f": 4, "d": 8}[self.form] * int(rows[1]) * self.vocab_size
        if len(self.data) != size:
            raise ValueError(f"{path}: size is {len(self.data)} bytes, must be {size} for shape {shape}")
        return int(rows[1])

    def _index_records(self):
        self.records, at, steps, line = {}, 0, 0, None
        while at < len(self.data):
            where = f"{self.path}, record at byte {at}" + (f", after {line}" if line else "")
            end = self.data.find(b"\n", at, at + 100)
            line = self.data[at:end if end >= 0 else at + 100].decode("latin-1")
            match = re.fullmatch(r"(\d{1,9}) (-?\d{1,9}) ([a-z_]{1,30}) (\d{1,12})", line)
            if end < 0 or not match:
                raise ValueError(f"{where}: not a line `POS LAYER OP N`: {printable(line, 60)}")
            if int(match[1]) >= self.config.seq_len:
                raise ValueError(f"{where}: position {match[1]} is beyond the context of {self.config.seq_len}")
            pos, layer, op, n = int(match[1]), int(match[2]), match[3], int(match[4])
            if op not in (OUTSIDE if layer == -1 else OPERATIONS) or not -1 <= layer < self.config.n_layers:
                raise ValueError(f"{where}: no operation is called {op} in layer {layer}, of {self.config.n_layers}")
            if n == 0 or end + 1 + 4 * n > len(self.data):
                raise ValueError(f"{where}: {op} has {n} numbers, but {(len(self.data) - end - 1) // 4} are left")
            key = pos, None if layer == -1 else layer, op
            parts = self.records.setdefault(key, [])
            parts.append((end + 1, n))
            most = size(self.config, op, pos)
            if len(parts) > 1 and sum(count for _, count in parts) > most:
                raise ValueError(f"{where}: more than the {most} numbers of {place(op, key[1], pos)}")
            at, steps = end + 1 + 4 * n, max(steps, pos + 1)
        return steps

    def values(self, op: str, layer: int | None, pos: int) -> Sequence[float] | None:
        """The results of an operation; None if the file does not have them."""
        if self.records is None:
            return self._row(pos) if op == "logits" and pos < self.steps else None
        parts = self.records.get((pos, layer, op))
        if parts is None:
            return None
        found, n = sum(count for _, count in parts), size(self.config, op, pos)
        if found != n:
            raise ValueError(f"{self.path}: {place(op, layer, pos)}: has {found} numbers, must have {n}")
        return from_bytes(b"".join(self.data[offset:offset + 4 * count] for offset, count in parts))

    def lacks_inputs(self) -> bool:
        """Is there an operation in the file whose inputs are not all there?"""
        for pos, layer, op in self.records:
            for name, l, positions in inputs(op, layer, pos, self.config.n_layers):
                if not all((t, l, name) in self.records for t in positions):
                    return True
        return False

    def _row(self, pos):
        size = {"e": 2, "f": 4, "d": 8}[self.form] * self.vocab_size
        data = self.data[self.begin + pos * size:self.begin + (pos + 1) * size]
        (row,) = iter_unpack(f"<{self.vocab_size}{self.form}", data)
        return row


# ----------------------------------------------------------------------------
# Noise: a run that errs at random by as much as float32 programs do


class Noisy(Exact):
    """The arithmetic `exact`, with each result moved by its expected error in float32 times a normal random number.

    Of a dot product y = w.x of n numbers that error is u sqrt(0.09 |w|^2 |x|^2 + 0.06 n y^2), with u = 2^-24; other
    constants are relative. They are those of programs that are right: llama2.c under several compilers, numpy, JAX,
    PyTorch and llama.cpp, with sums in their orders.
    """

    normals = itertools.repeat(0.0)  # an endless iterator: a process that makes noise has its own

    @staticmethod
    def dot(a: Sequence[float], b: Sequence[float]) -> float:
        """As Exact.dot, of numbers of one sign."""
        return Exact.dot(a, b) * (1 + 0.24 * sqrt(len(a)) * U * next(Noisy.normals))

    @staticmethod
    def total(values: Sequence[float]) -> float:
        """As Exact.total, of numbers of one sign."""
        return fsum(values) * (1 + 0.24 * sqrt(len(values)) * U * next(Noisy.normals))

    @staticmethod
    def dots(matrix: Exact.Matrix, operand: tuple) -> list[float]:
        """As Exact.dots, by the guess of arithmetic.bounds alone."""
        x, y, square = operand  # of x, -x/2 and |x/2|^2
        lengths, relative = 2 * sqrt(0.09 * square) * U, sqrt(0.06 * len(x)) * U
        guesses = map(dist, matrix.rows, itertools.repeat(y))  # of the root of |w + x/2|^2
        return [(d * d - s - square) * (1 + relative * a) + lengths * sqrt(s) * b for d, s, a, b in zip(
            guesses, matrix.squares, Noisy.normals, Noisy.normals, strict=False)]

    @staticmethod
    def exps(values: Sequence[float]) -> list[float]:
        """As Exact.exps."""
        return [exp(min(v, 88.0)) * (1 + 0.6 * U * next(Noisy.normals)) for v in values]

    @staticmethod
    def pow(a: float, b: float) -> float:
        """As Exact.pow."""
        return a**b * (1 + 0.6 * U * next(Noisy.normals))

    @staticmethod
    def cos(angle: float) -> float:
        """As Exact.cos, of an angle that errs."""
        return cos(angle * (1 + 0.41 * U * next(Noisy.normals)))

    @staticmethod
    def sin(angle: float) -> float:
        """As Exact.sin, of an angle that errs."""
        return sin(angle * (1 + 0.41 * U * next(Noisy.normals)))


class Alone:
    """A whole model in a worker process, which makes noise there while the first process is exact."""

    def __init__(self, build: Callable, index: int, count: int):
        """build(index, count) makes a shard."""
        random = Random(1)
        Noisy.normals = itertools.cycle([random.gauss(0, 1) for _ in range(65537)])
        self.shard = build(0, 1)

    def passes(self, *job: Any) -> list:
        """As Shard.passes, but already run, so that the processes meet at the end only."""
        async def ended(result):
            return result

        return [ended(result) for result in run_together(self.shard.passes(*job), list)]


# ----------------------------------------------------------------------------
# The verdict

# What is consistent with float32. (Of programs that are right the worst had 1.1, 5.6 and 10; of wrong ones the nearest
# 10, 34 and 54, but for those whose mistake is below rounding.)
OVERALL, ONE_STEP, ONE_LOGIT = 2.0, 12.0, 32.0
# The same for an operation whose inputs the file does not have: it has fewer numbers than the logits
OPERATION, ONE_OPERATION = 4.0, 32.0


@dataclass
class Step:
    """How far the other program's logits of one step are from the right ones."""
    pos: int
    off: float     # root mean square of the differences / that of the noise
    worst: float   # the largest difference of a logit, in the noise that its row of the classifier has
    at: int        # its token
    noise: float   # root mean square of the noise
    ours: int      # the likeliest token here
    theirs: int    # and there
    margin: float  # the difference of the two largest logits here, if those two tokens are not the same


class Comparison:
    """The comparison of a file's numbers with a model's: run it, then ask.

    tokens are those that both programs are given. If the file goes on after them, the next are the likeliest ones, as
    long as both programs have the same.
    """

    def __init__(self, model, tokens: Sequence[int], numbers: Numbers):
        self.model, self.shard, self.numbers, self.tokens = model, model.shard, numbers, list(tokens)
        self.get = functools.lru_cache(4096)(numbers.values)  # for keys and values, which all later positions need
        self.operations = Operations(self.shard, self.tokens, self.get)
        self.shares = []         # of each logit in the noise: rms of the classifier's rows' lengths / the row's
        self.steps = []          # those whose logits were judged
        self.done = 0            # positions that were run
        self.exact = {}          # pos -> the right logits, until a mistake has been looked for
        self.parted = None       # the step after which the texts differ
        self.not_finite = None   # the first number that is none: its place, for the eye
        self.judged = {}         # op -> [(Judgement, layer, pos)]: from the other program's own inputs
        self.apart = {}          # (op, layer) -> [(pos, rms of differences, of noise)]: where inputs are missing
        self.first_wrong = None  # op, layer, pos, Judgement, and its worst element there and here

    def run(self) -> None:
        """Compute, beside each other, the exact run and the noisy one, and judge."""
        records, goal = self.numbers.records is not None, self.numbers.steps
        noise_of_all = records and self.numbers.lacks_inputs()  # is there an operation that the noise must judge?
        team, pos = Team(), 0
        with contextlib.closing(team):
            team.start(functools.partial(Alone, self.model.builder(Noisy, self.model.fits(Noisy))), 2)
            ahead = None  # the next chunk, if the other process has begun it
            while pos < goal and self.parted is None and self.not_finite is None:
                progress("running", pos, goal)
                chunk = ahead or self._begin(team, pos, noise_of_all)
                seen = [[] for _ in chunk]
                observers = [lambda *event, seen=events: seen.append(event) for events in seen] if noise_of_all else []
                rows = self.model.forward_chunk(chunk, pos, observers)
                (noisy,) = team.answers()
                first, pos = pos, pos + len(chunk)
                known = pos < min(goal, len(self.tokens))
                ahead = self._begin(team, pos, noise_of_all) if known else None
                for at, (row, events, noise) in enumerate(zip(rows, seen, noisy, strict=True), first):
                    if self.not_finite is None:
                        self._operations(at, events, noise[0])
                        self._logits(at, row, noise[1])
                        self.done = at + 1
                if pos == len(self.tokens) < goal:
                    self._go_on(pos - 1, row)
        progress("running", goal, goal)

    def _begin(self, team, pos, observed):
        """Have the other process run the next chunk of known tokens -> it."""
        chunk = self.tokens[pos:min(pos + CHUNK, self.numbers.steps)]
        team.begin(chunk, pos, 0, observed)
        return chunk

    def _go_on(self, pos, row):
        theirs = self.numbers.values("logits", None, pos)
        self.tokens.append(row.index(max(row)))
        if theirs is not None and self.not_finite is None and theirs.index(max(theirs)) != self.tokens[-1]:
            self.parted = pos

    def _logits(self, pos, row, noisy):
        theirs = self.numbers.values("logits", None, pos)
        if theirs is None:
            return
        at = not_finite(theirs)
        if at is not None:
            self.not_finite = f"step {pos}, token {at}: {theirs[at]}"
            return
        if not self.shares:
            norms = [sqrt(square) or 1e-30 for block in self.shard.classifier.blocks for square in block.squares]
            unit = rms(norms)
            self.shares = [unit / norm for norm in norms]
        differences, noise = list(map(sub, theirs, row)), rms(list(map(sub, noisy, row))) or 1e-30
        if self.numbers.form == "e":  # a file of float16: its rounding comes on top
            noise = hypot(noise, 2.0**-12 * rms(row))
        by_row = list(map(mul, map(abs, differences), self.shares))
        worst, ours, theirs_likeliest = max(by_row), row.index(max(row)), theirs.index(max(theirs))
        margin = 0.0
        if ours != theirs_likeliest:
            first, second = nlargest(2, row)
            margin = first - second
        self.exact[pos] = row
        self.steps.append(Step(pos, rms(differences) / noise, worst / noise, by_row.index(worst), noise, ours,
                               theirs_likeliest, margin))

    def _operations(self, pos, events, noisy_events):
        if self.numbers.records is None:
            return
        get, operations = self.get, self.operations
        noisy = {(op, l): values for l, op, values in noisy_events}
        exact = {(op, l): values for l, op, values in events}
        for op, l in sequence(self.shard.config.n_layers):
            theirs = get(op, l, pos)
            if theirs is None:
                continue
            at = not_finite(theirs)
            if at is not None:
                self.not_finite = f"{place(op, l, pos)}, {element(op, at, self.numbers, pos)}: {theirs[at]}"
                return
            y = operations.result(op, l, pos)
            if y is not None:
                self._judge(op, l, pos, theirs, y, judge(theirs, y, operations.errors(op, l, pos, y)))
            elif op != "logits":  # which are judged anyway
                self.apart.setdefault((op, l), []).append((
                    pos, rms(list(map(sub, theirs, exact[op, l]))), rms(list(map(sub, noisy[op, l], exact[op, l])))))

    def _judge(self, op, l, pos, theirs, y, judgement: Judgement):
        self.judged.setdefault(op, []).append((judgement, l, pos))
        if judgement.wrong and self.first_wrong is None:
            self.first_wrong = op, l, pos, judgement, theirs[judgement.at], y[judgement.at]

    # -- what it says

    @property
    def overall(self) -> float:
        """Root mean square of the differences of all steps / that of the noise."""
        total = fsum([step.noise**2 for step in self.steps])
        return sqrt(fsum([(step.off * step.noise)**2 for step in self.steps]) / total) if total else 0.0

    @property
    def logits_wrong(self) -> bool:
        """Are the logits farther from the right ones than float32 programs' are?"""
        return bool(self.steps) and (self.overall >= OVERALL or max(step.off for step in self.steps) >= ONE_STEP
                                     or max(step.worst for step in self.steps) >= ONE_LOGIT)

    def apart_wrong(self) -> list[tuple]:
        """(op, layer, pos, times the noise) of the operations without inputs that are too far from the right run's."""
        wrong = []
        for (op, l), found in self.apart.items():
            ratios = [(d / (e or 1e-30) if d else 0.0, pos) for pos, d, e in found]
            overall = rms([d for _, d, _ in found]) / (rms([e for _, _, e in found]) or 1e-30)
            if overall >= OPERATION or max(ratios)[0] >= ONE_OPERATION:
                ratio, pos = next((r, p) for r, p in ratios if r >= min(OPERATION, max(ratios)[0]))
                wrong.append((op, l, pos, ratio))
        order = {where: i for i, where in enumerate(sequence(self.shard.config.n_layers))}
        return sorted(wrong, key=lambda w: (w[2], order[w[0], w[1]]))

    def consistent(self) -> bool:
        """Is everything as float32 rounds?"""
        return not (self.logits_wrong or self.first_wrong or self.not_finite or self.apart_wrong())

    def names(self) -> list[str]:
        """The mistakes that explain what is wrong, by name."""
        tell = functools.partial(progress, "looking for the mistake")
        found = []
        if self.first_wrong:
            judged = {op: [(j.wrong, l, pos) for j, l, pos in places] for op, places in self.judged.items()}
            found = diagnosis.by_operations(self.shard, self.tokens, self.get, judged, tell)
        elif self.logits_wrong:
            first = next((i for i, step in enumerate(self.steps) if step.off >= ONE_STEP), 0)
            steps = self.steps[:max(32, first + 12)]
            if [step.pos for step in steps] == list(range(len(steps))):  # no step is missing
                found = diagnosis.by_logits(self.shard, self.tokens, [diagnosis.Seen(
                    self.numbers.values("logits", None, step.pos), self.exact[step.pos], step.noise)
                    for step in steps], tell)
        progress("looking for the mistake", 1, 1)
        return found


def not_finite(values: Sequence[float]) -> int | None:
    """The first element that is not finite, or would not be as a float32; None if there is none."""
    if isfinite(sum(values)) and max(map(abs, values)) < 2.0**128:
        return None
    return next((i for i, v in enumerate(values) if not abs(v) < 2.0**128), None)


def element(op: str, at: int, numbers: Numbers, pos: int) -> str:
    """An element of an operation, with its head where it has heads."""
    hs = numbers.config.head_size
    of_head = {"q": hs, "k": hs, "v": hs, "attention": hs, "weights": pos + 1}.get(op)
    if of_head is None:
        return f"element {at} of {size(numbers.config, op, pos)}"
    return f"head {at // of_head}, element {at % of_head} of {of_head}"


def progress(what: str, done: int, of: int) -> None:
    """On a terminal, a line on standard error that says how far it is, and is wiped out at the end."""
    if sys.stderr.isatty():
        say("\r" + (f"{what}: {done} of {of} " if done < of else "").ljust(60) + "\r", end="")


def first_bit(model, tokens: Sequence[int], numbers: Numbers, steps: int) -> str | None:
    """The place of the first number that is not, in every bit, the model's, for the eye; None if all of them are."""
    for pos, token in enumerate(tokens[:steps]):
        events = []
        row = model.forward(token, pos, lambda layer, op, values, events=events: events.append((op, layer, values)))
        for op, l, values in [*events, ("logits", None, row)]:
            theirs = numbers.values(op, l, pos)
            pairs = [] if theirs is None else zip(theirs, values, strict=True)
            at = next((i for i, (a, b) in enumerate(pairs) if pack("f", a) != pack("f", b)), None)
            if at is not None:
                return f"{place(op, l, pos)}, {element(op, at, numbers, pos)}: {theirs[at]:.9g} there, {values[at]:.9g}"
    return None


# ----------------------------------------------------------------------------
# The report


def compare(model, tokenizer, tokens: Sequence[int], numbers: Numbers, out: BinaryIO, like: Any = None) -> bool:
    """Compare a file's numbers with the model's; print the verdict, why, what to do next -> is it consistent?

    like: the model in another dialect, whose bits the numbers may have."""
    comparison = Comparison(model, tokens, numbers)
    comparison.run()
    consistent = comparison.consistent()
    names = [] if consistent else comparison.names()
    lines = list(report(comparison, tokenizer, names))
    if like is not None:
        bit = first_bit(like, comparison.tokens, numbers, comparison.done)
        lines.insert(1, f"first bit unlike those of --like: {bit}" if bit else "equal in every bit to those of --like")
    for line in lines:
        out.write(line.encode() + b"\n")
    out.flush()
    return consistent


def report(c: Comparison, tokenizer, names: Sequence[str]) -> Iterator[str]:
    """The lines of the report."""
    yield from verdict(c, names)
    yield from reasons(c)
    if c.judged:
        yield from operations_table(c)
    if c.steps:
        yield from steps_table(c, tokenizer)
    yield from advice(c, names)


def verdict(c: Comparison, names: Sequence[str]) -> Iterator[str]:
    """The verdict in a sentence, and the names of the mistakes."""
    if c.not_finite:
        yield f"not finite at {c.not_finite}"
    elif c.consistent():
        yield "consistent with float32: the differences are those of rounding"
    elif not names:
        yield "a mistake, not rounding; none of the known mistakes explains it"
    elif len(names) == 1:
        yield f"a mistake, not rounding: {names[0]}"
    else:
        yield f"{len(names)} mistakes, not rounding:"
        yield from (f"  {name}" for name in names)


def reasons(c: Comparison) -> Iterator[str]:
    """What the verdict rests on."""
    if c.steps:
        step, logit = max(c.steps, key=lambda s: s.off), max(c.steps, key=lambda s: s.worst)
        count = f"{len(c.steps)} step" + "s" * (len(c.steps) > 1)
        yield (f"logits of {count}, in units of a float32 program's noise: overall {c.overall:.3g} (limit "
               f"{OVERALL:g}), worst step {step.off:.3g} (limit {ONE_STEP:g}) at step {step.pos}, worst logit "
               f"{logit.worst:.3g} (limit {ONE_LOGIT:g}) at step {logit.pos}, token {logit.at}")
    if c.numbers.form == "e":
        yield "the file's numbers are float16, which hides what is smaller than their rounding"
    if c.judged:
        count = sum(map(len, c.judged.values()))
        wrong = sum(j.wrong for places in c.judged.values() for j, _, _ in places)
        yield f"operations judged from their own inputs: {count}, of them wrong: {wrong}"
    if c.first_wrong:
        op, l, pos, j, theirs, y = c.first_wrong
        how = (f"impossible in float32, in any order of summation: {j.bounds:.3g} times the bound" if j.impossible else
               f"unlikely in float32: {j.worst:.3g} sigma, {j.sigmas:.3g} in the root mean square")
        at = element(op, j.at, c.numbers, pos)
        yield f"first wrong operation: {place(op, l, pos)}, {at}: {theirs:.9g} there, {y:.9g} here; {how}"
    apart = c.apart_wrong()
    if c.apart:
        count = sum(map(len, c.apart.values()))
        yield (f"operations whose inputs are not in the file, against the right run's: {count}"
               + ("" if apart else ", all within the noise"))
    if apart:
        op, l, pos, ratio = apart[0]
        yield f"first of them beyond the noise: {place(op, l, pos)}: {ratio:.3g} times the noise"
    if c.parted is not None:
        yield f"the texts part after step {c.parted}: only the steps up to there were judged"
    if c.steps and not c.consistent() and not c.first_wrong:
        bits = diagnosis.bits_of([c.numbers.values("logits", None, step.pos) for step in c.steps])
        if bits:
            yield f"every logit is a {bits}: the program works in that format, or writes in it"
        else:
            yield from size_hint(c)


def size_hint(c: Comparison) -> Iterator[str]:
    """What the size of a difference suggests."""
    if 0 < c.overall - 10 < 990:
        yield "differences of this size often come from a constant, or from a cache in float16"
    elif 1000 <= c.overall < 30000:
        yield "differences of this size often come from half precision, or from weights in int8"
    elif c.overall >= 100000:
        yield "differences of this size come from a wrong formula, wrong weights or wrong tokens"


def operations_table(c: Comparison) -> Iterator[str]:
    """A line for each kind of operation: how many were judged; how far they are from right, at worst."""
    yield f"{'operation':20}{'judged':>8}{'wrong':>7}{'rms sigma':>11}{'one sigma':>11}{'of the bound':>14}"
    for op, places in c.judged.items():
        found = [judgement for judgement, _, _ in places]
        wrong = sum(j.wrong for j in found)
        yield (f"{op:20}{len(found):8}{wrong:7}{max(j.sigmas for j in found):11.3g}"
               f"{max(j.worst for j in found):11.3g}{max(j.bounds for j in found):14.3g}")


def steps_table(c: Comparison, tokenizer) -> Iterator[str]:
    """A line for each step."""
    def text(token):
        return f"{token} {printable(tokenizer.vocab[token].decode(errors='replace'), 24)}"

    yield f"{'step':>5}{'times the noise':>17}{'worst logit':>13}  likeliest token"
    for step in c.steps:
        same = step.ours == step.theirs
        likeliest = text(step.ours) if same else (
            f"{text(step.ours)} here, by {step.margin:.3g}; {text(step.theirs)} there")
        yield f"{step.pos:5}{step.off:17.3g}{step.worst:13.3g}  {likeliest}"


def advice(c: Comparison, names: Sequence[str]) -> Iterator[str]:
    """What to do next."""
    if c.not_finite:
        yield "next: " + ("read that operation's code" if c.not_finite.startswith("position") else
                          "find the first one, with a dump of every operation (--dump shows the form)")
    elif c.consistent():
        yield ("not shown by this: what happens at later positions, with other tokens, in the tokenizer and the sampler"
               + ("" if c.judged else "; and a mistake that changes no logit, such as RoPE with all positions shifted"))
    elif c.first_wrong:
        if not names:
            yield ("next: read that operation's code; its inputs are the file's own" + (
                ", and so is the cache: is it read and written by layer and position?"
                if c.first_wrong[0] in ("weights", "attention") else ""))
    elif c.logits_wrong or c.apart_wrong():
        yield ("next: " + ("mend it, and compare again" if names else
               "dump every operation of the first steps, as records; the first wrong one is then named"
               if not c.apart else "dump the inputs of that operation as well"))
