"""The tree over a model's weights: which leaf is which row.

Leaf 0 is the config as a log's header has it. Then each row of each tensor is a leaf, its numbers as little-endian
float32: embedding; of each layer rms_att (one row), wq, wk, wv, wo, rms_ffn (one row), w1, w2, w3; rms_final (one row);
and the classifier, unless the model shares it with the embedding. A header's `weights` is the root.

    Leaves(config).index(Row("w2", 0, 17))    # where the leaf of row 17 of w2 in layer 0 stands
"""
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import merkle
from llama2_py.engine.checkpoint import LAYER, Config, shapes
from llama2_py.engine.models import AnyCheckpoint
from llama2_py.log.events import encode


def weights_root(config: dict, rows: Iterable[bytes]) -> str:
    """A header's config and the rows of all tensors in the order of the tree (Checkpoint.tree_rows) -> the tree's root,
    in hexadecimal."""
    return merkle.tree_head(map(merkle.leaf_hash, itertools.chain([encode(config)], rows))).hex()


def weights_tree(checkpoint: AnyCheckpoint) -> merkle.MerkleTree:
    """The tree itself, for paths to single rows: 43 bytes a row."""
    tree = merkle.MerkleTree()
    tree.append(merkle.leaf_hash(encode(checkpoint.config.described())))
    for row in checkpoint.tree_rows():
        tree.append(merkle.leaf_hash(row))
    return tree


@dataclass(frozen=True)
class Row:
    """The name of a row of the weights."""
    tensor: str
    layer: int  # 0 where there are no layers
    row: int

    def __str__(self) -> str:
        return f"{self.tensor} {self.layer} {self.row}"


class Leaves:
    """Where the leaves of a model stand. Nothing is built from the shapes: a header can name any."""

    def __init__(self, config: dict):
        """config: as a header has it."""
        c = Config.of(config)
        self.n_layers = c.n_layers
        self.shared = c.shared_classifier
        # name -> (rows, columns)
        self.shapes = {name: (rows, columns) for name, (_, rows, columns) in shapes(c).items()}
        self.shapes.setdefault("classifier", self.shapes["embedding"])
        # name -> the leaf of row 0; of a layer's tensors, in layer 0
        self.first = {"embedding": 1}
        begin = 1 + c.vocab_size
        self.per_layer = 0
        for name in LAYER:
            self.first[name] = begin + self.per_layer
            self.per_layer += self.shapes[name][0]
        self.first["rms_final"] = begin + c.n_layers * self.per_layer
        self.first["classifier"] = self.first["rms_final"] + 1
        self.size = self.first["classifier"]
        if not c.shared_classifier:
            self.size += c.vocab_size

    def tensor(self, name: str) -> str:
        """The tensor that serves as one: a shared classifier is the embedding."""
        return "embedding" if name == "classifier" and self.shared else name

    def has(self, row: Row) -> bool:
        """Whether the model has a row."""
        if row.tensor not in self.shapes:
            return False
        layers = self.n_layers if row.tensor in LAYER else 1
        return 0 <= row.layer < layers and 0 <= row.row < self.shapes[row.tensor][0]

    def index(self, row: Row) -> int:
        """The index of a row's leaf. Raises ValueError if there is no such row."""
        if not self.has(row):
            raise ValueError(f"the model has no row {row}")
        return self.first[self.tensor(row.tensor)] + row.layer * self.per_layer + row.row
