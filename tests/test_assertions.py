"""Tests of what a port's own tests use: assert_consistent, and record, which listens to a model of transformers."""
import os
from array import array

import pytest

import llama2
import plain
from llama2_py.doctor import assert_consistent, precision, record
from tests.helpers import command, make_checkpoint, plain_with, some
from tests.test_precision import Halves, in_few_bits

TOKENS = [1, 5, 270, 8, 262, 9, 12, 260, 33, 44]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model") / "m.bin", n_kv_heads=2)


def logits_by(port, path):
    model = port.Model(path)
    return [port.forward(model, token, pos) for pos, token in enumerate(TOKENS)]


@pytest.fixture(scope="module")
def right(path):
    return logits_by(plain, path)


def with_epsilon(x, w, epsilon):
    return plain.rmsnorm(x, w, 1e-3)


@pytest.fixture(scope="module")
def wrong(path):
    return logits_by(plain_with("wrong_epsilon", rmsnorm=with_epsilon), path)


class Tensor:
    """What has tolist, as torch's tensors have."""

    def __init__(self, rows):
        self.rows = rows

    def tolist(self):
        return self.rows


def viewed(rows, form):
    numbers = array(form, [v for row in rows for v in row])
    return memoryview(numbers.tobytes()).cast(form, (len(rows), len(rows[0])))


FORMS = {"lists": list, "one more list": lambda rows: [rows], "arrays": lambda rows: [array("f", row) for row in rows],
         "a tensor": Tensor, "tensors": lambda rows: [Tensor(row) for row in rows],
         "a tensor of one text": lambda rows: Tensor([rows]), "tuples": lambda rows: tuple(map(tuple, rows)),
         "a buffer of float32": lambda rows: viewed(rows, "f"), "a buffer of float64": lambda rows: viewed(rows, "d")}


@pytest.mark.parametrize("form", some(4, FORMS))
def test_logits_in_memory_are_read_in_any_form(path, right, form):
    assert_consistent(FORMS[form](right), path, TOKENS)


def test_a_mistake_is_an_assertion_error_that_names_it(path, wrong):
    with llama2.Transformer(path) as model, pytest.raises(AssertionError) as error:
        assert_consistent(viewed(wrong, "f"), model, Tensor(TOKENS))
    lines = str(error.value).splitlines()
    assert lines[0] == "a mistake, not rounding in float32: epsilon is 0.001, not 1e-05"
    assert lines[1].startswith("logits of 10 steps, in units of a float32 program's noise: overall ")


def test_fewer_steps_than_tokens_are_judged_as_far_as_they_go(path, right):
    assert_consistent(right[:3], path, TOKENS)


def test_a_number_that_is_not_finite_is_an_assertion_error(path, right):
    rows = [list(row) for row in right]
    rows[2][7] = float("nan")
    with pytest.raises(AssertionError, match="^not finite at step 2, token 7: nan"):
        assert_consistent(rows, path, TOKENS)


@pytest.mark.parametrize("logits, message", [
    ([[1.0] * 279] * 3, r"the logits: shape is \(3, 279\), must be \(steps, 280\), the vocabulary"),
    ([[1.0] * 280, [1.0] * 281], "length of step 1 of the logits is 281, must be 280, that of step 0"),
    ([], "steps of the logits is 0, must be one at least"), (7, "the logits: not rows of numbers: "),
    ([1.0, 2.0], "the logits: not rows of numbers: "), ([["a"] * 280], "the logits: not rows of numbers: "),
    ([[1.0] * 280] * 33, "the logits: have 33 steps, more than the context of 32")])
def test_what_are_no_logits_is_refused(path, logits, message):
    with pytest.raises(ValueError, match=message):
        assert_consistent(logits, path, TOKENS)


def test_what_cannot_be_judged_is_refused(path, right):
    with pytest.raises(ValueError, match="precision is float8, must be float32"):
        assert_consistent(right, path, TOKENS, precision="float8")
    with pytest.raises(ValueError, match="token of .* is 999, must be in the vocabulary of 280"):
        assert_consistent(right, path, [999])
    with pytest.raises(FileNotFoundError):
        assert_consistent(right, "no such file", TOKENS)


# ----------------------------------------------------------------------------
# A model of transformers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of random weights, by transformers."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=280, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, rms_norm_eps=1e-5,
        bos_token_id=1, eos_token_id=2, tie_word_embeddings=False)
    path = str(tmp_path_factory.mktemp("folder"))
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


def loaded(folder, attention="eager"):
    import transformers
    model = transformers.LlamaForCausalLM.from_pretrained(folder, attn_implementation=attention)
    return model.float().eval()


