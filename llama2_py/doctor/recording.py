"""Every operation of a transformers model, written as records that --compare reads.

    from llama2_py.doctor import record
    with torch.no_grad(), record(model, "theirs.dump"):
        model(torch.tensor([[1, 403, 407]]))

model is a LlamaForCausalLM, or another of that structure (Mistral). Its modules show most operations to hooks; for q
and k after RoPE and for the attention weights two functions of the Python module that defines its attention are wrapped
while the context lasts. Weights are shown by eager attention alone (attn_implementation="eager"). A text may come in
one call or token by token (generate). One that is computed anew from its beginning for each token, without a cache,
rounds otherwise each time: of that the last time is written. q and k are put into run.c's order, where neighbours turn
together. Nothing of torch or transformers is imported.
"""
import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from llama2_py.log.records import record_of


@contextlib.contextmanager
def record(model: Any, file: str | os.PathLike) -> Iterator[None]:
    """While this context lasts, write what the model computes; the file appears at its end, if all went well.

    Raises ValueError for a model of another structure, more than one text, or a call that computed nothing.
    """
    path = os.path.realpath(os.fspath(file))
    beside = f"{path}.{os.urandom(4).hex()}.tmp"
    with contextlib.ExitStack() as undo:
        out = undo.enter_context(open(beside, "xb"))
        undo.callback(forget, beside)
        recorder = Recorder(out, model)
        undo.callback(recorder.close)
        yield
        if not recorder.seen:
            raise ValueError(f"{file}: nothing was recorded: the model was not called")
        out.flush()
        os.replace(beside, path)


def forget(path: str) -> None:
    """Remove a file that was not finished."""
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)


class Recorder:
    """The hooks on a model, and what they have seen."""

    def __init__(self, out: BinaryIO, model: Any):
        self.out = out
        self.seen: set[tuple] = set()               # (position, layer, operation): those that are written
        self.embeddings: dict[int, Any] = {}        # position -> its embedding, by which a second text is told
        self.positions: Sequence[int] = ()          # of the current call
        self.layer: int | None = None               # the one that is being computed
        self.undo: list[Callable[[], None]] = []
        try:
            self.attach(model)
        except AttributeError as error:
            self.close()
            raise ValueError(f"record: {type(model).__name__} is no LlamaForCausalLM: {error}") from None

    def attach(self, model):
        """Hang all hooks on a model. Raises AttributeError if a module is not there."""
        for l, layer in enumerate(model.model.layers):
            attention, mlp = layer.self_attn, layer.mlp
            self.before(layer, functools.partial(self.enter, l), with_kwargs=True)
            self.outputs(layer.input_layernorm, l, "attention_norm")
            self.outputs(attention.v_proj, l, "v")
            self.inputs(attention.o_proj, l, "attention")
            self.outputs(attention.o_proj, l, "attention_out")
            self.inputs(layer.post_attention_layernorm, l, "attention_residual")
            self.outputs(layer.post_attention_layernorm, l, "ffn_norm")
            self.outputs(mlp.gate_proj, l, "gate")
            self.outputs(mlp.up_proj, l, "up")
            self.inputs(mlp.down_proj, l, "swiglu")
            self.outputs(mlp.down_proj, l, "ffn_out")
            self.outputs(layer, l, "ffn_residual")
        self.outputs(model.model.norm, None, "final_norm")
        self.outputs(model.lm_head, None, "logits")
        functions = sys.modules[type(model.model.layers[0].self_attn).__module__]
        self.wrap(functions, "apply_rotary_pos_emb", self.rotated)
        self.wrap(functions, "eager_attention_forward", self.weighed)

    def close(self) -> None:
        """Take all hooks away."""
        while self.undo:
            self.undo.pop()()

    # -- hooks

    def before(self, module, hook, **options):
        """Have a hook called before a module."""
        self.undo.append(module.register_forward_pre_hook(hook, **options).remove)

    def inputs(self, module, l, op):
        """Write a module's input as an operation."""
        def hook(module, args):
            self.write(l, op, args[0])

        self.before(module, hook)

    def outputs(self, module, l, op):
        """Write a module's output as an operation."""
        def hook(module, args, output):
            self.write(l, op, output[0] if isinstance(output, tuple) else output)

        self.undo.append(module.register_forward_hook(hook).remove)

    def wrap(self, functions, name, see):
        """Show the results of a function of a Python module."""
        function = getattr(functions, name)

        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            result = function(*args, **kwargs)
            see(result)
            return result

        setattr(functions, name, wrapper)
        self.undo.append(functools.partial(setattr, functions, name, function))

    # -- what they see

    def enter(self, l, layer, args, kwargs):
        """A layer begins: it is told the positions."""
        x = args[0] if args else kwargs["hidden_states"]
        if x.shape[0] != 1:
            raise ValueError(f"record: the batch has {x.shape[0]} texts, must have one")
        self.layer = l
        if l == 0:
            positions = kwargs.get("position_ids")
            if positions is None:
                raise ValueError("record: the layers are not given position_ids, by which positions are told")
            self.positions = positions.flatten().tolist()
            self.check_text(x)
            self.check_beginning()
            self.write(None, "embedding", x)

    def check_text(self, x):
        """Raises ValueError for a second text: another embedding at a position that was seen."""
        for pos, row in zip(self.positions, x[0].tolist(), strict=True):
            if self.embeddings.setdefault(pos, row) != row:
                raise ValueError(f"record: a second text has begun, at position {pos}: one recording is of one text")

    def check_beginning(self):
        """Drop what was written if the text is computed anew: its keys and values are others then, by rounding."""
        if 0 in self.positions and (0, None, "embedding") in self.seen:
            self.out.seek(0)
            self.out.truncate()
            self.seen.clear()

    def rotated(self, result):
        """q and k, (1, heads, positions, hs), after RoPE."""
        for op, x in zip("qk", result, strict=True):
            self.write(self.layer, op, in_order_of_neighbours(x))

    def weighed(self, result):
        """The attention weights, (1, heads, positions, positions so far)."""
        _, weights = result
        for i, pos in enumerate(self.positions):
            self.write_row(pos, self.layer, "weights", weights[0, :, i, :pos + 1])

    def write(self, l, op, x):
        """Write an operation of the last positions; x: (1, positions, n)."""
        rows = x[0]
        for pos, row in zip(self.positions[len(self.positions) - len(rows):], rows, strict=True):
            self.write_row(pos, l, op, row)

    def write_row(self, pos, l, op, row):
        """Write an operation of one position, unless it is written already."""
        if (pos, l, op) in self.seen:
            return
        self.seen.add((pos, l, op))
        values = row.flatten().tolist()
        self.out.write(record_of(pos, l, op, values))


def in_order_of_neighbours(x):
    """x: (1, heads, positions, hs), where i and i + hs / 2 turn together -> (1, positions, heads * hs), where 2i and
    2i + 1 do."""
    _, heads, positions, hs = x.shape
    pairs = x.reshape(1, heads, positions, 2, hs // 2).transpose(3, 4)
    return pairs.reshape(1, heads, positions, hs).transpose(1, 2).reshape(1, positions, heads * hs)
