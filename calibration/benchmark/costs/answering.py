"""Operations and bytes of BLIP's question encoder and answer decoder, counted as in `cost`.

Prefill is what precedes the first token: the encoder's pass over the question, each of whose layers projects keys and
values of all image tokens, every decoder layer's keys and values of its result, and the decoder's step with the start
token. Decode is the decoder alone.
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
from catp.calibration.benchmark.costs.geometry import AnsweringGeometry, VisionGeometry
from catp.runtime.bundle.manifest import GraphSpec


def answering_cost(
    language: AnsweringGeometry, vision: VisionGeometry, encoder: GraphSpec, decoder: GraphSpec, workload: Workload
) -> LanguageCost:
    """The cost of prefill, and of decode where more than one token is generated."""
    batch, question, image = workload.batch, workload.prompt_tokens, workload.num_kept
    # Step j of new_tokens - 1 sees the start token and j tokens after it, which are on average new_tokens / 2.
    context = 1 + workload.new_tokens / 2
    token_bytes = 2 * language.layers * language.width * item_size(decoder, "past_key_values.0.key")
    weights = read_bytes(language, decoder, head=True)
    embeds = image * vision.width * item_size(encoder, "image_embeds")
    stages = {
        "prefill": StageCost(
            flops=batch * (encoder_flops(language, question, image, vision.width) + step_flops(language, 1, question)),
            bytes=read_bytes(language, encoder, head=False) + weights + batch * (embeds + (question + 1) * token_bytes),
            integer=in_integers(decoder),
        )
    }
    if workload.new_tokens > 1:
        stages["decode"] = StageCost(
            flops=batch * step_flops(language, context, question),
            bytes=weights + round(batch * (question + context) * token_bytes),
            integer=in_integers(decoder),
        )
    return LanguageCost(stages, cache_bytes=batch * (question + workload.new_tokens) * token_bytes)


def encoder_flops(language: AnsweringGeometry, question: int, image: int, image_width: int) -> int:
    """Operations of one row: the encoder over `question` tokens, and what the decoder's cross-attention reads of them.

    Args:
        image: how many image tokens every layer reads.
    """
    width = language.width
    projection = 2 * question * width * width
    own = 4 * projection + 2 * (2 * question * question * width)
    cross = 2 * projection + 2 * (2 * image * image_width * width) + 2 * (2 * question * image * width)
    feed_forward = 2 * (2 * question * width * language.feed_forward)
    return language.layers * (own + cross + feed_forward + 2 * projection)


def step_flops(language: AnsweringGeometry, context: float, encoded: int, tokens: int = 1) -> int:
    """Operations of one row: tokens through the decoder, and the last one through its head.

    Args:
        context: tokens that self-attention sees, the new ones included.
        encoded: tokens that cross-attention sees; their keys and values are there already.
    """
    width = language.width
    projection = 2 * width * width
    own = 4 * projection + 2 * (2 * context * width)
    cross = 2 * projection + 2 * (2 * encoded * width)
    feed_forward = 2 * (2 * width * language.feed_forward)
    head = projection + 2 * language.vocabulary * width  # a dense layer comes before it
    return round(language.layers * tokens * (own + cross + feed_forward)) + head


def read_bytes(language: AnsweringGeometry, graph: GraphSpec, head: bool) -> int:
    """All weights, less tables of which a few rows are read: positions, and embeddings that are not the head.

    Args:
        head: whether there is a head; it is the table of embeddings, or else a second one.
    """
    total = weight_bytes(graph)
    if graph.quantization and graph.quantization.tables:
        return total - graph.quantization.table_bytes
    item = WEIGHT_BYTES[graph.precision]
    table = item * language.vocabulary * language.width
    looked_up = item * language.positions * language.width
    if not head or _has_own_head(language, graph):
        looked_up += table
    return total - looked_up


def _has_own_head(language: AnsweringGeometry, decoder: GraphSpec) -> bool:
    """Whether the head is a second table: by configuration, or because only the head was quantised."""
    if decoder.quantization is not None:
        return "head" not in decoder.quantization.kept
    # Without anything to see, a multiplication for every weight. Biases and normalisation are far smaller than half.
    once = step_flops(language, 0, 0) // 2 + language.positions * language.width
    return decoder.parameters > once + language.vocabulary * language.width // 2
