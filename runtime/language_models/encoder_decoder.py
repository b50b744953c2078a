"""An encoder-decoder language model: kept tokens and prompt are encoded once, and a decoder reads that at every step.

`export/graphs/text_encoder.py` and `text_decoder.py` are the other side of this contract, of BLIP's
`question_encoder.py` and `answer_decoder.py`. Positions go to the encoder;
a generated token's is its cache slot. Padded prompts need no care beyond their lengths, which both graphs are given.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence

import numpy as np

from catp.runtime.bundle.folder import Bundle
from catp.runtime.errors import BundleError
from catp.runtime.inputs.padding import padded
from catp.runtime.language_models.base import Batch, Output
from catp.runtime.language_models.inputs import check_vocabulary, positions_of_prompts, prefix_of_prompts
from catp.runtime.language_models.kv_cache import Cache
from catp.runtime.language_models.outputs import read_output
from catp.runtime.language_models.rows import place
from catp.runtime.providers.base import DeviceTensor, Provider, Step, Value


class EncoderDecoder:
    """Encoder and decoder graph, each on its engine.

    Raises:
        BundleError: the manifest does not say what generation begins with.
    """

    encoder_name, decoder_name = "text_encoder", "text_decoder"

    def __init__(self, bundle: Bundle, provider: Provider) -> None:
        text, graphs = bundle.manifest.text, bundle.manifest.graphs
        if text.decoder_start_token_id is None:
            raise BundleError("catp.json: text.decoder_start_token_id is missing; export the bundle again")
        self.encoder = provider.engine(bundle, self.encoder_name)
        self.encoder_graph = graphs[self.encoder_name]
        self.decoder = provider.engine(bundle, self.decoder_name)
        self.decoder_graph = graphs[self.decoder_name]
        self.text = text
        self.start_token = text.decoder_start_token_id

    def context(self, prompt: Sequence[int], image_tokens: Sequence[int]) -> list[int]:
        """The decoder's start token alone: Hugging Face gives the prompt to the encoder."""
        return [self.start_token]

    def begin(
        self, batch: Batch, new_tokens: int, beams: int = 1, output: Output = "next_token"
    ) -> EncoderDecoderDecoding:
        check_vocabulary(batch.prompts, self.vocabulary)
        return EncoderDecoderDecoding(self, batch, new_tokens, output)

    @property
    def vocabulary(self) -> int:
        """Tokens are 0 .. vocabulary - 1."""
        return int(self.decoder_graph.output("logits").shape[1])

    def encode(self, batch: Batch) -> tuple[dict[str, DeviceTensor], np.ndarray]:
        """The decoder's cross-attention inputs by name, and how many tokens of each row they hold, int64 [B]."""
        embeds = prefix_of_prompts(self.encoder, batch, self.encoder_graph.input("prefix_embeds").dtype)
        ids, lengths = padded(batch.prompts, self.text.pad_token_id)
        inputs: dict[str, Value] = {
            "input_ids": ids,
            "prefix_embeds": embeds,
            "prefix_positions": positions_of_prompts(batch),
            "position_start": np.full(len(ids), batch.text_start, np.int64),
            "lengths": lengths,
        }
        return self.encoder.bind(inputs).run(), embeds.shape[1] + lengths


