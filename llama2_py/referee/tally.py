"""What an audit found: counts, and the first line that is not right."""
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Tally:
    """What the audit of some positions found."""
    products: int = 0   # tested, and right to within rounding
    exact: int = 0      # other operations, right to the bit
    tokens: int = 0     # that follow from the logits, or from the prompt
    texts: int = 0      # that follow from the tokens; 0 without a tokenizer
    largest: float = 0.0     # part of a limit that a product used: the auditor's own, since it tells of the secret
    largest_at: str = ""
    missing: dict[str, int] = field(default_factory=dict)  # operations whose numbers, or inputs, the dump lacks
    first_missing: int = 0   # the index of the first one's line; 0: there is none
    faults: int = 0          # lines that are not right
    first_fault: tuple[int, tuple] = (0, ())  # the index of the first one's line; what its VerificationError says

    def fault(self, event: int, *said: Any) -> None:
        """Take a fault: a VerificationError's where, field, expected and got."""
        if not self.faults or event < self.first_fault[0]:
            self.first_fault = event, said
        self.faults += 1

    def lack(self, event: int, op: str, count: int = 1) -> None:
        """Take an operation that cannot be audited."""
        self.missing[op] = self.missing.get(op, 0) + count
        if not self.first_missing or event < self.first_missing:
            self.first_missing = event

    def used(self, part: float, where: str) -> None:
        """Take the part of its limit that a product used."""
        if part > self.largest:
            self.largest, self.largest_at = part, where

    def add(self, other: "Tally") -> None:
        """Take what another tally found, of other positions."""
        self.products += other.products
        self.exact += other.exact
        self.tokens += other.tokens
        self.texts += other.texts
        self.used(other.largest, other.largest_at)
        for op, count in other.missing.items():
            self.lack(other.first_missing, op, count)
        if other.faults:
            self.fault(other.first_fault[0], *other.first_fault[1])
            self.faults += other.faults - 1
