"""A decoder-only language model: one graph for prefill and decode over a cache that it writes in place.

Positions are separate from cache slots, rows are padded on the right, and the graph itself masks what a token
must not see (`export/graphs/language_model.py` is the other side of this contract).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from catp.runtime.bundle.manifest import GraphSpec, TextSpec
from catp.runtime.errors import BundleError, UsageError
from catp.runtime.inputs.padding import padded
from catp.runtime.language_models.base import Batch, Output
from catp.runtime.language_models.inputs import check_vocabulary, positions_of_prompts, prefix_of_prompts
from catp.runtime.language_models.kv_cache import Cache
from catp.runtime.language_models.outputs import read_output
from catp.runtime.language_models.rows import place
from catp.runtime.providers.base import DeviceTensor, Engine, Step, Value

_WORTH_A_PASS = 48
"""Prefix tokens not read again, from which reading prefixes in a pass of their own pays: measured with
12 layers of 768 on two cores, where 8 questions after 32 tokens are read in 86 ms instead of 150, and 2 in 52 instead
of 47."""


class DecoderOnly:
    """The language model graph on one engine, or decode steps on a second one with weights of its own.

    Args:
        decode: of the same provider, with the same inputs and outputs; it goes on in the cache that `engine` filled.

    Raises:
        BundleError: the manifest does not say how many positions the model has.
    """

    def __init__(self, engine: Engine, graph: GraphSpec, text: TextSpec, decode: Engine | None = None) -> None:
        if text.max_positions is None:
            raise BundleError("catp.json: text.max_positions is missing; export the bundle again")
        self.max_positions = text.max_positions
        self.engine = engine
        self.decode_engine = decode or engine
        self.graph = graph
        self.text = text

    def context(self, prompt: Sequence[int], image_tokens: Sequence[int]) -> list[int]:
        """A placeholder for every query token, then the prompt: BLIP-2 hands its `input_ids` on with the embeddings."""
        return [*image_tokens, *prompt]

    def begin(
        self, batch: Batch, new_tokens: int, beams: int = 1, output: Output = "next_token"
    ) -> DecoderOnlyDecoding:
        limits = self.limits(batch, new_tokens)
        lengths = np.array([len(prompt) for prompt in batch.prompts], np.int64)
        return DecoderOnlyDecoding(self, batch, lengths, limits, beams, output)

    @property
    def vocabulary(self) -> int:
        """Tokens are 0 .. vocabulary - 1."""
        return int(self.graph.output("logits").shape[1])

    def limits(self, batch: Batch, new_tokens: int) -> np.ndarray:
        """The most tokens that each prompt can get, int64 [B], at least 1 and at most `new_tokens`.

        Raises:
            UsageError: a prompt has more tokens than the model has positions left.
            BundleError: a token is none of the model's.
        """
        check_vocabulary(batch.prompts, self.vocabulary)
        lengths = np.array([len(prompt) for prompt in batch.prompts], np.int64)
        room = self.max_positions - batch.text_start - lengths  # positions left after each prompt
        if room.min() < 0:
            raise UsageError(
                f"prompt: {lengths.max()} tokens after {batch.text_start} image positions; "
                f"this model has {self.max_positions} positions, so give at most "
                f"{self.max_positions - batch.text_start} tokens"
            )
        # The last token generated needs no position of its own: it is never fed back.
        limits: np.ndarray = np.minimum(new_tokens, room + 1)
        return limits

    def bind_step(self, cache: Cache, rows: int) -> Step:
        """The step that feeds one token a row; its content comes with every step."""
        embeds, positions = self.no_prefix(rows)
        return self.decode_engine.bind(
            {
                "input_ids": np.zeros((rows, 1), np.int64),
                "prefix_embeds": embeds,
                "prefix_positions": positions,
                "position_start": np.zeros(rows, np.int64),
                "write_indices": np.zeros(rows, np.int64),
                "last_indices": np.zeros(rows, np.int64),
                **cache.inputs,
            },
            {**cache.outputs, **{name: self._output_like(name, rows) for name in ("logits", "next_token")}},
        )

    def no_prefix(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings and positions of no tokens."""
        spec = self.graph.input("prefix_embeds")
        return np.zeros((rows, 0, int(spec.shape[2])), spec.dtype), np.zeros((rows, 0), np.int64)

    def _output_like(self, name: str, rows: int) -> DeviceTensor:
        """A buffer for an output [R, ...]: what has none is allocated and collected again in every step."""
        spec = next(tensor for tensor in self.graph.outputs if tensor.name == name)
        return self.engine.zeros((rows, *(int(extent) for extent in spec.shape[1:])), spec.dtype)


