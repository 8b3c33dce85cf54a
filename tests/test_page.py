"""Tests of page.py, page.html and page.js: what a page holds, and what it computes, shows and refuses in a browser."""
import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile

import pytest

import llama2
import merkle
import plain
from llama2_py import command as command_line
from llama2_py import trace_command as tracing
from llama2_py.engine import graph
from llama2_py.log import events, formats, page, show
from llama2_py.log.proofs import checkpoint
from tests.helpers import MODEL, command, edit, failure, forge, read_lines

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here to open the page in")
PROFILE = tempfile.TemporaryDirectory()  # the browser's, which starts faster where it has been
DARK = "--blink-settings=preferredColorScheme=0"
SCRIPT, MARKUP = page.source("page.js"), page.source("page.html")
NONCE = "5a" * 16
MULTILINGUAL = "Grüße, שלום 😀. One day"


def test_the_script_knows_what_a_log_says():
    assert f'"{events.FORMAT}"' in SCRIPT
    assert f'"{",".join(events.SCHEMAS[0])}"' in SCRIPT and f'"{",".join(events.SCHEMAS[4])}"' in SCRIPT
    assert [name for name in events.HEADER if name not in events.SCHEMAS[0]] == ["nonce"] and "seed,nonce" in SCRIPT
    assert f"{{ step: 1, layer: layers + 1, op: {len(graph.OPERATIONS)} * layers + {len(graph.OUTSIDE)} }}" in SCRIPT


def data_of(text):
    """What a page holds."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*)</script>', text, re.S)[1])


def with_data(text, data):
    """A page with other data."""
    before, after = text.split(re.search(r'<script type="application/json" id="data">(.*)</script>', text, re.S)[1])
    return before + json.dumps(data).replace("<", "\\u003c") + after


def run_browser(text, folder, *flags, fragment=""):
    """Open a text as a page that leaves a <pre id="result"> of base64 -> what it left; the console must be silent."""
    (folder / "trial.html").write_text(text, encoding="utf-8")
    done = subprocess.run([BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
                           f"--user-data-dir={PROFILE.name}", "--virtual-time-budget=20000", *flags,
                           "--window-size=1000,800", "--dump-dom", f"file://{folder / 'trial.html'}{fragment}"],
                          capture_output=True, timeout=100)
    console = [line for line in done.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
    assert console == []
    return json.loads(base64.b64decode(re.search(r'<pre id="result">(.*?)</pre>', done.stdout.decode())[1]))


LEAVE = """const pre = document.createElement("pre"); pre.id = "result";
    pre.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(result)))); document.body.append(pre);"""


def browse(path, script, folder, *flags, fragment=""):
    """Open a page, run a script in it that sets `result` -> the result."""
    trial = ("<script>document.addEventListener('DOMContentLoaded', () => setTimeout(() => { let result; try {"
             + script + "} catch (error) { result = 'error: ' + error + error.stack; }" + LEAVE + "}, 50));</script>")
    return run_browser(path.read_text(encoding="utf-8") + trial, folder, *flags, fragment=fragment)


def browse_frames(texts, script, folder, width=1000, *flags):
    """Open pages beside each other, run a script on each one's window and document -> what it returned, for each."""
    frames = [base64.b64encode(text.encode()).decode() for text in texts]
    return run_browser("""<!DOCTYPE html><body><script>
        const texts = FRAMES, results = [];
        const look = (window, document, $) => { SCRIPT };
        texts.forEach((text, i) => {
            const frame = document.createElement("iframe");
            frame.style.cssText = "width: WIDTHpx; height: 800px; border: 0";
            frame.onload = () => setTimeout(() => {
                const inside = frame.contentDocument;
                try { results[i] = look(frame.contentWindow, inside, id => inside.getElementById(id)); }
                catch (error) { results[i] = "error: " + error + error.stack; }
                if (Object.keys(results).length < texts.length) return;
                const result = results;
                LEAVE
            }, 50);
            frame.srcdoc = new TextDecoder().decode(Uint8Array.from(atob(text), c => c.charCodeAt(0)));
            document.body.append(frame);
        });
        </script>""".replace("FRAMES", json.dumps(frames)).replace("SCRIPT", script).replace("WIDTH", str(width))
                       .replace("LEAVE", LEAVE), folder, *flags)


def tell(path, *options):
    """Run the embedded model, and write the page."""
    assert command_line.main([*map(str, options), "--page", str(path)]) == 0
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A page of the embedded model, its trace, and a folder."""
    folder = tmp_path_factory.mktemp("story")
    tell(folder / "page.html", "-s", 42, "-n", 30, "-i", "Once upon", "--trace", folder / "t")
    return folder / "page.html", folder / "t", folder


@pytest.fixture(scope="module")
def bytes_page(tmp_path_factory):
    """A page whose prompt has characters without a token of their own, and its trace."""
    folder = tmp_path_factory.mktemp("bytes")
    tell(folder / "page.html", "-s", 3, "-n", 45, "-i", MULTILINGUAL, "--trace", folder / "t")
    return folder / "page.html", folder / "t"


# ----------------------------------------------------------------------------
# The file


def test_a_page_is_one_small_file_that_needs_no_network(story):
    text = story[0].read_text(encoding="utf-8")
    assert len(SCRIPT.encode()) < 24_000 and len(text) < 300_000
    assert not re.search(r"""https?:|//[a-z]|src=|href=|@import|url\(|innerHTML|document\.write|eval\(""", text)
    assert "default-src 'none'" in text and text.count("<script") == 2
    assert text.rstrip().endswith("</script>") and text.index('id="data"') > text.index("</style>")


