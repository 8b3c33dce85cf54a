"""A model in one process or several, in much memory or little.

Every process runs the same forward pass (llama2.forward) on its own rows of the weights and its own heads, a shard of
the model. A pass is a coroutine that waits at two points, which it marks with `await`:

    await matvec(matrix, x)   # this process's rows of a matrix, times x. Passes of consecutive positions meet here, so
                              # that rows that are read from the file are read once for all of them.
    await gather(part)        # this process's part of a vector -> the whole vector. The processes meet here.

run_together takes passes from point to point. The first process, the one that the user started, sends each step to the
others and joins their parts; each of the others runs `work`. Any number of processes gives the same bits, since no row
of a product depends on another.
"""
import contextlib
import functools
import multiprocessing
import os
import re
import signal
import threading
import types
from array import array
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

# ----------------------------------------------------------------------------
# Memory: rows that are unpacked once, or read whenever they are used

# Weights in a block, few enough to stay in the processor's cache once unpacked: larger ones make dialect c a tenth
# slower on Python 3.13, smaller ones cost calls. The bits are the same, since each row is computed by itself.
BLOCK = 2**15


def free_memory() -> int:
    """Bytes that this process may use, roughly: what the system has available, or the limit of the cgroup (version 2)
    or of the process's address space if that is lower."""
    limits = []
    for path, pattern, unit in [("/proc/meminfo", "MemAvailable: +([0-9]+)", 1024),
                                ("/sys/fs/cgroup/memory.max", "([0-9]+)", 1)]:
        with contextlib.suppress(OSError, TypeError), open(path) as file:
            limits.append(int(re.search(pattern, file.read())[1]) * unit)
    with contextlib.suppress(ImportError):
        import resource
        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        limits += [soft] if soft != resource.RLIM_INFINITY else []
    if not limits:  # not on Linux: half of the memory there is, or of 8 GiB
        with contextlib.suppress(AttributeError, ValueError, OSError):
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return min(limits, default=2**32)


