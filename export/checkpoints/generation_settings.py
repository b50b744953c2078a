"""A checkpoint's configuration of generation as the bundle's default settings.

Hugging Face's BLIP-2 generates by `language_model.generate()`, so with the configuration of that part of the model, not
with its own, which is generation_config.json: it changes nothing there, and is told about here (transformers 5.23).
"""

from __future__ import annotations

from typing import Any

from catp.export.checkpoints.loading import Checkpoint
from catp.runtime.bundle.generation_settings import GREEDY, GenerationSettings
from catp.runtime.errors import UsageError

_SETTINGS = tuple(name for name in GenerationSettings.model_fields if name != "seed")

_ELSEWHERE = ("max_new_tokens", "eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id")
"""What the manifest's `text` has, or the prompt's tokens."""

_WITHOUT_EFFECT = {
    "use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "low_memory",
    "return_dict_in_generate", "output_attentions", "output_hidden_states", "output_scores", "output_logits",
    "compile_config", "disable_compile", "continuous_batching_config", "is_assistant", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold", "max_matching_ngram_size",
    "assistant_lookbehind", "target_lookbehind", "transformers_version", "_from_model_config",
}  # fmt: skip
"""On the tokens: caches, outputs, speed, and details of a decoding that only an assistant model switches on."""

_OFF_AT_ONE = ("typical_p", "encoder_repetition_penalty", "num_beam_groups", "num_return_sequences", "guidance_scale")
"""Settings that 1 switches off; others are off at None, 0 or False."""

_UNSET_LENGTH = 20
"""The max_length that transformers 4 wrote into every configuration, and took for none."""


def read_settings(checkpoint: Checkpoint) -> GenerationSettings:
    """The settings of Hugging Face's `generate()` of this checkpoint without arguments.

    Raises:
        UsageError: it depends on a setting that the runtime does not have; the message names it.
    """
    asked = asked_for(checkpoint.generation_config)
    unknown = sorted(name for name in asked if name not in (*_SETTINGS, *_ELSEWHERE))
    if unknown:
        raise UsageError(
            f"model {checkpoint.id}: its generation configuration has {', '.join(f'{n}={asked[n]}' for n in unknown)}, "
            f"which the runtime can't do; accepted: {', '.join(_SETTINGS)}; remove it from a copy of the checkpoint to "
            "export without"
        )
    found = {name: asked[name] for name in _SETTINGS if name in asked}
    if "max_new_tokens" in asked:
        found.pop("max_length", None)
    return GREEDY.override(**found)


def describe_unfollowed(checkpoint: Checkpoint) -> str | None:
    """Settings that generation_config.json has and `generate()` without arguments does not do, in one line."""
    own, heeded = asked_for(checkpoint.model.generation_config), asked_for(checkpoint.generation_config)
    tokens = {"pad_token_id", "bos_token_id", "decoder_start_token_id"}
    if checkpoint.family.ends_itself:
        tokens.add("eos_token_id")
    names = [name for name in own if name not in tokens]
    left = [f"{name}={own[name]}" for name in names if own[name] != heeded.get(name, getattr(GREEDY, name, None))]
    if not left:
        return None
    return (
        f"generation_config.json has {', '.join(left)}: Hugging Face's generate() of this model does not follow that, "
        "nor does the bundle by default; give it to catp-run, or to Pipeline.generate()"
    )


def asked_for(config: Any) -> dict[str, Any]:
    """Settings of a GenerationConfig that may change tokens, and are not switched off."""
    return {
        name: value
        for name, value in config.to_dict().items()
        if value is not None and name not in _WITHOUT_EFFECT and not _is_off(name, value)
    }


def _is_off(name: str, value: Any) -> bool:
    if name == "max_length":
        return value == _UNSET_LENGTH
    return name not in _SETTINGS and (not value or (name in _OFF_AT_ONE and value == 1))