class DecoderOnlyDecoding:
    """A batch of prompts and its cache.

    Args:
        lengths: int64 [B], of the prompts.
        limits: int64 [B].
    """

    def __init__(
        self,
        model: DecoderOnly,
        batch: Batch,
        lengths: np.ndarray,
        limits: np.ndarray,
        beams: int,
        output: Output,
    ) -> None:
        self.limits = limits
        self.prefill_seconds = 0.0
        self.decode_seconds: list[float] = []
        self._model = model
        self.graph = "language_model"
        self.vocabulary = model.vocabulary
        self._engine = model.engine
        self._batch = batch
        self._output = output
        self._positions = batch.text_start + lengths
        self._slots = batch.prefix_embeds.shape[1] + lengths
        # A row whose positions end takes part in the steps of the others; it stays at the last position.
        self._last_position = model.max_positions - 1
        read = int(self._slots.max())
        self._length = read + int(limits.max()) - 1
        # Beams go on in a cache of their own.
        self._cache = Cache(self._engine, model.graph, len(lengths), self._length if beams == 1 else read)
        self._places: np.ndarray | None = None  # int64 [R], where each row is in the cache; None: in order
        self._step: Step | None = None
        self._outputs: Mapping[str, DeviceTensor] = {}

    def prefill(self) -> np.ndarray:
        started = time.perf_counter()
        self._outputs = self._bind_prefill().run()
        result = self._read(self._output)
        self.prefill_seconds = time.perf_counter() - started
        return result

    def logits(self) -> np.ndarray:
        result = self._read("logits")
        return result if self._places is None else result[self._places]

    def _read(self, output: Output) -> np.ndarray:
        return read_output(self.graph, self._outputs, output, len(self._slots), self.vocabulary)

    def _bind_prefill(self) -> Step:
        """The pass that reads the prompts, and their prefixes unless those have been read once per image before."""
        batch, images = self._batch, self._batch.images
        if images is None:
            return self._bind(batch.prefix_embeds, batch.prefix_positions, batch.prompts, self._cache)
        rows, every = np.asarray(images, np.int64), np.arange(len(images))
        count, kept = batch.prefix_embeds.shape[:2]
        if kept * (len(rows) - count) < _WORTH_A_PASS or self._engine.only_profiles:
            prefix = prefix_of_prompts(self._engine, batch, self._model.graph.input("prefix_embeds").dtype)
            return self._bind(prefix, positions_of_prompts(batch), batch.prompts, self._cache)
        once = Cache(self._engine, self._model.graph, count, kept + 1)
        # A call has a text: a pad, whose slot is not copied.
        pads = [[self._model.text.pad_token_id]] * count
        self._bind(batch.prefix_embeds, batch.prefix_positions, pads, once).run()
        once.copy_rows(self._engine, rows, self._cache, every, kept)
        return self._bind(*self._model.no_prefix(len(rows)), batch.prompts, self._cache, first_slot=kept)

    def _bind(
        self, embeds: Value, positions: Value, prompts: Sequence[Sequence[int]], cache: Cache, first_slot: int = 0
    ) -> Step:
        model, start = self._model, self._batch.text_start
        return bind_prefill(
            self._engine, model.graph, embeds, positions, start, prompts, model.text.pad_token_id, cache, first_slot
        )

    def reorder(self, rows: np.ndarray) -> None:
        used = int(self._slots.max())
        if self._places is None:  # the cache has a row for every prompt: make it one for every beam
            narrow = self._cache
            self._cache = Cache(self._engine, self._model.graph, len(rows), self._length)
            narrow.copy_rows(self._engine, rows, self._cache, np.arange(len(rows)), used)
            self._positions, self._slots = self._positions[rows], self._slots[rows]
            self._places = np.arange(len(rows))
            return
        self._places, sources, targets = place(self._places[rows])
        if len(targets):
            self._cache.copy_rows(self._engine, sources, self._cache, targets, used)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        if self._step is None:
            # From here on nothing is allocated or bound: a step copies three small arrays to the engine and one back.
            self._step = self._model.bind_step(self._cache, len(self._slots))
            np.minimum(self._positions, self._last_position, out=self._positions)
        if self._places is not None:
            placed = np.empty_like(tokens)
            placed[self._places] = tokens
            tokens = placed
        self._step.update("input_ids", tokens[:, None])
        self._step.update("position_start", self._positions)
        self._step.update("write_indices", self._slots)
        started = time.perf_counter()
        self._outputs = self._step.run()
        result = self._outputs[self._output].numpy()
        self.decode_seconds.append(time.perf_counter() - started)
        self._positions += 1
        np.minimum(self._positions, self._last_position, out=self._positions)
        self._slots += 1
        return result if self._places is None else result[self._places]


def bind_prefill(
    engine: Engine,
    graph: GraphSpec,
    prefix_embeds: Value,
    prefix_positions: Value,
    position_start: int,
    prompts: Sequence[Sequence[int]],
    pad_token_id: int,
    cache: Cache | None = None,
    first_slot: int = 0,
) -> Step:
    """The language model's first pass, bound and ready to run: prefix [B, k, D], then B prompts padded on the right.

    Args:
        first_slot: of the cache, where the prefix is written, or the prompts where it has no tokens.
    """
    batch, kept = prefix_embeds.shape[:2]
    ids, lengths = padded(prompts, pad_token_id)
    cache = cache or Cache(engine, graph, batch, first_slot + kept + ids.shape[1])
    inputs: dict[str, Value] = {
        "input_ids": ids,
        "prefix_embeds": prefix_embeds,
        "prefix_positions": prefix_positions,
        "position_start": np.full(batch, position_start, np.int64),
        "write_indices": np.full(batch, first_slot, np.int64),
        "last_indices": kept + lengths - 1,
    }
    return engine.bind({**inputs, **cache.inputs}, cache.outputs)
