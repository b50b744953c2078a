"""A decoder that reads image tokens and continues a text about them: BLIP's for captions.

`export/graphs/image_keys.py` and `caption_decoder.py` are the other side of this contract. What stands for the encoder
are projections of image tokens, which know nothing of a prompt: that is what the decoder reads first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from catp.runtime.errors import UsageError
from catp.runtime.language_models.base import Batch
from catp.runtime.language_models.encoder_decoder import EncoderDecoder
from catp.runtime.providers.base import DeviceTensor


class Captioning(EncoderDecoder):
    """A caption goes on where its prompt ends; image tokens take none of its positions."""

    encoder_name, decoder_name = "image_keys", "caption_decoder"

    def context(self, prompt: Sequence[int], image_tokens: Sequence[int]) -> list[int]:
        """The prompt as Hugging Face's `generate()` has it: the start token in place of its first one, which the
        tokenizer added as it added its last one, which is left out."""
        return [self.start_token, *prompt[1:-1]]

    def limits(self, batch: Batch, new_tokens: int) -> np.ndarray:
        lengths = np.array([len(self.context(prompt, ())) for prompt in batch.prompts], np.int64)
        positions = self.text.max_positions
        if positions is None:
            return super().limits(batch, new_tokens)
        if lengths.max() > positions:
            raise UsageError(
                f"prompt: {lengths.max()} tokens, and this model has {positions} positions; give a shorter one"
            )
        # The last token generated needs no position of its own: it is never fed back.
        limits: np.ndarray = np.minimum(new_tokens, positions - lengths + 1)
        return limits

    def encode(self, batch: Batch) -> tuple[dict[str, DeviceTensor], np.ndarray]:
        """Once for every image, however many prompts are about it."""
        cross = self.encoder.bind({"image_embeds": batch.prefix_embeds}).run()
        if batch.images is not None:
            cross = self.spread(cross, np.asarray(batch.images, np.int64))
        tokens = batch.prefix_embeds.shape[1]
        return cross, np.full(len(batch.prompts), tokens, np.int64)
