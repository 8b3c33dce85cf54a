"""The vectors that are exact: the sampler, its generator of random numbers, the tokenizer.

    tests = sampler_tests()    # [{"comment": .., "logits": [..], .., "expected": 3}, ..]
"""
from collections.abc import Iterator, Sequence
from itertools import pairwise
from struct import pack

import llama2
from llama2_py.engine.arithmetic import r
from llama2_py.engine.coins import xorshift
from tools.vectorgen.inputs import normals, rounded

VOCAB = 288
STEP = 2.0**-24   # from one coin to the next
SAFE = 2.0**-12   # how near a coin comes to an edge that exp's rounding can shift: by some 2^-22
SHORT = 12        # equal probabilities whose running sum, rounded, stays below the largest coin
NEVER = -1000.0   # a logit whose exp is 0 beside that of 0, in double as well


class WithCoin(llama2.Sampler):
    """A sampler whose coin is given."""
    given = 0.0

    def coin(self) -> float:
        return self.given


def sample(logits: Sequence[float], temperature: float, p: float, coin: float) -> int:
    """The token that a coin gives."""
    sampler = WithCoin(temperature, p)
    sampler.given = coin
    return sampler.sample(logits)


def sampler_test(comment: str, logits: Sequence[float], temperature: float, p: float, coin: float) -> dict:
    """A test; coin: rounded to one that the generator gives."""
    coin = round(coin / STEP) * STEP
    coin = min(max(coin, 0.0), 1 - STEP)
    logits = rounded(logits)
    expected = sample(logits, temperature, p, coin)
    return {"comment": comment, "logits": logits, "temperature": temperature, "p": p, "coin": coin,
            "expected": expected}


def edges(logits: Sequence[float], temperature: float, p: float) -> list[float]:
    """The coins at which another token begins."""
    sampler = WithCoin(temperature, p)
    sampler.sample(logits)
    _, sums, total, _ = sampler._choices(logits)
    return [s / total for s in sums]


def sampler_tests() -> Iterator[dict]:
    """Greedy, plain and top-p, on both sides of the edges, and on edges that are exact."""
    yield sampler_test("temperature 0: the largest logit", [0.5, 2.0, -1.0, 1.99], 0.0, 0.9, 0.99)
    yield sampler_test("temperature 0, equal logits: the first of them", [1.0, 3.0, 3.0, 3.0], 0.0, 0.9, 0.99)
    yield sampler_test("temperature 0, all logits equal", [-2.0] * 5, 0.0, 0.0, 0.5)
    yield from around_edges("plain", normals("plain", 6), 1.0, 1.0)
    yield from around_edges("plain, p is 0: as 1", normals("plain, 0", 5), 1.0, 0.0)
    yield from around_edges("top-p", normals("top-p", 8, 1.5), 1.0, 0.9)
    yield from around_edges("top-p, low temperature", normals("low", 8), 0.5, 0.8)
    yield from around_edges("top-p, high temperature", normals("high", 8, 3.0), 2.0, 0.7)
    yield from around_edges("a small p: the likeliest token alone", normals("small", 6), 1.0, 0.1)
    yield from exact_edges()


def around_edges(name: str, logits: Sequence[float], temperature: float, p: float) -> Iterator[dict]:
    """Coins on both sides of each edge, as near as rounding allows; the smallest and the largest."""
    found = edges(logits, temperature, p)
    assert all(b - a > 2 * SAFE for a, b in pairwise([0.0, *found])), name
    yield sampler_test(f"{name}: the smallest coin", logits, temperature, p, 0.0)
    for i, edge in enumerate(found[:-1]):
        yield sampler_test(f"{name}: before edge {i}", logits, temperature, p, edge - SAFE)
        yield sampler_test(f"{name}: after edge {i}", logits, temperature, p, edge + SAFE)
    yield sampler_test(f"{name}: the largest coin", logits, temperature, p, 1 - SAFE)


