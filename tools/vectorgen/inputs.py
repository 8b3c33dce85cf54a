"""What the test vectors of operations are given: ordinary numbers of many shapes, and the edges.

    tests = by_file()    # {"rmsnorm": [Norm, ..], ..}

Numbers come from random() alone, whose bits are the same everywhere, and have five digits, which keeps the files small.
"""
from collections.abc import Iterator, Sequence
from random import Random

from llama2_py.engine.arithmetic import r
from tools.vectorgen.operations import (AttentionMix, AttentionWeights, Embedding, Norm, Product, Residual, Rope,
                                        ScaledRope, Swiglu, Test, Undefined)

TINY = 2.0**-126     # the smallest normal float32
DENORMAL = 2.0**-149  # the smallest of all
LARGEST = 3.4028234663852886e38
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LLAMA32 = {**LLAMA3, "factor": 32.0}
HEADS = [(2, 2, 4), (4, 2, 2), (4, 1, 6), (8, 1, 2), (6, 3, 8), (1, 1, 64), (2, 1, 128)]  # of queries, of keys, hs


def five_digits(value: float) -> float:
    """The float32 nearest to a number's first five digits."""
    return r(float(f"{value:.5g}"))


def normals(seed: str, n: int, scale: float = 1.0, mean: float = 0.0) -> list[float]:
    """n numbers, almost normal: sums of twelve that are uniform."""
    rng = Random(seed)
    return [five_digits(mean + scale * (sum([rng.random() for _ in range(12)]) - 6)) for _ in range(n)]


def rows(seed: str, n: int, columns: int, scale: float = 1.0) -> list[list[float]]:
    """n rows of such numbers."""
    return [normals(f"{seed}, row {i}", columns, scale) for i in range(n)]


def rounded(values: Sequence[float]) -> list[float]:
    """values (n) -> (n), rounded to float32."""
    return [r(v) for v in values]


def embeddings() -> Iterator[Test]:
    """Rows of a table."""
    table = rows("embedding", 5, 7)
    for token, which in (0, "first"), (3, "ordinary"), (4, "last"):
        yield Embedding(f"the {which} row", table=table, token=token)
    extremes = rounded([0.0, -0.0, LARGEST, -LARGEST, TINY, -TINY, 1 / 3])
    yield Embedding("zeros, the largest and the smallest normal numbers", table=[extremes, extremes[::-1]], token=1)


def norms() -> Iterator[Test]:
    """Norms."""
    for n in 16, 7, 1, 2, 33, 130:
        yield Norm(f"ordinary numbers, n = {n}", x=normals(f"norm {n}", n), weight=normals(f"weight {n}", n, 0.3, 1.0))
    weight = normals("weight", 10, 0.5, 1.0)
    yield Norm("a mean far from 0: LayerNorm would take it off", x=normals("mean", 10, 0.2, 3.0), weight=weight)
    for scale in 1e-2, 3e-3, 1e-3, 1e-4, 1e-6:
        yield Norm(f"small numbers, about {scale:g}: epsilon counts", x=normals(f"small {scale}", 10, scale),
                   weight=weight)
    yield Norm("x is zero: epsilon alone saves it from 0 / 0", x=[0.0, -0.0] * 5, weight=weight)
    denormals = rounded([DENORMAL, -3 * DENORMAL, TINY / 2, -TINY / 3, TINY, 0.0, 5 * TINY, -TINY, TINY / 7, 1e-39])
    yield Norm("denormals: squares are 0, and x may be flushed", x=denormals, weight=normals("large", 10, 100.0))
    yield Norm("large numbers, whose squares do not overflow", x=normals("large", 8, 1e15), weight=weight[:8])
    yield Norm("one number outweighs all others", x=rounded([1e-3, 1000.0, 0.5, -0.25, 1e-5]), weight=normals("one", 5))
    zeros = [0.0, -1.5, -0.0, 2.5, -1e-3, 1000.0]
    yield Norm("weights that are zero, negative, large", x=normals("zeros", 6), weight=rounded(zeros))


def products() -> Iterator[Test]:
    """Matrices times vectors."""
    for n, columns in (5, 16), (12, 12), (3, 7), (1, 1), (4, 2), (7, 13), (9, 33), (2, 24), (3, 48):
        name = f"ordinary numbers, ({n}, {columns})"
        yield Product(name, w=rows(name, n, columns), x=normals(f"{name}, x", columns))
    long = rows("long", 2, 160, 0.1)
    yield Product("long rows, with one large weight each", w=[[4.0, *row[1:]] for row in long],
                  x=normals("long, x", 160))
    pairs = rows("cancel", 4, 6)
    yield Product("sums that cancel: what is left is far smaller than the terms",
                  w=[[*row, *[-v for v in row], 1.0] for row in pairs], x=[*[3.0] * 6, *[3.0] * 6, rounded([1e-3])[0]])
    yield Product("large and small terms in one sum", w=[rounded([1e18, 1.0, -1e18]), rounded([1e-18, 1e10, 1.0])],
                  x=rounded([1e18, 1.0, 1e17]))
    yield Product("x is zero", w=rows("zero", 3, 5), x=[0.0, -0.0, 0.0, 0.0, 0.0])
    small = rounded([TINY, -TINY / 2, DENORMAL, 3 * TINY, -TINY])
    yield Product("denormals, which may be flushed", w=rows("denormal", 3, 5, 10.0), x=small)
    yield Product("products that are denormals", w=[rounded([1e-20, -2e-20, 3e-20])] * 2,
                  x=rounded([1e-19, 1e-19, -1e-19]))


