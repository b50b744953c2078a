"""vision_encoder.onnx of an encoder that prunes inside itself.

    schedule form: pixel_values float32 [B,3,H,W], kept_tokens int64 [P]
    dynamic form:  pixel_values float32 [B,3,H,W], encoder_temperature float32 [1]
      -> image_embeds [B,I,Dv], kept_positions int64 [B,I-1], in the dynamic form also kept_counts int64 [P]; where the
         vote reads them, image_weights float32 [B,I]: the patches in each token

P layers prune, between attention and MLP. `kept_tokens` has a count for each; in the dynamic form the graph counts for
itself, and says how many it kept: all that came in where it pruned nothing. CLS comes first and always stays;
`kept_positions` has the patch that each other token was, -1 for one that was merged of several. With diagnostics, a
tensor for each layer that prunes but the last, positions.{layer} int64 [B,N'], has the patches that it leaves; where
tokens are merged into the nearest one, merged_into.{layer} int64 [B,N] has the patch of that one for each that came in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from catp.export.encoder_pruning import ScoringRule, TokenEvidence
from catp.export.encoder_pruning.guidance import Guidance, LayerGuides
from catp.export.encoder_pruning.merges import MERGES, Chosen, Tokens
from catp.export.encoder_pruning.rules.madtp import wanted_tokens
from catp.export.graphs import Graph, interface_dtype, operators, vit_modules
from catp.runtime.bundle.encoder_pruning import Form, Merge, left_by, merged_into, positions_of


class PrunedVisionEncoder(torch.nn.Module):
    """A ViT of Hugging Face's (the modules of BLIP, BLIP-2 or CLIP), some of whose layers prune.

    Args:
        layers: those that prune; none: a dense encoder, with fused attention.
        guidance: MADTP's, for a rule that reads it.
        scorers: float32 [L, W], a row for each layer, likewise.
        image_weights: whether it outputs how many patches were averaged into each token; the merge "nearest" counts.
        diagnostics: whether it outputs the positions that each layer leaves.
    """

    def __init__(
        self,
        vision_model: Any,
        rule: ScoringRule,
        merge: Merge,
        layers: Sequence[int],
        form: Form,
        guidance: Guidance | None,
        scorers: torch.Tensor | None = None,
        image_weights: bool = False,
        diagnostics: bool = False,
    ) -> None:
        super().__init__()
        self.vision_model = vision_model
        self.rule, self.merging, self.layers, self.form = rule, MERGES[merge], tuple(layers), form
        self.image_weights, self.diagnostics = image_weights, diagnostics
        if rule.reads_guidance:
            assert guidance is not None, "checked when the checkpoint was read"
            self.guides = LayerGuides(guidance, self.layers)
        if rule.reads_scorer:
            assert scorers is not None, "likewise"
            self.register_buffer("scorers", scorers.float().contiguous())

    def forward(self, pixel_values: torch.Tensor, control: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Args: `control`: kept_tokens int64 [P], or the temperature float32 [1]."""
        hidden = vit_modules.begin(self.vision_model, pixel_values)
        cls, patches = hidden[:, :1], hidden[:, 1:]
        positions = torch.arange(patches.shape[1]).expand(patches.shape[0], -1)
        sizes = torch.ones_like(positions, dtype=torch.float32) if self.merging.counts_sizes else None
        tokens = Tokens(patches, positions, sizes)
        counts, left, into = [], [], []
        for index, layer in enumerate(self.vision_model.encoder.layers):
            before = torch.cat([cls, tokens.embeds], 1)
            attention = LayerAttention(layer, before, tokens.sizes)
            if index in self.layers:
                number = self.layers.index(index)
                after, evidence = attention.with_evidence(self.rule, before, self._learned(index), tokens.positions)
                scores = self.rule.scores(evidence)
                count, merges_any = self._count(control, number, scores, evidence)
                tokens = self._prune(after[:, 1:], tokens, scores, count, merges_any, attention.keys)
                counts.append(count)
                left.append(tokens.positions)
                into.append(tokens.merged_into)
            else:
                after = attention.fused()
                tokens = Tokens(after[:, 1:], tokens.positions, tokens.sizes)
            hidden = torch.cat([after[:, :1], tokens.embeds], 1)
            hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
            cls, tokens = hidden[:, :1], Tokens(hidden[:, 1:], tokens.positions, tokens.sizes)
        embeds = vit_modules.finish(self.vision_model, torch.cat([cls, tokens.embeds], 1))
        outputs = [embeds.to(interface_dtype(embeds.dtype)), tokens.positions]
        if self.image_weights:
            assert tokens.sizes is not None, "checked by the exporter"
            outputs.append(torch.cat([torch.ones_like(tokens.sizes[:, :1]), tokens.sizes], 1))
        if self.form == "dynamic":
            outputs.append(torch.cat(counts))
        if self.diagnostics:
            outputs += [*left[:-1], *(merged for merged in into if merged is not None)]
        return tuple(outputs)

    def _learned(self, index: int) -> LayerKnowledge:
        """Everything that the rule knows of this layer before it sees a picture."""
        return LayerKnowledge(
            index,
            len(self.vision_model.encoder.layers),
            self.guides if self.rule.reads_guidance else None,
            self.get_buffer("scorers")[index] if self.rule.reads_scorer else None,
        )

    def _count(
        self, control: torch.Tensor, number: int, scores: torch.Tensor, evidence: TokenEvidence
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """How many tokens are kept, int64 [1], and, where that may be all of them, whether any is merged, int64 [1]."""
        if self.form == "schedule":
            return control[number : number + 1], None
        assert evidence.guidance is not None, "the dynamic form is madtp's"
        count = wanted_tokens(scores, evidence.guidance, control)
        return count, (scores.shape[1] - count).clamp(max=1)

    def _prune(
        self,
        embeds: torch.Tensor,
        tokens: Tokens,
        scores: torch.Tensor,
        count: torch.Tensor,
        merges_any: torch.Tensor | None,
        keys: torch.Tensor,
    ) -> Tokens:
        kept: Any = count.item()  # a symbolic int while tracing
        torch._check(kept >= 1)
        torch._check(kept <= scores.shape[1])
        settled, receivers = self.rule.settle(scores, count)
        indices = operators.top_k(settled, count, kept, largest=True)
        if receivers is not None:
            # The next layer asks for tokens at odd places: ties must not decide which these are. TopK sorts floats.
            indices = indices.gather(1, operators.top_k(indices.float(), count, kept, largest=False))
        chosen = Chosen(indices, scores, keys, receivers, merges_any)
        return self.merging(Tokens(embeds, tokens.positions, tokens.sizes), chosen)


@dataclass(frozen=True)
class LayerKnowledge:
    """A rule's knowledge of a layer before it sees a picture."""

    index: int  # of the encoder's layers, from 0
    layers: int  # that the encoder has
    guides: LayerGuides | None
    scorer: torch.Tensor | None  # float32 [W]


class LayerAttention:
    """The self-attention of one layer and its residual, of [B, 1+N, W].

    Args:
        layer: with `layer_norm1` and a `self_attn` that `vit_modules` knows.
        sizes: patches in each image token, float32 [B, N], where merged ones count as often (arXiv 2210.09461)
    """

    def __init__(self, layer: Any, hidden: torch.Tensor, sizes: torch.Tensor | None) -> None:
        self.module, self.hidden = layer.self_attn, hidden
        length = hidden.shape[1]
        self.queries, self.keys, self.values = vit_modules.project(self.module, layer.layer_norm1(hidden))
        self.bias: torch.Tensor | None = None
        if sizes is not None:
            whole = torch.cat([torch.ones_like(sizes[:, :1]), sizes], 1)
            # For every query anew: ONNX's Attention does not broadcast a mask along its queries.
            self.bias = whole.log()[:, None, None].expand(-1, -1, length, -1)

    def fused(self) -> torch.Tensor:
        """[B, 1+N, W], by one operator."""
        bias = None if self.bias is None else self.bias.to(self.queries.dtype)
        heads = operators.attention(
            self.module, self.queries, self.keys, self.values, bias, scaling=float(self.module.scale)
        )[0]
        return self._close(heads)

    def with_evidence(
        self, rule: ScoringRule, before: torch.Tensor, layer: LayerKnowledge, positions: torch.Tensor
    ) -> tuple[torch.Tensor, TokenEvidence]:
        """[B, 1+N, W], and what the rule reads of this layer.

        Args:
            before: [B, 1+N, W], the layer's input.
            positions: int64 [B, N].
        """
        maps = cls_row = outputs = None
        if rule.reads_maps:
            maps = self._probabilities(self.queries)
            outputs = maps.to(self.values.dtype) @ self.values
            after = self._close(outputs.transpose(1, 2))
        else:
            after = self.fused()
            if rule.reads_cls_row:
                cls_row = self._probabilities(self.queries[:, :, :1])[:, :, 0]
        return after, TokenEvidence(
            layer=layer.index,
            layers=layer.layers,
            tokens=after[:, 1:],
            keys=self.keys,
            maps=maps,
            cls_row=cls_row,
            head_outputs=outputs,
            guidance=None if layer.guides is None else layer.guides(layer.index, before[:, 1:]),
            scorer=layer.scorer,
            positions=positions,
        )

    def _probabilities(self, queries: torch.Tensor) -> torch.Tensor:
        """float32 [B, H, queries, 1+N]: scores are computed in float32 whatever the graph's precision."""
        # The queries are scaled, not the products: there are fewer of them.
        logits = ((queries * float(self.module.scale)) @ self.keys.transpose(-1, -2)).float()
        return torch.softmax(logits if self.bias is None else logits + self.bias[:, :, : queries.shape[2]], -1)

    def _close(self, heads: torch.Tensor) -> torch.Tensor:
        """[B, 1+N, H, d], projected, with the residual."""
        return self.hidden + vit_modules.close(self.module, heads.flatten(2))


def graph(module: PrunedVisionEncoder, height: int, width: int) -> Graph:
    pruning = len(module.layers)
    outputs = ["image_embeds", "kept_positions", *(["image_weights"] if module.image_weights else [])]
    if module.form == "schedule":
        control, name = torch.arange(pruning, 0, -1) + 1, "kept_tokens"
    else:
        control, name = torch.ones(1), "encoder_temperature"
        outputs.append("kept_counts")
    if module.diagnostics:
        outputs += [positions_of(layer) for layer in module.layers[:-1]]
        outputs += [merged_into(layer) for layer in module.layers] if module.merging.counts_sizes else []
    return Graph(
        name="vision_encoder",
        module=module,
        example=(torch.zeros(2, 3, height, width), control),
        input_names=["pixel_values", name],
        output_names=outputs,
        dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}, "control": None},
        dimension_names=_dimension_names(module),
    )


def _dimension_names(module: PrunedVisionEncoder) -> dict[str, str]:
    """Names of sizes that are read from tensors, the u-th while tracing: how they follow from the schedule."""
    last = len(module.layers) - 1
    if module.form == "dynamic":
        # The merge "one" reads a second size in each layer: whether there was anything to merge.
        left, more = (f"u{2 * last} + u{2 * last + 1}" if module.merging.adds else f"u{last}"), 0
    else:
        left, more = f"u{last}", module.merging.adds
    patches = f"{left} + {more}" if more else left
    if module.form == "dynamic":
        return {patches: "image_patches", f"{left} + {more + 1}": "image_tokens"}
    names = {patches: left_by(-1, more), f"{left} + {more + 1}": left_by(-1, more + 1)}
    if module.diagnostics:
        names |= {f"u{place} + {more}" if more else f"u{place}": left_by(place, more) for place in range(last)}
    return names