def exact_edges() -> Iterator[dict]:
    """Probabilities that are powers of two, on every machine: equal logits, and some that are far below."""
    quarters = [0.0] * 4
    for edge in 0.25, 0.5, 0.75:
        yield sampler_test(f"equal probabilities, a coin just below {edge}", quarters, 1.0, 1.0, edge - STEP)
        yield sampler_test(f"equal probabilities, a coin of {edge}: the next token", quarters, 1.0, 1.0, edge)
    yield sampler_test("equal probabilities, the largest coin", quarters, 1.0, 1.0, 1 - STEP)
    for coin in 0.0, 1 / 3 - STEP, 1 / 3 + STEP, 1 - STEP:
        yield sampler_test("top-p of 0.5 and quarters: the sum has to exceed p, so three are taken, by their numbers",
                           quarters, 1.0, 0.5, coin)
    for coin in 0.5 - STEP, 0.5, 1 - STEP:
        yield sampler_test("top-p of 0.49 and quarters: two are taken", quarters, 1.0, 0.49, coin)
    for coin in 0.5 - STEP, 0.5:
        yield sampler_test("probabilities that are just the cutoff, (1 - p) / (n - 1), take part", quarters, 1.0, 0.25,
                           coin)
    yield sampler_test("the rounded sum of all probabilities is below the coin: the last token", [0.0] * SHORT, 1.0,
                       1.0, 1 - STEP)
    halves = [NEVER, 0.0, NEVER, 0.0, NEVER]
    for coin in 0.0, 0.5 - STEP, 0.5, 1 - STEP:
        yield sampler_test("tokens of probability 0 are never taken", halves, 1.0, 1.0, coin)
        yield sampler_test("nor by top-p", halves, 1.0, 0.9, coin)
    yield sampler_test("one token", [1.5], 1.0, 0.9, 0.7)


def xorshift_tests() -> Iterator[dict]:
    """Seeds: the state after eight coins, and the coins."""
    for comment, seed in (("the smallest seed", 1), ("an ordinary seed", 42), ("32 bits", 2**32 - 1),
                          ("the highest bit alone", 2**63), ("the largest seed", 2**64 - 1)):
        state, coins = seed, []
        for _ in range(8):
            bits, state = xorshift(state)
            coins.append(bits / 2**24)
        yield {"comment": comment, "seed": str(seed), "state": str(state), "coins": coins}


# Pieces after the 256 bytes, with their scores. "ab" and "bc" tie; "abc" is reached by either, "  " by two spaces.
PIECES = [(" ", -1.0), ("a", -2.0), ("b", -3.0), ("c", -4.0), ("ab", -10.0), ("bc", -10.0), ("abc", -12.0),
          ("aa", -11.0), (" a", -13.0), (" ab", -9.0), ("aaa", -15.0), ("é", -20.0), ("😀", -21.0), ("d", -5.0),
          ("cd", -8.0), ("abcd", -30.0), ("t", -5.5), ("h", -5.6), ("e", -5.7), ("th", -7.0), ("he", -6.5),
          ("the", -14.0), (" the", -16.0), ("  ", -18.0), ("é😀", -25.0), ("\n", -6.0), ("0", -6.1), ("1", -6.2),
          ("00", -17.0)]
TEXTS = {
    "the empty text": "", "one character": "a", "a space: run.c's dummy prefix, and it": " ", "two spaces": "  a",
    "three spaces": "   the", "a tie: the leftmost pair merges": "abc", "a longer tie": "abcabc",
    "a merge that another one prevents": "bcd", "overlapping pairs": "aaaa", "five of them": "aaaaa",
    "a merge of merges": "abcd", "a better pair that stands later": "the", "words": "the abc the",
    "an umlaut without a token: two bytes": "ü", "an umlaut with a token": "é", "an emoji with a token": "😀",
    "an emoji without a token: four bytes": "👍", "a pair of emoji with a token": "é😀", "many bytes": "日本語",
    "a joined emoji": "👩‍👧", "a new line": "a\nb", "a tab, which has no token": "\t", "a trailing space": "ab ",
    "text that looks like a byte token": "<0x41>", "text that looks like BOS": "<s>", "digits": "1000",
    "a character beyond 16 bits among others": "a😀b👍c", "an accent by itself": "e\u0301", "the byte 0x7f": "\x7f"}


def tokenizer_bytes() -> bytes:
    """The file of the tokenizer: tokens 0, BOS, EOS, the bytes, PIECES."""
    first = [("<unk>", 0.0), ("\n<s>\n", 0.0), ("\n</s>\n", 0.0)]
    pieces = [*first, *[(f"<0x{i:02X}>", 0.0) for i in range(256)], *PIECES]
    assert len(pieces) == VOCAB
    encoded = [(piece.encode(), r(score)) for piece, score in pieces]
    parts = [pack("<fi", score, len(piece)) + piece for piece, score in encoded]
    return pack("<i", max([len(piece) for piece, _ in encoded])) + b"".join(parts)


def tokenizer_tests(path: str) -> Iterator[dict]:
    """Texts, their tokens, and the bytes that these decode to."""
    tokenizer = llama2.Tokenizer(path, VOCAB)
    for comment, text in TEXTS.items():
        tokens = tokenizer.encode(text)
        decoded = b"".join([tokenizer.decode(a, b) for a, b in pairwise(tokens)])
        yield {"comment": comment, "text": text, "tokens": tokens, "decoded_hex": decoded.hex()}
