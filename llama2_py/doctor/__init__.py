"""Another program's numbers: is a difference rounding, or a mistake, and which?

    from llama2_py.doctor import assert_consistent, record    # for a port's own tests
"""
from typing import Any


def __getattr__(name: str) -> Any:
    """assert_consistent and record, loaded when they are asked for."""
    if name == "assert_consistent":
        from llama2_py.doctor.assertions import assert_consistent
        return assert_consistent
    if name == "record":
        from llama2_py.doctor.recording import record
        return record
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
