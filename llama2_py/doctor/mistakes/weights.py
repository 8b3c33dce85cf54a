"""Mistakes about weights: which, in which order, in which format."""
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from struct import pack, unpack

from llama2_py.doctor.mistakes.formats import int8
from llama2_py.doctor.mistakes.mistake import ALL_MATRICES, NORM_OPS, PRODUCT_OPS, Kind, Mistake
from llama2_py.doctor.operations import Operations
from llama2_py.doctor.precision import FORMATS, float16
from llama2_py.engine.arithmetic import R, Exact, from_bytes
from llama2_py.engine.graph import PRODUCTS
from llama2_py.engine.rows import Rows, split


def with_rows(names: Sequence[str], other_rows: Callable) -> Callable:
    """Operations.matrix, where the matrices of these names have the rows other_rows(shard, name, l, first, last)."""
    @functools.cache
    def built(shard, name, l):
        _, n, columns = shard.checkpoint.tensors[name]

        def read(first, last, check):
            return other_rows(shard, name, l or 0, first, last)

        return Rows(read, shard.checkpoint.release, Exact, range(n), columns, unpacked=n * columns < 2**16)

    def matrix(self, name, l):
        return built(self.shard, name, l) if name in names else Operations.matrix(self, name, l)
    return matrix


@functools.lru_cache(1)  # of the matrix whose rows are asked for block by block
def columns_of(shard, name: str, l: int) -> list[tuple[float, ...]]:
    """The columns of a matrix."""
    return list(zip(*shard.checkpoint.rows(name, l), strict=True))


def transposed_rows(shard, name: str, l: int, first: int, last: int) -> list[tuple[float, ...]]:
    """Rows of a matrix that was taken for its transpose."""
    return columns_of(shard, name, l)[first:last]


def embedding_rows(shard, name: str, l: int, first: int, last: int) -> list[tuple[float, ...]]:
    """Rows of the embedding."""
    return shard.checkpoint.rows("embedding", 0, first, last)


def layer_matrices() -> list[tuple[str, str]]:
    """(operation, matrix) of those in a layer."""
    return [(op, name) for op, (name, _) in PRODUCTS.items() if name != "classifier"]


def wrong_matrices(config) -> Iterator[Kind]:
    """One matrix in place of another, or of itself."""
    multi_head = config.n_heads == config.n_kv_heads
    square = ("wq", "wo", "wk", "wv") if multi_head else ("wq", "wo")
    for op, name in layer_matrices():
        if name in square:
            yield transposed(op, name)
        if config.n_layers > 1:
            yield matrix_of_layer(op, name, 1, "after", config.n_layers)
            yield matrix_of_layer(op, name, -1, "before", config.n_layers)
        if config.n_layers > 2:
            yield matrix_of_first_layer(op, name)
    yield swapped_matrices("wk", "wv", ("k", "v"))
    yield swapped_matrices("wq", "wo", ("q", "attention_out"))


def dropped_tails() -> Iterator[Kind]:
    """A loop over rows or columns that ends too early."""
    class LastRow(Mistake):
        name = "the last row of every matrix is left out: its result is 0"
        changes = PRODUCT_OPS
        alone = True

        def product(self, op, l, pos):
            result = super().product(op, l, pos)
            result[-1] = 0.0
            return result
    yield LastRow

    def without_last_column(shard, name, l, first, last):
        return [(*row[:-1], 0.0) for row in shard.checkpoint.rows(name, l, first, last)]

    class LastColumn(Mistake):
        name = "the last column of every matrix is left out"
        changes = PRODUCT_OPS
        alone = True
        converts = True
        matrix = with_rows(ALL_MATRICES, without_last_column)
    yield LastColumn


LANES = (4, 8, 16, 32, 64)  # numbers that a processor takes at once


def vector_tails(config) -> Iterator[Kind]:
    """Loops that take several numbers at once, and leave out the rest."""
    lengths = (config.dim, config.hidden_dim, config.n_heads * config.head_size)
    seen = []
    for lanes in LANES:
        rests = [n % lanes for n in lengths]
        if any(rests) and rests not in seen and lanes <= min(lengths):
            seen.append(rests)
            yield vector_tail(lanes)


