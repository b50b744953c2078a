"""The asking of questions: the words around each, and how tokens of its answer are chosen."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from catp.calibration.data.dataset import PROMPT_TEMPLATE, VqaExample
from catp.runtime.bundle.generation_settings import GREEDY, GenerationSettings
from catp.runtime.bundle.manifest import Manifest
from catp.runtime.errors import UsageError
from catp.runtime.limits import POSITIONS

PLACE = "{question}"
"""Where a template has the question."""


@dataclass(frozen=True)
class Asking:
    """A protocol: the prompt of every question, and the settings of every answer.

    Args:
        template: of prompts, with `{question}` in it once; None: the family's own.
        generation: how tokens are chosen; greedily, whatever the bundle's default is, where nothing is said.
        max_new_tokens: per answer; None: the bundle's default.
        answers: the likeliest of these is the answer, and none is generated; None: answers are generated.

    Raises:
        UsageError: there is no place for the question, or more than one; or no token could be generated.
    """

    template: str | None = None
    generation: GenerationSettings = GREEDY
    max_new_tokens: int | None = None
    answers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.answers is not None and (not self.answers or (self.generation, self.max_new_tokens) != (GREEDY, None)):
            raise UsageError(
                "answers: they are ranked and none is generated; give at least one, and no settings of generation"
            )
        if self.template is not None and self.template.count(PLACE) != 1:
            raise UsageError(
                f"prompt template {self.template!r}: it has {PLACE} {self.template.count(PLACE)} times; give it once, "
                f'such as "Question: {PLACE} Short answer:"'
            )
        most = self.max_new_tokens
        if most is not None and not 1 <= most <= POSITIONS:
            raise UsageError(f"max new tokens {most}: at least 1, and at most {POSITIONS:,}")
        if most is not None and self.generation.min_new_tokens > most:
            raise UsageError(
                f"min new tokens {self.generation.min_new_tokens}: more than max new tokens, {most}; give fewer"
            )

    def in_full(self, manifest: Manifest) -> str:
        """The template itself, or the family's own: a model that reads image tokens is asked the bare question, as BLIP
        was trained."""
        if self.template is not None:
            return self.template
        return PROMPT_TEMPLATE.format(PLACE) if manifest.vote else PLACE

    def prompt(self, manifest: Manifest, question: VqaExample) -> str:
        """The text that a model is asked."""
        # Not str.format: a template may have other braces.
        return self.in_full(manifest).replace(PLACE, question.question)

    def rows(self, batch_size: int) -> int:
        """Prompts that go through the language model together, at least one.

        Every beam is a row of its batch. Drawn answers go alone, so that they don't depend on what else is asked.
        """
        return 1 if self.generation.do_sample else max(1, batch_size // self.generation.num_beams)

    @property
    def answers_digest(self) -> str | None:
        """SHA-256 of the given answers in their order; None where answers are generated."""
        return None if self.answers is None else hashlib.sha256("\n".join(self.answers).encode()).hexdigest()

    def settings(self, seed: int, question_id: str) -> GenerationSettings:
        """The settings of a batch whose first question has that id.

        Args:
            seed: of the evaluation. What is drawn depends on it and the question: the same for every setting.
        """
        if not self.generation.do_sample:
            return self.generation
        digest = hashlib.sha256(f"{seed} {question_id}".encode()).digest()
        return self.generation.override(seed=int.from_bytes(digest[:6], "big"))


USUAL = Asking()
"""Greedily, as the family was trained."""