def ropes() -> Iterator[Test]:
    """RoPE."""
    for pos in 0, 1, 7, 100, 2047, 2600:
        yield Rope(f"position {pos}", x=normals(f"rope {pos}", 24), pos=pos, head_size=8, theta=10000.0)
    for hs, heads in (2, 3), (4, 2), (6, 4), (64, 1), (128, 1):
        yield Rope(f"{heads} heads of {hs}", x=normals(f"rope, {hs}", hs * heads), pos=13, head_size=hs, theta=10000.0)
    for pos in 1, 100, 2047:
        yield Rope(f"Llama 3's theta, position {pos}", x=normals(f"theta {pos}", 16), pos=pos, head_size=16,
                   theta=500000.0)
    yield Rope("one vector of each pair is zero, one denormal", x=rounded([0.0, -0.0, TINY, -TINY / 2, 1.0, 0.0, 0.0,
               -1.0]), pos=3, head_size=4, theta=10000.0)


def scaled_ropes() -> Iterator[Test]:
    """RoPE of a context that was lengthened."""
    for pos in 1, 100, 2047, 20000:
        yield ScaledRope(f"Llama 3.1's scaling, position {pos}: short waves stay, long ones shrink, some are between",
                         x=normals(f"scaled {pos}", 64), pos=pos, head_size=64, theta=500000.0, scaling=LLAMA3)
    yield ScaledRope("heads of 128", x=normals("scaled", 128), pos=1000, head_size=128, theta=500000.0, scaling=LLAMA3)
    yield ScaledRope("Llama 3.2's factor", x=normals("scaled, 32", 128), pos=77, head_size=64, theta=500000.0,
                     scaling=LLAMA32)
    yield ScaledRope("linear scaling: the factor alone", x=normals("linear", 24), pos=100, head_size=8, theta=10000.0,
                     scaling={"factor": 4.0})


def attention_weights() -> Iterator[Test]:
    """Queries and keys."""
    for heads, kv_heads, hs in HEADS:
        n = 3 if hs > 8 else 6
        name = f"{heads} heads of queries, {kv_heads} of keys, hs = {hs}, {n} positions"
        yield AttentionWeights(name, q=normals(f"{name}, q", heads * hs), keys=rows(name, n, kv_heads * hs),
                               n_heads=heads, n_kv_heads=kv_heads)
    two = {"n_heads": 2, "n_kv_heads": 2}
    q = normals("q", 8)
    yield AttentionWeights("a single position: all weights are 1", q=q, keys=rows("single", 1, 8), **two)
    yield AttentionWeights("two positions", q=q, keys=rows("two", 2, 8), **two)
    yield AttentionWeights("many positions", q=q, keys=rows("many", 23, 8), **two)
    yield AttentionWeights("equal scores: all weights are 1 / 5", q=q, keys=rows("equal", 1, 8) * 5, **two)
    yield AttentionWeights("the query is zero", q=[0.0, -0.0] * 4, keys=rows("zero", 3, 8), **two)
    yield AttentionWeights("scores far apart, up to some hundreds: exp without the largest taken off overflows, and "
                           "with it some weights are 0", q=normals("far", 8, 20.0), keys=rows("far", 7, 8, 10.0),
                           **two)
    spread = [[0.0, 0.0], [-60.0, 0.0], [-85.0, 0.0], [-87.5, 0.0], [-95.0, 0.0], [-103.0, 0.0], [-110.0, 0.0]]
    yield AttentionWeights("weights that are denormals or 0", q=rounded([2.0**0.5, 0.0]), keys=spread, n_heads=1,
                           n_kv_heads=1)
    yield AttentionWeights("large scores, all of them negative", q=[10.0, 10.0], n_heads=1, n_kv_heads=1,
                           keys=list(map(rounded, [(-20.0, -20.1), (-20.0, -20.0), (-20.2, -20.0)])))
    yield AttentionWeights("denormal keys", q=normals("denormal", 4), keys=[rounded([TINY, -TINY / 2, DENORMAL, 0.0]),
                           rounded([0.0, TINY, TINY, -TINY])], n_heads=1, n_kv_heads=1)


