"""All known mistakes."""
from llama2_py.doctor.mistakes import attention, feed_forward, formats, norms, rope, tokens_and_logits, weights
from llama2_py.doctor.mistakes.mistake import Kind


def known(config, first_wrong: int) -> list[Kind]:
    """The mistakes that can be made with a model; not those with a constant, which diagnosis.py measures. first_wrong:
    the first position that is wrong, from which attention's window is guessed."""
    return [
        *rope.pairs(),
        *rope.angles(),
        *rope.frequencies(),
        *rope.formats(),
        *rope.positions(),
        *rope.loops(),
        *rope.partial_rope(config.head_size),
        *rope.scalings(config),
        *attention.key_heads(),
        *attention.head_orders(),
        *attention.score_changes(),
        *attention.score_scales(),
        *attention.visible_positions(first_wrong),
        *attention.softmax_sums(),
        *attention.cache_shifts(),
        *attention.shared_caches(config.n_layers),
        *attention.softmax_formulas(),
        *attention.softmax_formats(),
        *norms.formulas(),
        *norms.weights(config.n_layers),
        *norms.swapped(),
        *norms.orders(config.n_layers),
        *feed_forward.formulas(),
        *feed_forward.residuals(),
        *weights.wrong_matrices(config),
        *weights.wrong_offsets(config),
        *weights.dropped_tails(),
        *weights.vector_tails(config),
        *weights.wrong_layers(config.n_layers),
        *weights.classifiers(config),
        *weights.weight_formats(config),
        *tokens_and_logits.wrong_tokens(),
        *tokens_and_logits.wrong_logits(),
        *formats.results(),
    ]
