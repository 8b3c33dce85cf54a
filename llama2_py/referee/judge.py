"""The referee: what the messages open, and what follows from it.

    evidence = Evidence(dispute)
    evidence.take_values(scanner)    # each message is held against the hashes of the logs
    evidence.take_rows(scanner)      # rows are computed with as they are read, and not kept
    judge(evidence)                  # a Ruling, or what is Needed

Nothing is said that was not computed. One element of a result proves a party wrong, and no more: whoever is right in it
may be wrong elsewhere. Only the whole result, computed, and hashed as a log has it, makes that log right.
"""
import enum
import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import merkle
from llama2_py.console import VerificationError, printable
from llama2_py.engine.arithmetic import from_bytes, to_bytes
from llama2_py.log.events import encode
from llama2_py.log.weights import Row
from llama2_py.referee.dispute import Dispute, Input, compute, from_product
from llama2_py.referee.messages import RowsReader, Scanner, read_values

PARTIES = ("A", "B")
MOST_OTHER_ROWS = 64  # rows that a message may have beside those of the dispute, such as another dispute's
BAD_NUMBERS = (ValueError, OverflowError, ZeroDivisionError)  # what numbers that no run has raise
SHOWN = 100  # characters of a claim that are printed

# ----------------------------------------------------------------------------
# Evidence


@dataclass
class Opened:
    """What a message of values has opened."""
    inputs: bool = False
    outputs: list[str] = field(default_factory=list)  # of A or of B

    def __str__(self) -> str:
        words = ["the inputs"] if self.inputs else []
        words += [f"the result of {party}" for party in self.outputs]
        return " and ".join(words) or "nothing"


class Evidence:
    """What the messages say and the logs commit to. Values must be taken before the rows: a row is not kept.

    The methods that take a message raise ValueError for what is not a message, and VerificationError for one that is
    not what was committed to. What was opened before the fault stays.
    """

    def __init__(self, dispute: Dispute):
        self.dispute = dispute
        self.inputs: list[Any] | None = None if dispute.task.inputs else []  # vectors, or the tokenizer's file
        self.outputs: list[bytes | None] = [None, None]  # the results of A and B
        self.row: Sequence[float] | None = None          # the one row of an embedding or a norm
        self.product = array("f")                        # of the matrix and the input, for the rows that are known
        self.known = bytearray()                         # row -> 1 if its element of the product is computed

    # -- values

    def take_values(self, scanner: Scanner) -> Opened:
        """A message of values."""
        dispute, task = self.dispute, self.dispute.task
        message = read_values(scanner, task.inputs, task.n)
        if message.event != dispute.index:
            raise VerificationError(scanner.path, "event", dispute.index, message.event)
        opened = Opened()
        if message.inputs:
            self._take_inputs(scanner.path, message.inputs)
            opened.inputs = True
        if message.output:
            opened.outputs.append(self._take_output(scanner.path, message.output))
        return opened

    def _take_inputs(self, path: str, found: list[Any]) -> None:
        for i, wanted in enumerate(self.dispute.task.inputs):
            check_input(path, wanted, found[i])
            if not wanted.is_file:
                found[i] = from_bytes(found[i])  # one by one, since all of them twice would take much memory
        self.inputs = found

    def _take_output(self, path: str, output: bytes) -> str:
        claims, n = self.dispute.claims, self.dispute.task.n
        digest = hashlib.sha256(output).hexdigest()
        if digest not in claims:
            raise VerificationError(path, "output", " or ".join(map(str, claims)), digest)
        if len(output) != 4 * n:
            raise VerificationError(path, "output: size", 4 * n, len(output))
        party = claims.index(digest)
        self.outputs[party] = output
        return PARTIES[party]

    # -- rows

    def take_rows(self, scanner: Scanner) -> int:
        """A message of rows -> how many there are. Each is checked, and computed with if the inputs are known."""
        dispute = self.dispute
        reader = RowsReader(scanner, dispute.leaves)
        self._check_leaf(scanner.path, "config", encode(dispute.header["config"]), 0, reader.config)
        most = dispute.task.rows + MOST_OTHER_ROWS
        count = 0
        for opened in reader.rows():
            count += 1
            if count > most:
                raise VerificationError(scanner.path, "rows", f"at most {most}", "more")
            index = dispute.leaves.index(opened.row)
            self._check_leaf(scanner.path, f"row {opened.row}", opened.values, index, opened.path)
            self._use(index, from_bytes(opened.values))
        return count

    def _check_leaf(self, path: str, name: str, leaf: bytes, index: int, proof: list[bytes]) -> None:
        root = bytes.fromhex(self.dispute.header["weights"])
        try:
            merkle.verify_inclusion(merkle.leaf_hash(leaf), index, self.dispute.leaves.size, proof, root)
        except merkle.ProofError as error:
            raise VerificationError(path, name, f"leaf {index} of the header's weights", str(error)) from None

    def _use(self, index: int, values: Sequence[float]) -> None:
        """Compute with a row that has been checked, given the index of its leaf."""
        task = self.dispute.task
        if task.tensor is None or self.inputs is None:
            return
        number = index - self.dispute.leaves.index(task.tensor)
        if not 0 <= number < task.rows:
            return
        if not task.is_product:
            self.row = values
            return
        if not self.known:
            self.known = bytearray(task.rows)
            self.product = array("f", bytes(4 * task.rows))
        if self.known[number]:
            return
        with Guard(self.dispute):
            self.product[number] = self.dispute.arithmetic.dot(values, self.inputs[0])
        self.known[number] = 1

    # -- results

    def knows(self, element: int) -> bool:
        """Whether an element of a product has been computed."""
        return bool(self.known) and all(self.known[row] for row in self.dispute.task.rows_of(element))

    def is_whole(self) -> bool:
        """Whether everything is there that the whole result takes."""
        task = self.dispute.task
        if self.inputs is None:
            return False
        if task.is_product:
            return sum(self.known) == task.rows
        return task.tensor is None or self.row is not None

    def numbers(self) -> bytes:
        """The result of an operation, as it is hashed: of a product the elements that are known, of others all."""
        d = self.dispute
        with Guard(d):
            if d.task.is_product:
                return to_bytes(from_product(d.arithmetic, d.config, d.task.op, d.task.pos, self.product))
            rows = [] if self.row is None else [self.row]
            return to_bytes(compute(d.arithmetic, d.config, d.task.op, d.task.pos, self.inputs or [], rows))

    def line(self) -> Any:
        """What the line in dispute says by definition, when everything is there: the token, the text, or a hash."""
        assert self.inputs is not None and self.is_whole()
        with Guard(self.dispute):
            if self.dispute.task.op == "next":
                return self.dispute.chosen(self.inputs[0])
            if self.dispute.task.op == "text":
                return self.dispute.decoded(self.inputs[0])
        return hashlib.sha256(self.numbers()).hexdigest()


