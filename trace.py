#!/usr/bin/env python3
"""The trace of a run: a log in which every line is a leaf of a Merkle tree, so that its root commits to all of it.

    python3 llama2.py -s 1 -n 2 --trace tale.trace     # write one
    python3 trace.py show tale.trace                   # read it; `python3 trace.py -h` lists the rest

That trace, its hashes and the first line shortened here:

    {"format":"llama2.py trace 2","model":"HEX0..","weights":"HEX1..","config":{"dim":64,"hidden_dim":172,"n_layers":5,
     "n_heads":8,"n_kv_heads":4,"vocab_size":512,"seq_len":512,"shared_classifier":true},"tokenizer":"HEX2..",
     "arithmetic":"exact","rng":"xorshift64*","temperature":1.0,"p_value":0.9,"seed":1,"steps":2,"level":"step",
     "prompt":"","tokens":[1]}                                                                       leaf 0, one line
    {"pos":0,"token":1,"next":406,"text":"Once","logits":"HEX3.."}                                   leaf 1
    {"pos":1,"token":406,"next":407,"text":" upon","logits":"HEX4.."}                                leaf 2
    {"size":3,"root":"HEX5.."}           MTH of RFC 6962 over the leaves: a leaf is its line's bytes without "\n"

model and tokenizer are the files' SHA-256, logits that of the step's logits as little-endian float32. weights is the
root of a second tree, over the config and every row of the model (weights_root). A verifier may send a random number
before the run, the nonce: it stands behind the seed, which then follows from the rest of the line (seed_of). At the
levels `layer` and `op` lines like {"pos":0,"layer":0,"op":"q","sha256":".."} stand before each step's. A line is one
JSON object in ASCII without spaces, its keys in this order; a trace without the last line may be of a run that was cut
short.

The head of a log is its size and root, written 3:HEX5. Where a line stands follows from the header (Layout); a check
takes it from there, so that under one head there is one step at most for a position, whoever made the log.

This file only collects names, which live in llama2_py/log. No other file imports it, since the standard library has a
module of this name as well. A dispute between two logs (ask, reveal, rows, judge, settle) and the audit of one (secret,
audit) live in llama2_py/referee.
"""
import sys

if __name__ == "__main__":
    try:
        import llama2_py.program  # first: it watches over the imports that follow  # noqa: F401
    except ImportError:
        print("trace.py: error: the folder llama2_py is not beside this file (or python3 -P hides it)", file=sys.stderr)
        sys.exit(2)

from llama2_py.console import VerificationError
from llama2_py.log.difference import differences
from llama2_py.log.events import (FORMAT, LEVELS, Layout, commitment_of, encode, hash_values, read_header, read_line,
                                  seed_of)
from llama2_py.log.formats import read
from llama2_py.log.proofs import checkpoint, prove, prove_growth, tlog_proof, verify_growth, verify_proof
from llama2_py.log.reading import Trace
from llama2_py.log.show import show, show_step, text_of
from llama2_py.log.verify import Verdict, verify
from llama2_py.log.weights import weights_root
from llama2_py.log.writing import Log, Writer, head
from llama2_py.trace_command import main

__all__ = ["FORMAT", "LEVELS", "Layout", "Log", "Trace", "Verdict", "VerificationError", "Writer", "checkpoint",
           "commitment_of", "differences", "encode", "hash_values", "head", "main", "prove", "prove_growth", "read",
           "read_header", "read_line", "seed_of", "show", "show_step", "text_of", "tlog_proof", "verify",
           "verify_growth", "verify_proof", "weights_root"]

if __name__ == "__main__":
    sys.exit(main())
