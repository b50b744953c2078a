"""InstructBLIP."""

from __future__ import annotations

from transformers import InstructBlipForConditionalGeneration

from catp.export.families.query_tokens import QueryTokens


class InstructBlip(QueryTokens):
    """The Q-Former reads the prompt too, so what is kept depends on the question."""

    title = "InstructBLIP"
    model_type = "instructblip"
    reads_instruction = True

    def model_class(self) -> type[InstructBlipForConditionalGeneration]:
        return InstructBlipForConditionalGeneration
