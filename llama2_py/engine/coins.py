"""The generators of random numbers: each takes a state of 64 bits and gives 24 random bits and the next state."""

MASK = 2**64 - 1


def xorshift(state: int) -> tuple[int, int]:
    """xorshift64*, llama2.c's generator (run.c: random_u32)."""
    state ^= state >> 12
    state ^= state << 25 & MASK
    state ^= state >> 27
    return (state * 0x2545F4914F6CDD1D & MASK) >> 40, state


def llama2_rs(state: int) -> tuple[int, int]:
    """llama2-rs's generator."""
    def rotate(value: int, by: int) -> int:
        return (value << by | value >> (64 - by)) & MASK

    return rotate(rotate(state, 5) * 5 & MASK, 7) >> 40, rotate(state, 23) + 0x9E3779B97F4A7C15 & MASK


GENERATORS = {"xorshift64*": xorshift, "llama2-rs": llama2_rs}
