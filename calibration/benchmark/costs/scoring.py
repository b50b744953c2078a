"""Operations and bytes of the graphs that score texts, counted as in `cost`.

Every picture is compared with `texts` texts of its own; CLIP's are classes, the same for all pictures of a batch. A
head that reads a text and a picture at once reads the picture's tokens again for every text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from catp.calibration.benchmark.costs.answering import read_bytes
from catp.calibration.benchmark.costs.base import StageCost, Workload, in_integers, item_size, weight_bytes
from catp.calibration.benchmark.costs.geometry import Geometry, ScoringGeometry
from catp.runtime.bundle.encoder_pruning import text_tokens
from catp.runtime.bundle.manifest import GraphSpec, Manifest

Rows = Sequence[tuple[int, int]]
"""For each layer of a text encoder, tokens that come in, and that are left after its attention."""


def scoring_cost(
    manifest: Manifest, language: ScoringGeometry, geometry: Geometry, workload: Workload, seen: int
) -> dict[str, StageCost]:
    """The cost of each stage after vision encoder and Q-Former.

    Args:
        seen: image tokens that leave the vision encoder.
    """
    kind, graphs = manifest.model.language, manifest.graphs
    batch, tokens, image_width = workload.batch, workload.prompt_tokens, geometry.vision.width
    pairs = batch * workload.texts

    def cost(graph: str, flops: int, rows: int, read: int, weights: Callable[[GraphSpec], int]) -> StageCost:
        """Args: read: numbers of images that each row reads."""
        spec = graphs[graph]
        item = (
            item_size(spec, next(tensor.name for tensor in spec.inputs if "image_embeds" in tensor.name)) if read else 0
        )
        return StageCost(flops=rows * flops, bytes=weights(spec) + rows * read * item, integer=in_integers(spec))

    def words(spec: GraphSpec) -> int:
        return read_bytes(language, spec, head=False)

    rows_of = _rows(manifest, language, tokens)
    image = seen * image_width
    if kind == "two-images":
        flops = text_flops(language, rows_of) + twin_flops(language, rows_of, seen, image_width)
        return {"text": cost("statement_encoder", flops, batch, 2 * image, words)}
    vector = 2 * language.width * language.vector
    rows = workload.texts if kind == "contrastive" else pairs
    stages = {"text": cost("text_embedding", text_flops(language, rows_of) + vector, rows, 0, words)}
    if kind in ("matching", "contrastive"):
        found = cost("image_embedding", 2 * image_width * language.vector, batch, image_width, weight_bytes)
        stages = {"image": found, **stages}
    if kind == "matching":
        flops = text_flops(language, rows_of)
        flops += sum(cross_flops(language.width, left, seen, image_width) for _, left in rows_of)
        stages["match"] = cost("image_text_matching", flops + 2 * 2 * language.width, pairs, image, words)
    elif kind == "none":
        qformer = geometry.qformer
        assert qformer is not None
        kept = workload.num_kept
        flops = text_flops(language, _whole(language, kept + tokens)) + 2 * 2 * kept * language.width
        flops += qformer.cross_layers * cross_flops(language.width, kept, seen, image_width)
        stages["match"] = cost("image_text_matching", flops, pairs, image, words)
    return stages


def _rows(manifest: Manifest, language: ScoringGeometry, tokens: int) -> Rows:
    """Tokens of a text in each layer."""
    pruning = manifest.text_pruning
    if pruning is None or pruning.thousandths is None:
        return _whole(language, tokens)
    return text_tokens(
        tokens, language.layers, 2 if manifest.model.language == "contrastive" else 1, pruning.thousandths
    )


def _whole(language: ScoringGeometry, tokens: int) -> Rows:
    return [(tokens, tokens)] * language.layers


def text_flops(language: ScoringGeometry, rows: Rows) -> int:
    """Operations of one text through every layer: its tokens see each other and no image.

    Args:
        rows: of each layer, tokens whose attention is computed, and that are left for the MLP.
    """
    width = language.width
    return sum(
        4 * (2 * tokens * width * width)
        + 2 * (2 * tokens * tokens * width)
        + 2 * (2 * left * width * language.feed_forward)
        for tokens, left in rows
    )


def cross_flops(width: int, tokens: int, image: int, image_width: int) -> int:
    """Operations of one row in one layer: so many tokens read `image` image tokens."""
    return 2 * (2 * tokens * width * width) + 2 * (2 * image * image_width * width) + 2 * (2 * tokens * image * width)


def twin_flops(language: ScoringGeometry, rows: Rows, image: int, image_width: int) -> int:
    """Operations of one statement: what all layers read of both images, the products that merge it, and the head."""
    width = language.width
    assert language.merge_from is not None
    merges = sum(2 * left * 2 * width * width for _, left in rows[language.merge_from :])
    head = 2 * width * width + 2 * 2 * width
    return sum(2 * cross_flops(width, left, image, image_width) for _, left in rows) + merges + head
