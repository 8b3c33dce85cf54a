"""Tests of console.py: what is printed, exit codes, files that are whole or not there."""
import io
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama2_py import console
from llama2_py.log import show
from llama2_py import trace_command as tracing
from tests.helpers import HERE, command, examples, interruptible, process, read_bytes, written
from llama2_py.console import VerificationError


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


def test_a_closed_standard_output_is_told_and_odd_encodings_do_not_matter(files):
    for program in "llama2.py -t 0 -n 4", "plain.py":
        done = subprocess.run(["bash", "-c", f"'{sys.executable}' '{HERE}'/{program} >&-"], capture_output=True)
        assert (done.returncode, done.stderr) == (141, b"")
    done = process("-t", 0, "-n", 12, "-i", "é😀", env={**os.environ, "PYTHONIOENCODING": "ascii", "LANG": "C"})
    assert done.returncode == 0 and done.stdout.startswith("é😀".encode())


@pytest.mark.parametrize("program", ["llama2.py", "trace.py"])
def test_a_file_without_its_rooms_says_what_is_missing(program, tmp_path):
    shutil.copy(os.path.join(HERE, program), tmp_path)
    for call in [tmp_path / program], ["-I", os.path.join(HERE, program)]:
        done = subprocess.run([sys.executable, *call], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (
            2, "", f"{program}: error: the folder llama2_py is not beside this file (or python3 -P hides it)\n")


def test_a_full_standard_output_is_an_error_of_one_line():
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, os.path.join(HERE, "llama2.py"), "-s", "1", "-n", "3"], stdout=full,
                              stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (2, b"llama2.py: error: No space left on device\n")


def test_file_names_and_prompts_are_shown_without_their_escapes(traces, tmp_path, capfdbinary):
    path = tmp_path / os.fsdecode("\x1b[31mé".encode())
    path.write_bytes(read_bytes(traces["c"]))
    code, out, err = command(capfdbinary, "diff", traces["step"], path, program=tracing)
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


@pytest.mark.parametrize("redirection", ["2>/dev/full", pytest.param("2>&-", marks=pytest.mark.slow)])
def test_exit_codes_do_not_depend_on_standard_error(redirection, files):
    program = f"'{sys.executable}' '{HERE}/llama2.py'"
    for args, code in (f"'{files['grouped']}' -z '{files['tokenizer']}' -s 1 -n 3", 0), ("-t -1", 2), ("none.bin", 2):
        done = subprocess.run(["bash", "-c", f"{program} {args} {redirection}"], stdout=subprocess.PIPE)
        assert done.returncode == code


def test_exit_code_1_and_text_do_not_depend_on_standard_error(traces, model):
    line = f"'{sys.executable}' '{HERE}/llama2.py' '{model[0]}' -z '{model[2]}' --verify '{traces['step']}'"
    for more, code in ("", 0), (" -s 8", 1):
        done = subprocess.run(["bash", "-c", f"{line}{more} 2>/dev/full"], stdout=subprocess.PIPE)
        assert done.returncode == code and done.stdout.startswith(b"verified") == (code == 0)


