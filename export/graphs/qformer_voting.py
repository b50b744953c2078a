"""qformer_voting.onnx: image_embeds [B,I,Dv], num_kept int64 [1] -> kept_indices, kept_embeds, token_scores.

`num_kept` (k) is an input, so one bundle serves every pruning ratio. A method that weighs image tokens takes them as a
third input, `image_weights` [B,I]. An instructed Q-Former (InstructBLIP) also takes the prompt, in tokens of its own
tokenizer: instruction_ids int64 [B,T], padded on the right, and instruction_mask int64 [B,T], 0 where a pad is. With
diagnostics the graph also outputs what other methods would score, the mean cross-attention of every query, and the
rank points of each layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from catp.export.graphs import Graph, interface_dtype, operators
from catp.export.graphs.masks import seen_by_all
from catp.export.voting import RankPoints, VotingMethod
from catp.export.voting.base import Evidence
from catp.runtime.bundle.manifest import LAYER_POINTS, QUERY_ATTENTION, scores_of


class QFormerVoting(torch.nn.Module):
    """Q-Former, voting head, choice of k tokens, and the projection of just those into the language model."""

    def __init__(
        self,
        query_tokens: torch.Tensor,
        qformer: Any,
        projection: torch.nn.Module,
        method: VotingMethod,
        compared: Sequence[VotingMethod] | None = None,
    ) -> None:
        """Args: `compared`: methods whose scores are outputs as well; None: no diagnostics."""
        super().__init__()
        self.query_tokens = query_tokens
        self.qformer = qformer
        self.projection = projection
        self.method = method
        self.compared = compared
        layers = qformer.encoder.layer
        self.cross_attention = [layer.crossattention.attention for layer in layers if layer.has_cross_attention]
        self.self_attention = [layer.attention.attention for layer in layers]
        methods = [method, *(compared or ())]
        available = len(self.cross_attention)
        self.cross_layers = {layer for method in methods for layer in method.cross_layers(available)}
        if compared is not None:
            self.cross_layers = set(range(available))
        self.reads_self_attention = any(method.reads_self_attention for method in methods)

    @property
    def reads_image_weights(self) -> bool:
        return any(method.reads_image_weights for method in (self.method, *(self.compared or ())))

    def forward(
        self, image_embeds: torch.Tensor, num_kept: torch.Tensor, image_weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """kept_indices int64 [B,k] ascending, kept_embeds [B,k,Dl], token_scores float32 [B,N], diagnostics."""
        # One row of queries, not B: all that precedes the first cross-attention is the same for every image,
        # so it stays a constant, and broadcasting brings the batch in where the image does.
        return self._vote(image_embeds, num_kept, image_weights, query_embeds=self.query_tokens)

    def _vote(
        self,
        image_embeds: torch.Tensor,
        num_kept: torch.Tensor,
        image_weights: torch.Tensor | None,
        **read: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Args: `read`: what the Q-Former reads beside the image."""
        queries = self.query_tokens.shape[1]
        recorded = [self.cross_attention[layer] for layer in sorted(self.cross_layers)]
        if self.reads_self_attention:
            recorded += self.self_attention
        with operators.recorded_attention(recorded) as maps:
            # InstructBLIP's Q-Former, unlike BLIP-2's, does not cast what it reads to the float32 that it computes in.
            embeds = self.qformer(**read, encoder_hidden_states=image_embeds.float()).last_hidden_state[:, :queries]
        evidence = Evidence(
            cross_attention=[maps.get(module) for module in self.cross_attention],
            self_attention=[maps[module][..., :queries, :queries] for module in self.self_attention]
            if self.reads_self_attention
            else [],
            query_embeds=embeds.float(),
            image_embeds=image_embeds.float(),
            image_weights=image_weights,
        )
        scores = self._scores(self.method, evidence)
        kept: Any = num_kept.item()  # a symbolic int while tracing
        torch._check(kept >= 1)
        torch._check(kept <= scores.shape[1])
        best = operators.top_k(scores, num_kept, kept, largest=True)
        # Ascending order keeps the tokens in their original order. TopK sorts floats everywhere, integers not.
        order = operators.top_k(best.float(), num_kept, kept, largest=False)
        indices = best.gather(1, order)
        chosen = embeds.gather(1, indices[:, :, None].expand(-1, -1, embeds.shape[-1]))
        dtype = next(self.projection.parameters()).dtype
        outputs = (indices, self.projection(chosen.to(dtype)).to(interface_dtype(dtype)), scores)
        return outputs if self.compared is None else (*outputs, *self._diagnostics(evidence))

    def _scores(self, method: VotingMethod, evidence: Evidence) -> torch.Tensor:
        """One row per image, also where a method scores every image alike."""
        scores = method.scores(evidence)
        return scores.expand(evidence.image_embeds.shape[0], -1)

    def _diagnostics(self, evidence: Evidence) -> list[torch.Tensor]:
        """In the order of `diagnostic_names`."""
        maps = [layer for layer in evidence.cross_attention if layer is not None]
        attention = torch.stack([layer.mean(1) for layer in maps]).mean(0)
        points = [RankPoints(layers=str(layer)).scores(evidence) for layer in range(len(maps))]
        return [
            *(self._scores(method, evidence) for method in self.compared or ()),
            attention,
            torch.stack(points, 1),
        ]

    def diagnostic_names(self) -> list[str]:
        """Names of the outputs beyond a deployed graph's."""
        if self.compared is None:
            return []
        return [*(scores_of(method.name) for method in self.compared), QUERY_ATTENTION, LAYER_POINTS]


