"""A model in one process or in several.

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
import signal
import threading
import types
from array import array
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from llama2_py.engine.arithmetic import Arithmetic
from llama2_py.engine.checkpoint import MATRICES
from llama2_py.engine.models import AnyCheckpoint, open_checkpoint
from llama2_py.engine.rows import Rows, partition, split

# ----------------------------------------------------------------------------
# Shards: one process's part of the model


class Cache:
    """The keys and values of a layer so far, for one process's heads (run.c: key_cache, value_cache).

    Each group of n_heads / n_kv_heads query heads shares a key and value head: a smaller cache, and hardly worse.
    """

    def __init__(self, A: Arithmetic, hs: int, group: int, heads: range, kv_heads: range):
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

    def __init__(self, checkpoint: AnyCheckpoint, A: Arithmetic, forward: Callable, index: int, count: int,
                 unpacked: bool):
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
            return Rows(functools.partial(getattr(checkpoint, A.reads), name, l), checkpoint.release, A,
                        own.get(name, partition(n, index, count)), columns, unpacked)

        self.layers = [Layer(rms_att=checkpoint.rows("rms_att", l)[0], rms_ffn=checkpoint.rows("rms_ffn", l)[0],
                             **{name: rows(name, l) for name in MATRICES}) for l in range(c.n_layers)]
        self.rms_final = checkpoint.rows("rms_final")[0]  # (dim)
        self.classifier = rows("classifier")              # (vocab, dim)
        self.caches: list[Cache] = []                     # of each layer

    def embedding(self, token: int) -> tuple[float, ...]:
        """A row of the embedding, (dim); read from the file, since a step needs only one."""
        return self.checkpoint.rows("embedding", 0, token, token + 1)[0]

    def begin(self) -> None:
        """Empty the caches: position 0 comes next."""
        self.caches = [Cache(self.arithmetic, self.config.head_size, self.group, self.heads, self.kv_heads)
                       for _ in self.layers]

    def passes(self, tokens: Sequence[int], pos: int, skip: int, observed: bool) -> list:
        """The forward passes of consecutive positions from pos on; the first `skip` of them without logits. Each
        returns its recorded events and its logits."""
        if pos == 0:
            self.begin()
        repeated = self.config.head_size if self.heads.start % self.group else 0

        async def recorded(token, pos, wanted):
            recorder = Recorder(self.first, repeated)
            see = recorder.see if observed else unseen
            return recorder.events, await self.run_pass(self, token, pos, see, wanted)

        return [recorded(token, pos + i, i >= skip) for i, token in enumerate(tokens)]


def open_shard(path: str, identity: tuple, A: Arithmetic, forward: Callable, unpacked: bool, index: int, count: int
               ) -> Shard:
    """A worker's shard, with a checkpoint that it opens itself and that must be the one with this identity."""
    checkpoint = open_checkpoint(path)
    checkpoint.check_unchanged(identity)
    return Shard(checkpoint, A, forward, index, count, unpacked)


# ----------------------------------------------------------------------------
# Passes: what a forward pass waits for, and how it is watched


# `await matvec(matrix, x)` pauses the pass: its yield hands (matrix, x) to run_together, whose send(product) resumes it
# with the product as the value of the await. For gather, the pair is (None, part).


@types.coroutine
def matvec(matrix: Rows, x: Sequence[float]) -> Generator[tuple, Any, Sequence[float]]:
    """matrix (rows, columns), x (columns) -> (rows): the product, of this process's rows."""
    return (yield matrix, x)


@types.coroutine
def gather(part: Sequence[float]) -> Generator[tuple, Any, Sequence[float]]:
    """part (n of this process) -> (n of all processes): the parts in the order of the processes, joined."""
    return (yield None, part)


def run_together(passes: Sequence[Coroutine], exchange: Callable[[list], list]) -> list:
    """Run the passes of consecutive positions side by side -> what they return.

    All stop at the same points. A pass without logits skips the classifier, so it ends one stop earlier; such passes
    come first. exchange(parts) gathers: this process's parts, one for each pass -> the whole vectors.
    """
    answers: list = [None] * len(passes)
    results: list = []
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
        self.events: list[tuple] = []  # (layer or None, operation, array("f"))

    def see(self, layer: int | None, op: str, values: Sequence[float]) -> Sequence[float]:
        """Record a result, and pass it on."""
        if self.first or op in SPLIT:
            part = values[self.repeated:] if op in ("k", "v") else values
            self.events.append((layer, op, array("f", part)))
        return values


def unseen(layer: int | None, op: str, values: Sequence[float]) -> Sequence[float]:
    """Recorder.see where nobody observes."""
    return values


def join_events(first: list, others: Sequence[list]) -> Iterator[tuple]:
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
                answer: Any = run_together(shard.passes(*job), exchange)
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
