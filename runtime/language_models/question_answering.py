"""A question encoder that reads image tokens, with a decoder that writes the answer: BLIP's encoder-decoder.

`export/graphs/question_encoder.py` and `answer_decoder.py` are the other side of this contract.
"""

from __future__ import annotations

import numpy as np

from catp.runtime.bundle.encoder_pruning import QuestionPruningSpec
from catp.runtime.bundle.folder import Bundle
from catp.runtime.errors import GraphError, UsageError
from catp.runtime.inputs.padding import padded
from catp.runtime.language_models.base import Batch
from catp.runtime.language_models.encoder_decoder import EncoderDecoder
from catp.runtime.language_models.inputs import prefix_of_prompts
from catp.runtime.providers.base import DeviceTensor, Provider, Value, to_host


class QuestionAnswering(EncoderDecoder):
    """Image tokens are read beside the question, not before it: they take none of its positions."""

    encoder_name, decoder_name = "question_encoder", "answer_decoder"

    def __init__(self, bundle: Bundle, provider: Provider) -> None:
        super().__init__(bundle, provider)
        self.pruning = bundle.manifest.question_pruning

    def limits(self, batch: Batch, new_tokens: int) -> np.ndarray:
        longest, positions = max(len(prompt) for prompt in batch.prompts), self.text.max_positions
        if positions is not None:
            if longest > positions:
                raise UsageError(
                    f"prompt: {longest} tokens, and this model has {positions} positions; give a shorter one"
                )
            new_tokens = min(new_tokens, positions)
        return super().limits(batch, new_tokens)

    def encode(self, batch: Batch) -> tuple[dict[str, DeviceTensor], np.ndarray]:
        ids, lengths = padded(batch.prompts, self.text.pad_token_id)
        embeds = prefix_of_prompts(self.encoder, batch, self.encoder_graph.input("image_embeds").dtype)
        if self.pruning is not None and self.pruning.form == "dynamic":
            return self._one_by_one(batch, to_host(embeds), self.pruning)
        outputs = self.encoder.bind({"input_ids": ids, "image_embeds": embeds, "lengths": lengths}).run()
        if self.pruning is not None:
            lengths = outputs.pop("encoded_lengths").numpy()
            most = next(iter(outputs.values())).shape[2]
            if lengths.min() < 1 or lengths.max() > most:
                raise GraphError(self.encoder_name, f"its encoded_lengths are not from 1 to {most}")
        return outputs, lengths

    def _one_by_one(
        self, batch: Batch, embeds: np.ndarray, pruning: QuestionPruningSpec
    ) -> tuple[dict[str, DeviceTensor], np.ndarray]:
        """Each question by itself: another one, or a pad, would change how many tokens are kept of it."""
        temperature = pruning.temperature if batch.temperature is None else batch.temperature
        rows, lengths = [], []
        for prompt, of_image in zip(batch.prompts, embeds):
            inputs: dict[str, Value] = {
                "input_ids": np.array([prompt], np.int64),
                "image_embeds": of_image[None],
                "lengths": np.array([len(prompt)], np.int64),
                "encoder_temperature": np.array([temperature], np.float32),
            }
            rows.append(self.encoder.bind(inputs).run())
            lengths.append(int(rows[-1].pop("encoded_lengths").numpy()[0]))
        together = {}
        for name, first in rows[0].items():
            shape = (len(rows), first.shape[1], max(lengths), first.shape[3])
            together[name] = self.decoder.zeros(shape, self.decoder_graph.input(name).dtype)
            for row, (outputs, length) in enumerate(zip(rows, lengths)):
                self.decoder.copy_rows(outputs[name], np.array([0]), together[name], np.array([row]), length)
        return together, np.array(lengths, np.int64)