def test_a_page_holds_the_run_and_its_log(story):
    data, lines = data_of(story[0].read_text(encoding="utf-8")), read_lines(story[1])[:-1]
    assert [line.encode() for line in data["lines"]] == lines
    assert data["leaves"] == [hashlib.sha256(b"\0" + line).hexdigest() for line in lines]
    assert data["head"] == formats.read(str(story[1])).head()
    judge = plain.Model(MODEL)
    with llama2.Transformer(MODEL) as model:
        seen, sampler = [], llama2.Sampler(1.0, 0.9, 42)
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
            token = json.loads(lines[pos + 1])["next"]
            if pos + 1 < 3:
                assert "kept" not in step and all(kept for _, _, kept in step["top"])
            else:
                assert sampler.sample(logits) == token
                tokens, total, probabilities, _ = sampler.drawn
                assert (step["kept"], step["total"]) == (len(tokens), pytest.approx(total, rel=1e-3))
                assert [kept for _, _, kept in step["top"]] == [token in tokens for token, _, _ in step["top"]]
                best = sorted(range(512), key=lambda token: -probabilities[token])[:10]
                assert [token for token, _, _ in step["top"]] == best
                assert all(abs(p - probabilities[token]) < 1e-4 for token, p, _ in step["top"])


def test_what_the_lines_say_stands_in_the_data_once(story):
    data = data_of(story[0].read_text(encoding="utf-8"))
    assert list(data) == ["head", "lines", "leaves", "words", "steps"]
    assert all(set(step) <= {"lens", "weights", "top", "kept", "total"} for step in data["steps"])


def test_a_page_of_a_trace_needs_no_model(story, traces, capfdbinary):
    code, out, _ = command(capfdbinary, "page", story[1], program=tracing)
    data = data_of(out.decode())
    assert code == 0 and data["steps"] is None and len(data["lines"]) == 31
    code, out, _ = command(capfdbinary, "page", traces["op"], program=tracing)
    data, log = data_of(out.decode()), formats.read(str(traces["op"]))
    assert [line.encode() for line in data["lines"][1:]] == [log.lines[i] for i in log.steps]
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


def test_a_log_that_is_too_large_is_refused_before_it_is_read_to_its_end(story):
    class Lines(list):
        read = 0

        def __iter__(self):
            for line in list.__iter__(self):
                Lines.read += 1
                yield line

    lines = read_lines(story[1])[:-1]
    lines = Lines(lines[:1] + [edit(line, text="a" * 2_000_000) for line in lines[1:]])
    with pytest.raises(ValueError, match="take fewer steps"):
        page.html("t", lines, "31:")
    assert 10 <= Lines.read <= 12


@pytest.mark.parametrize("temperature", [0, 1e-60])
def test_where_the_likeliest_is_taken_nothing_was_drawn(tmp_path, temperature):
    data = data_of(tell(tmp_path / "page.html", "-t", temperature, "-s", 1, "-n", 3))
    chosen = [json.loads(line)["next"] for line in data["lines"][1:]]
    assert [step["top"][0][0] for step in data["steps"]] == chosen
    assert not any("kept" in step for step in data["steps"])


WORDS = ["token", "prompt", "model", "layer", "residual stream", "embedding", "attention", "feed-forward", "norm",
         "classifier", "logits", "probability", "temperature", "top-p", "coin", "seed", "logit lens", "head",
         "query, key, value", "position", "BOS", "hash", "head of a log"]
WORD = r"<details><summary>(.*?)</summary> (.*?) <code>(\w+)\.py: (\w+)</code></details>"


def test_a_word_that_a_student_does_not_know_has_one_sentence_and_its_function():
    found = re.findall(WORD, MARKUP, re.S)
    assert sorted(word for word, *_ in found) == sorted(WORDS) and MARKUP.count("<details") == len(WORDS)
    for word, sentence, module, function in found:
        said = " ".join(sentence.split())
        assert said.endswith(".") and not re.search(r"[.?!] ", said) and 40 < len(said) < 200, word
        assert callable(getattr({"plain": plain, "merkle": merkle}[module], function))


