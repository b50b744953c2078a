"""Greedy generation with the language model graph: one prefill, then one decode step per token.

Positions are separate from cache slots, rows are padded on the right, and the graph itself masks what a token
must not see (`export/graphs/language_model.py` is the other side of this contract).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from catp.runtime.engines.base import DeviceTensor, Engine, Step, Value
from catp.runtime.errors import UsageError
from catp.runtime.kv_cache import Cache
from catp.runtime.manifest import GraphSpec, TextSpec


@dataclass
class Generation:
    """What one batch generated."""

    token_ids: list[list[int]]  # per row, EOS included where it was reached
    prefill_seconds: float = 0.0
    decode_seconds: list[float] = field(default_factory=list)  # one per decode step
    first_token_seconds: float = 0.0  # from the call of generate() to the first tokens in host memory


class LanguageModel:
    """The language model of a bundle on one engine."""

    def __init__(self, engine: Engine, graph: GraphSpec, text: TextSpec) -> None:
        self._engine = engine
        self._graph = graph
        self._text = text
        self._width = int(graph.input("prefix_embeds").shape[2])
        self._embeds_dtype = graph.input("prefix_embeds").dtype

    def generate(
        self,
        prefix_embeds: Value,
        prefix_positions: Value,
        position_start: int,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
    ) -> Generation:
        """Continue each prompt greedily until EOS, `max_new_tokens`, or the last position the model has.

        Args:
            prefix_embeds: [B, k, D] in the graph's dtype, the image's kept tokens.
            prefix_positions: int64 [B, k].
            position_start: position of each prompt's first token.
            prompts: B lists of at least one token id; of different length if need be.
            max_new_tokens: at least 1.

        Raises:
            UsageError: a prompt does not fit the model's positions.
        """
        began = time.perf_counter()
        batch, kept = prefix_embeds.shape[:2]
        lengths = np.array([len(p) for p in prompts], np.int64)
        room = self._text.max_positions - position_start - lengths  # positions left after each prompt
        if room.min() < 0:
            raise UsageError(
                f"prompt: {lengths.max()} tokens after {position_start} image positions; "
                f"this model has {self._text.max_positions} positions, so give at most "
                f"{self._text.max_positions - position_start} tokens"
            )
        # The last token generated needs no position of its own: it is never fed back.
        limits = np.minimum(max_new_tokens, room + 1)
        steps = int(limits.max())
        cache = Cache(self._engine, self._graph, batch, kept + int(lengths.max()) + steps - 1)

        started = time.perf_counter()
        prefill = bind_prefill(
            self._engine,
            self._graph,
            prefix_embeds,
            prefix_positions,
            position_start,
            prompts,
            self._text.pad_token_id,
            cache,
        )
        tokens = prefill.run()["next_token"].numpy()
        ended = time.perf_counter()
        result = Generation([[] for _ in prompts], ended - started, first_token_seconds=ended - began)

        answers = _Answers(result.token_ids, limits.tolist(), frozenset(self._text.eos_token_ids))
        answers.append(tokens)
        if not answers.running.any():
            return result
        # A row without room for another position is finished, and still takes part in the steps of the others.
        positions = np.minimum(position_start + lengths, self._text.max_positions - 1)
        slots = kept + lengths
        decode = self._bind_decode(tokens, positions, slots, cache)
        # From here on nothing is allocated or bound: a step copies three small arrays to the engine and one back.
        while True:
            started = time.perf_counter()
            tokens = decode.run()["next_token"].numpy()
            result.decode_seconds.append(time.perf_counter() - started)
            answers.append(tokens)
            if not answers.running.any():
                return result
            # A finished row stays where it is, so it never leaves the cache or the positions.
            positions += answers.running
            slots += answers.running
            decode.update("input_ids", tokens[:, None])
            decode.update("position_start", positions)
            decode.update("write_indices", slots)

    def _bind_decode(self, tokens: np.ndarray, positions: np.ndarray, slots: np.ndarray, cache: Cache) -> Step:
        """The step that feeds one token per row, the first ones bound; the arrays remain the caller's."""
        batch = len(tokens)
        outputs = {name: self._output_like(name, batch) for name in ("logits", "next_token")}
        return self._engine.bind(
            {
                "input_ids": tokens[:, None].copy(),
                "prefix_embeds": np.zeros((batch, 0, self._width), self._embeds_dtype),
                "prefix_positions": np.zeros((batch, 0), np.int64),
                "position_start": positions.copy(),
                "write_indices": slots.copy(),
                "last_indices": np.zeros(batch, np.int64),
                **cache.inputs,
            },
            {**cache.outputs, **outputs},
        )

    def _output_like(self, name: str, batch: int) -> DeviceTensor:
        """A buffer for an output [B, ...]: what has none is allocated and collected again in every step."""
        spec = next(tensor for tensor in self._graph.outputs if tensor.name == name)
        return self._engine.zeros((batch, *(int(extent) for extent in spec.shape[1:])), spec.dtype)


class _Answers:
    """The rows of a batch while they grow.

    Args:
        token_ids: per row, empty; appended to.
        limits: per row, the most tokens it may have, at least 1.
        ends: tokens that end a row.
    """

    def __init__(self, token_ids: list[list[int]], limits: list[int], ends: frozenset[int]) -> None:
        self._token_ids = token_ids
        self._limits = limits
        self._ends = ends
        self.running = np.ones(len(limits), bool)  # bool [B], changed in place

    def append(self, tokens: np.ndarray) -> None:
        """Append one token int64 [B] to each row that still runs; of a finished one it means nothing."""
        for row, token in enumerate(tokens.tolist()):
            if self.running[row]:
                ids = self._token_ids[row]
                ids.append(token)
                self.running[row] = len(ids) < self._limits[row] and token not in self._ends


def bind_prefill(
    engine: Engine,
    graph: GraphSpec,
    prefix_embeds: Value,
    prefix_positions: Value,
    position_start: int,
    prompts: Sequence[Sequence[int]],
    pad_token_id: int,
    cache: Cache | None = None,
) -> Step:
    """The language model's first pass, bound and ready to run: prefix [B, k, D], then B prompts padded on the right."""
    batch, kept = prefix_embeds.shape[:2]
    lengths = np.array([len(prompt) for prompt in prompts], np.int64)
    padded = np.full((batch, int(lengths.max())), pad_token_id, np.int64)
    for row, prompt in zip(padded, prompts):
        row[: len(prompt)] = prompt
    cache = cache or Cache(engine, graph, batch, kept + padded.shape[1])
    inputs: dict[str, Value] = {
        "input_ids": padded,
        "prefix_embeds": prefix_embeds,
        "prefix_positions": prefix_positions,
        "position_start": np.full(batch, position_start, np.int64),
        "write_indices": np.zeros(batch, np.int64),
        "last_indices": kept + lengths - 1,
    }
    return engine.bind({**inputs, **cache.inputs}, cache.outputs)
