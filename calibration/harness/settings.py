"""Settings of generation: those of a task, under the names that the harness has for them, and those of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from catp.runtime.bundle.generation_settings import GREEDY, GenerationSettings
from catp.runtime.errors import UsageError

NOT_READ = frozenset(
    {
        "image_aspect_ratio",  # of LLaVA's preprocessing, as are those below of others'
        "min_pixels",
        "max_pixels",
        "patch_size",
        "downsample_ratio",
        "skip_special_tokens",  # answers here are text
        "use_cache",
    }
)
"""Settings of tasks that say nothing to the models of bundles."""

_DRAWN = ("do_sample", "temperature", "top_k", "top_p")
_ONE = ("n", "best_of", "num_return_sequences")
_STOPS = ("until", "stop_sequences")
_AS_THEY_ARE = (
    "num_beams",
    "length_penalty",
    "early_stopping",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "min_new_tokens",
)


@dataclass(frozen=True)
class Generating:
    """How the answers to some requests are generated.

    Args:
        settings: how tokens are chosen, without a seed.
        max_new_tokens: None: the bundle's default.
        seed: of all that is drawn.
    """

    settings: GenerationSettings
    max_new_tokens: int | None
    seed: int


def read_generation(task: Mapping[str, Any], run: Mapping[str, Any]) -> Generating:
    """The settings of a task, greedy where it says nothing, with those of the run before them.

    Tokens are drawn where do_sample says so, or where it is not given and the temperature is above 0; at temperature 0
    they never are, as by the harness's own models. Where the run says anything of that, it says all of it.

    Args:
        task: `generation_kwargs`; None leaves one out.
        run: by the names of `GenerationSettings`, and max_new_tokens.

    Raises:
        UsageError: one is unknown, out of range, or of no use with the others.
    """
    given = {name: value for name, value in task.items() if value is not None and name not in NOT_READ}
    for name in _ONE:
        if given.pop(name, 1) != 1:
            raise UsageError(f"task setting {name} {task[name]}: one answer is given; leave it out, or give 1")
    if given.get("system_prompt") == "":
        del given["system_prompt"]
    stops = tuple(stop for name in _STOPS for stop in _texts(name, given.pop(name, ())) if stop)
    longest = given.pop("max_new_tokens", given.pop("max_gen_toks", None))
    seed = given.pop("seed", 0)
    drawn = _drawn({name: given.pop(name) for name in _DRAWN if name in given})
    if unknown := [name for name in given if name not in _AS_THEY_ARE]:
        accepted = ", ".join([*_AS_THEY_ARE, "max_new_tokens", "seed", *_DRAWN, *_STOPS])
        raise UsageError(f"task setting {unknown[0]} {given[unknown[0]]!r}: unknown; accepted: {accepted}")

    own = dict(run)
    longest, seed = own.pop("max_new_tokens", longest), own.pop("seed", seed)
    if any(name in own for name in _DRAWN):
        drawn = {}
        own = {**own, "temperature": None, **_drawn(own, keep=True)}
    base = GREEDY.override(**given, **drawn, stop_strings=stops)
    return Generating(base.asked_for(**own), longest, seed)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise UsageError(f"task setting {name} {value!r}: give texts that end an answer")
    return tuple(texts)


def _drawn(given: Mapping[str, Any], keep: bool = False) -> dict[str, Any]:
    """Settings of drawing that say whether there is any.

    Args:
        keep: those of no use, for whoever refuses them; a temperature of 0 is of use, as it says that nothing is drawn.
    """
    temperature = given.get("temperature")
    if temperature == 0:
        rest = {name: given[name] for name in ("top_k", "top_p") if keep and name in given}
        return {**rest, "do_sample": False, "temperature": None}
    draws = given.get("do_sample")
    if draws is None:
        draws = temperature is not None
    kept = {name: given[name] for name in _DRAWN if name in given} if draws or keep else {}
    return {**kept, "do_sample": draws}
