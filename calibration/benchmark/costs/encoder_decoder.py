"""Operations and bytes of an encoder-decoder language model, counted as in `cost`.

Prefill is what precedes the first token: the text encoder's pass over prefix and prompt, every decoder layer's keys and
values of its result, and the decoder's step with the start token. Decode is the decoder alone: pruning makes it read
less, the keys and values of fewer encoded tokens, but leaves its arithmetic almost as it was.
"""

from __future__ import annotations

from catp.calibration.benchmark.costs.base import (
    WEIGHT_BYTES,
    LanguageCost,
    StageCost,
    Workload,
    in_integers,
    item_size,
    weight_bytes,
)
from catp.calibration.benchmark.costs.geometry import EncoderDecoderGeometry
from catp.runtime.bundle.manifest import GraphSpec


def encoder_decoder_cost(
    language: EncoderDecoderGeometry, encoder: GraphSpec, decoder: GraphSpec, workload: Workload
) -> LanguageCost:
    """The cost of prefill, and of decode where more than one token is generated."""
    batch, encoded = workload.batch, workload.num_kept + workload.prompt_tokens
    # Step j of new_tokens - 1 sees the start token and j tokens after it, which are on average new_tokens / 2.
    context = 1 + workload.new_tokens / 2
    token_bytes = cache_bytes_per_token(language, decoder)
    weights = decoder_weight_bytes(language, decoder)
    prefix = batch * workload.num_kept * language.width * item_size(encoder, "prefix_embeds")
    stages = {
        "prefill": StageCost(
            flops=batch * (encoder_flops(language, encoded) + step_flops(language, 1, encoded)),
            bytes=encoder_weight_bytes(language, encoder) + weights + prefix + batch * (encoded + 1) * token_bytes,
            integer=in_integers(encoder),
        )
    }
    if workload.new_tokens > 1:
        stages["decode"] = StageCost(
            flops=batch * step_flops(language, context, encoded),
            bytes=weights + round(batch * (encoded + context) * token_bytes),
            integer=in_integers(decoder),
        )
    # The start token takes the slot of the last token generated, which is never fed back.
    return LanguageCost(stages, cache_bytes=batch * (encoded + workload.new_tokens) * token_bytes)


def encoder_flops(language: EncoderDecoderGeometry, tokens: int) -> int:
    """Operations of one row: the encoder over `tokens`, and the keys and values of the decoder's cross-attention."""
    projection = 2 * tokens * language.width * _heads_width(language)
    attention = 2 * (2 * tokens * tokens * _heads_width(language))
    layer = 4 * projection + attention + tokens * _feed_forward_flops(language)
    return language.encoder_layers * layer + language.decoder_layers * 2 * projection


def step_flops(language: EncoderDecoderGeometry, context: float, encoded: int) -> int:
    """Operations of one row: one token through the decoder and its head.

    Args:
        context: tokens that self-attention sees, the new one included.
        encoded: tokens that cross-attention sees; their keys and values are there already.
    """
    projection = 2 * language.width * _heads_width(language)
    own = 4 * projection + 2 * (2 * context * _heads_width(language))
    cross = 2 * projection + 2 * (2 * encoded * _heads_width(language))  # queries and out
    head = 2 * language.vocabulary * language.width
    return round(language.decoder_layers * (own + cross + _feed_forward_flops(language))) + head


def cache_bytes_per_token(language: EncoderDecoderGeometry, decoder: GraphSpec) -> int:
    """Keys and values of all decoder layers: of a token it generated as of one that was encoded."""
    item = item_size(decoder, "past_key_values.0.key")
    return 2 * language.decoder_layers * _heads_width(language) * item


def encoder_weight_bytes(language: EncoderDecoderGeometry, encoder: GraphSpec) -> int:
    """All weights, the decoder's projections of keys and values among them, less the table of embeddings."""
    return weight_bytes(encoder) - _looked_up_bytes(language, encoder)


def decoder_weight_bytes(language: EncoderDecoderGeometry, decoder: GraphSpec) -> int:
    """All weights, less the table of embeddings where the head is a second one, as Flan-T5 has it."""
    if decoder.quantization is not None:  # the head was quantised, or else it is the table of embeddings still
        own_head = "head" not in decoder.quantization.kept
        return weight_bytes(decoder) - (_looked_up_bytes(language, decoder) if own_head else 0)
    table = language.vocabulary * language.width
    once = step_flops(language, 0, 0) // 2  # without anything to see, a multiplication for every weight
    # Normalisation and the biases of distances are not in the sum; they are far smaller than half of a table.
    has_own_head = decoder.parameters > once + table / 2
    return weight_bytes(decoder) - (_looked_up_bytes(language, decoder) if has_own_head else 0)


def _heads_width(language: EncoderDecoderGeometry) -> int:
    return language.heads * language.head_width


def _feed_forward_flops(language: EncoderDecoderGeometry) -> int:
    """Operations of one token."""
    return (3 if language.gated else 2) * 2 * language.width * language.feed_forward


def _looked_up_bytes(language: EncoderDecoderGeometry, graph: GraphSpec) -> int:
    """Bytes of the table of embeddings, a few rows of which are read."""
    if graph.quantization is not None and graph.quantization.tables:
        return graph.quantization.table_bytes
    return WEIGHT_BYTES[graph.precision] * language.vocabulary * language.width
