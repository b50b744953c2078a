"""What a model family has to tell the exporter: how it is loaded, split into graphs, and run by plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoImageProcessor

from catp.export.graphs import Graph, qformer_voting, vision_encoder
from catp.export.language_models import LanguagePart
from catp.export.language_models.base import set_parameters
from catp.export.voting.base import Evidence, VotingMethod


@dataclass(frozen=True)
class Instructions:
    """Prompts in tokens of the Q-Former's own tokenizer."""

    ids: torch.Tensor  # int64 [B, T], padded on the right
    mask: torch.Tensor  # int64 [B, T], 0 where a pad is


class Family:
    """A ViT, a Q-Former and a projection into a language model: one architecture of Hugging Face's.

    Args:
        language: what it takes to export the language model.
    """

    title: str  # for people: "BLIP-2"
    model_type: str  # Hugging Face's, of the whole model
    reads_instruction = False  # whether its Q-Former reads the prompt too
    frames: int | None = None  # of the videos that it was made for; None: it takes images
    sees = "image"  # in the names of the placeholder that stands for a query token among a prompt's ids

    def __init__(self, language: LanguagePart) -> None:
        self.language = language

    @property
    def name(self) -> str:
        """For people: "BLIP-2 with a decoder-only language model"."""
        article = "an" if self.language.kind[0] in "aeiou" else "a"
        return f"{self.title} with {article} {self.language.kind} language model"

    def model_class(self) -> type[Any]:
        """The Hugging Face class that `from_pretrained` is called on."""
        raise NotImplementedError

    def image_processor(self, model: str, source: Mapping[str, Any]) -> Any:
        """What makes pixel values of pictures, as `from_pretrained(model, **source)` finds it."""
        return AutoImageProcessor.from_pretrained(model, **source, backend="pil")

    def check(self, model: Any, name: str) -> None:
        """Raises UsageError where this checkpoint has a part that the graphs can't express."""
        self.language.check(model.language_model, name)

    def set_dtype(self, model: Any, dtype: torch.dtype) -> None:
        """Turns the weights of the parts whose graphs have the bundle's precision into `dtype`, in place."""
        # The Q-Former stays float32, as transformers keeps it when it loads BLIP-2 in half precision.
        for part in (model.vision_model, model.language_projection):
            set_parameters(part, dtype)
        self.language.set_dtype(model.language_model, dtype)

    def cross_layers(self, model: Any) -> int:
        """How many of the Q-Former's layers read the image."""
        return len(_cross_attention(model.qformer))

    def graphs(
        self, model: Any, method: VotingMethod, compared: Sequence[VotingMethod] | None = None
    ) -> Iterator[Graph]:
        """The graphs of the bundle, in the order of the pipeline. Each may be dropped before the next is made.

        Args:
            compared: with diagnostics, the methods whose scores the Q-Former graph puts out as well.
        """
        config = model.config
        height, width = pair(config.vision_config.image_size)
        voting_class = qformer_voting.InstructedVoting if self.reads_instruction else qformer_voting.QFormerVoting
        voting = voting_class(model.query_tokens, model.qformer, self.projection(model), method, compared)
        yield vision_encoder.graph(model.vision_model, height, width, voting.reads_image_weights)
        dtype = next(model.vision_model.parameters()).dtype
        yield qformer_voting.graph(voting, image_tokens(config), config.vision_config.hidden_size, dtype)
        yield from self.text_graphs(model)

    def projection(self, model: Any) -> torch.nn.Module:
        """What makes of a query token what leaves the Q-Former graph."""
        return model.language_projection

    @property
    def generates_text(self) -> bool:
        return self.language.kind != "none"

    def max_positions(self, model: Any) -> int | None:
        """Of the text, with the query tokens where these have positions; None: no end to them."""
        return self.language.max_positions(model.language_model)

    def text_graphs(self, model: Any) -> Iterator[Graph]:
        """What comes after the Q-Former."""
        yield from self.language.graphs(model.language_model)

    @torch.no_grad()
    def image_embeds(self, model: Any, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, I, Dv] and image weights [B, I]: what each token receives in the last self-attention, mean over heads."""
        with _attention_of([model.vision_model.encoder.layers[-1].self_attn]) as (last,):
            embeds = model.vision_model(pixel_values).last_hidden_state
        return embeds, last[0].float().mean(1).sum(1)

    @torch.no_grad()
    def query_embeds(
        self,
        model: Any,
        image_embeds: torch.Tensor,
        image_weights: torch.Tensor | None = None,
        instructions: Instructions | None = None,
    ) -> tuple[torch.Tensor, Evidence]:
        """Projected query tokens [B, N, Dl], and everything that a vote may read, by plain PyTorch.

        Args:
            instructions: of a family that reads them.
        """
        cross = _cross_attention(model.qformer)
        own = [layer.attention.attention for layer in model.qformer.encoder.layer]
        queries = model.query_tokens.expand(len(image_embeds), -1, -1)
        count = queries.shape[1]
        read: dict[str, torch.Tensor] = {}
        if instructions is not None:
            mask = torch.cat([torch.ones(queries.shape[:2], dtype=torch.long), instructions.mask], 1)
            read = {"input_ids": instructions.ids, "attention_mask": mask}
        with _attention_of([*cross, *own]) as maps:
            embeds = model.qformer(query_embeds=queries, encoder_hidden_states=image_embeds, **read).last_hidden_state
        embeds = embeds[:, :count]
        evidence = Evidence(
            cross_attention=[layer[0] for layer in maps[: len(cross)]],
            self_attention=[layer[0][..., :count, :count] for layer in maps[len(cross) :]],
            query_embeds=embeds,
            image_embeds=image_embeds,
            image_weights=image_weights,
        )
        return self.projection(model)(embeds), evidence


def _cross_attention(qformer: Any) -> list[torch.nn.Module]:
    return [layer.crossattention.attention for layer in qformer.encoder.layer if layer.has_cross_attention]


@contextmanager
def _attention_of(modules: Sequence[torch.nn.Module]) -> Iterator[list[list[torch.Tensor]]]:
    """Per module, the probabilities of its calls.

    Hooks on the modules themselves: what transformers records as `attentions` also holds other maps.
    """
    maps: list[list[torch.Tensor]] = [[] for _ in modules]
    hooks = [
        module.register_forward_hook(lambda _, __, output, into=into: into.append(output[1]))
        for module, into in zip(modules, maps)
    ]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def image_tokens(config: Any) -> int:
    """How many tokens the ViT makes of an image, CLS among them."""
    (height, width), patch = pair(config.vision_config.image_size), pair(config.vision_config.patch_size)
    return (height // patch[0]) * (width // patch[1]) + 1


def pair(size: Any) -> tuple[int, int]:
    """Height and width, from both or from the side of a square."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
