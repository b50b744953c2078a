"""The prefill of an encoder-decoder language model: an encoder's pass (arithmetic), and a decoder's step (traffic)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from catp.calibration.benchmark.costs.base import StageCost, Workload, in_integers, item_size
from catp.calibration.benchmark.costs.encoder_decoder import (
    cache_bytes_per_token,
    decoder_weight_bytes,
    encoder_flops,
    encoder_weight_bytes,
    step_flops,
)
from catp.calibration.benchmark.costs.geometry import EncoderDecoderGeometry
from catp.calibration.benchmark.vote.break_even import Speed
from catp.runtime.bundle.manifest import GraphSpec


@dataclass(frozen=True)
class EncoderPrefillModel:
    """As PrefillModel, in two passes, each of which is no faster than its arithmetic or its traffic.

    Args:
        encoder, decoder: its graphs: how their weights and caches are stored.
    """

    language: EncoderDecoderGeometry
    encoder: GraphSpec
    decoder: GraphSpec

    def saved_ms(self, language: EncoderDecoderGeometry, queries: int, workload: Workload, speed: Speed) -> float:
        """The time that `workload` takes less than the same with all `queries` kept, milliseconds; never below 0."""
        full = replace(workload, num_kept=queries)
        return self._milliseconds(language, full, speed) - self._milliseconds(language, workload, speed)

    def scaled(self, layers: int) -> EncoderDecoderGeometry:
        """One with so many layers in its encoder; the rest in proportion, but for head width and vocabulary."""
        own = self.language

        def grown(size: int) -> int:
            return max(1, round(size * layers / own.encoder_layers))

        return replace(
            own,
            encoder_layers=layers,
            decoder_layers=grown(own.decoder_layers),
            width=grown(own.width),
            feed_forward=grown(own.feed_forward),
            heads=grown(own.heads),
        )

    def matrix_weights(self, language: EncoderDecoderGeometry) -> int:
        """Weights of all matrices that a token is multiplied with, the head included."""
        return self._encoder_weights(language) + self._decoder_weights(language)

    def passes(self, language: EncoderDecoderGeometry, workload: Workload) -> tuple[StageCost, StageCost]:
        """The cost of the encoder's pass, and of the decoder's step with the start token."""
        batch, encoded = workload.batch, workload.num_kept + workload.prompt_tokens
        token_bytes = batch * cache_bytes_per_token(language, self.decoder)
        prefix = batch * workload.num_kept * language.width * item_size(self.encoder, "prefix_embeds")
        # Scales, biases and normalisation grow with the matrices that they belong to.
        encoder = encoder_weight_bytes(self.language, self.encoder) / self._encoder_weights(self.language)
        decoder = decoder_weight_bytes(self.language, self.decoder) / self._decoder_weights(self.language)
        return (
            StageCost(
                flops=batch * encoder_flops(language, encoded),
                bytes=round(encoder * self._encoder_weights(language)) + prefix + encoded * token_bytes,
                integer=in_integers(self.encoder),
            ),
            StageCost(
                flops=batch * step_flops(language, 1, encoded),
                bytes=round(decoder * self._decoder_weights(language)) + (encoded + 1) * token_bytes,
                integer=in_integers(self.decoder),
            ),
        )

    def _milliseconds(self, language: EncoderDecoderGeometry, workload: Workload, speed: Speed) -> float:
        found = self.passes(language, workload)
        return sum(cost.fastest_ms(speed.flops_per_second, speed.bytes_per_second) for cost in found)

    @staticmethod
    def _encoder_weights(language: EncoderDecoderGeometry) -> int:
        # Of one token alone, less what it attends to: a multiplication for every weight.
        attention = 2 * (2 * language.heads * language.head_width)
        return (encoder_flops(language, 1) - language.encoder_layers * attention) // 2

    @staticmethod
    def _decoder_weights(language: EncoderDecoderGeometry) -> int:
        return step_flops(language, 0, 0) // 2