class Guard:
    """Within it, numbers that no run has are what both logs committed to, and so a VerificationError."""

    def __init__(self, dispute: Dispute):
        self.dispute = dispute

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if isinstance(error, BAD_NUMBERS):
            where = self.dispute.log.path
            raise VerificationError(where, "inputs", "numbers that a run can have", str(error)) from None


def check_input(path: str, wanted: Input, data: bytes) -> None:
    """Raise VerificationError if data is not the input that the log committed to."""
    if not wanted.is_file and len(data) != 4 * wanted.n:
        raise VerificationError(path, f"{wanted.name}: size", 4 * wanted.n, len(data))
    digest = hashlib.sha256(data).hexdigest()
    if digest != wanted.committed:
        raise VerificationError(path, wanted.name, wanted.committed, digest)


# ----------------------------------------------------------------------------
# Rulings


class Conclusion(enum.Enum):
    """What can be said of two logs, in the words that are printed."""
    A_WRONG = "A is wrong"
    B_WRONG = "B is wrong"
    BOTH_WRONG = "both are wrong"
    A_RIGHT = "A is right"
    B_RIGHT = "B is right"
    NEITHER_RIGHT = "neither is right"


@dataclass
class Ruling:
    """A verdict: what was computed and compared, in lines, and what follows."""
    reasons: list[str]
    conclusion: Conclusion


@dataclass
class Needed:
    """What must be revealed before anything can be said."""
    what: str


def judge(evidence: Evidence) -> Ruling | Needed:
    """What the evidence decides. Raises VerificationError if both logs committed to inputs that no run has."""
    dispute = evidence.dispute
    if evidence.inputs is None:
        return Needed(f"the inputs of event {dispute.index}: {reveal_command(dispute)}")
    if evidence.is_whole():
        return rule_by_whole(evidence)
    return rule_by_elements(evidence) or Needed(needed_rows(evidence))


def rule_by_whole(evidence: Evidence) -> Ruling:
    """The ruling when the whole result can be computed."""
    dispute, (a, b) = evidence.dispute, evidence.outputs
    own = evidence.line()
    reasons = []
    if a and b:
        reasons.append(element_line(evidence, first_difference(a, b), evidence.numbers()))
    reasons += dialect_lines(dispute)
    shown = [printable(value, SHOWN) for value in (*dispute.claims, own)]
    reasons.append("A {}, B {}, by definition {}".format(*shown))
    if own == dispute.claims[0]:
        return Ruling(reasons, Conclusion.A_RIGHT)
    if own == dispute.claims[1]:
        return Ruling(reasons, Conclusion.B_RIGHT)
    return Ruling(reasons, Conclusion.NEITHER_RIGHT)


