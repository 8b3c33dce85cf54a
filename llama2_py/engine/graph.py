"""The operations of a Llama as a graph: their names in the order of computation, and what each depends on.

    inputs("weights", 2, 7, n_layers)    # [("q", 2, (7,)), ("k", 2, range(8))]
    PRODUCTS["q"]                        # ("wq", "attention_norm"): the matrix, and what it multiplies

The log, the doctor and the referee all take from here which operation is which. layer is None outside the layers.
"""
from collections.abc import Sequence
from typing import Any

Place = tuple[str, int | None]  # an operation's name, and its layer

OPERATIONS = ("attention_norm", "q", "k", "v", "weights", "attention", "attention_out", "attention_residual",
              "ffn_norm", "gate", "up", "swiglu", "ffn_out", "ffn_residual")  # of a layer, in order
OUTSIDE = ("embedding", "final_norm", "logits")  # outside the layers: one before them, two after

ROTATED = ("q", "k")  # products that RoPE turns: their elements come in pairs
RESIDUALS = ("attention_residual", "ffn_residual")  # sums

# Which matrix an operation multiplies by, and what it multiplies
PRODUCTS = {"q": ("wq", "attention_norm"), "k": ("wk", "attention_norm"), "v": ("wv", "attention_norm"),
            "attention_out": ("wo", "attention"), "gate": ("w1", "ffn_norm"), "up": ("w3", "ffn_norm"),
            "ffn_out": ("w2", "swiglu"), "logits": ("classifier", "final_norm")}
# Which tensor of one row a norm multiplies by
NORMS = {"attention_norm": "rms_att", "ffn_norm": "rms_ffn", "final_norm": "rms_final"}


def sequence(n_layers: int) -> list[Place]:
    """All operations of a position, in the order of computation."""
    layers = [(op, l) for l in range(n_layers) for op in OPERATIONS]
    return [("embedding", None), *layers, ("final_norm", None), ("logits", None)]


def count(n_layers: int) -> int:
    """How many operations a position has."""
    return len(OPERATIONS) * n_layers + len(OUTSIDE)


def index(op: str, layer: int | None, n_layers: int) -> int:
    """The number of an operation in sequence(n_layers)."""
    if layer is not None:
        return 1 + len(OPERATIONS) * layer + OPERATIONS.index(op)
    return {"embedding": 0, "final_norm": count(n_layers) - 2, "logits": count(n_layers) - 1}[op]


def operation(number: int, n_layers: int) -> Place:
    """The operation that has a number in sequence(n_layers)."""
    if number == 0:
        return "embedding", None
    layer, within = divmod(number - 1, len(OPERATIONS))
    if layer < n_layers:
        return OPERATIONS[within], layer
    return OUTSIDE[1 + within], None


def inputs(op: str, layer: int | None, pos: int, n_layers: int) -> list[tuple[str, int | None, Sequence[int]]]:
    """The results on which an operation at a position depends: (operation, layer, positions)."""
    here, so_far = (pos,), range(pos + 1)
    if op in PRODUCTS:
        return [(PRODUCTS[op][1], layer, here)]
    if op == "embedding":
        return []
    before: dict[str, list[tuple[str, int | None, Sequence[int]]]] = {
        "weights": [("q", layer, here), ("k", layer, so_far)],
        "attention": [("weights", layer, here), ("v", layer, so_far)],
        "ffn_norm": [("attention_residual", layer, here)],
        "swiglu": [("gate", layer, here), ("up", layer, here)],
        "ffn_residual": [("attention_residual", layer, here), ("ffn_out", layer, here)]}
    if op in before:
        return before[op]
    l = n_layers if layer is None else layer
    x = ("ffn_residual", l - 1, here) if l else ("embedding", None, here)
    return [x, ("attention_out", layer, here)] if op == "attention_residual" else [x]


def size(config: Any, op: str, pos: int) -> int:
    """How many numbers an operation has at a position; config: checkpoint.Config."""
    queries = config.n_heads * config.head_size
    sizes = {"q": queries, "k": config.kv_dim, "v": config.kv_dim, "weights": config.n_heads * (pos + 1),
             "attention": queries, "gate": config.hidden_dim, "up": config.hidden_dim, "swiglu": config.hidden_dim,
             "logits": config.vocab_size}
    return sizes.get(op, config.dim)


def place(op: str, layer: int | None, pos: int) -> str:
    """An operation's place, for the eye."""
    return f"position {pos}, " + ("" if layer is None else f"layer {layer}, ") + op
