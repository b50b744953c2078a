"""An encoder-decoder language model: kept tokens and prompt are encoded once, and a decoder reads that at every step.

`export/graphs/text_encoder.py` and `text_decoder.py` are the other side of this contract, of BLIP's
`question_encoder.py` and `answer_decoder.py`, and `image_keys.py` and `caption_decoder.py`. Positions go to the
encoder; a token's in the decoder is its cache slot. Padded prompts need no care beyond their lengths, which both graphs
are given.
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
        return EncoderDecoderDecoding(self, batch, self.limits(batch, new_tokens), output)

    def limits(self, batch: Batch, new_tokens: int) -> np.ndarray:
        """The most tokens that each prompt can get, int64 [B], at least 1 and at most `new_tokens`.

        Raises:
            UsageError: a prompt has more tokens than the model has positions.
        """
        return np.full(len(batch.prompts), new_tokens, np.int64)

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

    def spread(self, cross: Mapping[str, DeviceTensor], rows: np.ndarray) -> dict[str, DeviceTensor]:
        """Cross-attention inputs with a row for each of `rows` int64 [R], which are theirs, in memory of their own."""
        found: dict[str, DeviceTensor] = {}
        for name, source in cross.items():
            found[name] = self.decoder.zeros((len(rows), *source.shape[1:]), self.decoder_graph.input(name).dtype)
            self.decoder.copy_rows(source, rows, found[name], np.arange(len(rows)), source.shape[2])
        return found


class EncoderDecoderDecoding:
    """A batch of prompts, what the encoder made of them, and the decoder's cache.

    Args:
        limits: int64 [B].
    """

    def __init__(self, model: EncoderDecoder, batch: Batch, limits: np.ndarray, output: Output) -> None:
        rows = len(batch.prompts)
        self.limits = limits
        self.prefill_seconds = 0.0
        self.decode_seconds: list[float] = []
        self.graph = model.decoder_name
        self.vocabulary = model.vocabulary
        self._model = model
        self._batch = batch
        self._output = output
        self._first, lengths = padded([model.context(prompt, ()) for prompt in batch.prompts], model.text.pad_token_id)
        self._lengths = lengths
        # The last token generated is never fed back.
        self._cache = Cache(model.decoder, model.decoder_graph, rows, int(lengths.max()) + int(limits.max()) - 1)
        self._slots = np.zeros(rows, np.int64)  # tokens of each row in the cache
        # A row whose positions end takes part in the steps of the others; it stays at the last position.
        self._last_slot = (model.text.max_positions or self._cache.slots) - 1
        self._run_seconds = 0.0
        self._cross: Mapping[str, DeviceTensor] = {}
        self._encoded_lengths = np.zeros(rows, np.int64)
        self._places: np.ndarray | None = None  # int64 [R], where each row is in the cache; None: in order
        self._step: Step | None = None
        self._outputs: Mapping[str, DeviceTensor] = {}

    def prefill(self) -> np.ndarray:
        started = time.perf_counter()
        self._cross, self._encoded_lengths = self._model.encode(self._batch)
        result = self._read_first()
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
                self._cache.copy_rows(engine, sources, self._cache, targets, self._written)
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
        narrow.copy_rows(engine, rows, self._cache, every, self._written)
        self._cross, self._encoded_lengths = self._model.spread(self._cross, rows), self._encoded_lengths[rows]
        self._slots = self._slots[rows]
        self._places, self._step = every, None

    @property
    def _written(self) -> int:
        """Slots that hold a token in any row."""
        return int(self._slots.max())

    def step(self, tokens: np.ndarray) -> np.ndarray:
        if self._places is not None:
            placed = np.empty_like(tokens)
            placed[self._places] = tokens
            tokens = placed
        result = self._run(tokens)
        self.decode_seconds.append(self._run_seconds)
        return result if self._places is None else result[self._places]

    def _read_first(self) -> np.ndarray:
        """Feed what each row begins with, into slots from the first one on."""
        if self._first.shape[1] == 1:
            return self._run(self._first[:, 0])
        self._outputs = self._bind(self._first, self._lengths - 1).run()
        self._slots = self._lengths
        return self._outputs[self._output].numpy()

    def _run(self, tokens: np.ndarray) -> np.ndarray:
        """Feed one token to every row of the cache."""
        if self._step is None:
            # Bound once: from here on nothing is allocated, and two small arrays go to the engine.
            self._step = self._bind(np.zeros((len(tokens), 1), np.int64), np.zeros(len(tokens), np.int64))
        self._step.update("input_ids", tokens[:, None])
        self._step.update("write_indices", self._slots)
        self._slots = np.minimum(self._slots + 1, self._last_slot)
        started = time.perf_counter()
        self._outputs = self._step.run()
        result = self._outputs[self._output].numpy()
        self._run_seconds = time.perf_counter() - started
        return result

    def _bind(self, ids: np.ndarray, last_indices: np.ndarray) -> Step:
        """A step, from the first slot on.

        Args:
            ids: int64 [R, S].
            last_indices: int64 [R], for a decoder that takes several tokens of a row.
        """
        graph, engine, rows = self._model.decoder_graph, self._model.decoder, len(ids)
        outputs = {
            spec.name: engine.zeros((rows, *(int(extent) for extent in spec.shape[1:])), spec.dtype)
            for spec in graph.outputs
            if spec.name not in self._cache.outputs
        }
        inputs: dict[str, Value] = {
            "input_ids": ids,
            "write_indices": np.zeros(rows, np.int64),
            "encoded_lengths": self._encoded_lengths,
        }
        if any(spec.name == "last_indices" for spec in graph.inputs):
            inputs["last_indices"] = last_indices
        return engine.bind({**inputs, **self._cross, **self._cache.inputs}, {**self._cache.outputs, **outputs})
