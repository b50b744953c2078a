"""BLIPs that write text: image tokens, as many as there are, are read by BLIP's own text models."""

from __future__ import annotations

import copy
from typing import Any

from transformers import GenerationConfig

from catp.export.families.base import Family


class BlipWriting(Family):
    """No Q-Former, so no query tokens."""

    title = "BLIP"
    model_type = "blip"
    votes = False
    ends_itself = True
    placeholder = None

    def language_model(self, model: Any) -> Any:
        """The model itself: its text models lie side by side in it."""
        return model

    def start_token(self, model: Any) -> int:
        """The id that a text begins with."""
        raise NotImplementedError

    def generation_config(self, model: Any) -> GenerationConfig:
        """The decoder's own, with the three tokens that `generate()` of the whole model gives it."""
        found: Any = copy.deepcopy(model.text_decoder.generation_config)
        found.eos_token_id = model.config.text_config.sep_token_id
        found.pad_token_id = model.config.text_config.pad_token_id
        found.decoder_start_token_id = self.start_token(model)
        return found
