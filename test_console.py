"""Tests of console.py: what is printed, exit codes, files that are whole or not there."""
import io
import os
import re
import subprocess
import sys

import pytest

import console
import trace
from conftest import HERE, command, process, read_bytes, written


def test_characters_come_out_whole_and_control_bytes_do_not():
    emoji = "😀".encode()
    assert written([emoji[i:i + 1] for i in range(4)]) == emoji
    out = io.BytesIO()
    write = console.printer(out, None)
    for i in range(3):
        write(emoji[i:i + 1])
        assert out.getvalue() == b""
    assert written([b"a", emoji[:2], b"b"]) == "a\ufffdb".encode()
    for like in None, "llama2.c", "llama2-rs":
        shown = written([b"\x07", b"\x1b[31mred", b"\t\n", "\x85\x9b1m".encode(), b"\x7f", bytes(range(32))], like)
        assert shown.startswith(b"[31mred\t\n1m") and not set(shown) & (set(range(9)) | set(range(14, 32)) | {127})
    # run.c drops lone bytes it cannot print
    assert written([emoji[i:i + 1] for i in range(4)] + [b"ok"], "llama2.c") == b"ok"
    assert written([emoji[:2], emoji[2:]], "llama2-rs") == "\ufffd\ufffd\ufffd".encode()


def test_a_closed_pipe_ends_the_run_quietly(files):
    line = f"'{sys.executable}' '{HERE}/llama2.py' -t 0 | head -c 9"
    done = subprocess.run(["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"], capture_output=True)
    assert (done.returncode, len(done.stdout), done.stderr) == (141, 9, b"")


def test_closed_standard_output_and_odd_encodings_do_not_matter(files):
    line = f"'{sys.executable}' '{HERE}/llama2.py' -t 0 -n 4 >&-"
    assert subprocess.run(["bash", "-c", line], capture_output=True).returncode == 0
    done = process("-t", 0, "-n", 12, "-i", "é😀", env={**os.environ, "PYTHONIOENCODING": "ascii", "LANG": "C"})
    assert done.returncode == 0 and done.stdout.startswith("é😀".encode())


@pytest.mark.parametrize("program, message",
                         [("llama2.py", b"is not this project's"),
                          ("trace.py", b"are to be beside trace.py")])
def test_a_python_that_hides_the_folder_says_why_nothing_works(program, message):
    done = subprocess.run([sys.executable, "-I", os.path.join(HERE, program)], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    assert done.stderr.startswith(program.encode() + b": error: ") and message in done.stderr


def test_a_full_standard_output_is_an_error_of_one_line():
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, os.path.join(HERE, "llama2.py"), "-s", "1", "-n", "3"], stdout=full,
                              stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (2, b"llama2.py: error: No space left on device\n")


def test_file_names_and_prompts_are_shown_without_their_escapes(traces, tmp_path, capfdbinary):
    path = tmp_path / os.fsdecode("\x1b[31mé".encode())
    path.write_bytes(read_bytes(traces["c"]))
    code, out, err = command(capfdbinary, "diff", traces["step"], path, program=trace)
    assert code == 1 and re.search(rb"/\\x1b\[31m(\\xe9|\\udcc3\\udca9), line 1 \(header\): arithmetic", out)
    assert out.isascii() and b"\x1b" not in out
    assert [console.printable(value) for value in ("\x1b", '"\\u001b"', "", '""', "a b", 3, "é")] == [
        '"\\u001b"', '"\\"\\\\u001b\\""', '""', '"\\"\\""', '"a b"', "3", '"\\u00e9"']


def test_more_bytes_than_the_limit_are_an_error_and_never_cut(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 1000)
    os.mkfifo(tmp_path / "fifo")
    for limit in 1000, 1001:
        assert console.read_file(tmp_path / "file", limit) == b"x" * 1000
    for name in "file", "fifo":
        writer = subprocess.Popen(["cp", tmp_path / "file", tmp_path / "fifo"]) if name == "fifo" else None
        with pytest.raises(ValueError, match=f"{name}: is larger than 999 bytes"):
            console.read_file(tmp_path / name, 999)
        if writer:
            writer.wait()
