"""Operations and bytes of the graphs that score texts, counted as in `cost`.

Every picture is compared with `texts` texts of its own; CLIP's are classes, the same for all pictures of a batch. A
head that reads a text and a picture at once reads the picture's tokens again for every text.
"""

from __future__ import annotations

from collections.abc import Callable

from catp.calibration.benchmark.costs.answering import read_bytes
from catp.calibration.benchmark.costs.base import StageCost, Workload, in_integers, item_size, weight_bytes
from catp.calibration.benchmark.costs.geometry import Geometry, ScoringGeometry
from catp.runtime.bundle.manifest import GraphSpec, Manifest


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

    image = seen * image_width
    if kind == "two-images":
        flops = text_flops(language, tokens) + twin_flops(language, tokens, seen, image_width)
        return {"text": cost("statement_encoder", flops, batch, 2 * image, words)}
    vector = 2 * language.width * language.vector
    rows = workload.texts if kind == "contrastive" else pairs
    stages = {"text": cost("text_embedding", text_flops(language, tokens) + vector, rows, 0, words)}
    if kind in ("matching", "contrastive"):
        found = cost("image_embedding", 2 * image_width * language.vector, batch, image_width, weight_bytes)
        stages = {"image": found, **stages}
    if kind == "matching":
        flops = text_flops(language, tokens) + language.layers * cross_flops(language.width, tokens, seen, image_width)
        stages["match"] = cost("image_text_matching", flops + 2 * 2 * language.width, pairs, image, words)
    elif kind == "none":
        qformer = geometry.qformer
        assert qformer is not None
        kept = workload.num_kept
        flops = text_flops(language, kept + tokens) + 2 * 2 * kept * language.width
        flops += qformer.cross_layers * cross_flops(language.width, kept, seen, image_width)
        stages["match"] = cost("image_text_matching", flops, pairs, image, words)
    return stages


def text_flops(language: ScoringGeometry, tokens: int) -> int:
    """Operations of one row: so many tokens, which see each other and no image, through every layer."""
    width = language.width
    own = 4 * (2 * tokens * width * width) + 2 * (2 * tokens * tokens * width)
    return language.layers * (own + 2 * (2 * tokens * width * language.feed_forward))


def cross_flops(width: int, tokens: int, image: int, image_width: int) -> int:
    """Operations of one row in one layer: so many tokens read `image` image tokens."""
    return 2 * (2 * tokens * width * width) + 2 * (2 * image * image_width * width) + 2 * (2 * tokens * image * width)


def twin_flops(language: ScoringGeometry, tokens: int, image: int, image_width: int) -> int:
    """Operations of one statement: what all layers read of both images, the products that merge it, and the head."""
    width = language.width
    assert language.merge_from is not None
    merges = max(0, language.layers - language.merge_from) * (2 * tokens * 2 * width * width)
    head = 2 * width * width + 2 * 2 * width
    return language.layers * 2 * cross_flops(width, tokens, image, image_width) + merges + head
