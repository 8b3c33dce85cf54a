r"""Merkle trees as in Certificate Transparency: RFC 6962, section 2, and RFC 9162, section 2.1.

A tree of seven leaves d0 .. d6. A node splits its leaves at the largest power of two that is smaller than their number,
so a tree that grows keeps its full subtrees, and only the nodes on its right edge change:

                 root                        leaf d, of data: SHA256(0x00 || data)
              /        \                     node over a and b: H(a, b) = SHA256(0x01 || a || b)
           k              l                  empty tree: SHA256()
         /   \          /   \
        g     h        i     d6              The inclusion proof of d2 in 7 leaves is [d3, g, l]:
       / \   / \      / \                      k = H(g, H(d2, d3)), root = H(k, l).
      d0 d1 d2 d3    d4 d5                   The consistency proof of 3 leaves with 7 is [d2, d3, g, l]:
                                               the old root is H(g, d2), the new one H(H(g, H(d2, d3)), l).

    tree = MerkleTree()
    for data in log:
        tree.append(leaf_hash(data))
    verify_inclusion(leaf_hash(log[2]), 2, len(log), tree.inclusion_proof(2), tree.root())

The prefixes 0x00 and 0x01 keep a node from passing as a leaf. A check takes the index and the sizes from its caller and
derives from them alone how many hashes a proof has and on which side each stands; from a proof it takes nothing but
hashes. Consistency proofs are for logs that publish a root more than once while they grow.
"""
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256


class ProofError(ValueError):
    """A proof does not prove what it should, or is no proof."""


def leaf_hash(data: bytes) -> bytes:
    """SHA256(0x00 || data), RFC 6962 section 2.1"""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA256(0x01 || left || right), RFC 6962 section 2.1"""
    return sha256(b"\x01" + left + right).digest()


def tree_head(leaves: Iterable[bytes]) -> bytes:
    """The root over leaf hashes that come one by one (MTH in RFC 6962, 2.1), in O(log n) memory: where no proofs are
    asked for."""
    # the roots of the full subtrees so far, left to right: one for each bit 1 of the number of leaves
    subtrees: list[bytes] = []
    for count, node in enumerate(leaves, 1):
        while count % 2 == 0:  # the subtree that ends here is as large as the one to its left
            node, count = node_hash(subtrees.pop(), node), count // 2
        subtrees.append(node)
    if not subtrees:
        return sha256().digest()
    node = subtrees.pop()
    while subtrees:
        node = node_hash(subtrees.pop(), node)
    return node


class MerkleTree:
    """A tree that grows by appending leaf hashes. Any smaller size that it once had can be asked for as well.

    append takes amortized constant time; root, inclusion_proof and consistency_proof take O(log n). Of the levels of
    full subtrees every second one is kept, 32 bytes a node: 43 bytes a leaf. Give node_hash if nodes hash otherwise.
    """

    def __init__(self, node_hash: Callable[[bytes, bytes], bytes] = node_hash):
        self.node_hash = node_hash
        self.levels = [bytearray()]  # levels[i] holds the roots of the full subtrees of 4**i leaves, left to right
        self.size = 0

    def __len__(self) -> int:
        return self.size

    def append(self, leaf: bytes) -> None:
        """Add a leaf, given by its hash of 32 bytes."""
        if len(leaf) != 32:
            raise ValueError(f"a leaf hash has 32 bytes, not {len(leaf)}")
        self.levels[0] += leaf
        self.size += 1
        level, index = 0, self.size - 1
        while index % 4 == 3:  # the last of four: their parent's parent is full
            level, index = level + 1, index // 4
            if level == len(self.levels):
                self.levels.append(bytearray())
            self.levels[level] += self._full(2 * level, index)

    def root(self, size: int | None = None) -> bytes:
        """The tree head of the first `size` leaves, or of all."""
        size = self._checked(size)
        return self._root(0, size) if size else sha256().digest()

    def inclusion_proof(self, index: int, size: int | None = None) -> list[bytes]:
        """PATH(index, D[size]) of RFC 6962 section 2.1.1: the siblings of the nodes between the leaf and the root."""
        size = self._checked(size)
        if not 0 <= index < size:
            raise ValueError(f"index {index} is not in a tree of {size} leaves")

        def path(start, size):
            if size == 1:
                return []
            k = split(size)
            if index < start + k:
                return path(start, k) + [self._root(start + k, size - k)]
            return path(start + k, size - k) + [self._root(start, k)]

        return path(0, size)

    def consistency_proof(self, size1: int, size2: int | None = None) -> list[bytes]:
        """PROOF(size1, D[size2]) of RFC 6962 section 2.1.2: the hashes from which both trees' roots can be worked out,
        together with the first root itself if size1 is a power of two."""
        size2 = self._checked(size2)
        if not 0 < size1 <= size2:
            raise ValueError(f"size {size1} is not in 1 .. {size2}")

        def subproof(start, size, whole):
            if size1 == start + size:
                return [] if whole else [self._root(start, size)]
            k = split(size)
            if size1 <= start + k:
                return subproof(start, k, whole) + [self._root(start + k, size - k)]
            return subproof(start + k, size - k, False) + [self._root(start, k)]

        return subproof(0, size2, True)

    def _checked(self, size):
        if size is None:
            return self.size
        if not 0 <= size <= self.size:
            raise ValueError(f"size {size} is not in 0 .. {self.size}")
        return size

    def _root(self, start, size):
        """MTH(D[start:start + size]), the Merkle tree hash of RFC 6962 section 2.1, where start is a multiple of the
        smallest power of two >= size."""
        if size & (size - 1) == 0:
            level = size.bit_length() - 1
            return self._full(level, start >> level)
        k = split(size)
        return self.node_hash(self._root(start, k), self._root(start + k, size - k))

    def _full(self, level, index):
        """The root of the full subtree number `index` of 2**level leaves."""
        if level % 2 == 0 and len(self.levels[level // 2]) > 32 * index:
            return bytes(self.levels[level // 2][32 * index:32 * index + 32])
        return self.node_hash(self._full(level - 1, 2 * index), self._full(level - 1, 2 * index + 1))


def split(size: int) -> int:
    """The largest power of two smaller than size."""
    return 1 << ((size - 1).bit_length() - 1)


def sides(index: int, last: int) -> Iterator[bool]:
    """For each sibling in the audit path of node `index` of a level that ends with node `last`: is it on the left?"""
    while last:
        if index & 1:
            yield True
        elif index < last:  # else the node has no sibling on its level
            yield False
        index, last = index >> 1, last >> 1


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that the leaf at `index` of the tree of `size` leaves with that root has this hash (RFC 9162, 2.1.3.2).

    Hashes are bytes, proof a list or tuple of them. Returns None, or raises ProofError, whatever it is given.
    """
    check_numbers(index=index, size=size)
    check_hashes(proof, leaf, root)
    if not index < size:
        raise ProofError(f"index {index} is not in a tree of {size} leaves")
    path = list(sides(index, size - 1))
    if len(proof) != len(path):
        raise ProofError(f"the proof has {len(proof)} hashes, must have {len(path)} for leaf {index} of {size}")
    computed = leaf
    for left, sibling in zip(path, proof, strict=True):
        computed = node_hash(sibling, computed) if left else node_hash(computed, sibling)
    equal("root", root, computed)


