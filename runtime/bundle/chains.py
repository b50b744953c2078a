"""Chains: the graphs of a task in the order in which they run, and what reports call them.

A chain is an image side, which turns pictures into what a language model reads first, followed by a language part. A
bundle's chain follows from the graphs that it has and from its kind of language model, so `catp.json` does not name it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from catp.runtime.bundle.manifest import Manifest

LanguageKind = Literal[
    "decoder-only",
    "encoder-decoder",
    "question-answering",
    "captioning",
    "none",
    "matching",
    "contrastive",
    "two-images",
]
"""Kind of language model, which decides the graphs that drive it; question-answering: an encoder that reads question
and image tokens, and a decoder; captioning: a decoder that reads image tokens. Three score texts: none, by query tokens
and the Q-Former; matching, by a text encoder that also reads image tokens; contrastive, by one vector for each text and
each picture. Two-images: whether a statement about two images is true."""

READ_IMAGE_TOKENS: Final[tuple[LanguageKind, ...]] = (
    "question-answering",
    "captioning",
    "matching",
    "contrastive",
    "two-images",
)
"""Kinds that read a vision encoder's tokens; the others follow an image side that ends in query tokens."""

SCORE_TEXTS: Final[tuple[LanguageKind, ...]] = ("none", "matching", "contrastive", "two-images")
"""Kinds that score given texts; the others write some."""

PRUNE_TEXTS: Final[tuple[LanguageKind, ...]] = ("matching", "contrastive", "two-images")
"""Kinds that score texts by a text encoder that may prune a text's tokens."""

DECODE_GRAPH: Final = "language_model_decode"
"""In some calibrated bundles, the graph that takes decode steps in place of language_model, which reads the prompts:
other weights, the same inputs, outputs and cache."""


def made_from(graph: str) -> str:
    """The graph of a floating-point bundle that a calibrated one is made from."""
    return "language_model" if graph == DECODE_GRAPH else graph


def _accept(_: Manifest) -> None:
    """No check."""


@dataclass(frozen=True)
class Stage:
    """One graph of a chain.

    Args:
        graph: its name in the manifest, and of its file.
        labels: the parts of an answer that reports name and that it computes; a graph with a cache may have two.
        check: raises ValueError where the manifest contradicts the graph's tensors.
    """

    graph: str
    labels: tuple[str, ...]
    check: Callable[[Manifest], None] = _accept


@dataclass(frozen=True)
class Chain:
    """All stages of a bundle.

    Args:
        image_side: a name in IMAGE_STAGES, and of what runs them (`catp.runtime.image_sides.IMAGE_SIDES`).
    """

    image_side: str
    language: LanguageKind
    stages: tuple[Stage, ...]

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of the graphs, in the order of the pipeline."""
        return tuple(stage.graph for stage in self.stages)

    @property
    def labels(self) -> tuple[str, ...]:
        """Parts of an answer that reports name, in the order in which they are computed."""
        return tuple(dict.fromkeys(label for stage in self.stages for label in stage.labels))

    @property
    def decoder(self) -> str | None:
        """The graph of decode steps, where another one reads the prompt; None where one does both, or none writes."""
        decoders = [stage.graph for stage in self.stages if "decode" in stage.labels]
        readers = [stage.graph for stage in self.stages if "prefill" in stage.labels]
        return decoders[0] if len(readers) > len(decoders) > 0 else None


def _check_image_size(manifest: Manifest) -> None:
    if manifest.tensor("pixel_values").shape[2:] != (manifest.image.height, manifest.image.width):
        raise ValueError("image: not the size that the vision encoder takes")


def _pixels(manifest: Manifest) -> int:
    return manifest.image.height * manifest.image.width


def _check_encoder(manifest: Manifest) -> None:
    """Raises ValueError where the vision encoder's inputs are not those of the pruning that the manifest names."""
    _check_image_size(manifest)
    pruning = manifest.encoder_pruning
    graph = manifest.graphs["vision_encoder"]
    found = {tensor.name: tensor.shape for tensor in graph.inputs if tensor.name != "pixel_values"}
    wanted: dict[str, tuple[int, ...]] = {}
    if pruning is not None and pruning.form == "schedule":
        wanted = {"kept_tokens": (len(pruning.layers),)}
    elif pruning is not None:
        wanted = {"encoder_temperature": (1,)}
    if found != wanted:
        raise ValueError(
            f"encoder_pruning: the vision encoder takes {found or 'pixels alone'}, not {wanted or 'those'}"
        )
    outputs = {tensor.name: tensor.shape for tensor in graph.outputs}
    if pruning is None and not isinstance(outputs["image_embeds"][1], int):
        raise ValueError("encoder_pruning: missing, and how many image tokens the vision encoder outputs is free")
    for name in ("kept_positions",) * (pruning is not None) + ("kept_counts",) * ("encoder_temperature" in wanted):
        if name not in outputs:
            raise ValueError(f"encoder_pruning: the vision encoder does not output {name}")
    if pruning is not None:
        sizes = pruning.sizes
        if outputs.get("kept_counts", (len(pruning.layers),)) != (len(pruning.layers),):
            raise ValueError("encoder_pruning: kept_counts is not one count for each layer that prunes")
        if sizes.width != outputs["image_embeds"][2] or sizes.patches * sizes.patch_values > 3 * _pixels(manifest):
            raise ValueError("encoder_pruning.sizes: not those of the vision encoder")