def vector_tail(lanes: int) -> Kind:
    """Products whose sums end at a multiple of so many numbers."""
    def without_tail(shard, name, l, first, last):
        _, _, columns = shard.checkpoint.tensors[name]
        tail = (0.0,) * (columns % lanes)
        end = columns - len(tail)
        return [row[:end] + tail for row in shard.checkpoint.rows(name, l, first, last)]

    class VectorTail(Mistake):
        name = f"products end at a multiple of {lanes} numbers: the columns behind it are left out"
        changes = PRODUCT_OPS
        alone = True
        converts = True
        matrix = with_rows(ALL_MATRICES, without_tail)
    return VectorTail


def transposed(op: str, which: str) -> Kind:
    """A matrix that was taken for its transpose."""
    class Transposed(Mistake):
        name = f"{which} is transposed"
        changes = (op,)
        converts = True
        matrix = with_rows((which,), transposed_rows)
    return Transposed


def matrix_of_layer(op: str, which: str, by: int, text: str, n_layers: int) -> Kind:
    """A matrix, a layer off."""
    class MatrixOfLayer(Mistake):
        name = f"{which} is that of the layer {text}"
        changes = (op,)
        alone = True

        def matrix(self, name, l):
            return super().matrix(name, (l + by) % n_layers if name == which else l)
    return MatrixOfLayer


def matrix_of_first_layer(op: str, which: str) -> Kind:
    """A matrix that is the first layer's in every layer."""
    class MatrixOfFirstLayer(Mistake):
        name = f"{which} is that of layer 0 in every layer"
        changes = (op,)
        alone = True

        def matrix(self, name, l):
            return super().matrix(name, 0 if name == which else l)
    return MatrixOfFirstLayer


def wrong_offsets(config) -> Iterator[Kind]:
    """Matrices that are read at another place of the file."""
    yield w2_and_w3_misread()
    if config.n_kv_heads < config.n_heads and config.n_heads * config.head_size == config.dim and config.n_layers > 1:
        yield wide_strides(config)


def w2_and_w3_misread() -> Kind:
    """Each of two matrices of as many numbers, read where the other stands."""
    names = {"w2": "w3", "w3": "w2"}

    @functools.lru_cache(1)  # of the matrix whose rows are asked for block by block
    def all_rows(shard, name, l):
        numbers = [v for row in shard.checkpoint.rows(names[name], l) for v in row]
        _, _, columns = shard.checkpoint.tensors[name]
        return [tuple(row) for row in split(numbers, columns)]

    def other_rows(shard, name, l, first, last):
        return all_rows(shard, name, l)[first:last]

    class Misread(Mistake):
        name = "w2 and w3 are read in each other's place in the file"
        changes = ("up", "ffn_out")
        converts = True
        matrix = with_rows(("w2", "w3"), other_rows)
    return Misread


