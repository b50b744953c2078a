"""InstructBLIP on videos."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import InstructBlipVideoForConditionalGeneration
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.video_processing_utils import BaseVideoProcessor

from catp.export.families.query_tokens import QueryTokens


class InstructBlipVideo(QueryTokens):
    """Each frame is an image to ViT and Q-Former, and votes; the language model reads the frames one after another."""

    title = "InstructBLIP on videos"
    model_type = "instructblipvideo"
    reads_instruction = True
    frames = 4  # no configuration says: Hugging Face's processor makes placeholders for so many
    placeholder = "video_token_index"

    def model_class(self) -> type[InstructBlipVideoForConditionalGeneration]:
        return InstructBlipVideoForConditionalGeneration

    def image_processor(self, model: str, source: Mapping[str, Any]) -> Any:
        """PIL's resizing of one frame, by the video processor's settings: its own resizing needs torchvision."""
        settings, _ = BaseVideoProcessor.get_video_processor_dict(model, revision=source["revision"])
        known = ("size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        refused = ("do_resize", "do_center_crop", "do_pad")  # by the runtime, where they ask for something else
        return BlipImageProcessorPil(**{name: settings[name] for name in (*known, *refused) if name in settings})