class InstructedVoting(QFormerVoting):
    """A Q-Former whose queries also attend to the prompt."""

    def forward(  # type: ignore[override]
        self,
        image_embeds: torch.Tensor,
        num_kept: torch.Tensor,
        instruction_ids: torch.Tensor,
        instruction_mask: torch.Tensor,
        image_weights: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """As without an instruction; no query sees a pad, so pads don't change votes."""
        queries = self.query_tokens.expand(image_embeds.shape[0], -1, -1)
        seen = torch.cat([torch.ones(queries.shape[:2], dtype=torch.bool), instruction_mask.bool()], 1)
        return self._vote(
            image_embeds,
            num_kept,
            image_weights,
            query_embeds=queries,
            input_ids=instruction_ids,
            attention_mask=seen_by_all(seen),
        )


def graph(
    module: QFormerVoting, image_tokens: int, vision_width: int, dtype: torch.dtype, any_tokens: bool = False
) -> Graph:
    """Args: `any_tokens`: whether it takes another number of image tokens as well."""
    batch = torch.export.Dim("batch")
    of_image: dict[int, Any] = {0: batch, **({1: torch.export.Dim("image_tokens")} if any_tokens else {})}
    image_embeds = torch.zeros(2, image_tokens, vision_width, dtype=interface_dtype(dtype))
    example: tuple[torch.Tensor, ...] = (image_embeds, torch.tensor([2]))
    dynamic_shapes: dict[str, Any] = {"image_embeds": of_image, "num_kept": None, "image_weights": None}
    input_names = ["image_embeds", "num_kept"]
    if isinstance(module, InstructedVoting):
        length = torch.export.Dim("instruction")
        example = (*example, torch.ones(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.long))
        for name in ("instruction_ids", "instruction_mask"):
            input_names.append(name)
            dynamic_shapes[name] = {0: batch, 1: length}
    if module.reads_image_weights:
        example = (*example, torch.ones(2, image_tokens))
        input_names.append("image_weights")
        dynamic_shapes["image_weights"] = of_image
    return Graph(
        name="qformer_voting",
        module=module,
        example=example,
        input_names=input_names,
        output_names=["kept_indices", "kept_embeds", "token_scores", *module.diagnostic_names()],
        dynamic_shapes={name: dynamic_shapes[name] for name in input_names},
        keeps_float32=True,
        dimension_names={"u0": "num_kept"},  # a size read from a tensor has no name while tracing
    )