def unpacked_size(arithmetic, shapes: Sequence[tuple[int, int, int]]) -> int:
    """Bytes that matrices take in memory, given (how many, rows, columns) for each kind, in blocks as Rows has them."""
    size = 0
    for count, rows, columns in shapes:
        step = max(1, BLOCK // columns)
        full, rest = divmod(rows, step)
        memory = arithmetic.Matrix.memory
        size += count * (full * memory(step, columns) + (memory(rest, columns) if rest else 0))
    return size


def partition(n: int, index: int, count: int) -> range:
    """The part of range(n) that falls to the process `index` of `count`."""
    return range(n * index // count, n * (index + 1) // count)


class Rows:
    """One process's rows of a matrix of the model, in blocks: unpacked in memory, or read anew for each product."""

    def __init__(self, read: Callable, release: Callable[[], None], arithmetic, rows: range, columns: int,
                 unpacked: bool):
        """read(first, last, check) -> rows first .. last - 1, a list of tuples; release() lets go of what was read."""
        step = max(1, BLOCK // columns)
        self.arithmetic, self.release, self.unpacked = arithmetic, release, unpacked
        # MappedBlocks, or, if unpacked, their matrices
        self.blocks = [MappedBlock(read, arithmetic, first, min(first + step, rows.stop)) for first in rows[::step]]
        if unpacked:
            self.blocks = [block.matrix() for block in self.blocks]
            release()

    def times(self, xs: Sequence[Sequence[float]]) -> list[list[float]]:
        """xs (positions, columns) -> (positions, rows): the product of these rows with each vector."""
        dots, operands = self.arithmetic.dots, [self.arithmetic.operand(x) for x in xs]
        results = [[] for _ in xs]
        for block in self.blocks:
            matrix = block if self.unpacked else block.matrix()
            for result, operand in zip(results, operands, strict=True):
                result += dots(matrix, operand)
        if not self.unpacked:
            self.release()
        return results


class MappedBlock:
    """Some rows of a matrix in the mapped file, unpacked whenever their matrix is asked for."""

    def __init__(self, read: Callable, arithmetic, first: int, last: int):
        self.read, self.arithmetic, self.first, self.last = read, arithmetic, first, last
        self.squares, self.checked = None, False  # of the rows; have all weights been seen to be finite?

    def matrix(self) -> Any:
        """The rows as arithmetic.Matrix."""
        rows = self.read(self.first, self.last, check=not self.checked)
        matrix = self.arithmetic.Matrix(rows, self.squares)
        if not self.checked:
            self.squares, self.checked = array("d", matrix.squares), True
        return matrix


# ----------------------------------------------------------------------------
# Shards: one process's part of the model


def split(x: Sequence[float], n: int) -> list[Sequence[float]]:
    """x (rows * n) -> (rows, n)"""
    return [x[i:i + n] for i in range(0, len(x), n)]


MATRICES = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")  # of a layer


class Cache:
    """The keys and values of a layer so far, for one process's heads (run.c: key_cache, value_cache).

    Each group of n_heads / n_kv_heads query heads shares a key and value head: a smaller cache, and hardly worse.
    """

    def __init__(self, A, hs: int, group: int, heads: range, kv_heads: range):
        self.hs = hs
        self.kv_keys = [A.Matrix() for _ in kv_heads]    # (kv heads) of (pos + 1, hs)
        self.kv_values = [A.Matrix() for _ in kv_heads]  # (kv heads) of (hs, pos + 1)
        self.keys = [self.kv_keys[h // group - kv_heads.start] for h in heads]      # by query head
        self.values = [self.kv_values[h // group - kv_heads.start] for h in heads]

    def append(self, k: Sequence[float], v: Sequence[float]) -> None:
        """k, v (kv heads * hs): those of the next position."""
        for matrix, key in zip(self.kv_keys, split(k, self.hs), strict=True):
            matrix.add_row(key)
        for matrix, value in zip(self.kv_values, split(v, self.hs), strict=True):
            matrix.add_column(value)


@dataclass
class Layer:
    """The weights of a layer: of the matrices one process's rows, which are shown as if there were one process."""
    rms_att: tuple  # (dim)
    wq: Rows        # (n_heads * hs, dim)
    wk: Rows        # (n_kv_heads * hs, dim)
    wv: Rows        # (n_kv_heads * hs, dim)
    wo: Rows        # (dim, n_heads * hs)
    rms_ffn: tuple  # (dim)
    w1: Rows        # (hidden_dim, dim)
    w2: Rows        # (dim, hidden_dim)
    w3: Rows        # (hidden_dim, dim)


class Shard:
    """One process's part of the model: its rows of the weights, and the keys and values of its heads. A model in one
    process is shard 0 of 1."""

    def __init__(self, checkpoint, A, forward: Callable, index: int, count: int, unpacked: bool):
        self.checkpoint, self.arithmetic, self.config = checkpoint, A, checkpoint.config
        self.run_pass, self.first = forward, index == 0
        c, hs = self.config, self.config.head_size
        self.group = c.n_heads // c.n_kv_heads  # query heads that share a key and value head
        self.heads = heads = partition(c.n_heads, index, count)
        self.kv_heads = range(heads.start // self.group, (heads.stop - 1) // self.group + 1) if heads else range(0)
        kv_rows = range(self.kv_heads.start * hs, self.kv_heads.stop * hs)
        own = {"wq": range(heads.start * hs, heads.stop * hs), "wk": kv_rows, "wv": kv_rows}

        def rows(name, l=0):
            _, n, columns = checkpoint.tensors[name]
            return Rows(functools.partial(checkpoint.rows, name, l), checkpoint.release, A,
                        own.get(name, partition(n, index, count)), columns, unpacked)

        self.layers = [Layer(rms_att=checkpoint.rows("rms_att", l)[0], rms_ffn=checkpoint.rows("rms_ffn", l)[0],
                             **{name: rows(name, l) for name in MATRICES}) for l in range(c.n_layers)]
        self.rms_final = checkpoint.rows("rms_final")[0]  # (dim)
        self.classifier = rows("classifier")              # (vocab, dim)
        self.caches = []                                  # of each layer

    def embedding(self, token: int) -> tuple[float, ...]:
        """A row of the embedding, (dim); read from the file, since a step needs only one."""
        return self.checkpoint.rows("embedding", 0, token, token + 1)[0]

    def passes(self, tokens: Sequence[int], pos: int, skip: int, observed: bool) -> list:
        """The forward passes of consecutive positions from pos on; the first `skip` of them without logits. Each
        returns its recorded events and its logits."""
        if pos == 0:
            self.caches = [Cache(self.arithmetic, self.config.head_size, self.group, self.heads, self.kv_heads)
                           for _ in self.layers]
        repeated = self.config.head_size if self.heads.start % self.group else 0

        async def recorded(token, pos, wanted):
            recorder = Recorder(self.first, repeated)
            see = recorder.see if observed else unseen
            return recorder.events, await self.run_pass(self, token, pos, see, wanted)

        return [recorded(token, pos + i, i >= skip) for i, token in enumerate(tokens)]


# ----------------------------------------------------------------------------
# Passes: what a forward pass waits for, and how it is watched


# `await matvec(matrix, x)` pauses the pass: its yield hands (matrix, x) to run_together, whose send(product) resumes it
# with the product as the value of the await. For gather, the pair is (None, part).


@types.coroutine
def matvec(matrix: Rows, x: Sequence[float]) -> Generator:
    """matrix (rows, columns), x (columns) -> (rows): the product, of this process's rows."""
    return (yield matrix, x)


@types.coroutine
def gather(part: Sequence[float]) -> Generator:
    """part (n of this process) -> (n of all processes): the parts in the order of the processes, joined."""
    return (yield None, part)


def run_together(passes: Sequence[Coroutine], exchange: Callable[[list], list]) -> list:
    """Run the passes of consecutive positions side by side -> what they return.

    All stop at the same points. A pass without logits skips the classifier, so it ends one stop earlier; such passes
    come first. exchange(parts) gathers: this process's parts, one for each pass -> the whole vectors.
    """
    answers, results = [None] * len(passes), []
    try:
        while len(results) < len(passes):
            requests = []
            for i in range(len(results), len(passes)):
                try:
                    requests.append(passes[i].send(answers[i]))
                except StopIteration as end:
                    results.append(end.value)
            if requests:
                matrix, vectors = requests[0][0], [vector for _, vector in requests]
                answers[len(results):] = exchange(vectors) if matrix is None else matrix.times(vectors)
    finally:
        for unfinished in passes:
            unfinished.close()
    return results


SPLIT = {"q", "k", "v", "weights", "gate", "up"}  # the operations of which each process has a part only


class Recorder:
    """What an observer wants to know of one pass, in one process: its operations and their results."""

    def __init__(self, first: bool, repeated: int):
        """first: is this the process that knows the whole vectors? repeated: so many numbers of k and v belong to a
        head that the process before computes as well."""
        self.first, self.repeated = first, repeated
        self.events = []  # (layer or None, operation, array("f"))

    def see(self, layer: int | None, op: str, values: Sequence[float]) -> Sequence[float]:
        """Record a result, and pass it on."""
        if self.first or op in SPLIT:
            part = values[self.repeated:] if op in ("k", "v") else values
            self.events.append((layer, op, array("f", part)))
        return values


def unseen(layer: int | None, op: str, values: Sequence[float]) -> Sequence[float]:
    """Recorder.see where nobody observes."""
    return values


def join_events(first: list, others: list[list]) -> Iterator[tuple]:
    """The events of one pass in all processes -> whole ones."""
    rest = [iter(events) for events in others]
    for layer, op, values in first:
        if op in SPLIT:
            for events in rest:
                values += next(events)[2]
        yield layer, op, values


# ----------------------------------------------------------------------------
# Processes


class Abandoned(Exception):
    """The first process was interrupted in the step that is being computed, and has begun another."""


def work(connection, other_end, build: Callable, index: int, count: int) -> None:
    """A worker process: builds its shard, and takes part in every step until the connection's other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    other_end.close()  # or this process would keep its own connection open

    with contextlib.suppress(EOFError, OSError):
        try:
            shard = build(index, count)
        except (ValueError, OSError, MemoryError) as error:
            while True:
                number, _ = connection.recv()
                connection.send((number, error))
        message = connection.recv()
        while True:
            number, job = message

            def exchange(parts, number=number):
                connection.send((number, parts))
                reply = connection.recv()
                if reply[0] != number:
                    raise Abandoned(reply)
                return reply[1]

            try:
                answer = run_together(shard.passes(*job), exchange)
            except Abandoned as interruption:
                message = interruption.args[0]
                continue
            except (ValueError, MemoryError) as error:
                answer = error
            connection.send((number, answer))
            message = connection.recv()


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back for a while, so that no process is started and lost.

    The mask holds it back from this thread and from processes that it starts, until they ignore it; the handler, from a
    thread that another library has started and that has no mask.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    held = []
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if hasattr(signal, "pthread_sigmask") else None
    signal.signal(signal.SIGINT, lambda *signal: held.append(signal))
    try:
        yield
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if held:
            handler(*held[0])


class Team:
    """The processes that share a model with this one, which is the first.

    Each message carries the number of its step, so that late answers to an interrupted step can be told.
    """

    def __init__(self):
        self.processes = []  # with their connections
        self.number = 0      # of the step

    def start(self, build: Callable, count: int) -> None:
        """Start processes 1 .. count - 1; build(index, count) makes each one's shard, in that process."""
        with uninterrupted():
            for index in range(1, count):
                here, there = multiprocessing.Pipe()
                process = multiprocessing.Process(target=work, daemon=True, args=(there, here, build, index, count))
                process.start()
                self.processes.append((process, here))
                there.close()

    def run(self, shard, *job: Any) -> list[tuple[Iterator[tuple], array]]:
        """Run shard.passes(*job), and those of the other processes' shards -> for each pass its events and what it
        returns, an array("f"), joined. Raises ChildProcessError if a worker dies, and what a worker raised."""
        self.begin(*job)
        exchange = self._exchange if self.processes else list  # alone, parts are whole vectors: list only copies them
        mine = run_together(shard.passes(*job), exchange)
        joined = []
        for parts in zip(mine, *self.answers(), strict=True):  # of one pass, by process
            events, vectors = zip(*parts, strict=True)
            joined.append((join_events(events[0], events[1:]), array("f", chain(*vectors))))
        return joined

    def begin(self, *job: Any) -> None:
        """Have the other processes run their shards' passes(*job)."""
        self.number += 1
        self._send(job)

    def _exchange(self, parts: list) -> list:
        joined = [tuple(chain(*part)) for part in zip(parts, *self.answers(), strict=True)]
        self._send(joined)
        return joined

    def _send(self, message: Any) -> None:
        for process, connection in self.processes:
            try:
                connection.send((self.number, message))
            except ConnectionError:
                raise died(process) from None

    def answers(self) -> list:
        """What each of the other processes sends next. Raises as run does."""
        answers = []
        for process, connection in self.processes:
            number = None
            while number != self.number:
                try:
                    number, answer = connection.recv()
                except (EOFError, ConnectionError):
                    raise died(process) from None
            if isinstance(answer, Exception):
                raise answer
            answers.append(answer)
        return answers

    def close(self) -> None:
        """End the processes."""
        for _, connection in self.processes:
            connection.close()  # at which a worker ends
        for process, _ in self.processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
        self.processes = []


def died(process) -> ChildProcessError:
    """The error to raise when a process has closed its connection."""
    process.join(1)
    return ChildProcessError(f"worker process {process.pid} died with exit code {process.exitcode}")


# ----------------------------------------------------------------------------
# Tokens that are known beforehand: a prompt's, and those of a run that is verified

# Positions taken together. A model that is read from the file is read once for all of them, which makes it two to three
# times as fast at 15M parameters.
CHUNK = 16


class Drafted:
    """Stands for a transformer whose next tokens are known: it computes CHUNK positions at once and hands them out one
    by one. Tokens after the draft are computed as they come."""

    def __init__(self, transformer, draft: Sequence[int], skip: int = 0):
        """draft: the tokens of positions 0, 1, ...; skip: so many of them whose logits nobody wants."""
        self.transformer, self.draft, self.skip = transformer, draft, skip
        self.config, self.checkpoint = transformer.config, transformer.checkpoint
        self.ahead = {}  # position -> its token, events and logits, computed and not yet asked for

    def forward(self, token: int, pos: int, observe: Callable | None = None, logits: bool = True) -> array | None:
        """As Transformer.forward. Raises ValueError if the token is not the drafted one."""
        if pos not in self.ahead:
            tokens = self.draft[pos:pos + CHUNK] or [token]
            events = [[] for _ in tokens]
            observers = [lambda *event, seen=seen: seen.append(event) for seen in events] if observe else []
            skip = min(len(tokens), max(0, self.skip - pos))
            rows = [None] * skip + self.transformer.forward_chunk(tokens, pos, observers, skip)
            self.ahead = dict(enumerate(zip(tokens, events, rows, strict=True), pos))
        drafted, events, row = self.ahead.pop(pos)
        if token != drafted:
            raise ValueError(f"token {token} at position {pos} is not the drafted one, {drafted}")
        for event in events:
            observe(*event)
        return row