def with_wrong_epsilon(model):
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 1e-3
    return model


def logits_of(model):
    import torch
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits


def test_logits_of_transformers_are_judged(folder):
    for attention in "eager", "sdpa":
        logits = logits_of(loaded(folder, attention))
        for form in logits, logits[0], logits.numpy(), logits.tolist():
            assert_consistent(form, folder, TOKENS)
    wrong = logits_of(with_wrong_epsilon(loaded(folder)))
    for form in wrong, wrong.numpy(), wrong[0].tolist():
        with pytest.raises(AssertionError, match="^a mistake, not rounding in float32: epsilon is 0.001"):
            assert_consistent(form, folder, TOKENS)


@pytest.fixture
def tokens_file(folder, files):
    """Options that compare with a folder; any tokenizer will do, since the tokens are given."""
    return [folder, "-z", files["tokenizer"], "--tokens", ",".join(map(str, TOKENS)), "--compare"]


@pytest.mark.parametrize("attention, judged", [("eager", 310), ("sdpa", 270)])
def test_a_recording_is_every_operation_that_the_model_shows(folder, tokens_file, tmp_path, capfdbinary, attention,
                                                             judged):
    model = loaded(folder, attention)
    module = type(model.model.layers[0].self_attn).__module__
    before = vars(__import__("sys").modules[module]).copy()
    with record(model, tmp_path / "dump"):
        logits_of(model)
    after = vars(__import__("sys").modules[module])
    assert all(after[name] is value for name, value in before.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    code, out, _ = command(capfdbinary, *tokens_file, tmp_path / "dump")
    assert code == 0 and f"operations judged from their own inputs: {judged}, of them wrong: 0\n" in out.decode()


def test_a_recording_names_the_mistake(folder, tokens_file, tmp_path, capfdbinary):
    with record(model := with_wrong_epsilon(loaded(folder)), tmp_path / "dump"):
        logits_of(model)
    code, out, _ = command(capfdbinary, *tokens_file, tmp_path / "dump")
    assert code == 1 and b"\nthe mistake: epsilon is 0.001, not 1e-05\n" in out


@pytest.mark.parametrize("cache", [True, False])
def test_a_text_may_come_token_by_token(folder, tokens_file, tmp_path, capfdbinary, cache):
    import torch
    model = loaded(folder)
    with torch.no_grad(), record(model, tmp_path / "dump"):
        model.generate(torch.tensor([TOKENS]), max_new_tokens=5, do_sample=False, use_cache=cache)
    code, out, _ = command(capfdbinary, *tokens_file, tmp_path / "dump")
    assert code == 0 and b", of them wrong: 0\n" in out


def test_what_cannot_be_recorded_is_refused_and_leaves_no_file(folder, tmp_path):
    import torch
    model = loaded(folder)
    with pytest.raises(ValueError, match="is no LlamaForCausalLM"), record(torch.nn.Linear(2, 2), tmp_path / "dump"):
        pass
    with pytest.raises(ValueError, match="the batch has 2 texts, must have one"), record(model, tmp_path / "dump"):
        model(torch.tensor([TOKENS, TOKENS]))
    with pytest.raises(ValueError, match="a second text has begun, at position 0"), record(model, tmp_path / "dump"):
        model(torch.tensor([TOKENS]))
        model(torch.tensor([TOKENS[1:]]))
    with pytest.raises(ValueError, match="nothing was recorded"), record(model, tmp_path / "dump"):
        pass
    with pytest.raises(KeyError), record(model, tmp_path / "dump"):
        raise KeyError
    assert os.listdir(tmp_path) == [] and not any(m._forward_hooks for m in model.modules())


@pytest.mark.slow
def test_a_program_in_bfloat16_is_right_in_its_precision_alone(path):
    kind = in_few_bits(precision.bfloat16)
    rows = kind(path).run(TOKENS)
    assert_consistent(rows, path, TOKENS, precision="bfloat16")
    with pytest.raises(AssertionError, match="^a mistake, not rounding in float32"):
        assert_consistent(rows, path, TOKENS)
    with llama2.Transformer(path) as model, pytest.raises(AssertionError, match="in bfloat16: RoPE turns halves"):
        assert_consistent(in_few_bits(precision.bfloat16, base=Halves)(path).run(TOKENS), model, TOKENS, "bfloat16")
    with pytest.raises(ValueError, match="precision is float64, must be float32 or bfloat16 or float16"):
        assert_consistent(rows, path, TOKENS, precision="float64")