class EncoderDecoderDecoding:
    """A batch of prompts, what the encoder made of them, and the decoder's cache."""

    def __init__(self, model: EncoderDecoder, batch: Batch, new_tokens: int, output: Output) -> None:
        rows = len(batch.prompts)
        self.limits = np.full(rows, new_tokens, np.int64)
        self.prefill_seconds = 0.0
        self.decode_seconds: list[float] = []
        self.graph = model.decoder_name
        self.vocabulary = model.vocabulary
        self._model = model
        self._batch = batch
        self._output = output
        # The start token takes the slot that the last token generated, which is never fed back, leaves free.
        self._cache = Cache(model.decoder, model.decoder_graph, rows, new_tokens)
        self._slot = 0
        self._run_seconds = 0.0
        self._cross: Mapping[str, DeviceTensor] = {}
        self._encoded_lengths = np.zeros(rows, np.int64)
        self._places: np.ndarray | None = None  # int64 [R], where each row is in the cache; None: in order
        self._step: Step | None = None
        self._outputs: Mapping[str, DeviceTensor] = {}

    def prefill(self) -> np.ndarray:
        started = time.perf_counter()
        self._cross, self._encoded_lengths = self._model.encode(self._batch)
        result = self._run(np.full(len(self._encoded_lengths), self._model.start_token, np.int64))
        self.prefill_seconds = time.perf_counter() - started
        return result

    def logits(self) -> np.ndarray:
        result = read_output(self.graph, self._outputs, "logits", len(self._encoded_lengths), self.vocabulary)
        return result if self._places is None else result[self._places]

    def reorder(self, rows: np.ndarray) -> None:
        engine = self._model.decoder
        if self._places is not None:  # beams stay with their prompt, and all of them read the same encoded tokens
            self._places, sources, targets = place(self._places[rows])
            if len(targets):
                self._cache.copy_rows(engine, sources, self._cache, targets, self._slot)
            return
        self._spread(rows)

    def branch(self, rows: np.ndarray) -> EncoderDecoderDecoding:
        """After prefill, another decoding that goes on from it; this one stays as it is.

        Args:
            rows: int64 [R], the prompt that each of its rows goes on from.
        """
        other = copy.copy(self)
        other.decode_seconds = []
        other._spread(rows)
        return other

    def _spread(self, rows: np.ndarray) -> None:
        """Go on with a row for each of `rows`, in memory of its own."""
        engine, every = self._model.decoder, np.arange(len(rows))
        narrow, self._cache = self._cache, Cache(engine, self._model.decoder_graph, len(rows), self._cache.slots)
        narrow.copy_rows(engine, rows, self._cache, every, self._slot)
        cross = {}
        for name, source in self._cross.items():
            dtype = self._model.decoder_graph.input(name).dtype
            cross[name] = engine.zeros((len(rows), *source.shape[1:]), dtype)
            engine.copy_rows(source, rows, cross[name], every, source.shape[2])
        self._cross, self._encoded_lengths = cross, self._encoded_lengths[rows]
        self._places, self._step = every, None

    def step(self, tokens: np.ndarray) -> np.ndarray:
        if self._places is not None:
            placed = np.empty_like(tokens)
            placed[self._places] = tokens
            tokens = placed
        result = self._run(tokens)
        self.decode_seconds.append(self._run_seconds)
        return result if self._places is None else result[self._places]

    def _run(self, tokens: np.ndarray) -> np.ndarray:
        """Feed one token to every row of the cache."""
        rows = len(tokens)
        if self._step is None:
            # Bound once: from here on nothing is allocated, and two small arrays go to the engine.
            graph, engine = self._model.decoder_graph, self._model.decoder
            outputs = {
                spec.name: engine.zeros((rows, *(int(extent) for extent in spec.shape[1:])), spec.dtype)
                for spec in graph.outputs
                if spec.name not in self._cache.outputs
            }
            inputs: dict[str, Value] = {
                "input_ids": np.zeros((rows, 1), np.int64),
                "write_indices": np.zeros(rows, np.int64),
                "encoded_lengths": self._encoded_lengths,
            }
            self._step = engine.bind(
                {**inputs, **self._cross, **self._cache.inputs}, {**self._cache.outputs, **outputs}
            )
        self._step.update("input_ids", tokens[:, None])
        self._step.update("write_indices", np.full(rows, self._slot, np.int64))
        self._slot += 1
        started = time.perf_counter()
        self._outputs = self._step.run()
        result = self._outputs[self._output].numpy()
        self._run_seconds = time.perf_counter() - started
        return result
