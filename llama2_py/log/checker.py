"""A run that is made again, compared with its log as it goes."""
from llama2_py.console import VerificationError
from llama2_py.log.difference import difference
from llama2_py.log.events import encode
from llama2_py.log.reading import Trace
from llama2_py.log.writing import Log


class EndOfTrace(Exception):
    """All lines of an incomplete trace have been compared."""


class Checker(Log):
    """Compares a run that is made again with a trace, event by event: VerificationError at the first difference.

    If that is the model's hash, the run goes on to the first result that differs, so that both can be told.
    """

    def __init__(self, trace: Trace, header: dict):
        self.trace, self.count = trace, 0
        self.other_model: VerificationError | None = None
        super().__init__(header)

    def comparable(self, event: dict, found: dict) -> dict:
        """An event of the run, less what the trace's format leaves open."""
        return event

    def put(self, event: dict) -> None:
        """Compare an event with the next one of the trace."""
        where = self.trace.where(self.count)
        if self.count == len(self.trace):
            if not self.trace.root and self.trace.may_be_cut:
                raise EndOfTrace
            raise VerificationError(where, "line", encode(event).decode(), "the end of the trace")
        found = self.trace.event(self.count)
        self.count += 1
        event = self.comparable(event, found)
        if encode(event) == encode(found):
            return
        error = difference(f"{self.other_model}; then {where}" if self.other_model else where, event, found)
        files = ("model", "weights")
        if error.field in files and {**found, **{name: event[name] for name in files}} == event:
            if event["weights"] == found["weights"]:
                error.hint = " (another file of the same weights)"
            self.other_model = error
        else:
            raise error

    def end(self) -> None:
        """The run is over: is the trace?"""
        if self.count < len(self.trace):
            line = encode(self.trace.event(self.count)).decode()
            raise VerificationError(self.trace.where(self.count), "line", "the end of the run", line)

    def conclude(self) -> None:
        """Raise the difference of the model, if nothing after it differed."""
        if self.other_model:
            raise self.other_model
