"""Mistakes in the feed-forward network and the residual connections."""
import math
from collections.abc import Callable, Iterator
from math import exp, sqrt
from operator import add, mul

from llama2_py.doctor.mistakes.mistake import Kind, Mistake, widened
from llama2_py.doctor.mistakes.weights import swapped_matrices
from llama2_py.doctor.operations import sigmoid


def gelu(a: float) -> float:
    """By the error function."""
    return a * (1 + math.erf(a / sqrt(2))) / 2


def gelu_by_tanh(a: float) -> float:
    """As GPT-2 has it."""
    return a * (1 + math.tanh(sqrt(2 / math.pi) * (a + 0.044715 * a**3))) / 2


def quick_gelu(a: float) -> float:
    """As CLIP has it."""
    return a * sigmoid(1.702 * a)


def relu(a: float) -> float:
    """0 where a is negative."""
    return max(a, 0.0)


def squared_relu(a: float) -> float:
    """As Primer has it."""
    return max(a, 0.0)**2


def hard_swish(a: float) -> float:
    """As MobileNet has it."""
    return a * max(0.0, min(6.0, a + 3)) / 6


def mish(a: float) -> float:
    """a tanh(log(1 + exp(a)))"""
    return a * math.tanh(math.log1p(exp(min(a, 700.0))))


def identity(a: float) -> float:
    """No activation at all."""
    return a


ACTIVATIONS: tuple[tuple[str, Callable[[float], float]], ...] = (
    ("GELU", gelu),
    ("GELU, by tanh,", gelu_by_tanh),
    ("quick GELU, a * sigmoid(1.702 a),", quick_gelu),
    ("ReLU", relu),
    ("the square of ReLU", squared_relu),
    ("hard swish, a * min(max(a + 3, 0), 6) / 6,", hard_swish),
    ("Mish, a * tanh(log(1 + exp(a))),", mish),
    ("a sigmoid", sigmoid),
    ("tanh", math.tanh),
    ("nothing", identity),
)


def formulas() -> Iterator[Kind]:
    """The feed-forward network."""
    for text, function in ACTIVATIONS:
        yield other_activation(text, function)
    yield swapped_matrices("w1", "w3", ("gate", "up"))

    class OfTheOther(Mistake):
        name = "SiLU is applied to w3 x, not to w1 x"
        changes = ("swiglu",)
        in_logits = False

        def swiglu(self, l, pos):
            activated = map(self.activation, self.get("up", l, pos))
            return list(map(mul, activated, self.get("gate", l, pos)))
    yield OfTheOther

    class WithoutUp(Mistake):
        name = "w3 x is left out"
        changes = ("swiglu",)

        def swiglu(self, l, pos):
            return list(map(self.activation, self.get("gate", l, pos)))
    yield WithoutUp


def other_activation(text: str, function: Callable[[float], float]) -> Kind:
    """Another function in place of SiLU."""
    def product_of_both(self, op, l, pos, y):
        """gate * up, (hidden_dim)"""
        return list(map(mul, self.get("gate", l, pos), self.get("up", l, pos)))

    class OtherActivation(Mistake):
        name = f"{text} stands for SiLU"
        changes = ("swiglu",)
        activation = staticmethod(function)
        errors = widened(("swiglu",), product_of_both)
    return OtherActivation


def residuals() -> Iterator[Kind]:
    """The residual connections."""
    yield from one_residual("attention_residual", "attention_out", "attention_norm")
    yield from one_residual("ffn_residual", "ffn_out", "ffn_norm")

    class WithoutAttention(Mistake):
        name = "ffn_residual adds to what entered the layer, without attention"
        changes = ("ffn_residual",)

        def ffn_residual(self, l, pos):
            return list(map(add, self.x(l, pos), self.get("ffn_out", l, pos)))
    yield WithoutAttention


def one_residual(op: str, out: str, norm: str) -> Iterator[Kind]:
    """One of the two connections."""
    def replaced(residual: Callable, text: str, is_alone: bool) -> Kind:
        return type("OneResidual", (Mistake,), {"name": f"{op} {text}", "changes": (op,), "alone": is_alone,
                                                op: residual})

    def without_x(self, l, pos):
        return self.get(out, l, pos)

    def to_norm(self, l, pos):
        return list(map(add, self.get(norm, l, pos), self.get(out, l, pos)))

    def to_embedding(self, l, pos):
        return list(map(add, self.get("embedding", None, pos), self.get(out, l, pos)))

    def twice(self, l, pos):
        x, change = self.parts(op, l, pos)
        return [a + 2 * b for a, b in zip(x, change, strict=True)]

    yield replaced(without_x, "is missing: x is not added", False)
    yield replaced(to_norm, "adds to the result of the norm, not to x", False)
    yield replaced(to_embedding, "adds to the embedding, not to x", True)
    yield replaced(twice, "adds twice", True)
