"""Tests of page.py and page.html: what is in a page, and, in a browser, what it computes and shows."""
import base64
import hashlib
import json
import os
import re
import shutil
import subprocess

import pytest

import llama2
from llama2_py import command as command_line
from llama2_py.log import page
import plain
from llama2_py.log import formats, show
from llama2_py import trace_command as tracing
from tests.helpers import HERE, MODEL, command, edit, failure, forge, read_lines

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here to open the page in")
with open(os.path.join(HERE, "page.html"), encoding="utf-8") as file:
    SCRIPT = re.search(r"<script>(.*?)</script>", file.read(), re.S)[1]


def data_of(text):
    """What a page holds."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*)</script>', text, re.S)[1])


def browse(path, script, folder):
    """Open a page in a browser, run a script in it that sets `result` -> the result; the console must be silent."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    trial = ("<script>document.addEventListener('DOMContentLoaded', () => setTimeout(() => { let result; try {"
             + script + "} catch (error) { result = 'error: ' + error + error.stack; }"
             "const pre = document.createElement('pre'); pre.id = 'result';"
             "pre.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(result))));"
             "document.body.append(pre); }, 50));</script>")
    (folder / "trial.html").write_text(text + trial, encoding="utf-8")
    done = subprocess.run([BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
                           f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000", "--dump-dom",
                           f"file://{folder / 'trial.html'}"], capture_output=True, timeout=100)
    console = [line for line in done.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
    assert console == []
    return json.loads(base64.b64decode(re.search(r'<pre id="result">(.*?)</pre>', done.stdout.decode())[1]))


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A page of the embedded model, its trace, and a folder."""
    folder = tmp_path_factory.mktemp("story")
    assert command_line.main(["-s", "42", "-n", "30", "-i", "Once upon", "--page", str(folder / "page.html"),
                        "--trace", str(folder / "t")]) == 0
    return folder / "page.html", folder / "t", folder


def test_a_page_is_one_small_file_that_needs_no_network(story):
    text = story[0].read_text(encoding="utf-8")
    assert len(SCRIPT.encode()) < 20_000 and len(text) < 300_000
    assert not re.search(r"""https?:|//[a-z]|src=|href=|@import|url\(|innerHTML|document\.write|eval\(""", text)
    assert "default-src 'none'" in text and text.count("<script") == 2
    assert text.rstrip().endswith("</script>") and text.index('id="data"') > text.index("</style>")


def test_a_page_holds_the_run_and_its_log(story):
    data, lines = data_of(story[0].read_text(encoding="utf-8")), read_lines(story[1])
    assert [leaf.encode() for leaf in data["leaves"]] == lines[:-1]
    assert "".join(data["texts"]) == show.text_of(formats.read(str(story[1]))) and data["given"] == 3
    judge = plain.Model(MODEL)
    with llama2.Transformer(MODEL) as model:
        seen, sampler, coins = [], llama2.Sampler(1.0, 0.9, 42), llama2.Sampler(1.0, 0.9, 42)
        token = 1
        for pos, step in enumerate(data["steps"]):
            logits = model.forward(token, pos, lambda layer, op, values: seen.append((op, list(values))))
            weights = [value for op, values in seen if op == "weights" for value in values]
            layers = [values for op, values in seen if op == "ffn_residual"]
            seen.clear()
            digits = re.findall("..", step["weights"])
            assert [int(pair, 32) for pair in digits] == [round(999 * w) for w in weights]
            assert step["lens"][-1][0] == logits.index(max(logits)) and len(step["lens"]) == 5
            early = plain.matvec(judge.classifier, plain.rmsnorm(layers[2], judge.rms_final)) if pos == 9 else None
            assert early is None or step["lens"][2] == [early.index(max(early)), pytest.approx(
                plain.softmax(early)[early.index(max(early))], rel=1e-3)]
            if pos + 1 < data["given"]:
                assert "coin" not in step and all(kept for _, _, kept in step["top"])
            else:
                coin = coins.coin()
                assert sampler.sample(logits) == step["next"]
                tokens, total, probabilities, _ = sampler.drawn
                assert (step["kept"], step["coin"], step["total"]) == (len(tokens), coin, total)
                assert [kept for _, _, kept in step["top"]] == [token in tokens for token, _, _ in step["top"]]
                best = sorted(range(512), key=lambda token: -probabilities[token])[:10]
                assert [token for token, _, _ in step["top"]] == best
                assert all(abs(p - probabilities[token]) < 1e-4 for token, p, _ in step["top"])
            token = step["next"]


def test_a_page_of_a_trace_needs_no_model(story, traces, tmp_path, capfdbinary):
    code, out, _ = command(capfdbinary, "page", story[1], program=tracing)
    data = data_of(out.decode())
    assert code == 0 and not data["model"] and len(data["steps"]) == 30
    code, out, _ = command(capfdbinary, "page", traces["op"], program=tracing)
    data, log = data_of(out.decode()), formats.read(str(traces["op"]))
    assert data["header"].endswith("It commits to every operation. Nobody has verified it here.")
    cut = forge(tmp_path / "cut", read_lines(story[1])[:9], False)
    assert "cut short" in data_of(command(capfdbinary, "page", cut, program=tracing)[1].decode())["header"]
    assert [data["leaves"][step["leaf"]].encode() for step in data["steps"]] == [log.lines[i] for i in log.steps]
    assert data["leaves"][1] == hashlib.sha256(b"\0" + log.lines[1]).hexdigest()


def test_a_trace_of_llama2_rs_has_no_page(model, tmp_path, capfdbinary):
    command(capfdbinary, *model, "-s", 1, "-n", 3, "--like", "llama2-rs", "--trace", tmp_path / "t")
    assert "no paths" in failure(capfdbinary, "page", tmp_path / "t", program=tracing).replace(r"\u0020", " ")


def test_what_cannot_be_a_page_gets_one_line(story, tmp_path, capfdbinary, monkeypatch):
    monkeypatch.setattr(page, "MAX_PAGE", 10_000)
    path = tmp_path / "page.html"
    message = failure(capfdbinary, "-s", 1, "-n", 40, "--page", path)
    assert message == (f"{path}: the attention of 40 steps would have 65600 bytes, more than 10000: take at most 14 "
                       "(-n)")
    assert "take fewer steps" in failure(capfdbinary, "page", story[1], program=tracing) and not os.listdir(tmp_path)
    for option in (["--like", "llama2-rs"], ["--workers", 2]):
        assert "--page needs" in failure(capfdbinary, "-s", 1, "--page", path, *option)
    lines = read_lines(story[1])
    assert "no step" in failure(capfdbinary, "page", forge(tmp_path / "t", lines[:1], False), program=tracing)


@pytest.mark.parametrize("temperature", [0, 1e-60])
def test_where_the_likeliest_is_taken_there_is_no_coin(tmp_path, capfdbinary, temperature):
    path = tmp_path / "page.html"
    assert command(capfdbinary, "-t", temperature, "-s", 1, "-n", 3, "--page", path)[0] == 0
    steps = data_of(path.read_text(encoding="utf-8"))["steps"]
    assert all("coin" not in step and step["top"][0][0] == step["next"] for step in steps)


@needs_browser
def test_the_page_computes_what_python_computes(story):
    log = formats.read(str(story[1]))
    messages = ["a" * n for n in (0, 1, 3, 54, 55, 56, 57, 63, 64, 65, 119, 120, 1000)] + ["é😀\0"]
    result = browse(story[0], """
        const each = data.steps.map((step, i) => { choose(i); return [$("tree").dataset.head,
            document.querySelectorAll("[aria-pressed=true]").length, $("line").value, $("bars").children.length]; });
        const line = $("line");
        choose(7);
        const before = $("tree").dataset.head;
        line.value = line.value.replace('"pos":7', '"pos":8');
        line.dispatchEvent(new Event("input"));
        const edited = [$("tree").dataset.head, line.value, document.querySelectorAll(".own.changed").length,
                        $("state").textContent];
        $("reset").click();
        const back = $("tree").dataset.head;
        line.value += " ";
        line.dispatchEvent(new Event("input"));
        const compared = [before, before.split(":")[1], "9:ab", ""].map(text => {
            $("published").value = text;
            $("published").dispatchEvent(new Event("input"));
            return $("agrees").textContent;
        });
        const key = name => document.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
        document.body.focus();
        const walk = ["Home", "ArrowRight", "ArrowRight", "ArrowLeft", "End", "ArrowRight"].map(name => {
            document.body.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true })); return chosen; });
        $("map").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowUp", bubbles: true }));
        result = { each, before, edited, back, compared, walk, row: [layer, headNumber],
                   hashes: MESSAGES.map(text => hex(sha256(new TextEncoder().encode(text)))),
                   width: document.documentElement.scrollWidth - innerWidth };
        """.replace("MESSAGES", json.dumps(messages)), story[2])
    assert result["hashes"] == [hashlib.sha256(text.encode()).hexdigest() for text in messages]
    assert result["each"] == [[log.head(), 1, log.lines[i].decode(), 10] for i in log.steps]
    edited = log.lines[8].replace(b'"pos":7', b'"pos":8')
    tree = page.trace.merkle.MerkleTree()
    for i, line in enumerate(log.lines):
        tree.append(page.leaf_hash(edited if i == 8 else line))
    assert result["edited"][:3] == [f"{len(tree)}:{tree.root().hex()}", edited.decode(), 6]
    assert result["edited"][3].startswith("Changed: ") and result["before"] == result["back"] == log.head()
    assert result["compared"] == ["That is the head of this log."] * 2 + ["That is another head than this log's.", ""]
    assert result["walk"] == [0, 1, 2, 1, 29, 29] and result["row"] == [4, 7] and result["width"] <= 0


HOSTILE = ["</script><script>window.hacked = 1</script>", "<img src=x onerror='window.hacked=1'>",
           "\"'`${window.hacked=1}", "\u202etxet sdrawkcab\u2066", "a\0b\x1b[31m", "</script x=", "<!-- <script ",
           "]]>", "&lt;b&gt;", "\u2028\u2029", "DATA", "😀"]


@needs_browser
@pytest.mark.parametrize("of_model", [True, False])
def test_hostile_texts_are_shown_and_do_nothing(story, tmp_path, of_model, monkeypatch):
    lines = read_lines(story[1])[:-1]
    for i, text in enumerate(HOSTILE):
        lines[4 + i] = edit(lines[4 + i], text=text)
    lines[0] = edit(lines[0], prompt=HOSTILE[0])
    log = formats.read(forge(tmp_path / "t", lines))
    path = tmp_path / "page.html"
    if of_model:
        data = data_of(story[0].read_text(encoding="utf-8"))
        words = {str(i): page.visible(text) for i, text in enumerate(HOSTILE)}
        steps = [{**step, "top": [[i, 0.5, True] for i in range(10)]} for step in data["steps"]]
        path.write_bytes(page.html("t", log.lines, {"model": True, "layers": 5, "heads": 8, "words": words}, steps))
    else:
        path.write_bytes(page.of_trace(log))
    result = browse(path, """
        const texts = data.steps.map((step, i) => {
            choose(i);
            return [tokens[i].textContent, $("tree").dataset.head];
        });
        result = { texts, hacked: typeof window.hacked, tags: ["script", "img", "b"].map(
            tag => document.querySelectorAll(tag).length), title: document.title, header: $("header").textContent };
        """, tmp_path)
    assert result["hacked"] == "undefined" and result["tags"] == [3, 0, 0] and result["title"] == (
        "A Llama thinking" if of_model else "A Llama's log")
    seen = {"\u202etxet sdrawkcab\u2066": r"\u202etxet sdrawkcab\u2066", "a\0b\x1b[31m": r"a\x00b\x1b[31m",
            "\u2028\u2029": r"\u2028\u2029"}
    assert [text for text, _ in result["texts"][3:3 + len(HOSTILE)]] == [seen.get(text, text) for text in HOSTILE]
    assert {head for _, head in result["texts"]} == {log.head()}
    assert all(c.isprintable() for c in result["header"]) and not any(c in "\u202e\u2066\0" for c in path.read_text())


@needs_browser
def test_a_page_of_operations_fits_a_narrow_screen(traces, tmp_path, capfdbinary):
    path = tmp_path / "page.html"
    path.write_bytes(command(capfdbinary, "page", traces["op"], program=tracing)[1])
    result = browse(path, """
        document.body.style.width = "320px";
        choose(2);
        result = [$("tree").dataset.head, $("model").offsetHeight, document.body.scrollWidth];
        """, tmp_path)
    assert result[0] == formats.read(str(traces["op"])).head() and result[1] == 0 and result[2] <= 320
