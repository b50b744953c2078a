"""The subject of a timing: anything that answers the same input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from PIL import Image

from catp.calibration.benchmark.contenders.runtimes import RUNTIMES
from catp.runtime.bundle.chains import READ_IMAGE_TOKENS
from catp.runtime.bundle.manifest import Manifest
from catp.runtime.errors import UsageError

OURS = "catp"
"""The bundle that is timed: everything else is timed beside it."""
COMPUTED = ("vision", "qformer", "image", "text", "match", "prefill", "decode")
"""Parts of an answer that graphs compute, of all chains: each has some of them."""
STAGES = ("preprocess", *COMPUTED, "host")
"""Parts of an answer; decode is one step, host what lies between the parts (allocation, binding, loops)."""
SAME_SCORE = 1e-3
"""Probabilities and cosines that differ by less are the same but for rounding."""
WHOLE = ("time_to_first_token", "time_per_output_token", "total")
IMAGE_SIZE = (640, 480)
"""Width and height of the pictures, as most photographs of COCO have them."""


def prunes(subject: str) -> bool:
    """Whether it is timed at every ratio."""
    return subject not in RUNTIMES


@dataclass(frozen=True)
class Case:
    """One setting that is timed."""

    batch: int
    subject: str
    ratio: float
    encoder_flops: float | None = None
    """Share of the dense encoder's work that was asked for; None: nothing, the encoder does what it does by itself."""

    def __str__(self) -> str:
        encoder = "" if self.encoder_flops is None else f", encoder at {100 * self.encoder_flops:g} %"
        ratio = f", ratio {self.ratio:g}" if prunes(self.subject) else ""
        return f"{self.subject}, batch {self.batch}{encoder}{ratio}"


@dataclass(frozen=True)
class Timed:
    """One answer to one batch: milliseconds by stage, and the tokens or scores."""

    milliseconds: dict[str, float]  # those of STAGES and WHOLE that there are; of one token no decode
    token_ids: list[list[int]] = field(default_factory=list)  # by row; none where texts are scored
    scores: list[list[float]] = field(default_factory=list)  # by row; none where text is written


@dataclass(frozen=True)
class TimedInput:
    """The same for everyone: made of a seed, so that nothing needs to be fetched."""

    images: list[Image.Image]
    prompt_ids: list[int]  # one prompt for every image; the first text where texts are scored
    new_tokens: int  # exactly: an end token ends nothing; 0 where texts are scored
    texts: tuple[list[int], ...] = ()  # that every image is compared with
    instruction_ids: tuple[int, ...] = ()  # the prompt as a Q-Former reads it; none where none does


def check_instruction(instructed: bool, timed_input: TimedInput) -> None:
    """Raises UsageError where a checkpoint's Q-Former reads the prompt, and the bundle's does not, or the reverse."""
    if instructed != bool(timed_input.instruction_ids):
        ours, theirs = ("the prompt", "does not") if instructed else ("no prompt", "does")
        raise UsageError(
            f"--checkpoint: its Q-Former reads {ours}, and the bundle's {theirs}; give the folder or Hub id that the "
            "bundle was exported from"
        )


class Subject(Protocol):
    """A runtime with the model loaded."""

    name: str

    def run(self, timed_input: TimedInput, case: Case) -> Timed:
        """Answer about the first `case.batch` images or videos, from pictures in memory to token ids in host memory."""
        ...


def make_timed_input(
    manifest: Manifest, vocabulary: int, batch: int, prompt_tokens: int, new_tokens: int, seed: int
) -> TimedInput:
    """Pictures with structure and grain, of a model of videos the frames of each, and a prompt of ordinary token ids.

    Raises:
        UsageError: prompt and answer do not fit the model's positions.
    """
    text = manifest.text
    # The last token generated is never fed back, and needs no position.
    pictures = manifest.model.frames or 1
    needed = pictures * manifest.tokens + prompt_tokens + new_tokens - 1
    if manifest.model.language == "captioning":  # a prompt's own tokens but one, then the caption; images have none
        needed = max(1, prompt_tokens - 1) + new_tokens - 1
    elif manifest.model.language in READ_IMAGE_TOKENS:  # nor here, where question and answer have their own
        needed = max(prompt_tokens, new_tokens)
    if text.max_positions is not None and needed > text.max_positions:
        raise UsageError(
            f"{prompt_tokens} prompt tokens and {new_tokens} new ones need {needed} positions with the image's; "
            f"this model has {text.max_positions}: give fewer"
        )
    rng = np.random.default_rng(seed)
    prompt = draw_words(rng, prompt_tokens, vocabulary, {text.pad_token_id, *text.eos_token_ids})
    return TimedInput([make_picture(rng) for _ in range(pictures * batch)], prompt, new_tokens)


def draw_words(rng: np.random.Generator, count: int, vocabulary: int, special: Set[int]) -> list[int]:
    """Ordinary token ids, none of them `special`."""
    # The first ids are special in most vocabularies, the last ones often added tokens (<image>).
    ordinary = [token for token in range(4, max(5, vocabulary - 8)) if token not in special]
    return [ordinary[i] for i in rng.integers(len(ordinary), size=count)]


def make_picture(rng: np.random.Generator) -> Image.Image:
    """A picture of IMAGE_SIZE, with structure and grain."""
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(IMAGE_SIZE, Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray(np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8))


def make_sample(
    clock: Sequence[float],
    prefill: float,
    decode: Sequence[float],
    token_ids: list[list[int]],
    first_token: float | None = None,
    device_ms: Mapping[str, float] | None = None,
    votes: bool = True,
) -> Timed:
    """From the moments at which preprocessing, vision, Q-Former and language model began, and the last one ended.

    What the language model's loop spends outside prefill and decode steps lies partly before the first token (cache)
    and partly after it (binding, bookkeeping). A loop that does not tell is charged with all of it before.

    Args:
        clock: five moments in seconds.
        prefill: seconds.
        decode: seconds of each step.
        token_ids: what was generated, by row.
        first_token: seconds from the language model's beginning to its first tokens in host memory; None: not known.
        device_ms: of stages that the device itself timed; the host's share of them counts as such.
        votes: whether there is a Q-Former; what passes in its place is the host's otherwise.
    """
    preprocess, vision, qformer, language = np.diff(clock) * 1e3
    total = (clock[-1] - clock[0]) * 1e3
    stages = {"vision": vision, "qformer": qformer, **(device_ms or {})}
    waiting = vision + qformer - stages["vision"] - stages["qformer"]
    steps = [1e3 * seconds for seconds in decode]
    first = total - sum(steps) if first_token is None else (clock[3] - clock[0] + first_token) * 1e3
    found = {
        "preprocess": preprocess,
        **stages,
        "prefill": 1e3 * prefill,
        "host": waiting + language - 1e3 * prefill - sum(steps),
        "time_to_first_token": first,
        "total": total,
    }
    if not votes:
        found["host"] += found.pop("qformer")
    if steps:
        found |= {"decode": sum(steps) / len(steps), "time_per_output_token": (total - first) / len(steps)}
    return Timed({name: float(found[name]) for name in (*STAGES, *WHOLE) if name in found}, token_ids)
