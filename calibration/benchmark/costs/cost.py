"""Operations and bytes of each stage, from the model's sizes alone.

Floating-point operations are those of matrix products, 2 m n k each. Left out are the vote (its comparisons are
counted apart), softmax, normalisation, activations, biases, and attention to cache slots that hold no token; of causal
attention the masked half is counted, as dense kernels compute it. Bytes are those that no cache can avoid moving: a
stage's weights (as they are on disk, quantised or not), its inputs and outputs, the keys and values it writes and
reads; not tensors between operators.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field

from catp.calibration.benchmark.costs.answering import answering_cost
from catp.calibration.benchmark.costs.base import (
    WEIGHT_BYTES,
    LanguageCost,
    StageCost,
    Workload,
    in_integers,
    item_size,
    weight_bytes,
)
from catp.calibration.benchmark.costs.captioning import captioning_cost
from catp.calibration.benchmark.costs.encoder_decoder import encoder_decoder_cost
from catp.calibration.benchmark.costs.geometry import (
    AnsweringGeometry,
    EncoderDecoderGeometry,
    Geometry,
    LanguageGeometry,
    QFormerGeometry,
    ScoringGeometry,
    VisionGeometry,
)
from catp.calibration.benchmark.costs.scoring import scoring_cost
from catp.calibration.benchmark.schedules import Schedule
from catp.runtime.bundle.chains import DECODE_GRAPH
from catp.runtime.bundle.manifest import GraphSpec, Manifest


class Cost(BaseModel):
    """One batch at one ratio and one schedule of the vision encoder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch: int
    ratio: float
    encoder_flops: float | None = Field(default=None, description="share of the dense encoder's work, if asked for")
    num_kept: int
    stages: dict[str, StageCost]
    cache_bytes: int = Field(description="keys and values when the answer is complete; 0 where texts are scored")
    vote_comparisons: int = Field(description="pairs of queries compared by rank points; 0 with other methods")


def cost_of(
    manifest: Manifest, geometry: Geometry, workload: Workload, ratio: float, schedule: Schedule | None = None
) -> Cost:
    """The cost of every stage: vision, qformer if there is one, prefill, and decode (one step, where there is one);
    where texts are scored, those that do it.

    Args:
        schedule: of an encoder that prunes; None: the bundle's own, if it has one.
    """
    batch, pictures = workload.batch, workload.batch * manifest.pictures
    vision, qformer, language = geometry.vision, geometry.qformer, geometry.language
    graphs = manifest.graphs
    seen, vision_work = vision.tokens, vision_flops(vision)
    pruning = manifest.encoder_pruning
    if pruning is not None and pruning.kept_tokens is not None:  # the dynamic form does at most what a dense one does
        kept_tokens = schedule.kept_tokens if schedule else pruning.kept_tokens
        seen = pruning.tokens_by_layer(kept_tokens)[-1][1]
        vision_work = round(1e9 * pruning.gflops(kept_tokens))
    if isinstance(language, ScoringGeometry):
        generation = LanguageCost(scoring_cost(manifest, language, geometry, workload, seen), cache_bytes=0)
    elif isinstance(language, AnsweringGeometry):
        read = replace(workload, num_kept=seen)
        if manifest.model.language == "captioning":
            generation = captioning_cost(language, vision, graphs["image_keys"], graphs["caption_decoder"], read)
        else:
            generation = answering_cost(language, vision, graphs["question_encoder"], graphs["answer_decoder"], read)
    elif isinstance(language, EncoderDecoderGeometry):
        generation = encoder_decoder_cost(language, graphs["text_encoder"], graphs["text_decoder"], workload)
    else:
        prefill = graphs["language_model"]
        generation = decoder_only_cost(language, prefill, graphs.get(DECODE_GRAPH, prefill), workload)
    embeds = pictures * seen * vision.width * item_size(graphs["vision_encoder"], "image_embeds")
    stages = {
        "vision": StageCost(
            flops=pictures * vision_work,
            bytes=weight_bytes(graphs["vision_encoder"]) + pictures * _pixels(manifest) * 4 + embeds,
            integer=in_integers(graphs["vision_encoder"]),
        )
    }
    if qformer is not None:
        width = language.vector if isinstance(language, ScoringGeometry) else language.width
        prefix = batch * workload.num_kept * width * item_size(graphs["qformer_voting"], "kept_embeds")
        kept = workload.num_kept * batch // pictures  # of each frame
        words = workload.prompt_tokens if manifest.reads_instruction else 0
        stages["qformer"] = StageCost(
            flops=pictures * qformer_flops(qformer, vision, kept, width, seen, words),
            bytes=qformer_bytes(qformer, graphs["qformer_voting"]) + embeds + prefix,
            integer=in_integers(graphs["qformer_voting"]),
        )
    return Cost(
        batch=batch,
        ratio=ratio,
        encoder_flops=schedule.flops if schedule else None,
        num_kept=workload.num_kept,
        stages={**stages, **generation.stages},
        cache_bytes=generation.cache_bytes,
        vote_comparisons=pictures * _comparisons(qformer, seen) if qformer and manifest.pruning.method == "catp" else 0,
    )


def decoder_only_cost(
    language: LanguageGeometry, graph: GraphSpec, decode: GraphSpec, workload: Workload
) -> LanguageCost:
    """A pass over prefix and prompt, and then token by token, by the same graph or one with other weights."""
    batch, seen = workload.batch, workload.num_kept + workload.prompt_tokens
    # Step j of new_tokens - 1 sees the prefix and the j tokens before it, which are on average new_tokens / 2.
    context = seen + workload.new_tokens / 2
    token_bytes = cache_bytes_per_token(language, graph)
    stages = {"prefill": prefill_cost(language, graph, language_weight_bytes(language, graph), workload)}
    if workload.new_tokens > 1:
        stages["decode"] = StageCost(
            flops=batch * language_flops(language, 1, context),
            bytes=language_weight_bytes(language, decode) + round(batch * context * token_bytes),
            integer=in_integers(decode),
        )
    return LanguageCost(stages, cache_bytes=batch * (seen + workload.new_tokens - 1) * token_bytes)