def wide_strides(config) -> Kind:
    """wk and wv as if they had dim rows a layer: what is read runs on into the tensors behind them."""
    order = ("wk", "wv", "wo", "rms_ffn", "w1")  # of tensors whose rows have dim numbers, as in a file of version 0

    def row_behind(shard, name, l, row):
        number = l * config.dim + row
        for tensor in order[order.index(name):]:
            _, rows, _ = shard.checkpoint.tensors[tensor]
            if number < rows * config.n_layers:
                return shard.checkpoint.rows(tensor, number // rows, number % rows, number % rows + 1)[0]
            number -= rows * config.n_layers
        raise ValueError("beyond the file")

    def other_rows(shard, name, l, first, last):
        return [row_behind(shard, name, l, row) for row in range(first, last)]

    class WideStrides(Mistake):
        name = "wk and wv are read a layer dim * dim numbers apart, not kv_dim * dim"
        changes = ("k", "v")
        converts = True
        matrix = with_rows(("wk", "wv"), other_rows)
    return WideStrides


def swapped_matrices(one: str, other: str, ops: tuple[str, ...]) -> Kind:
    """Each of two matrices in place of the other."""
    names = {one: other, other: one}

    class SwappedMatrices(Mistake):
        name = f"{one} and {other} are swapped"
        changes = ops

        def matrix(self, name, l):
            return super().matrix(names.get(name, name), l)
    return SwappedMatrices


class OtherLayers(Mistake):
    """All weights are those of other layers."""
    changes = (*[op for op, _ in layer_matrices()], "attention_norm", "ffn_norm")
    alone = True

    def other_layer(self, l: int) -> int:
        """The layer whose weights layer l has."""
        raise NotImplementedError

    def matrix(self, name, l):
        return super().matrix(name, l if l is None else self.other_layer(l))

    def norm_weight(self, op, l):
        return super().norm_weight(op, l if l is None else self.other_layer(l))


def wrong_layers(n_layers: int) -> Iterator[Kind]:
    """Layers in another order, or fewer."""
    if n_layers == 1:
        return

    class Reversed(OtherLayers):
        name = "the layers run in reverse order"

        def other_layer(self, l):
            return n_layers - 1 - l
    yield Reversed

    yield skipped_layer(0, "first")
    yield skipped_layer(n_layers - 1, "last")

    class TheFirst(OtherLayers):
        name = "all weights are those of layer 0, in every layer"

        def other_layer(self, l):
            return 0
    yield TheFirst

    class After(OtherLayers):
        name = "all weights are those of the layer after"

        def other_layer(self, l):
            return (l + 1) % n_layers
    yield After

    class Before(OtherLayers):
        name = "all weights are those of the layer before"

        def other_layer(self, l):
            return (l - 1) % n_layers
    yield Before


def skipped_layer(skipped: int, text: str) -> Kind:
    """A layer that gives what entered it."""
    class SkippedLayer(Mistake):
        name = f"the {text} layer is skipped"
        changes = ("ffn_residual",)
        in_operations = False
        alone = True

        def ffn_residual(self, l, pos):
            return self.x(l, pos) if l == skipped else super().ffn_residual(l, pos)
    return SkippedLayer


def classifiers(config) -> Iterator[Kind]:
    """Another classifier."""
    if config.shared_classifier:
        return

    class EmbeddingForClassifier(Mistake):
        name = "the classifier is the embedding, but this model has one of its own"
        changes = ("logits",)
        matrix = with_rows(("classifier",), embedding_rows)
    yield EmbeddingForClassifier

    class WithTables(Mistake):
        name = "the classifier is read where RoPE's tables stand, which were not skipped"
        changes = ("logits",)
        matrix = with_rows(("classifier",), rows_with_tables)
    yield WithTables


def rows_with_tables(shard, name: str, l: int, first: int, last: int) -> list[tuple[float, ...]]:
    """Rows of a classifier that is read too early in a file of version 0, whose tables of cosines and sines stand
    before it. Raises ValueError for any other file."""
    checkpoint = shard.checkpoint
    tables = getattr(checkpoint, "tables", 0)
    if not tables:
        raise ValueError("no tables before the classifier")
    offset, _, columns = checkpoint.tensors[name]
    begin, end = (offset - tables + 4 * columns * row for row in (first, last))
    return [tuple(row) for row in split(from_bytes(checkpoint.data[begin:end]), columns)]


def weight_formats(config) -> Iterator[Kind]:
    """Weights in few bits."""
    for form in FORMATS:
        yield rounded_weights(f"weights are rounded to {form.name}", form.round, embedding_too=True, norms_too=True)
        yield rounded_weights(f"weights, without the norms', are rounded to {form.name}", form.round,
                              embedding_too=True, kept=NORM_OPS)
        yield rounded_weights(f"weights of matrices are rounded to {form.name}", form.round)
        yield rounded_weights(f"weights of the layers' matrices are rounded to {form.name}", form.round,
                              classifier_too=False)
    for group in 0, 32, 64, 128:
        if group < config.dim:
            yield from weights_in_int8(group)
    yield from other_weight_formats()


# Formats of weights that other tools write: name, and x (n) -> (n)


def truncated(x: Sequence[float]) -> tuple[float, ...]:
    """x (n) -> (n): cut to bfloat16, towards zero."""
    n = len(x)
    bits = [i & 0xFFFF0000 for i in unpack(f"{n}I", pack(f"{n}f", *x))]
    return unpack(f"{n}f", pack(f"{n}I", *bits))


def to_mantissa(x: Sequence[float], bits: int, least: int) -> list[float]:
    """x (n) -> (n), rounded to so many bits behind the first; least: the exponent of the smallest that have them."""
    result = []
    for v in x:
        _, exponent = math.frexp(v)
        step = 2.0 ** (max(exponent - 1, least) - bits)
        result.append(round(v / step) * step)
    return result


def tf32(x: Sequence[float]) -> list[float]:
    """x (n) -> (n), rounded to TensorFloat-32: 10 bits behind the first."""
    return to_mantissa(x, 10, -126)


def e4m3(x: Sequence[float]) -> list[float]:
    """x (n) -> (n), rounded to float8 with 4 bits of exponent; 448 is the largest."""
    return [max(-448.0, min(448.0, v)) for v in to_mantissa(x, 3, -6)]


def e5m2(x: Sequence[float]) -> list[float]:
    """x (n) -> (n), rounded to float8 with 5 bits of exponent; 57344 is the largest."""
    return [max(-57344.0, min(57344.0, v)) for v in to_mantissa(x, 2, -14)]


BLOCK = 32  # numbers that share a float16 scale in Q8_0 and Q4_0


def q8_0(x: Sequence[float]) -> tuple[float, ...]:
    """x (n) -> (n), in llama.cpp's Q8_0: the scale is the largest / 127."""
    result: list[float] = []
    for part in split(x, BLOCK):
        scale = max(map(abs, part)) / 127
        (kept,) = float16([scale])
        result += [kept * round(v / scale) for v in part] if scale else part
    return R(result)


def q4_0(x: Sequence[float]) -> tuple[float, ...]:
    """x (n) -> (n), in llama.cpp's Q4_0: the scale is the number farthest from 0 / -8."""
    result: list[float] = []
    for part in split(x, BLOCK):
        scale = max(part, key=abs) / -8
        (kept,) = float16([scale])
        result += [kept * (min(15, math.floor(v / scale + 8.5)) - 8) for v in part] if scale else part
    return R(result)


OTHER_FORMATS: tuple[tuple[str, Callable], ...] = (
    ("cut to bfloat16, not rounded", truncated), ("rounded to TensorFloat-32", tf32),
    ("rounded to float8 (e4m3)", e4m3), ("rounded to float8 (e5m2)", e5m2), ("in Q8_0", q8_0), ("in Q4_0", q4_0))


def other_weight_formats() -> Iterator[Kind]:
    """Weights in those formats, with the norms', with the embedding, and without it."""
    for text, rounded in OTHER_FORMATS:
        yield rounded_weights(f"weights are {text}", rounded, embedding_too=True, norms_too=True)
        yield rounded_weights(f"weights, without the norms', are {text}", rounded, embedding_too=True, kept=NORM_OPS)
        yield rounded_weights(f"weights of matrices are {text}", rounded)
        yield rounded_weights(f"weights of the layers' matrices are {text}", rounded, classifier_too=False)


def weights_in_int8(group: int) -> Iterator[Kind]:
    """Weights in 8 bits, in groups of so many with a scale each; 0: a row is a group."""
    def rounded(row):
        return int8(row, group)

    size = f"groups of {group}" if group else "rows"
    yield rounded_weights(f"weights are rounded to int8, in {size}", rounded, embedding_too=True)
    yield rounded_weights(f"weights of matrices are rounded to int8, in {size}", rounded)
    yield rounded_weights(f"weights of the layers' matrices are rounded to int8, in {size}", rounded,
                          classifier_too=False)


def rounded_weights(text: str, rounded: Callable, embedding_too: bool = False, norms_too: bool = False,
                    kept: tuple[str, ...] = (), classifier_too: bool = True) -> Kind:
    """Weights that are rounded, row by row: those of the matrices, and others; kept: Mistake.keeps."""
    matrices = ALL_MATRICES if classifier_too else tuple([name for name in ALL_MATRICES if name != "classifier"])
    products = PRODUCT_OPS if classifier_too else tuple([op for op in PRODUCT_OPS if op != "logits"])

    def rounded_rows(shard, name, l, first, last):
        return [tuple(rounded(row)) for row in shard.checkpoint.rows(name, l, first, last)]

    class OfMatrices(Mistake):
        name = text
        changes = products
        alone = True
        is_format = True
        converts = True
        matrix = with_rows(matrices, rounded_rows)
    if not embedding_too:
        return OfMatrices

    class AndOfEmbedding(OfMatrices):
        changes = ("embedding", *PRODUCT_OPS)
        keeps = kept

        def embedding(self, l, pos):
            return tuple(rounded(super().embedding(l, pos)))
    if not norms_too:
        return AndOfEmbedding

    class AndOfNorms(AndOfEmbedding):
        changes = ("embedding", *PRODUCT_OPS, *NORM_OPS)
        keeps = ()

        def norm_weight(self, op, l):
            return tuple(rounded(super().norm_weight(op, l)))
    return AndOfNorms