# What somebody asks who has never seen a transformer -> the parts that answer, and a word of the answer
QUESTIONS = {
    "What am I looking at?": ("intro", "how probable each token is to come next"),
    "Why are there pieces of words?": ("s-text", "A frequent piece of text"),
    "Which part did a human write?": ("s-text", "Grey tokens were given"),
    "Where was it sure, and where not?": ("s-text", "The more orange a token, the less probable it was"),
    "What else could have come here?": ("s-next", "outside of top-p"),
    "Why was the likeliest token not taken?": ("s-next", "it hits each token as often as the token's probability says"),
    "Would it tell this again?": ("s-next", "with the same seed the same story is told again"),
    "Where does it know stories from?": ("s-net", "learned from many texts"),
    "Does it learn while it writes?": ("s-net", "while it writes, not one of them changes"),
    "What do the layers do?": ("s-net", "its heads fetch from earlier positions"),
    "When did it know the answer?": ("s-lens", "the guess so far"),
    "At what did it look?": ("s-att", "How much each position so far counted when this token was predicted"),
    "Why does it look at BOS, which is no word?": ("s-att", "can rest there"),
    "How do I know that nobody changed it?": ("s-log", "notices any change in the log"),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_of_somebody_new_is_answered_where_he_would_look(question):
    part, answer = QUESTIONS[question]
    inside = MARKUP.split(f'id="{part}"', 1)[1]
    inside = re.split("</p>" if part == "intro" else "</section>", inside)[0]
    assert answer in " ".join(re.sub("<[^>]*>", "", inside).split())


def test_without_its_script_a_page_says_what_is_missing():
    missing = re.search("<noscript>(.*?)</noscript>", MARKUP, re.S)[1]
    for thing in "text", "candidates", "attention", "layer", "hashes", "trace.py":
        assert thing in missing


def test_a_page_says_what_it_does_not_prove():
    said = " ".join(MARKUP.split())
    assert "as honest as whoever sent it" in said and "its script can be replaced" in said
    assert "trace.py page" in said and "trace.py check" in said
    assert MARKUP.count('<span class="mark">not in the log</span>') == 4
    assert MARKUP.count('<span class="mark in">in the log</span>') == 2


# ----------------------------------------------------------------------------
# What is computed


@pytest.mark.slow
@needs_browser
def test_the_page_computes_what_python_computes(story):
    log = formats.read(str(story[1]))
    messages = ["a" * n for n in (0, 1, 3, 54, 55, 56, 57, 63, 64, 65, 119, 120, 1000)] + ["é😀\0"]
    result = browse(story[0], """
        const each = events.map((event, i) => { choose(i); return [$("tree").dataset.head,
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
        const walked = ["Home", "ArrowRight", "ArrowRight", "ArrowLeft", "End", "ArrowRight"].map(name => {
            document.body.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true })); return chosen; });
        look(0, 0);
        $("map").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowUp", bubbles: true }));
        result = { each, before, edited, back, walked, row: [layer, headNumber], coins, text: pieces.join(""),
                   hashes: MESSAGES.map(text => hex(sha256(new TextEncoder().encode(text)))),
                   width: document.documentElement.scrollWidth - innerWidth, alarm: $("alarm").hidden };
        """.replace("MESSAGES", json.dumps(messages)), story[2])
    assert result["hashes"] == [hashlib.sha256(text.encode()).hexdigest() for text in messages]
    assert result["each"] == [[log.head(), 1, log.lines[i].decode(), 10] for i in log.steps]
    edited = log.lines[8].replace(b'"pos":7', b'"pos":8')
    leaves = [merkle.leaf_hash(edited if i == 8 else line) for i, line in enumerate(log.lines)]
    assert result["edited"][:3] == [f"{len(leaves)}:{merkle.tree_head(leaves).hex()}", edited.decode(), 6]
    assert result["edited"][3].startswith("Changed: ") and result["before"] == result["back"] == log.head()
    assert result["walked"] == [0, 1, 2, 1, 29, 29] and result["row"] == [4, 7] and result["width"] <= 0
    sampler = llama2.Sampler(1.0, 0.9, 42)
    assert result["coins"] == [None, None, *[sampler.coin() for _ in range(28)]]
    assert result["text"] == show.text_of(log) and result["alarm"]


@pytest.mark.slow
@needs_browser
def test_a_head_is_compared_in_every_form_in_which_it_is_printed(story, tmp_path):
    log = formats.read(str(story[1]))
    size, root = log.head().split(":")
    same = [log.head(), root, root.upper(), f"root: {log.head()}", f"root: {log.head()}, as published",
            f"root: {log.head()}, only recomputed from the file itself; compare it with the one that was published",
            f"without its last line, so the run may have been cut short; root so far: {log.head()}", f" {log.head()}\n",
            read_lines(story[1])[-1].decode(), checkpoint(log, "example.com/log"),
            checkpoint(log, "example.com/log") + "\n\u2014 example.com/log AAAA\n"]
    other = root[:-1] + "0123456789abcdef"[(int(root[-1], 16) + 1) % 16]
    wrong = [f"9:{root}", f"{size}:{other}", other, f"root: {size}:{other}, as published", f"{size}0:{root}",
             f'{{"size":{size},"root":"{other}"}}', checkpoint(log, "a").replace("\n31\n", "\n30\n")]
    nonsense = ["9:ab", "head", root[:-1], root + "0", f"{size}:{root}:"]
    result = browse(story[0], """result = TEXTS.map(text => {
            $("published").value = text;
            $("published").dispatchEvent(new Event("input"));
            const style = getComputedStyle($("agrees"));
            return [$("agrees").textContent, style.backgroundColor !== "rgba(0, 0, 0, 0)"];
        });""".replace("TEXTS", json.dumps([*same, *wrong, *nonsense, ""])), tmp_path)
    good, bad, none = result[:len(same)], result[len(same):-len(nonsense) - 1], result[-len(nonsense) - 1:-1]
    assert [text.startswith(("That is the head of this log", "That is the root of this log")) for text, _ in good
            ] == [True] * len(same) and not any(red for _, red in good)
    assert [text.startswith("ALARM: another head") and red for text, red in bad] == [True] * len(wrong)
    assert [text.startswith("That is not a head") and red for text, red in none] == [True] * len(nonsense)
    assert result[-1] == ["", False]


# ----------------------------------------------------------------------------
# What is refused: each of these pages has the script untouched, and other data


def relit(data):
    """Data whose leaves and head follow from its lines, as an attacker can make them."""
    data["leaves"] = [hashlib.sha256(b"\0" + line.encode()).hexdigest() for line in data["lines"]]
    data["head"] = f"{len(data['leaves'])}:{merkle.tree_head(map(bytes.fromhex, data['leaves'])).hex()}"


def changed_line(i, old, new, again=False):
    def change(data):
        assert old in data["lines"][i]
        data["lines"][i] = data["lines"][i].replace(old, new)
        if again:
            relit(data)
    return change


def next_of(data, pos):
    return json.loads(data["lines"][pos + 1])["next"]


def hide_chosen(data):
    top = data["steps"][9]["top"]
    data["steps"][9]["top"] = [c for c in top if c[0] != next_of(data, 9)]
    data["steps"][9]["kept"] = len(data["steps"][9]["top"])


def make_chosen_sure(data):
    data["steps"][9].update(top=[[0, 0.97, True], [next_of(data, 9), 0.02, True]], kept=2, total=0.99)


def put_chosen_outside(data):
    for candidate in data["steps"][9]["top"]:
        candidate[2] = candidate[0] != next_of(data, 9)


def forget_the_draw(data):
    del data["steps"][9]["kept"], data["steps"][9]["total"]


def rename_token(data):
    data["words"][str(next_of(data, 9))] = " dragon"


def too_probable(data):
    data["steps"][9]["top"][0][1] = 1.5


def no_attention(data):
    data["steps"][9]["weights"] = data["steps"][9]["weights"][2:]


def other_sibling(data):
    data["leaves"][12] = "0" * 64


def other_head(data):
    data["head"] = "15:" + "0" * 64


def fewer_lines(data):
    del data["lines"][-1], data["steps"][-1]


def after_the_end(data):
    data["lines"][-2] = edit(data["lines"][-2].encode(), next=1).decode()
    data["lines"][-1] = edit(data["lines"][-1].encode(), token=1).decode()
    relit(data)


def more_steps(data):
    data["lines"][0] = data["lines"][0].replace('"steps":14', '"steps":10')
    relit(data)


def with_nonce(data):
    """A header with a nonce that the seed does not follow from."""
    data["lines"][0] = data["lines"][0].replace('"seed":42,', f'"seed":42,"nonce":"{NONCE}",')
    relit(data)


def not_a_log(data):
    data["lines"][0] = "{}"


ATTACKS = {
    "a seed that was chosen": (with_nonce, "Its seed does not follow from its nonce"),
    "an edited text": (changed_line(8, '"text":"', '"text":"x'), "Step 7: its line is not what its leaf says"),
    "an edited prompt": (changed_line(0, '"prompt":"Once', '"prompt":"Twice'), "line is not what its leaf says"),
    "an edited option": (changed_line(0, '"temperature":1.0', '"temperature":0.5'), "line is not what its leaf says"),
    "an edited seed": (changed_line(0, '"seed":42', '"seed":997742', True), "contradict its line's token"),
    "an edited leaf": (other_sibling, "do not lead to the head"),
    "an edited head": (other_head, "do not lead to the head"),
    "fewer lines": (fewer_lines, "does not fit 13 steps"),
    "a token that was not chosen before": (changed_line(8, '"token":', '"token":1', True), "reads another token"),
    "a token that was not given": (changed_line(1, '"next":', '"next":1', True), "not the one that was given"),
    "a token outside of the vocabulary": (changed_line(14, '"next":', '"next":9999', True), "not in the vocabulary"),
    "another position": (changed_line(8, '"pos":7', '"pos":8', True), "says that it is step 8"),
    "a field twice": (changed_line(8, '"text":"', '"text":"a","text":"', True), "its line is not one of a log"),
    "white space": (changed_line(8, '"pos":7', '"pos": 7', True), "its line is not one of a log"),
    "a header's field twice": (changed_line(0, '"prompt":', '"prompt":"a","prompt":', True), "no header"),
    "a step after the end": (after_the_end, "Step 13: the run had ended before it"),
    "more steps than the header has": (more_steps, "Step 10: the run had ended before it"),
    "no log": (not_a_log, "cannot be read"),
    "the chosen token left out": (hide_chosen, "Step 9: its probabilities contradict"),
    "a coin that fell elsewhere": (make_chosen_sure, "Step 9: its probabilities contradict"),
    "the chosen token outside of top-p": (put_chosen_outside, "Step 9: its probabilities contradict"),
    "a draw without its candidates": (forget_the_draw, "Step 9: its probabilities contradict"),
    "another name": (rename_token, "its token is not its line's text"),
    "more than certain": (too_probable, "Step 9: its probabilities or its attention are none"),
    "attention left out": (no_attention, "Step 9: its probabilities or its attention are none"),
}
OPTIONS = {
    "likeliest": ["-t", 0, "-n", 12], "cool": ["-t", 0.5, "-s", 7, "-n", 12], "hot": ["-t", 3.5, "-s", 7, "-n", 12],
    "all": ["-p", 1, "-s", 9, "-n", 12], "zero": ["-p", 0, "-s", 9, "-n", 12],
    "narrow": ["-p", 0.05, "-s", 9, "-n", 12], "large seed": ["-s", 2**64 - 1, "-n", 12],
    "tokens": ["--tokens", "1,403,407", "-s", 2, "-n", 12], "one token": ["--tokens", "403", "-s", 2, "-n", 8],
    "nonce": ["--nonce", NONCE, "-n", 12], "likeliest, nonce": ["--nonce", NONCE, "-t", 0, "-n", 4],
    "like c": ["--like", "llama2.c", "-s", 5, "-n", 8], "prompt cut": ["-i", "Once upon a time", "-n", 2, "-s", 1],
}


@pytest.fixture(scope="module")
def alarms(story, bytes_page, traces, tmp_path_factory):
    """name -> what a page shows: every attack, and honest pages of every kind."""
    folder = tmp_path_factory.mktemp("alarms")
    honest = tell(folder / "page.html", "-s", 42, "-n", 14, "-i", "Once upon")
    pages = {}
    for name, (change, _) in ATTACKS.items():
        data = data_of(honest)
        change(data)
        pages[name] = with_data(honest, data)
    pages["the story"] = story[0].read_text(encoding="utf-8")
    pages["the same data"] = with_data(honest, data_of(honest))
    pages["bytes"] = bytes_page[0].read_text(encoding="utf-8")
    for name, options in OPTIONS.items():
        pages[name] = tell(folder / "page.html", *options)
    for level in "step", "layer", "op", "c":
        pages[f"level {level}"] = page.of_trace(formats.read(traces[level])).decode()
    pages["cut"] = page.of_trace(formats.read(forge(folder / "cut", read_lines(story[1])[:9], False))).decode()
    cut = read_lines(traces["op"])[:-8]
    pages["cut within a step"] = page.of_trace(formats.read(forge(folder / "cut", cut, False))).decode()
    shown = browse_frames(pages.values(), """
        const clear = element => window.getComputedStyle(element).display === "none";
        return { alarm: $("alarm").innerText, hidden: clear($("alarm")), header: $("header").innerText,
                 why: $("s-next").innerText, coin: clear($("coin")), lens: $("s-lens").innerText,
                 colour: window.getComputedStyle($("alarm")).backgroundColor,
                 bad: document.querySelectorAll(".bad").length, pale: document.querySelectorAll(".cut").length };
        """, folder)
    return dict(zip(pages, shown, strict=True))


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_page_that_contradicts_its_lines_is_an_alarm_in_colour_and_words(alarms, attack):
    shown = alarms[attack]
    assert not shown["hidden"] and shown["alarm"].startswith("ALARM: this page contradicts itself"), shown
    assert ATTACKS[attack][1] in shown["alarm"] and shown["colour"] == "rgb(165, 14, 14)"
    assert shown["bad"] >= ("Step" in ATTACKS[attack][1])


@pytest.mark.slow
@needs_browser
def test_an_honest_page_is_no_alarm(alarms):
    assert {name: shown["alarm"] for name, shown in alarms.items() if name not in ATTACKS and not shown["hidden"]} == {}
    assert sum(name not in ATTACKS for name in alarms) == 22


@pytest.mark.slow
@needs_browser
def test_the_header_is_told_in_words_that_are_true_of_the_run(alarms, traces):
    assert 'after the prompt "Once upon"; drawing at temperature 1, top-p 0.9, seed 42' in alarms["the story"]["header"]
    assert "without a prompt; taking the likeliest token" in alarms["likeliest"]["header"]
    assert "after tokens that were given as numbers: 1,403,407; drawing" in alarms["tokens"]["header"]
    assert "after tokens that were given as numbers: 403; drawing" in alarms["one token"]["header"]
    assert f"seed {2**64 - 1};" in alarms["large seed"]["header"]
    assert f", by nonce {NONCE};" in alarms["nonce"]["header"]
    assert "dialect c of the arithmetic" in alarms["like c"]["header"]
    assert "It commits to every operation. Nobody has verified it here." in alarms["level op"]["header"]
    assert "It lacks its last line, so it may have been cut short: it holds 8 steps. Nobody" in alarms["cut"]["header"]
    assert "cut short" in alarms["cut within a step"]["header"] and "cut short" not in alarms["level op"]["header"]
    assert MULTILINGUAL in alarms["bytes"]["header"]


@pytest.mark.slow
@needs_browser
def test_candidates_are_told_with_their_temperature_and_only_what_is_there_is_named(alarms):
    cool, every, likeliest, given = (alarms[name] for name in ("cool", "all", "likeliest", "prompt cut"))
    assert "at the run's temperature, 0.5" in cool["why"] and not cool["coin"] and "The strip shows" in cool["why"]
    assert ("paler ones are outside of top-p" in cool["why"]) == (cool["pale"] > 0)
    assert any(shown["pale"] for shown in alarms.values())
    assert every["coin"] and "paler" not in every["why"] and every["pale"] == 0
    assert "Drawn by a coin from 512 candidates" in every["why"] and "in the order of their numbers" in every["why"]
    assert likeliest["coin"] and "The likeliest token was taken" in likeliest["why"] and "coin" not in (
        likeliest["why"].split("temperature\n")[0].lower().replace("coin\n", ""))
    assert given["coin"] and "This token was given" in given["why"] and "at temperature 1" in given["why"]
    assert "at temperature 1, whatever the run's" in cool["lens"] and "Drawn by a coin from 1 candidate," in (
        alarms["zero"]["why"] + alarms["narrow"]["why"])


# ----------------------------------------------------------------------------
# How it is shown


HOSTILE = ["</script><script>window.hacked = 1</script>", "<img src=x onerror='window.hacked=1'>",
           "\"'`${window.hacked=1}", "\u202etxet sdrawkcab\u2066", "a\0b\x1b[31m", "</script x=", "<!-- <script ",
           "]]>", "&lt;b&gt;", "\u2028\u2029", "DATA", "SCRIPT", "😀", "\\xe2", "\\x80", "\\xae", "\\xff"]


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("of_model", [True, False])
def test_hostile_texts_are_shown_and_do_nothing(story, tmp_path, of_model):
    lines = read_lines(story[1])[:-1]
    for i, text in enumerate(HOSTILE):
        lines[4 + i] = edit(lines[4 + i], text=text)
    lines[0] = edit(lines[0], prompt=HOSTILE[0] + "\u202e")
    log = formats.read(forge(tmp_path / "t", lines))
    path = tmp_path / "page.html"
    if of_model:
        data = data_of(story[0].read_text(encoding="utf-8"))
        words = {i: HOSTILE[i % len(HOSTILE)] for i in range(512)}
        path.write_bytes(page.html("t", log.lines, log.head(), words, data["steps"]))
    else:
        path.write_bytes(page.of_trace(log))
    result = browse(path, """
        const texts = events.map((event, i) => {
            choose(i);
            return [tokens[i].textContent, $("tree").dataset.head];
        });
        result = { texts, hacked: typeof window.hacked, tags: ["script", "img", "b"].map(
            tag => document.querySelectorAll(tag).length), title: document.title, header: $("header").innerText,
            all: document.body.innerText };
        """, tmp_path)
    assert result["hacked"] == "undefined" and result["tags"] == [3, 0, 0] and result["title"] == (
        "A Llama thinking" if of_model else "A Llama's log")
    seen = {"\u202etxet sdrawkcab\u2066": r"\u202etxet sdrawkcab\u2066", "a\0b\x1b[31m": r"a\u0000b\u001b[31m",
            "\u2028\u2029": r"\u2028\u2029", "\\xe2": "", "\\x80": "", "\\xae": r"\u202e", "\\xff": "\ufffd"}
    assert [text for text, _ in result["texts"][3:3 + len(HOSTILE)]] == [seen.get(text, text) for text in HOSTILE]
    assert {head for _, head in result["texts"]} == {log.head()}
    assert not any(c in "\u202e\u2066\0\x1b" for c in result["all"] + path.read_text(encoding="utf-8"))


@pytest.mark.slow
@needs_browser
def test_text_reads_as_itself_where_bytes_make_a_character(bytes_page, tmp_path):
    result = browse(bytes_page[0], """
        const names = events.map((event, i) => { choose(i); return $("now").textContent; });
        const at = tokens.findIndex(token => token.textContent === "ü");
        choose(at);
        const rights = [..."שלום"].map(c => tokens.find(token => token.textContent === c).getBoundingClientRect().left);
        result = { text: $("text").textContent, given: tokens.slice(0, given - 1).map(t => t.textContent).join(""), at,
                   names, rights, raw: document.body.innerText.includes("\\\\xc3\\\\xbc") };
        """, tmp_path)
    assert result["given"] == MULTILINGUAL
    assert result["text"].replace("⏎", "\n") == show.text_of(formats.read(str(bytes_page[1])))
    at = result["at"]
    assert result["names"][at] == f"Step {at}: after byte c3 was given byte bc of ü (token 191)"
    assert result["rights"] == sorted(result["rights"], reverse=True)  # Hebrew runs from the right
    line = json.loads(read_lines(bytes_page[1])[at + 1])
    assert line["text"] == r"\xbc" and not result["raw"]


WALK = """
    const key = (at, name) => at.dispatchEvent(
        new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
    """


@pytest.mark.slow
@needs_browser
def test_walking_keeps_ones_place_and_the_fragment_names_the_token(story, tmp_path):
    result = browse(story[0], WALK + """
        const opened = [chosen, location.hash];
        choose(9);
        const map = $("map");
        map.scrollIntoView();
        map.focus();
        const before = map.getBoundingClientRect().top, page = scrollY;
        key(map, "ArrowRight");
        key(map, "ArrowRight");
        const onMap = [document.activeElement.id, chosen, Math.abs(map.getBoundingClientRect().top - before), page > 0];
        $("back").focus();
        $("back").click();
        const onButton = [document.activeElement.id, chosen];
        tokens[chosen].focus();
        key(tokens[chosen], "ArrowLeft");
        const inText = [document.activeElement === tokens[9], chosen, location.hash];
        $("line").focus();
        key($("line"), "ArrowLeft");
        const stops = tokens.filter(token => token.tabIndex === 0).length;
        result = { opened, onMap, onButton, inText, inLine: chosen, stops };
        """, tmp_path, fragment="#5")
    assert result["opened"] == [5, "#5"]
    focus, at, moved, scrolled = result["onMap"]
    assert (focus, at, scrolled) == ("map", 11, True) and moved < 60
    assert result["onButton"] == ["back", 10] and result["inText"] == [True, 9, "#9"]
    assert result["inLine"] == 9 and result["stops"] == 1


@pytest.mark.slow
@needs_browser
def test_it_opens_at_the_step_and_the_head_with_the_most_to_see(story, tmp_path):
    result = browse(story[0], """
        const opened = chosen, most = data.steps.map(interest), own = weightsOf(layer, headNumber).slice(1, -1);
        const others = data.steps[chosen].weights.match(/../g).map(pair => parseInt(pair, 32) / 999);
        const n = chosen + 1, inner = others.filter((w, t) => t % n > 0 && t % n < n - 1);
        result = { opened, most, given, hash: location.hash, own: Math.max(...own), inner: Math.max(...inner) };
        """, tmp_path)
    drawn = result["most"][result["given"] - 1:]
    assert result["opened"] == result["given"] - 1 + drawn.index(max(drawn))
    assert result["hash"] == f"#{result['opened']}"
    assert max(drawn) > sum(drawn) / len(drawn) + 1 and result["own"] == result["inner"]


@pytest.mark.slow
@needs_browser
def test_a_chosen_token_is_the_more_orange_the_less_probable_it_was(story, tmp_path):
    result = browse(story[0], """
        result = tokens.map(token => [+(getComputedStyle(token).backgroundColor.match(/^rgba.*, (.*)\\)/)?.[1] ?? 1),
                                      token.ariaPressed]);
        """, tmp_path)
    data = data_of(story[0].read_text(encoding="utf-8"))
    for i, (alpha, pressed) in enumerate(result):
        p = dict(token[:2] for token in data["steps"][i]["top"]).get(next_of(data, i), 0)
        expected = 1 if pressed == "true" else 0 if i < 2 else 0.4 * (1 - p)  # the prompt has two tokens
        assert alpha == pytest.approx(expected, abs=0.005), i
    assert len({alpha for alpha, _ in result}) > 5


@pytest.mark.slow
@needs_browser
def test_the_map_of_the_network_leads_to_its_parts(story, tmp_path):
    result = browse(story[0], """
        const near = id => Math.abs($(id).getBoundingClientRect().top) < 120;
        const parts = [...document.querySelectorAll("#net button")].map(button => {
            button.click();
            const to = button.dataset.to, end = scrollY + innerHeight >= document.body.scrollHeight - 20;
            return [to, document.activeElement.id === to, near(to) || end, layer];
        });
        look(3, 2);
        document.getElementById("1.6").click();
        result = { parts, chosen: [layer, headNumber], own: [...document.querySelectorAll("i.own")].map(i => i.id),
                   lens: [...document.querySelectorAll(".lens")].map(b => b.textContent),
                   rows: [...$("lens").rows].map(r => "lens: " + r.cells[1].textContent + " " + r.cells[2].textContent),
                   says: $("says").textContent, first: $("bars").firstChild.textContent };
        """, tmp_path)
    assert [to for to, *_ in result["parts"]] == ["s-text", *["s-att", "s-lens"] * 5, "s-next", "s-log"]
    assert all(focused and there for _, focused, there, _ in result["parts"])
    assert [layer for to, _, _, layer in result["parts"] if to == "s-att"] == [0, 1, 2, 3, 4]
    assert result["chosen"] == [1, 6] and result["own"] == ["1.6"]
    assert result["lens"] == result["rows"] and result["says"].replace(" ", "") == result["first"].replace(" ", "")


@pytest.mark.slow
@needs_browser
def test_attention_is_told_in_text_with_the_tokens_names(story, tmp_path):
    result = browse(story[0], """
        choose(6);
        look(2, 3);
        const under = tokens.map(token => +(token.style.boxShadow.match(/([\\d.]+)\\)/)?.[1] ?? -1));
        const cells = [...$("cells").children].map(li => [li.firstChild.textContent, li.lastChild.textContent]);
        const drawn = [], fill = CanvasRenderingContext2D.prototype.fillText;
        CanvasRenderingContext2D.prototype.fillText = function (text) { drawn.push(text); };
        drawMap();
        CanvasRenderingContext2D.prototype.fillText = fill;
        const map = $("map"), box = map.getBoundingClientRect();
        const point = new MouseEvent("click", { bubbles: true, clientX: box.left + columnWidth() * 4.5,
            clientY: box.top + rowTop(1, 5) + 5 });
        map.dispatchEvent(point);
        const n = chosen + 1, w = weightsOf(1, 5)[4];
        result = { under, cells, drawn, weights: weightsOf(2, 3), clicked: [layer, headNumber], w,
                   cell: $("cell").textContent, names: [...Array(n).keys()].map(nameAt),
                   titles: document.querySelectorAll("[title]").length };
        """, tmp_path)
    assert result["drawn"] == result["names"] and result["names"][:3] == ["BOS", "Once", "␣upon"]
    assert result["under"] == [*[pytest.approx(w ** 0.5, abs=0.01) for w in result["weights"][1:]], *[-1] * 24]
    order = sorted(range(7), key=lambda t: (-result["weights"][t], t))
    assert [name for name, _ in result["cells"]] == [f"{t} {result['names'][t]}" for t in order]
    assert [float(value.split()[0]) for _, value in result["cells"]] == [
        pytest.approx(100 * result["weights"][t], abs=0.06) for t in order]
    assert result["clicked"] == [1, 5] and result["titles"] == 0
    value = re.fullmatch(rf"layer 1, head 5: ([\d.]+) % at position 4, {result['names'][4]}", result["cell"])[1]
    assert float(value) == pytest.approx(100 * result["w"], abs=0.06)


CONTRAST = """
    const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = colour => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
        const c = colour[i] / 255;
        return sum + weight * (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    }, 0);
    const contrast = (a, b) => {
        const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
        return (x + 0.05) / (y + 0.05);
    };
    const ground = element => {  // what shines through is mixed with what is below
        const [r, g, b, alpha = 1] = numbers(getComputedStyle(element).backgroundColor);
        if (alpha === 1) return [r, g, b];
        const below = ground(element.parentElement);
        return [r, g, b].map((c, i) => alpha * c + (1 - alpha) * below[i]);
    };
    """


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("flags", [[], [DARK]], ids=["light", "dark"])
def test_every_text_and_the_chosen_row_have_a_contrast_of_4_5(story, tmp_path, flags):
    result = browse(story[0], CONTRAST + """
        complain(3, "a trial");
        showProblems();
        $("line").value += " ";
        prove();
        $("published").value = "9:ab";
        compare();
        for (const details of document.querySelectorAll("details")) details.open = true;
        const low = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
        let count = 0;
        while (walker.nextNode()) {
            const element = walker.currentNode.parentElement;
            if (!walker.currentNode.data.trim() || !element.getClientRects().length || element.disabled) continue;
            let opacity = 1;
            for (let at = element; at; at = at.parentElement) opacity *= getComputedStyle(at).opacity;
            const ratio = contrast(numbers(getComputedStyle(element).color), ground(element));
            count++;
            if (ratio < 4.5 || opacity < 1) low.push([walker.currentNode.data, ratio, opacity]);
        }
        const top = rowTop(layer, headNumber) * devicePixelRatio;
        const pixel = $("map").getContext("2d").getImageData(40, top, 1, 1).data;
        result = { dark: matchMedia("(prefers-color-scheme: dark)").matches, count, low,
                   row: contrast([...pixel], ground($("map"))) };
        """, tmp_path, *flags)
    assert result["dark"] == bool(flags) and result["count"] > 200
    assert result["low"] == [] and result["row"] >= 4.5


@pytest.mark.slow
@needs_browser
def test_nothing_is_torn_or_too_wide_on_a_phone(story, bytes_page, traces, tmp_path):
    pages = [path.read_text(encoding="utf-8") for path in (story[0], bytes_page[0])]
    pages.append(page.of_trace(formats.read(traces["op"])).decode())
    results = browse_frames(pages, """
        const tokens = [...$("text").querySelectorAll("[role=button]")];
        const torn = tokens.filter(token => { token.click(); return token.getClientRects().length !== 1; });
        return { width: document.documentElement.scrollWidth, torn: torn.length, tokens: tokens.length,
                 lines: new Set(tokens.map(token => token.getBoundingClientRect().top | 0)).size,
                 model: $("model").offsetHeight };
        """, tmp_path, 390)
    for result in results:
        assert result["width"] <= 390 and result["torn"] == 0
    assert [result["tokens"] for result in results[:2]] == [30, 45] and results[1]["lines"] > 2
    assert results[0]["model"] > 0 and results[2]["model"] == 0
