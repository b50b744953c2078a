"""Operations and bytes of BLIP's caption decoder, counted as in `cost`.

Prefill is what precedes the first token: every decoder layer's keys and values of all image tokens, and the decoder's
pass over what a caption begins with. Decode is the decoder alone, which reads those keys and values in every step:
pruning inside the vision encoder makes both cheaper.
"""

from __future__ import annotations

from catp.calibration.benchmark.costs.answering import read_bytes, step_flops
from catp.calibration.benchmark.costs.base import (
    LanguageCost,
    StageCost,
    Workload,
    in_integers,
    item_size,
    weight_bytes,
)
from catp.calibration.benchmark.costs.geometry import AnsweringGeometry, VisionGeometry
from catp.runtime.bundle.manifest import GraphSpec


def captioning_cost(
    language: AnsweringGeometry, vision: VisionGeometry, keys: GraphSpec, decoder: GraphSpec, workload: Workload
) -> LanguageCost:
    """The cost of prefill, and of decode where more than one token is generated."""
    batch, image = workload.batch, workload.num_kept
    begun = max(1, workload.prompt_tokens - 1)  # of the two tokens that frame a prompt, the last one is not read
    # Step j of new_tokens - 1 sees the beginning and j tokens after it, which are on average new_tokens / 2.
    context = begun + workload.new_tokens / 2
    token_bytes = 2 * language.layers * language.width * item_size(decoder, "past_key_values.0.key")
    weights = read_bytes(language, decoder, head=True)
    embeds = image * vision.width * item_size(keys, "image_embeds")
    stages = {
        "prefill": StageCost(
            flops=batch * (keys_flops(language, image, vision.width) + step_flops(language, begun, image, begun)),
            bytes=weight_bytes(keys) + weights + batch * (embeds + (image + begun) * token_bytes),
            integer=in_integers(decoder),
        )
    }
    if workload.new_tokens > 1:
        stages["decode"] = StageCost(
            flops=batch * step_flops(language, context, image),
            bytes=weights + round(batch * (image + context) * token_bytes),
            integer=in_integers(decoder),
        )
    return LanguageCost(stages, cache_bytes=batch * (image + begun + workload.new_tokens - 1) * token_bytes)


def keys_flops(language: AnsweringGeometry, image: int, image_width: int) -> int:
    """Operations of one picture: keys and values of all its image tokens, of every decoder layer."""
    return language.layers * 2 * (2 * image * image_width * language.width)