def rule_by_elements(evidence: Evidence) -> Ruling | None:
    """The ruling when some elements of a product can be computed; None if they prove nobody wrong."""
    n = evidence.dispute.task.n
    known = [element for element in range(n) if evidence.knows(element)] if any(evidence.outputs) else []
    if not known:
        return None
    own = evidence.numbers()
    wrong = [first_wrong(output, own, known) for output in evidence.outputs]  # of A and B
    reasons = [element_line(evidence, element, own) for element in sorted({e for e in wrong if e is not None})]
    reasons += dialect_lines(evidence.dispute)
    if None not in wrong:
        return Ruling(reasons, Conclusion.BOTH_WRONG)
    if wrong == [None, None]:
        return None
    other = wrong.index(None)
    reasons.append(looked_at(PARTIES[other], evidence.outputs[other] is not None, len(known), n))
    return Ruling(reasons, Conclusion.A_WRONG if other == 1 else Conclusion.B_WRONG)


def first_wrong(output: bytes | None, own: bytes, known: Sequence[int]) -> int | None:
    """The first of the known elements that a party has otherwise; None if there is none, or no result of that party."""
    if output is None:
        return None
    return next((i for i in known if output[4 * i:4 * i + 4] != own[4 * i:4 * i + 4]), None)


def first_difference(a: bytes, b: bytes) -> int:
    """The first element in which two results differ, in their bits."""
    return next(i for i in range(len(a) // 4) if a[4 * i:4 * i + 4] != b[4 * i:4 * i + 4])


def element_line(evidence: Evidence, element: int, own: bytes) -> str:
    """What the parties have for an element, and what it is."""
    def shown(numbers: bytes | None) -> str:
        if numbers is None:
            return "has not revealed it"
        return repr(from_bytes(numbers[4 * element:4 * element + 4])[0])

    a, b = map(shown, evidence.outputs)
    return f"element {element} of {evidence.dispute.task.n}: A {a}, B {b}, by definition {shown(own)}"


def dialect_lines(dispute: Dispute) -> list[str]:
    """What to say of the dialect."""
    if dispute.header["arithmetic"] == "exact":
        return []
    return ["in dialect c this holds for the C library of the machine that judged"]


def looked_at(party: str, revealed: bool, count: int, n: int) -> str:
    """What was seen of the party that was not proved wrong."""
    if not revealed:
        return f"of {party} nothing was computed: its result is not revealed"
    computed = "1 was" if count == 1 else f"{count} were"
    return f"of {party}'s {n} elements {computed} computed and found right; the others were not computed"


# ----------------------------------------------------------------------------
# What is needed


def reveal_command(dispute: Dispute) -> str:
    """The command by which a party reveals what a dispute takes."""
    options = {"next": " --of next", "text": " --of text -z TOKENIZER"}
    return f"trace.py reveal LOG {dispute.index} CHECKPOINT{options.get(dispute.task.op, '')}"


def missing_rows(evidence: Evidence) -> list[Row]:
    """The rows that decide and have not been opened: those of the first element in which both results differ, or, where
    a result is not revealed, all."""
    task, (a, b) = evidence.dispute.task, evidence.outputs
    if task.is_product and a and b:
        return unopened(evidence, task.rows_of(first_difference(a, b)))
    return unopened(evidence, range(task.rows))


def unopened(evidence: Evidence, numbers: Sequence[int]) -> list[Row]:
    """Those of some rows of the dispute's tensor that have not been opened."""
    tensor = evidence.dispute.task.tensor
    if tensor is None or evidence.row is not None:
        return []
    known = evidence.known or bytearray(evidence.dispute.task.rows)
    return [Row(tensor.tensor, tensor.layer, tensor.row + number) for number in numbers if not known[number]]


def needed_rows(evidence: Evidence) -> str:
    """What rows are needed, and by which command they are made."""
    missing = missing_rows(evidence)
    command = f"trace.py rows CHECKPOINT {missing[0].tensor} {missing[0].layer}"
    if len(missing) < 3:  # all rows of a tensor need no list
        command += "".join(f" {row.row}" for row in missing)
    text = f"{len(missing)} {'row' if len(missing) == 1 else 'rows'} of {missing[0].tensor}: {command}"
    silent = [party for party, output in zip(PARTIES, evidence.outputs, strict=True) if not output]
    if evidence.dispute.task.is_product and silent:
        text += f" (or the result of {' and '.join(silent)}, and fewer rows)"
    return text
