"""The referee: what the messages open, and what follows from it.

    evidence = Evidence(dispute)
    evidence.take_values(scanner)    # each message is held against the hashes of the logs
    evidence.take_rows(scanner)      # rows are computed with as they are read, and not kept
    evidence.take_tokenizer(path, data)    # of a step's line: its text follows from it
    judge(evidence)                  # a Ruling, or what is Needed

Nothing is said that was not computed. One element of a result proves a party wrong, and no more: whoever is right in it
may be wrong elsewhere. Only the whole result, computed, and hashed as a log has it, makes that log right.
"""
import enum
import hashlib
import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from math import isnan
from typing import Any

import merkle
from llama2_py.console import VerificationError, printable
from llama2_py.engine.arithmetic import from_bytes, to_bytes
from llama2_py.log.events import encode
from llama2_py.log.weights import Row
from llama2_py.referee.dispute import CLAIMS, MOST_TOKENIZER, Dispute, Input, compute, element_of
from llama2_py.referee.messages import RowsReader, Scanner, read_values
from llama2_py.referee.product import Product

PARTIES = ("A", "B")
MOST_OTHER_ROWS = 64  # rows that a message may have beside those of the dispute, such as another dispute's
BAD_NUMBERS = (ValueError, OverflowError, ZeroDivisionError)  # what numbers that no run has raise
FEW_ROWS = 2  # that a command names one by one
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
        self.product = Product()                         # of the matrix and the input, for the rows that were opened
        self.tokenizer: bytes | None = None              # its file

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
        if self.dispute.task.op == "text":
            self.tokenizer = found[0]

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
        if number not in self.product:
            with Guard(self.dispute):
                self.product[number] = self.dispute.arithmetic.dot(values, self.inputs[0])

    # -- the tokenizer

    def take_tokenizer(self, path: str, data: bytes) -> None:
        """The tokenizer's file."""
        task, committed = self.dispute.task, self.dispute.header["tokenizer"]
        check_input(path, Input("tokenizer", 0, MOST_TOKENIZER, committed, is_file=True), data)
        self.tokenizer = data
        if task.op == "text":
            self.inputs = [data]

    # -- results

    def lacks(self, numbers: Iterable[int]) -> Iterator[Row]:
        """Those of some rows of the dispute's tensor that have not been opened."""
        tensor = self.dispute.task.tensor
        if tensor is None or self.row is not None:
            return
        for number in numbers:
            if number not in self.product:
                yield Row(tensor.tensor, tensor.layer, tensor.row + number)

    def is_whole(self) -> bool:
        """Whether everything is there that the whole result takes."""
        task = self.dispute.task
        if self.inputs is None:
            return False
        if task.is_product:
            return len(self.product) == task.rows
        return task.tensor is None or self.row is not None

    def elements(self) -> Iterator[int]:
        """The elements of a product that can be computed, in order."""
        task = self.dispute.task
        for number in self.product:
            if all(row in self.product for row in task.rows_of(number)):
                yield number

    def element(self, number: int) -> float:
        """An element of a product that can be computed."""
        d, task = self.dispute, self.dispute.task
        products = [self.product[row] for row in task.rows_of(number)]
        with Guard(d):
            return need_number(element_of(d.arithmetic, d.config, task.op, task.pos, number, products))

    def numbers(self) -> Sequence[float]:
        """The whole result of an operation."""
        d, task = self.dispute, self.dispute.task
        if task.is_product:
            return array("f", map(self.element, range(task.n)))
        rows = [] if self.row is None else [self.row]
        with Guard(d):
            result = compute(d.arithmetic, d.config, task.op, task.pos, self.inputs or [], rows)
            need_number(sum(map(abs, result)))
            return result

    def fields(self) -> dict[str, Any]:
        """What the line in dispute says by definition, field by field, as far as it can be computed."""
        d, op = self.dispute, self.dispute.task.op
        assert self.inputs is not None and self.is_whole()
        if d.kind == "sha256":
            return {"sha256": hashlib.sha256(to_bytes(self.numbers())).hexdigest()}
        found: dict[str, Any] = {}
        following = d.events[0]["next"]  # as in both, if the text alone is in dispute
        if op != "text":
            logits = self.numbers() if op == "logits" else self.inputs[0]
            if op == "logits":
                found["logits"] = hashlib.sha256(to_bytes(logits)).hexdigest()
            with Guard(d):
                following = found["next"] = d.chosen(logits)
        if self.tokenizer is not None:
            with Guard(d, "tokenizer", "a file that can be read"):
                found["text"] = d.decoded(self.tokenizer, following)
        return found


def need_number(value: float) -> float:
    """Raise ValueError if a value is not a number: no run has one, and processors differ in its bits."""
    if isnan(value):
        raise ValueError("a result is not a number")
    return value