def verify_consistency(size1: int, size2: int, proof: Sequence[bytes], root1: bytes, root2: bytes) -> None:
    """Check that a tree of size1 leaves with root1 begins that of size2 leaves with root2 (RFC 9162, 2.1.4.2).

    Returns None or raises ProofError, whatever it is given. An empty first tree raises: every tree begins with it, and
    RFC 9162 defines proofs for 0 < size1 only.
    """
    check_numbers(size1=size1, size2=size2)
    check_hashes(proof, root1, root2)
    if not 0 < size1 <= size2:
        raise ProofError(f"size {size1} is not in 1 .. {size2}")
    if size1 == size2:
        if proof:
            raise ProofError(f"the proof has {len(proof)} hashes, must have none for trees of the same size")
        if root1 != root2:
            raise ProofError(f"trees of the same size have the roots {root1.hex()} and {root2.hex()}")
        return
    index, last = size1 - 1, size2 - 1
    while index & 1:  # up to the last full subtree of the first tree
        index, last = index >> 1, last >> 1
    path = list(sides(index, last))
    begin = 0 if size1 & (size1 - 1) == 0 else 1  # if the first tree is that subtree, its root is not in the proof
    need = begin + len(path)
    if len(proof) != need:
        raise ProofError(f"the proof has {len(proof)} hashes, must have {need} for {size1} of {size2} leaves")
    computed1 = computed2 = proof[0] if begin else root1
    for left, sibling in zip(path, proof[begin:], strict=True):
        if left:
            computed1, computed2 = node_hash(sibling, computed1), node_hash(sibling, computed2)
        else:
            computed2 = node_hash(computed2, sibling)
    equal("first root", root1, computed1)
    equal("second root", root2, computed2)


def equal(what: str, expected: bytes, computed: bytes) -> None:
    """Raise ProofError if a hash is not the one that it should be."""
    if expected != computed:
        raise ProofError(f"{what}: expected {expected.hex()}, computed {computed.hex()}")


def check_numbers(**numbers) -> None:
    """Raise ProofError if one is no integer from 0 to 2**64 - 1."""
    for name, value in numbers.items():
        if type(value) is not int or not 0 <= value < 2**64:
            raise ProofError(f"{name} is not an integer from 0 to 2**64 - 1")


def check_hashes(proof: Sequence[bytes], *hashes: bytes) -> None:
    """Raise ProofError if these are not hashes, and a list or tuple of hashes."""
    if not isinstance(proof, (list, tuple)):
        raise ProofError("the proof is not a list of hashes")
    for value in (*hashes, *proof):
        if type(value) is not bytes or len(value) != 32:
            raise ProofError("a hash is not 32 bytes")
