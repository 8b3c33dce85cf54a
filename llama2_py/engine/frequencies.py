"""By how much RoPE turns each pair of a head from one position to the next.

    frequencies(Exact, config)    # (hs / 2): theta^(-2i / hs) for pair i, scaled if the config says so
"""
from collections.abc import Callable, Sequence
from math import pi

from llama2_py.engine.arithmetic import Arithmetic, r
from llama2_py.engine.checkpoint import Config


def frequencies(A: Arithmetic, config: Config, pairs: Sequence[int] | None = None) -> list[float]:
    """The frequencies of the pairs of a head, (hs / 2); pairs: of these alone."""
    hs = config.head_size
    if pairs is None:
        pairs = range(hs // 2)
    result = [r(1.0 / A.pow(r(config.rope_theta), r(2 * i / hs))) for i in pairs]
    return [scaled(f, config.rope_scaling) for f in result] if config.rope_scaling else result


def scaled(f: float, scaling: dict | None, rounded: Callable[[float], float] = r) -> float:
    """A frequency of a model whose context was lengthened after its training: in such a model positions shrink by a
    factor. In Llama 3 only those of long waves do, those of short ones stay, and between two limits the one passes into
    the other (transformers: _compute_llama3_parameters). rounded: what is done to each result."""
    if scaling is None:
        return f
    factor = rounded(scaling["factor"])
    slow = rounded(f / factor)
    if "low_freq_factor" not in scaling:
        return slow
    low, high = rounded(scaling["low_freq_factor"]), rounded(scaling["high_freq_factor"])
    original = rounded(scaling["original_max_position_embeddings"])
    wavelength = rounded(rounded(2 * pi) / f)
    if wavelength < rounded(original / high):
        return f
    if wavelength > rounded(original / low):
        return slow
    s = rounded(rounded(rounded(original / wavelength) - low) / rounded(high - low))
    kept, shrunk = rounded(s * f), rounded(rounded(rounded(1.0 - s) * f) / factor)
    return rounded(shrunk + kept)
