"""A question encoder that reads image tokens, with a decoder that writes the answer: BLIP's encoder-decoder.

`export/graphs/question_encoder.py` and `answer_decoder.py` are the other side of this contract.
"""

from __future__ import annotations

import numpy as np

from catp.runtime.errors import UsageError
from catp.runtime.inputs.padding import padded
from catp.runtime.language_models.base import Batch, Output
from catp.runtime.language_models.encoder_decoder import EncoderDecoder, EncoderDecoderDecoding
from catp.runtime.language_models.inputs import prefix_of_prompts
from catp.runtime.providers.base import DeviceTensor


class QuestionAnswering(EncoderDecoder):
    """Image tokens are read beside the question, not before it: they take none of its positions."""

    encoder_name, decoder_name = "question_encoder", "answer_decoder"

    def begin(
        self, batch: Batch, new_tokens: int, beams: int = 1, output: Output = "next_token"
    ) -> EncoderDecoderDecoding:
        longest, positions = max(len(prompt) for prompt in batch.prompts), self.text.max_positions
        if positions is not None:
            if longest > positions:
                raise UsageError(
                    f"prompt: {longest} tokens, and this model has {positions} positions; give a shorter one"
                )
            new_tokens = min(new_tokens, positions)
        return super().begin(batch, new_tokens, beams, output)

    def encode(self, batch: Batch) -> tuple[dict[str, DeviceTensor], np.ndarray]:
        ids, lengths = padded(batch.prompts, self.text.pad_token_id)
        embeds = prefix_of_prompts(self.encoder, batch, self.encoder_graph.input("image_embeds").dtype)
        return self.encoder.bind({"input_ids": ids, "image_embeds": embeds, "lengths": lengths}).run(), lengths
