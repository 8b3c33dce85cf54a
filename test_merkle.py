"""Tests of merkle.py: the RFC's definitions, transcribed, judge the fast tree; published vectors judge them."""
from hashlib import sha256

import pytest
from hypothesis import given, settings, strategies as st

from merkle import MerkleTree, ProofError, leaf_hash, node_hash, verify_consistency, verify_inclusion

# The eight leaves of Certificate Transparency's own tests, and the root of the first 1, 2, ... 8 of them
CT_LEAVES = [bytes.fromhex(h) for h in [
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]]
CT_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
# Proofs in that tree: (index, size) and (size, size)
CT_INCLUSION = {(0, 8): ["96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                         "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                         "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"],
                (1, 5): ["6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
                         "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                         "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"]}
CT_CONSISTENCY = {(6, 8): ["0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
                           "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                           "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"]}


# The definitions of RFC 6962, section 2.1, on lists of leaf hashes

def split(n):
    k = 1
    while 2 * k < n:
        k *= 2
    return k


def mth(leaves):
    if not leaves:
        return sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def path(m, leaves):
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return path(m, leaves[:k]) + [mth(leaves[k:])]
    return path(m - k, leaves[k:]) + [mth(leaves[:k])]


def subproof(m, leaves, whole=True):
    n = len(leaves)
    if m == n:
        return [] if whole else [mth(leaves)]
    k = split(n)
    if m <= k:
        return subproof(m, leaves[:k], whole) + [mth(leaves[k:])]
    return subproof(m - k, leaves[k:], False) + [mth(leaves[:k])]


def turns(m, n):
    """The way from leaf m of n to the root: at each node, is it the right child?"""
    if n == 1:
        return []
    k = split(n)
    return turns(m, k) + [False] if m < k else turns(m - k, n - k) + [True]


def proof_turns(m, n, whole=True):
    """The same for a consistency proof, and whether it begins with the old root."""
    if m == n:
        return [whole]
    k = split(n)
    return proof_turns(m, k, whole) + [False] if m <= k else proof_turns(m - k, n - k, False) + [True]


LEAVES = [leaf_hash(b"leaf %d" % i) for i in range(130)]
TREE = MerkleTree()
for leaf in LEAVES:
    TREE.append(leaf)
ROOTS = [mth(LEAVES[:n]) for n in range(131)]


def refused(check, *args):
    with pytest.raises(ProofError):
        check(*args)


def flipped(data, bit=0):
    data = bytearray(data)
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    return bytes(data)


# The tree

def test_the_published_roots():
    tree = MerkleTree()
    assert tree.root() == sha256().digest()
    for data, root in zip(CT_LEAVES, CT_ROOTS, strict=True):
        tree.append(leaf_hash(data))
        assert tree.root().hex() == root
    assert len(tree) == 8


def test_the_published_proofs():
    tree = MerkleTree()
    for data in CT_LEAVES:
        tree.append(leaf_hash(data))
    for (index, size), proof in CT_INCLUSION.items():
        assert [h.hex() for h in tree.inclusion_proof(index, size)] == proof
    for sizes, proof in CT_CONSISTENCY.items():
        assert [h.hex() for h in tree.consistency_proof(*sizes)] == proof


def test_roots_of_every_size_are_the_definitions():
    growing = MerkleTree()
    for n in range(131):
        assert growing.root() == TREE.root(n) == ROOTS[n]
        if n < 130:
            growing.append(LEAVES[n])


every_tree = pytest.mark.parametrize("sizes", [
    range(1, 67), pytest.param(range(67, 131), marks=pytest.mark.slow)], ids=["to 66", "to 130"])


@every_tree
def test_every_inclusion_proof_is_the_definitions_and_verifies(sizes):
    for n in sizes:
        for index in range(n):
            proof = TREE.inclusion_proof(index, n)
            verify_inclusion(LEAVES[index], index, n, proof, ROOTS[n])
            if n < 40 or index % 7 == n % 7:
                assert proof == path(index, LEAVES[:n])


@every_tree
def test_every_consistency_proof_is_the_definitions_and_verifies(sizes):
    for n in sizes:
        for m in range(1, n + 1):
            proof = TREE.consistency_proof(m, n)
            verify_consistency(m, n, proof, ROOTS[m], ROOTS[n])
            if n < 40 or m % 7 == n % 7:
                assert proof == subproof(m, LEAVES[:n])


@every_tree
def test_every_flipped_hash_of_every_proof_is_noticed(sizes):
    for n in sizes:
        for index in range(n):
            proof = TREE.inclusion_proof(index, n)
            for i in range(len(proof)):
                bad = proof[:i] + [flipped(proof[i], n * 131 + index)] + proof[i + 1:]
                refused(verify_inclusion, LEAVES[index], index, n, bad, ROOTS[n])


@every_tree
def test_every_flipped_hash_of_every_consistency_proof_is_noticed(sizes):
    for n in sizes[::3]:
        for m in range(1, n + 1):
            proof = TREE.consistency_proof(m, n)
            for i in range(len(proof)):
                bad = proof[:i] + [flipped(proof[i], n * 131 + m)] + proof[i + 1:]
                refused(verify_consistency, m, n, bad, ROOTS[m], ROOTS[n])


def test_work_grows_with_the_logarithm_of_the_size():
    hashes = 0

    def counting(left, right):
        nonlocal hashes
        hashes += 1
        return node_hash(left, right)

    tree = MerkleTree(counting)
    for i in range(100_000):
        tree.append(LEAVES[i % 130])
    assert hashes <= 100_000
    for ask in (lambda: tree.root(), lambda: tree.root(99_999), lambda: tree.inclusion_proof(77_777),
                lambda: tree.inclusion_proof(5, 99_999), lambda: tree.consistency_proof(33_333, 99_999)):
        hashes = 0
        ask()
        assert hashes <= 3 * 17


def test_memory_is_32_to_64_bytes_a_leaf():
    tree = MerkleTree()
    for i in range(10_000):
        tree.append(LEAVES[i % 130])
    assert 32 <= sum(level.__sizeof__() for level in tree.levels) / 10_000 <= 64


def test_another_node_hash_is_used_throughout():
    def unprefixed(left, right):
        return sha256(left + right).digest()

    tree = MerkleTree(unprefixed)
    for leaf in LEAVES[:7]:
        tree.append(leaf)
    a, b, c, d, e, f, g = LEAVES[:7]
    h = unprefixed
    assert tree.root() == h(h(h(a, b), h(c, d)), h(h(e, f), g))


@pytest.mark.parametrize("ask", [
    lambda: TREE.root(131), lambda: TREE.root(-1), lambda: TREE.inclusion_proof(130), lambda: TREE.inclusion_proof(-1),
    lambda: TREE.inclusion_proof(5, 5), lambda: TREE.inclusion_proof(0, 131), lambda: TREE.consistency_proof(0),
    lambda: TREE.consistency_proof(6, 5), lambda: TREE.consistency_proof(1, 131), lambda: TREE.append(b"short")])
def test_what_the_tree_does_not_have_is_an_error(ask):
    with pytest.raises(ValueError):
        ask()


# Soundness

places = st.integers(1, 130).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n)))


def changes_of(proof, data):
    """A list that differs from the proof: a hash changed, dropped, doubled, added, or two swapped."""
    changed = list(proof)
    i = data.draw(st.integers(0, len(proof)))
    how = data.draw(st.sampled_from(["change", "drop", "double", "add", "swap"]))
    if how == "add" or not proof:
        changed.insert(i, data.draw(st.sampled_from(LEAVES + ROOTS)))
    elif how == "swap":
        changed.insert(i, changed.pop(data.draw(st.integers(0, len(proof) - 1))))
    else:
        i %= len(proof)
        changed[i:i + 1] = {"change": [flipped(proof[i], data.draw(st.integers(0, 255)))], "drop": [],
                            "double": [proof[i]] * 2}[how]
    return changed


@given(places, st.data())
def test_no_other_proof_verifies(place, data):
    index, n = place
    proof = TREE.inclusion_proof(index, n)
    changed = changes_of(proof, data)
    if changed != proof:
        refused(verify_inclusion, LEAVES[index], index, n, changed, ROOTS[n])


@given(places, st.integers(0, 255), st.integers(0, 129))
def test_no_other_leaf_root_or_index_verifies(place, bit, other):
    index, n = place
    leaf, proof, root = LEAVES[index], TREE.inclusion_proof(index, n), ROOTS[n]
    refused(verify_inclusion, flipped(leaf, bit), index, n, proof, root)
    refused(verify_inclusion, leaf, index, n, proof, flipped(root, bit))
    if other != index:
        refused(verify_inclusion, leaf, other, n, proof, root)
        refused(verify_inclusion, LEAVES[other], index, n, proof, root)


@given(places, st.integers(0, 300))
def test_another_size_verifies_only_where_the_way_to_the_root_is_the_same(place, size):
    # A root does not commit to its tree's size. (The way of leaf 0 in trees of 3 and of 4 leaves is the same.)
    index, n = place
    args = LEAVES[index], index, size, TREE.inclusion_proof(index, n), ROOTS[n]
    if index < size and turns(index, size) == turns(index, n):
        verify_inclusion(*args)
    else:
        refused(verify_inclusion, *args)


@given(places, st.data())
def test_no_other_consistency_proof_verifies(place, data):
    m, n = place[0] + 1, place[1]
    proof = TREE.consistency_proof(m, n)
    changed = changes_of(proof, data)
    if changed != proof:
        refused(verify_consistency, m, n, changed, ROOTS[m], ROOTS[n])


def test_a_hash_too_many_or_too_few_is_noticed_at_either_end():
    for n in range(1, 20):
        for m in range(1, n + 1):
            for check, args, proof, more in [
                    (verify_inclusion, (LEAVES[m - 1], m - 1, n), TREE.inclusion_proof(m - 1, n), (ROOTS[n],)),
                    (verify_consistency, (m, n), TREE.consistency_proof(m, n), (ROOTS[m], ROOTS[n]))]:
                for changed in [*proof, ROOTS[m]], [ROOTS[m], *proof], proof[1:], proof[:-1]:
                    if changed != proof:
                        refused(check, *args, changed, *more)


def test_numbers_are_integers_and_no_booleans():
    for index, size in (True, 3), (0, True), (1.0, 3), (1, 3.0):
        proof = TREE.inclusion_proof(int(index), int(size))
        verify_inclusion(LEAVES[int(index)], int(index), int(size), proof, ROOTS[int(size)])
        refused(verify_inclusion, LEAVES[int(index)], index, size, proof, ROOTS[int(size)])
    for sizes in (True, 1), (1, True), (1.0, 1):
        refused(verify_consistency, *sizes, [], ROOTS[1], ROOTS[1])


@given(places, st.integers(0, 255), st.integers(0, 300))
def test_no_other_roots_or_sizes_are_consistent(place, bit, other):
    m, n = place[0] + 1, place[1]
    proof = TREE.consistency_proof(m, n)
    refused(verify_consistency, m, n, proof, flipped(ROOTS[m], bit), ROOTS[n])
    refused(verify_consistency, m, n, proof, ROOTS[m], flipped(ROOTS[n], bit))
    for sizes in (other, n), (m, other):
        args = *sizes, proof, ROOTS[m], ROOTS[n]
        if 0 < sizes[0] <= sizes[1] and proof_turns(*sizes) == proof_turns(m, n):
            verify_consistency(*args)
        elif sizes != (m, n):
            refused(verify_consistency, *args)


@given(st.integers(1, 129), st.integers(0, 128), st.integers(0, 255))
def test_a_log_that_rewrote_a_leaf_is_not_consistent(m, rewritten, bit):
    rewritten %= m
    forged = MerkleTree()
    for i, leaf in enumerate(LEAVES):
        forged.append(flipped(leaf, bit) if i == rewritten else leaf)
    refused(verify_consistency, m, 130, forged.consistency_proof(m, 130), ROOTS[m], forged.root())


def test_a_node_does_not_pass_as_a_leaf():
    # without the prefixes, the data h0 + h1 would be a leaf of a two-leaf tree with the root of four leaves
    h = LEAVES
    forged = leaf_hash(h[0] + h[1])
    refused(verify_inclusion, forged, 0, 2, [node_hash(h[2], h[3])], ROOTS[4])
    assert forged != node_hash(h[0], h[1])
    assert leaf_hash(b"x") != sha256(b"x").digest() and node_hash(h[0], h[1]) != sha256(h[0] + h[1]).digest()


def test_a_doubled_last_leaf_makes_another_root():
    # Bitcoin's trees (CVE-2012-2459) give a, b, c and a, b, c, c the same root
    for n in range(1, 130):
        doubled = MerkleTree()
        for leaf in LEAVES[:n] + [LEAVES[n - 1]]:
            doubled.append(leaf)
        assert doubled.root() != ROOTS[n]
        refused(verify_inclusion, LEAVES[n - 1], n, n + 1, doubled.inclusion_proof(n), ROOTS[n])


def test_a_root_is_not_its_own_leaf():
    for n in range(2, 131):
        refused(verify_inclusion, ROOTS[n], 0, n, [], ROOTS[n])
        refused(verify_inclusion, ROOTS[n], n - 1, n, [], ROOTS[n])
        refused(verify_consistency, n - 1, n, [], ROOTS[n], ROOTS[n])


def test_nothing_is_proved_about_an_empty_first_tree():
    # RFC 9162, section 2.1.4: proofs are defined for 0 < first only
    refused(verify_consistency, 0, 5, [], ROOTS[0], ROOTS[5])
    refused(verify_consistency, 0, 0, [], ROOTS[0], ROOTS[0])


anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.just(2**70), st.floats(), st.text(max_size=3), st.binary(max_size=40),
    st.just(LEAVES[0]), st.lists(st.one_of(st.sampled_from(LEAVES), st.integers(), st.binary(max_size=33),
                                           st.text(max_size=2))),
    st.just(LEAVES[:100]), st.just({}), st.just(iter([])), st.just(object()))


@given(anything, anything, anything, anything, anything)
@settings(max_examples=100)
def test_checks_return_none_or_raise_proof_error_whatever_they_are_fed(a, b, c, d, e):
    for check, args in (verify_inclusion, (a, b, c, d, e)), (verify_consistency, (a, b, c, d, e)):
        try:
            assert check(*args) is None
        except ProofError as error:
            assert str(error)


@given(st.integers(0, 4), anything, st.booleans())
@settings(max_examples=100)
def test_one_wrong_argument_of_five_is_refused(which, value, inclusion):
    args = [LEAVES[2], 2, 7, TREE.inclusion_proof(2, 7), ROOTS[7]] if inclusion else [
        3, 7, TREE.consistency_proof(3, 7), ROOTS[3], ROOTS[7]]
    check = verify_inclusion if inclusion else verify_consistency
    size_of_same_turns = which == (2 if inclusion else 1) and value in (5, 6, 8)
    if args[which] != value and not size_of_same_turns:
        args[which] = value
        refused(check, *args)
