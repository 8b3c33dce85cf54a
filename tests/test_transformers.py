"""Folders that transformers and tokenizers write, against what they compute. Skipped where they are not installed."""
import json
import random

import pytest

import llama2
from llama2_py.doctor import assert_consistent
from tests.helpers import command

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

VOCAB = 300
SMALL = {"hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 64, "bos_token_id": 1,
         "eos_token_id": 2, "initializer_range": 0.3}
LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 16, "rope_theta": 500.0}
MODELS = {
    "plain": ("Llama", {}), "tied": ("Llama", {"tie_word_embeddings": True}),
    "head size": ("Llama", {"head_dim": 12, "rms_norm_eps": 1e-3}),
    "scaled": ("Llama", {"rope_parameters": LLAMA_3}),
    "linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    "one key head": ("Llama", {"num_key_value_heads": 1}), "Mistral": ("Mistral", {"sliding_window": None})}
DTYPES = ["float32", "bfloat16", "float16"]


def write_tokenizer(folder):
    """A tokenizer of bytes, and some merges."""
    import tokenizers
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = tokenizers.decoders.ByteLevel()
    trained.train_from_iterator(
        ["once upon a time there was a little girl", "the cat sat on the mat and the dog ran"] * 20,
        tokenizers.trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False,
                                       initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    trained.save(str(folder / "tokenizer.json"))
    return trained


@pytest.fixture(scope="module", params=[(name, dtype) for name in MODELS for dtype in DTYPES], ids="-".join)
def written(request, tmp_path_factory):
    """A folder, the model that was written there, and the type of its weights."""
    name, dtype = request.param
    family, more = MODELS[name]
    folder = tmp_path_factory.mktemp("folder")
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **more})
    model = getattr(transformers, f"{family}ForCausalLM")(config).to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size="20KB" if name == "plain" else "1GB")
    write_tokenizer(folder)
    return folder, dtype


def loaded(folder, dtype):
    kind = transformers.AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="eager").eval()


def tokens_of(seed, count):
    rng = random.Random(seed)
    return [1, *[rng.randrange(3, VOCAB) for _ in range(count - 1)]]


def test_logits_are_within_float32_rounding_or_that_of_the_weights_type(written):
    folder, dtype = written
    tokens = tokens_of(1, 40)
    for precision in dict.fromkeys(["float32", dtype]):
        with torch.no_grad():
            logits = loaded(folder, precision)(torch.tensor([tokens])).logits.float()
        assert_consistent(logits, folder, tokens, precision)


def test_greedy_tokens_are_those_of_generate(written, capfdbinary, tmp_path):
    folder, _ = written
    model = loaded(folder, "float32")
    for seed in range(3):
        begin = tokens_of(seed, 4)
        with torch.no_grad():
            wanted = model.generate(torch.tensor([begin]), do_sample=False, max_new_tokens=12)[0].tolist()
        trace = tmp_path / f"{seed}.trace"
        steps = len(wanted) - 1
        code, _, err = command(capfdbinary, folder, "-t", 0, "--tokens", ",".join(map(str, begin)), "-n", steps,
                               "--trace", trace)
        assert code == 0, err
        told = [json.loads(line) for line in trace.read_text().splitlines()]
        got = [told[1]["token"], *[line["next"] for line in told if "next" in line]]
        assert got == wanted[:len(got)] and (len(got) == len(wanted) or got[-1] == 1)  # a new text ends a run, too


def test_encoding_and_decoding_are_those_of_tokenizers(tmp_path):
    theirs, ours = write_tokenizer(tmp_path), llama2.load_tokenizer(str(tmp_path / "tokenizer.json"), VOCAB)
    rng = random.Random(5)
    for _ in range(2000):
        text = "".join(rng.choice("aehnort  \n.,'0123<s>/éß日😀") for _ in range(rng.randrange(20)))
        assert list(ours.encode(text, bos=False)) == theirs.encode(text, add_special_tokens=False).ids, text