def prefill_cost(language: LanguageGeometry, graph: GraphSpec, weights: int, workload: Workload) -> StageCost:
    """The cost of the language model's first pass.

    Args:
        graph: says how wide prefix and cache are stored; the sizes are those of `language`.
        weights: bytes that a pass reads.
    """
    batch, seen = workload.batch, workload.num_kept + workload.prompt_tokens
    prefix = batch * workload.num_kept * language.width * item_size(graph, "prefix_embeds")
    return StageCost(
        flops=batch * language_flops(language, seen, seen),
        bytes=weights + prefix + batch * seen * cache_bytes_per_token(language, graph),
        integer=in_integers(graph),
    )


def vision_flops(vision: VisionGeometry) -> int:
    """Operations of one image."""
    tokens, width = vision.tokens, vision.width
    patches = 2 * vision.patches * 3 * vision.patch**2 * width
    attention = 2 * tokens * width * 4 * width + 2 * (2 * tokens * tokens * width)
    feed_forward = 2 * (2 * tokens * width * vision.feed_forward)
    return patches + vision.layers * (attention + feed_forward)


def qformer_flops(
    qformer: QFormerGeometry,
    vision: VisionGeometry,
    kept: int,
    language_width: int,
    seen: int | None = None,
    words: int = 0,
) -> int:
    """Operations of one image, the projection of the kept tokens included.

    What precedes the first cross-attention does not depend on the image: the first layer's self-attention and the
    projection of its queries are constants, which engines fold when they load the graph. Where the queries see a
    prompt, nothing is.

    Args:
        seen: image tokens that an encoder which prunes leaves, CLS among them; None: all.
        words: of a prompt that the Q-Former reads: they and the queries see each other, through every layer.
    """
    queries, width, tokens = qformer.queries, qformer.width, vision.tokens if seen is None else seen
    rows = queries + words
    square = 2 * queries * width * width  # one projection of the queries
    own = 4 * (2 * rows * width * width) + 2 * (2 * rows * rows * width)
    keys_values = 2 * (2 * tokens * vision.width * width)
    cross = 2 * square + keys_values + 2 * (2 * queries * tokens * width)
    feed_forward = 2 * (2 * rows * width * qformer.feed_forward)
    folded = 0 if words else own + square
    projection = 2 * kept * width * language_width
    return qformer.layers * (own + feed_forward) + qformer.cross_layers * cross - folded + projection


def qformer_bytes(qformer: QFormerGeometry, graph: GraphSpec) -> int:
    """All weights, less the tables of words and positions of a prompt, of which a few rows are read."""
    if graph.quantization and graph.quantization.tables:
        return weight_bytes(graph) - graph.quantization.table_bytes
    rows = qformer.vocabulary + qformer.positions
    return weight_bytes(graph) - WEIGHT_BYTES[graph.precision] * rows * qformer.width


def language_flops(language: LanguageGeometry, tokens: int, context: float) -> int:
    """Operations of a row: `tokens` new ones that see `context` tokens each, themselves included; one gets logits."""
    heads_width = language.heads * language.head_width
    cache_width = language.key_value_heads * language.head_width
    projections = 2 * tokens * language.width * (2 * heads_width + 2 * cache_width)
    attention = 2 * (2 * tokens * context * heads_width)
    matrices = 3 if language.gated else 2
    feed_forward = matrices * 2 * tokens * language.width * language.feed_forward
    head = 2 * language.vocabulary * language.width
    return round(language.layers * (projections + attention + feed_forward)) + head


def matrix_weights(language: LanguageGeometry) -> int:
    """Weights of all matrices that a token is multiplied with, the head included."""
    return language_flops(language, 1, 0) // 2  # without a context, a multiplication for every weight


def cache_bytes_per_token(language: LanguageGeometry, graph: GraphSpec) -> int:
    """Keys and values of all layers."""
    item = item_size(graph, "past_key_values.0.key")
    return 2 * language.layers * language.key_value_heads * language.head_width * item


def language_weight_bytes(language: LanguageGeometry, graph: GraphSpec) -> int:
    """All weights, less tables of which a few rows are read: positions, and embeddings that are not the head."""
    total = weight_bytes(graph)
    if graph.quantization and graph.quantization.tables:
        return total - graph.quantization.table_bytes
    item = WEIGHT_BYTES[graph.precision]
    table = item * language.vocabulary * language.width
    looked_up = item * language.positions * language.width
    if not language.tied or _has_own_head(language, graph, total, table):
        looked_up += table
    return total - looked_up


def _has_own_head(language: LanguageGeometry, graph: GraphSpec, total: int, table: int) -> bool:
    """Whether a tied head was quantised: the embeddings, which must stay as they were, are a second table then."""
    if graph.quantization is None:
        return False
    once = WEIGHT_BYTES[graph.precision] * (matrix_weights(language) + language.positions * language.width)
    # Biases and normalisation are in neither sum; they are far smaller than half of a table.
    return total - graph.quantization.bytes_after + graph.quantization.bytes_before > once + table / 2


def _comparisons(qformer: QFormerGeometry, seen: int) -> int:
    pairs = qformer.queries * (qformer.queries - 1) // 2
    return qformer.cross_layers * qformer.heads * seen * pairs


def _pixels(manifest: Manifest) -> int:
    return 3 * manifest.image.height * manifest.image.width
