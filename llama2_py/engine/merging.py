"""Byte-pair encoding: neighbours merge, the best pair first, until none does.

    merge([5, 6, 7], lambda a, b: (0.0, 9) if (a, b) == (5, 6) else None)    # [9, 7]
"""
from collections.abc import Callable, Sequence
from heapq import heappop, heappush

MERGED = -1  # stands for a token that has become a part of the one before it


def merge(tokens: Sequence[int], pair: Callable[[int, int], tuple[float, int] | None]) -> list[int]:
    """Tokens -> the tokens that are left. pair(a, b) gives, of two neighbours, the order in which they merge and the
    token that they become, or None: the lowest order merges first, of equal ones the leftmost.

    A heap holds the pairs and a linked list the remaining tokens, so that n tokens take n log n steps.
    """
    found = list(tokens)
    right = list(range(1, len(found) + 1))  # the index of the next remaining token
    left = list(range(-1, len(found) - 1))
    heap: list[tuple] = []

    def consider(i: int, j: int) -> None:
        first, second = found[i], found[j]
        merged = pair(first, second)
        if merged is not None:
            order, token = merged
            heappush(heap, (order, i, j, first, second, token))

    for i in range(len(found) - 1):
        consider(i, i + 1)
    while heap:
        _, i, j, first, second, token = heappop(heap)
        if found[i] != first or found[j] != second or right[i] != j:
            continue  # one of the two has merged since
        found[i], found[j] = token, MERGED
        right[i] = right[j]
        if right[i] < len(found):
            left[right[i]] = i
            consider(i, right[i])
        if left[i] >= 0:
            consider(left[i], i)
    return [token for token in found if token != MERGED]