class Guard:
    """Within it, numbers or a file that no run has are what both logs committed to, and so a VerificationError."""

    def __init__(self, dispute: Dispute, field: str = "inputs", expected: str = "numbers that a run can have"):
        self.dispute, self.field, self.expected = dispute, field, expected

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if isinstance(error, BAD_NUMBERS):
            raise VerificationError(self.dispute.log.path, self.field, self.expected, str(error)) from None


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
    own = evidence.fields()
    reasons = []
    if a and b and dispute.task.is_product:
        number = first_difference(a, b)
        reasons.append(element_line(evidence, number, evidence.element(number)))
    reasons += dialect_lines(dispute)
    reasons += [field_line(dispute, name, own[name]) for name in own]
    wrong = [[name for name in own if event[name] != own[name]] for event in dispute.events]  # of A and B
    reasons += uncomputed(dispute, own)
    if all(wrong):
        return Ruling(reasons, Conclusion.NEITHER_RIGHT)
    other = 0 if wrong[1] else 1  # whose fields are right, as far as they were computed
    if dispute.undecided(list(own)):
        computed = " and ".join(own)
        reasons.append(f"of {PARTIES[other]} {computed} {was(own)} computed and found right; the text, in which they "
                       "differ, was not computed: that takes the tokenizer's file (-z)")
        return Ruling(reasons, (Conclusion.B_WRONG, Conclusion.A_WRONG)[other])
    return Ruling(reasons, (Conclusion.A_RIGHT, Conclusion.B_RIGHT)[other])


def was(things: Sized) -> str:
    """was, or were, of so many things."""
    return "was" if len(things) == 1 else "were"


def field_line(dispute: Dispute, name: str, own: Any) -> str:
    """What both parties have for a field of a line, and what it is."""
    shown = [printable(value, SHOWN) for value in (*[event[name] for event in dispute.events], own)]
    of = "" if dispute.kind == "sha256" else f"{name}: "
    return of + "A {}, B {}, by definition {}".format(*shown)


def uncomputed(dispute: Dispute, own: dict[str, Any]) -> list[str]:
    """What to say of the fields that both have alike, and that were not computed."""
    names = [name for name in CLAIMS if name in dispute.events[0] and name not in own]
    names = [name for name in names if name not in dispute.undecided([])]
    if not names:
        return []
    return [f"the {' and '.join(names)}, in which they agree, {was(names)} not computed"]


def rule_by_elements(evidence: Evidence) -> Ruling | None:
    """The ruling when some elements of a product can be computed; None if they prove nobody wrong."""
    n, outputs = evidence.dispute.task.n, evidence.outputs
    wrong: list[int | None] = [None, None]  # the first element that A, or B, has otherwise
    count = 0
    for number in evidence.elements() if any(outputs) else ():
        own = to_bytes([evidence.element(number)])
        count += 1
        for party, output in enumerate(outputs):
            if output and wrong[party] is None and output[4 * number:4 * number + 4] != own:
                wrong[party] = number
    if wrong == [None, None]:
        return None
    false = sorted({number for number in wrong if number is not None})
    reasons = [element_line(evidence, number, evidence.element(number)) for number in false]
    reasons += dialect_lines(evidence.dispute)
    if None not in wrong:
        return Ruling(reasons, Conclusion.BOTH_WRONG)
    other = wrong.index(None)
    reasons.append(looked_at(PARTIES[other], outputs[other] is not None, count, n))
    return Ruling(reasons, (Conclusion.B_WRONG, Conclusion.A_WRONG)[other])


def first_difference(a: bytes, b: bytes) -> int:
    """The first element in which two results differ, in their bits."""
    return next(i for i in range(len(a) // 4) if a[4 * i:4 * i + 4] != b[4 * i:4 * i + 4])


def element_line(evidence: Evidence, number: int, own: float) -> str:
    """What the parties have for an element, and what it is."""
    def shown(numbers: bytes | None) -> str:
        if numbers is None:
            return "has not revealed it"
        return repr(from_bytes(numbers[4 * number:4 * number + 4])[0])

    a, b = map(shown, evidence.outputs)
    return f"element {number} of {evidence.dispute.task.n}: A {a}, B {b}, by definition {own!r}"


def dialect_lines(dispute: Dispute) -> list[str]:
    """What to say of the dialect."""
    if dispute.header["arithmetic"] == "exact":
        return []
    return ["in the arithmetic `c` this holds for the C library of the machine that judged"]


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


def deciding_rows(evidence: Evidence) -> range:
    """The rows that decide: those of the first element in which both results differ, or, where a result is not
    revealed, all."""
    task, (a, b) = evidence.dispute.task, evidence.outputs
    if task.is_product and a and b:
        return task.rows_of(first_difference(a, b))
    return range(task.rows)


def needed_rows(evidence: Evidence) -> str:
    """What rows are needed, and by which command they are made."""
    deciding = deciding_rows(evidence)
    first = list(itertools.islice(evidence.lacks(deciding), FEW_ROWS + 1))
    count = len(first)
    command = f"trace.py rows CHECKPOINT {first[0].tensor} {first[0].layer}"
    if count <= FEW_ROWS:
        command += "".join(f" {row.row}" for row in first)
    else:  # all rows of a tensor need no list
        count = len(deciding) - len(evidence.product)
    text = f"{count} {'row' if count == 1 else 'rows'} of {first[0].tensor}: {command}"
    silent = [party for party, output in zip(PARTIES, evidence.outputs, strict=True) if not output]
    if evidence.dispute.task.is_product and silent:
        text += f" (or the result of {' and '.join(silent)}, and fewer rows)"
    return text