def shares(seed: str, heads: int, n: int) -> list[float]:
    """Weights of heads, (heads * n): positive, with a sum of about 1 for each head."""
    result: list[float] = []
    for h in range(heads):
        part = [abs(v) for v in normals(f"{seed}, head {h}", n)]
        result += [five_digits(v / sum(part)) for v in part]
    return result


def attention_mixes() -> Iterator[Test]:
    """Weights and values."""
    for heads, kv_heads, hs in HEADS:
        n = 3 if hs > 8 else 6
        name = f"{heads} heads of queries, {kv_heads} of values, hs = {hs}, {n} positions"
        yield AttentionMix(name, weights=shares(name, heads, n), values=rows(name, n, kv_heads * hs), n_heads=heads,
                           n_kv_heads=kv_heads)
    shared = {"n_heads": 2, "n_kv_heads": 1}
    yield AttentionMix("a single position: its value", weights=[1.0, 1.0], values=rows("single", 1, 4), **shared)
    yield AttentionMix("two positions", weights=shares("two", 2, 2), values=rows("two", 2, 4), **shared)
    yield AttentionMix("many positions", weights=shares("many", 2, 23), values=rows("many", 23, 2), **shared)
    yield AttentionMix("all weight on one position", weights=[0.0, 1.0, 0.0, 0.0, 0.0, 1.0], values=rows("one", 3, 4),
                       **shared)
    yield AttentionMix("weights that are denormals", weights=rounded([1.0, TINY, DENORMAL, TINY / 2, 1.0, 1e-30]),
                       values=rows("denormal", 3, 4, 100.0), **shared)
    opposite = rows("cancel", 1, 4)
    yield AttentionMix("values that cancel", weights=[0.5, 0.5, 0.25, 0.75],
                       values=[opposite[0], [-v for v in opposite[0]]], **shared)


def swiglus() -> Iterator[Test]:
    """Gates."""
    for n in 16, 7, 1:
        yield Swiglu(f"ordinary numbers, n = {n}", gate=normals(f"gate {n}", n, 2.0), up=normals(f"up {n}", n))
    steps = rounded([i / 2 for i in range(-12, 13)])
    yield Swiglu("gates from -6 to 6, up is 1: the curve itself", gate=steps, up=[1.0] * 25)
    far = [9.0, -9.0, 17.0, -17.0, 25.0, -25.0, 60.0, -60.0, 88.0, -88.0, 0.0, -0.0]
    yield Swiglu("large gates", gate=far, up=normals("far", 12, 10.0))
    yield Swiglu("gates near 0", gate=rounded([1e-3, -1e-3, 1e-8, -1e-8, TINY, -TINY, DENORMAL]),
                 up=normals("near", 7, 10.0))
    yield Swiglu("large positive gates: exp(-gate) is a denormal, or 0", gate=[87.5, 89.0, 100.0, 104.0, 1000.0],
                 up=rounded([1.0, -1.0, 1000.0, 1e-3, 1e6]))
    yield Swiglu("up is zero, a denormal, large", gate=[1.0, -1.0, 2.0, -3.0, 0.5, 1.5],
                 up=rounded([0.0, -0.0, TINY, -TINY / 2, 1e30, -1e30]))
    yield Undefined("gates below -88.7: exp(-gate) overflows to infinity, and the result is 0, or a denormal",
                    gate=rounded([-88.5, -88.8, -89.0, -100.0, -104.0, -1000.0]),
                    up=rounded([1.0, 1000.0, -1.0, 1.0, 1e6, 1.0]))


def residuals() -> Iterator[Test]:
    """Sums of two vectors."""
    for n in 16, 7, 1:
        yield Residual(f"ordinary numbers, n = {n}", x=normals(f"x {n}", n), change=normals(f"change {n}", n, 0.5))
    x = normals("cancel", 8)
    yield Residual("numbers that cancel", x=x, change=[*[-v for v in x[:4]], *[r(-v * (1 + 2.0**-22)) for v in x[4:]]])
    yield Residual("a change far smaller than x", x=[1.0, -1000.0, 1e6, 0.5], change=rounded([1e-9, 1e-4, 0.03, 6e-8]))
    yield Residual("zeros and denormals", x=rounded([0.0, -0.0, TINY, DENORMAL, -TINY]),
                   change=rounded([0.0, -0.0, -TINY / 2, DENORMAL, TINY]))
    yield Residual("the largest numbers", x=[LARGEST, -LARGEST, LARGEST, r(1e38)],
                   change=[-LARGEST, 0.0, r(-1e38), r(2e38)])


def by_file() -> dict[str, list[Test]]:
    """The tests of each file, {its name: tests}."""
    families = (embeddings, norms, products, ropes, scaled_ropes, attention_weights, attention_mixes, swiglus,
                residuals)
    tests = [test for family in families for test in family()]
    return {name: [test for test in tests if test.file == name] for name in dict.fromkeys([t.file for t in tests])}