def _check_question_encoder(manifest: Manifest) -> None:
    """Raises ValueError where the question encoder's tensors are not those of the pruning that the manifest names."""
    pruning, graph = manifest.question_pruning, manifest.graphs["question_encoder"]
    counts = any(tensor.name == "encoder_temperature" for tensor in graph.inputs)
    if counts != (pruning is not None and pruning.form == "dynamic"):
        raise ValueError("question_pruning: the question encoder's form is another one")
    if (pruning is not None) != any(tensor.name == "encoded_lengths" for tensor in graph.outputs):
        raise ValueError("question_pruning: the question encoder outputs no encoded_lengths, or nothing prunes there")


def _check_image_tokens(manifest: Manifest) -> None:
    _check_encoder(manifest)
    if manifest.vote is not None:
        raise ValueError("pruning: there, and no graph of the bundle votes")


def _check_query_tokens(manifest: Manifest) -> None:
    if manifest.vote is None:
        raise ValueError("pruning: missing, and the bundle has a graph that votes")
    if manifest.tensor("token_scores").shape[1:] != (manifest.vote.num_query_tokens,):
        raise ValueError("pruning.num_query_tokens: not the number that the Q-Former graph scores")


def _check_matching_head(manifest: Manifest) -> None:
    """Raises ValueError where the matching head reads query tokens that nothing votes for, or none of those kept."""
    takes = any(tensor.name == "kept_indices" for tensor in manifest.graphs["image_text_matching"].inputs)
    if takes != (manifest.vote is not None):
        what = "missing, and the bundle has" if manifest.vote else "there, and the bundle has no"
        raise ValueError(f"graphs.image_text_matching.inputs: kept_indices is {what} query tokens to keep")


def _check_vectors(manifest: Manifest) -> None:
    """Raises ValueError where the vectors of texts and pictures have not the same length, or nothing scales them."""
    if manifest.tensor("image_vector").shape[1] != manifest.tensor("text_embeds").shape[1]:
        raise ValueError("graphs.image_embedding.outputs: image_vector is not as long as text_embeds")
    if (manifest.logit_scale is not None) != (manifest.model.language == "contrastive"):
        raise ValueError("logit_scale: it belongs to a contrastive model, and to no other")


IMAGE_STAGES: dict[str, tuple[Stage, ...]] = {
    "voted-queries": (
        Stage("vision_encoder", ("vision",), _check_encoder),
        Stage("qformer_voting", ("qformer",), _check_query_tokens),
    ),
    "image-tokens": (Stage("vision_encoder", ("vision",), _check_image_tokens),),
}
"""Image sides by name."""

LANGUAGE_STAGES: dict[LanguageKind, tuple[Stage, ...]] = {
    "decoder-only": (Stage("language_model", ("prefill", "decode")),),
    "encoder-decoder": (Stage("text_encoder", ("prefill",)), Stage("text_decoder", ("prefill", "decode"))),
    "question-answering": (
        Stage("question_encoder", ("prefill",), _check_question_encoder),
        Stage("answer_decoder", ("prefill", "decode")),
    ),
    "captioning": (Stage("image_keys", ("prefill",)), Stage("caption_decoder", ("prefill", "decode"))),
    "none": (Stage("text_embedding", ("text",)), Stage("image_text_matching", ("match",), _check_matching_head)),
    "matching": (
        Stage("image_embedding", ("image",), _check_vectors),
        Stage("text_embedding", ("text",)),
        Stage("image_text_matching", ("match",), _check_matching_head),
    ),
    "contrastive": (Stage("image_embedding", ("image",), _check_vectors), Stage("text_embedding", ("text",))),
    "two-images": (Stage("statement_encoder", ("text",)),),
}
"""Language parts, which follow an image side, by kind of language model."""


def make_chain(image_side: str, language: LanguageKind) -> Chain:
    """The chain of an image side and a kind of language model."""
    return Chain(image_side, language, (*IMAGE_STAGES[image_side], *LANGUAGE_STAGES[language]))


def find_chain(graphs: Iterable[str], language: LanguageKind) -> Chain:
    """The chain whose graphs a bundle has.

    Raises:
        ValueError: it has not all graphs of any; the message names those that the nearest one lacks.
    """
    found = set(graphs)
    sides = [side for side, stages in IMAGE_STAGES.items() if _votes(stages) == (language not in READ_IMAGE_TOKENS)]
    chains = [make_chain(image_side, language) for image_side in sides]
    missing = {chain: [graph for graph in chain.graphs if graph not in found] for chain in chains}
    nearest = min(chains, key=lambda chain: len(missing[chain]))
    if missing[nearest]:
        raise ValueError(f"graphs: {', '.join(missing[nearest])} missing")
    return nearest


def _votes(stages: Iterable[Stage]) -> bool:
    return any(stage.graph == "qformer_voting" for stage in stages)


def graphs_of(label: str) -> tuple[str, ...]:
    """Every graph, of any chain, that computes the part of an answer with this label."""
    stages = [stage for table in (IMAGE_STAGES, LANGUAGE_STAGES) for group in table.values() for stage in group]
    return tuple(dict.fromkeys(stage.graph for stage in stages if label in stage.labels))


GRAPHS: Final = make_chain("voted-queries", "decoder-only").graphs
"""The graphs that calibration of precision knows: BLIP-2's with a decoder-only language model."""
