"""What a program of this project imports first: until its command begins, Ctrl-C ends it without a traceback."""
import os
import signal
from typing import Any


def end_quietly(*_: Any) -> None:
    """Ctrl-C while modules load."""
    os._exit(130)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end_quietly)
