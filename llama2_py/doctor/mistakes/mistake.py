"""What a mistake is, a mistake in one layer, and two at once."""
from collections.abc import Callable, Sequence
from operator import add

from llama2_py.doctor.errors import U
from llama2_py.doctor.operations import Operations
from llama2_py.engine.graph import NORMS, OPERATIONS, PRODUCTS

NORM_OPS = tuple(NORMS)
HEADS = ("weights", "attention")
PRODUCT_OPS = tuple(PRODUCTS)
ALL_MATRICES = tuple([name for name, _ in PRODUCTS.values()])
METHODS = frozenset([name for name in vars(Operations) if not name.startswith("__")])  # what a mistake can replace


class Mistake(Operations):
    """A mistake: the operations of a program that makes it."""

    name = ""                       # what is said of it
    changes: tuple[str, ...] = ()   # the operations whose results it changes
    keeps: tuple[str, ...] = ()     # the operations of which its name says that they are right
    in_logits = True                # is it tried on logits?
    in_operations = True            # is it tried on operations?
    rough = False                   # does it round to few bits?
    is_format = False               # is it about numbers in few bits?
    converts = False                # does it convert whole matrices, which takes long?
    alone = False                   # is it tried by itself, never beside a second mistake?
    replaces: frozenset[str] = frozenset()  # the methods that it replaces
    of_classifier = False           # does it need all logits, or change the classifier?
    has_layers = False              # can it be made in one layer alone?

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.replaces = frozenset([name for name in METHODS if getattr(cls, name) is not getattr(Operations, name)])
        cls.of_classifier = "logits" in cls.changes and bool(cls.replaces & {"logits", "product", "matrix"})
        cls.has_layers = set(cls.changes) <= {*OPERATIONS} and not (cls.rough or cls.converts)


Kind = type[Mistake]


def in_layer(mistake: Kind, layer: int) -> Kind:
    """A mistake that is made in one layer alone."""
    class InLayer(Mistake):
        name = f"{mistake.name} (in layer {layer} alone)"
        changes = mistake.changes

        def __init__(self, shard, tokens, get):
            super().__init__(shard, tokens, get)
            self.mistaken = mistake(shard, tokens, get)

        def result(self, op, l, pos):
            return self.mistaken.result(op, l, pos) if l == layer else super().result(op, l, pos)

        def errors(self, op, l, pos, y):
            return self.mistaken.errors(op, l, pos, y) if l == layer else super().errors(op, l, pos, y)
    return InLayer


def both(a: Kind, b: Kind) -> Kind:
    """Two mistakes made together, which replace no method that is the same."""
    assert not a.replaces & b.replaces
    changes = tuple(dict.fromkeys([*a.changes, *b.changes]))
    return type("Both", (a, b), {"name": f"{a.name}; and {b.name}", "changes": changes})


WIDER = 8      # times the sigma that such a formula adds: what it adds to the bound
OF_A_MEAN = 8  # u by which a mean of some hundred numbers errs


def widened(ops: Sequence[str], extra: Callable) -> Callable:
    """Operations.errors, with room for a formula in which numbers cancel: u extra(self, op, l, pos, y) (n) more in each
    sigma, and WIDER times that in each bound."""
    def errors(self, op, l, pos, y):
        sigma, bound = Operations.errors(self, op, l, pos, y)
        if op not in ops:
            return sigma, bound
        more = [U * abs(v) for v in extra(self, op, l, pos, y)]
        return list(map(add, sigma, more)), [b + WIDER * m for b, m in zip(bound, more, strict=True)]
    return errors