@pytest.mark.parametrize("program", ["llama2.py", "trace.py"])
def test_ctrl_c_while_modules_load_is_quiet(program, tmp_path):
    """One of the modules that is loaded sends it."""
    shutil.copytree(os.path.join(HERE, "llama2_py"), tmp_path / "llama2_py")
    for name in "merkle.py", "llama2.py", "trace.py":
        shutil.copy(os.path.join(HERE, name), tmp_path)
    console_py = tmp_path / "llama2_py" / "console.py"
    console_py.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n" + console_py.read_text())
    done = subprocess.run([sys.executable, tmp_path / program], capture_output=True, preexec_fn=interruptible)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_an_older_python_is_told_so(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.version_info = (3, 9, 1); sys.version = '3.9.1 (main)'")
    for program in "llama2.py", "trace.py":
        done = subprocess.run([sys.executable, os.path.join(HERE, program)], capture_output=True,
                              env={**os.environ, "PYTHONPATH": str(tmp_path)})
        assert (done.returncode, done.stdout) == (2, b"")
        assert done.stderr == f"{program}: error: Python 3.10 or newer is needed, this is 3.9.1\n".encode()


def test_temporary_files_are_opened_exclusively(tmp_path, monkeypatch):
    monkeypatch.setattr(console.os, "urandom", lambda n: b"\xf0\x0d")
    (tmp_path / "victim").write_bytes(b"precious")
    os.symlink(tmp_path / "victim", tmp_path / "out.f00d.tmp")  # somebody has guessed the name
    with pytest.raises(OSError, match="out: File exists"):
        console.write_whole(tmp_path / "out", b"data")
    assert (tmp_path / "victim").read_bytes() == b"precious" and not (tmp_path / "out").exists()
    assert os.path.islink(tmp_path / "out.f00d.tmp")


def test_a_file_that_cannot_be_written_whole_is_not_there(tmp_path, monkeypatch):
    (tmp_path / "out").write_bytes(b"before")
    monkeypatch.setattr(console.os, "replace", lambda *_: os.stat("/nowhere"))
    with pytest.raises(OSError, match="out: No such file or directory"):
        console.write_whole(tmp_path / "out", b"data")
    assert os.listdir(tmp_path) == ["out"] and (tmp_path / "out").read_bytes() == b"before"


def test_a_file_that_grows_is_read_as_far_as_it_went(tmp_path, monkeypatch):
    (tmp_path / "log").write_bytes(b"x" * 1000)
    fstat = os.fstat

    def grow(fd):
        stat = fstat(fd)
        with open(tmp_path / "log", "ab") as file:
            file.write(b"y" * 1000)
        return stat

    monkeypatch.setattr(console.os, "fstat", grow)
    assert console.read_file(tmp_path / "log", 1000) == b"x" * 1000


VERDICTS = ["verified: 14 steps computed again and found equal", "root: 15:" + "ab" * 32 + ", as published",
            "  seed: 42", "these options were claimed by the caller:", "the text of these steps:",
            "proved to be in the log with this root:",
            "the two traces are equal", "llama2.py: error: out of memory"]


@given(st.text(st.sampled_from("ab é\n\t\x1b\u202e\u00a0\\\"😀"), max_size=200), st.sampled_from(VERDICTS),
       st.integers(0, 90), st.sampled_from(["", " ", "a", "\n", "é"]))
@examples(300)
def test_no_string_can_pass_for_a_line_of_ours(text, verdict, padding, filler):
    """Whatever stands around it, and wherever a terminal of 80 columns breaks the line."""
    text = text + filler * padding + verdict + text
    rows = []
    for name in "prompt", "text":
        out = io.StringIO()
        show.show_fields({name: text}, out)
        assert out.getvalue().isascii()
        for line in out.getvalue().splitlines():
            assert len(line) < 80 and (line.startswith(f'  {name}: "') or line.startswith('    "'))
    message = str(VerificationError("t, line 5", "text", text, "x" * padding + verdict))
    for before in range(0, 80, 7):
        line = "." * before + message
        rows += [line[i:i + 80] for i in range(0, len(line), 80)]
    assert not any(row.startswith(verdict) for row in rows)


@given(st.text(st.sampled_from("a \n"), max_size=30))
def test_what_is_quoted_hides_nothing_in_white_space(text):
    for shown in console.quoted(text), console.printable(text + "!" * 30):
        assert "  " not in shown.replace("\n    ", "")
    assert "".join(map(json.loads, console.quoted(text).split("\n    "))) == text


def test_long_strings_are_cut_and_say_so():
    shown = console.quoted("a" * 10**6)
    assert len(shown) < 5000 and shown.endswith(" .. (1000000 characters)")
    assert len(str(VerificationError("x", "text", "a" * 10**6, "b" * 10**6))) < 1100
