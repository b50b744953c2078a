"""Names of BLIP's weights: those of the official code (https://github.com/salesforce/BLIP) in Hugging Face's classes.

Text encoders, text decoders and heads have the same names in both. MADTP's code, built on BLIP's, adds `space_dict`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from catp.runtime.errors import UsageError

_VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}
_BLOCK = {
    "norm1": "layer_norm1",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_IN_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")

TIED = {
    "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
    "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
}
"""Names of a decoder's weights that have another one, in both; Hugging Face saves the other."""

POSITION_IDS = re.compile(r"text_(encoder|decoder\.bert)\.embeddings\.position_ids")
"""A buffer that counts from 0, and that Hugging Face does not save."""

Kind = Literal["question answering", "captions", "retrieval", "statements about two images", "texts and images"]


@dataclass(frozen=True)
class Task:
    """One of the tasks that BLIP is fine-tuned for; "texts and images" is CLIP's."""

    kind: Kind
    architecture: str
    """Hugging Face's class; of statements about two images ours, for there is none."""
    parts: tuple[str, ...]
    """First parts of the names of its weights, the vision encoder's apart."""
    left_out: tuple[str, ...] = ()
    """First parts of names that only training reads: momentum copies, queues of features, a temperature."""

    @property
    def title(self) -> str:
        """For people: "BLIP for captions"."""
        return f"{'CLIP' if self.architecture == 'CLIPModel' else 'BLIP'} for {self.kind}"


TASKS = (
    Task("question answering", "BlipForQuestionAnswering", ("text_encoder", "text_decoder")),
    Task("captions", "BlipForConditionalGeneration", ("text_decoder",)),
    Task(
        "retrieval",
        "BlipForImageTextRetrieval",
        ("text_encoder", "vision_proj", "text_proj", "itm_head"),
        (
            *("visual_encoder_m", "text_encoder_m", "vision_proj_m", "text_proj_m"),
            *("image_queue", "text_queue", "idx_queue", "ptr_queue", "temp"),
        ),
    ),
    Task("statements about two images", "BlipForNlvr2", ("text_encoder", "cls_head")),
)


def task_of(where: str, names: Collection[str]) -> Task:
    """The task that a checkpoint with weights of these names is for.

    Args:
        where: they are, for the message.

    Raises:
        UsageError: none of TASKS.
    """
    firsts = {name.partition(".")[0] for name in names}
    accepted = ", ".join(f"{task.kind} ({task.architecture})" for task in TASKS)
    found = {part for part in ("text_encoder", "text_decoder") if part in firsts}
    twinned = any(".crossattention.self0." in name for name in names)
    task = next(
        (
            task
            for task in TASKS
            if found == set(task.parts) & {"text_encoder", "text_decoder"} and twinned == ("cls_head" in task.parts)
        ),
        None,
    )
    if task is None or "visual_encoder" not in firsts:
        raise UsageError(
            f"{where}: its weights' names are those of no BLIP ({', '.join(sorted(firsts)[:5])[:200]}); "
            f"accepted: BLIP for {accepted}, or a CLIP"
        )
    return task


def is_left_out(task: Task, name: str) -> bool:
    """Whether Hugging Face's class computes the same without it."""
    return name.partition(".")[0] in task.left_out or POSITION_IDS.fullmatch(name) is not None


def rename(task: Task, name: str) -> str | None:
    """Hugging Face's name of a weight; None where it has none."""
    first, _, rest = name.partition(".")
    if first in task.parts:
        return name
    if first != "visual_encoder":
        return None
    if rest in _VISION:
        return f"vision_model.{_VISION[rest]}"
    block = _IN_BLOCK.fullmatch(rest)
    if block is None or block[2] not in _BLOCK:
        return None
    return f"vision_model.encoder.layers.{block[1]}.{_BLOCK[block[2]]}.{block[3]}"
