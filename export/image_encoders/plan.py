"""From what was asked for to a schedule: which layers prune, and how many tokens each keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from catp.export.encoder_pruning import RULES, make_rule
from catp.export.image_encoders.sizes import pair
from catp.runtime.bundle.encoder_pruning import (
    HIGHEST,
    LOWEST,
    EncoderPruningSpec,
    EncoderSizes,
    Form,
    Merge,
    QuestionPruningSpec,
    TaughtSpec,
    dense_gflops,
    text_tokens,
)
from catp.runtime.bundle.encoder_schedules import CLOSE, even_schedule
from catp.runtime.errors import UsageError

QUESTION_TOKENS = 16
"""Length of a usual question or caption, by which a share of a text encoder's work is understood."""


@dataclass(frozen=True)
class EncoderOptions:
    """Wishes for the pruning inside an encoder, as `catp-export` takes them."""

    rule: str | None = None  # None: madtp where the checkpoint has a dictionary, taught with a scorer, or else cls
    flops: float | None = None  # share of the dense encoder's work that remains
    form: Form = "schedule"
    layers: str = "all"  # or numbers from 0 separated by commas
    kept_tokens: tuple[int, ...] | None = None  # instead of a share
    merge: Merge | None = None  # None: the rule's own
    temperature: float | None = None  # None: the checkpoint's
    scorer: str | None = None  # folder or Hub id of a taught scorer; None: the checkpoint's own
    text_flops: float | None = None  # share of the text encoder's work that remains; None: it prunes nothing

    @property
    def any(self) -> bool:
        """Whether anything but the defaults was asked for, so that the encoder prunes."""
        return self != EncoderOptions() and self.rule != "none"

    def check(self) -> None:
        """Raises UsageError where options contradict each other, before a checkpoint is read."""
        if self.rule == "none" and self != EncoderOptions(rule="none"):
            raise UsageError("--encoder-pruning none: it keeps every token; leave out the other --encoder options")
        if self.rule not in (None, "none"):
            make_rule(str(self.rule))
        if self.flops is not None and not 0 < self.flops < 1:
            raise UsageError(f"--encoder-flops {self.flops:g}: a share of the encoder's work, above 0 and below 1")
        if self.form == "dynamic" and (self.flops is not None or self.kept_tokens is not None):
            raise UsageError(
                "--encoder-form dynamic: the graph counts tokens by its temperature; leave out --encoder-flops and "
                "--encoder-kept, and give --encoder-temperature"
            )
        if self.form == "schedule" and self.temperature is not None:
            raise UsageError(
                "--encoder-temperature: it is for --encoder-form dynamic; a schedule takes --encoder-flops"
            )
        beside = [
            name
            for name in ("layers", "merge", "scorer", "text_flops")
            if getattr(self, name) != getattr(EncoderOptions, name)
        ]
        if beside and self.rule is None and self.flops is None and self.kept_tokens is None and self.form == "schedule":
            given = "--text-encoder-flops" if beside[-1] == "text_flops" else f"--encoder-{beside[-1]}"
            raise UsageError(
                f"{given}: it is for a vision encoder that prunes; give --encoder-flops or --encoder-pruning as well"
            )
        if self.text_flops is not None and not 0 < self.text_flops < 1:
            raise UsageError(
                f"--text-encoder-flops {self.text_flops:g}: a share of that encoder's work, above 0 and below 1"
            )
        if self.text_flops is not None and self.form == "dynamic":
            raise UsageError(
                "--text-encoder-flops: in the dynamic form that encoder counts by the temperature too; leave it out"
            )
        if self.flops is not None and self.kept_tokens is not None:
            raise UsageError("--encoder-flops and --encoder-kept: give one of them")
        if self.temperature is not None and not LOWEST <= self.temperature <= HIGHEST:
            raise UsageError(
                f"--encoder-temperature {self.temperature:g}: give a number from {LOWEST:g} to {HIGHEST:g}"
            )


def encoder_sizes(config: Any) -> EncoderSizes:
    """Sizes of a Hugging Face configuration with a `vision_config`."""
    vision = config.vision_config
    (height, width), patch = pair(vision.image_size), pair(vision.patch_size)
    return EncoderSizes(
        patches=(height // patch[0]) * (width // patch[1]),
        patch_values=3 * patch[0] * patch[1],
        layers=vision.num_hidden_layers,
        width=vision.hidden_size,
        feed_forward=vision.intermediate_size,
    )


def plan_pruning(
    options: EncoderOptions,
    config: Any,
    has_dictionary: bool,
    temperature: float | None,
    taught: TaughtSpec | None = None,
    maps: bool = False,
) -> EncoderPruningSpec:
    """The pruning of a checkpoint's encoder, as the manifest has it.

    Args:
        config: the checkpoint's.
        has_dictionary, temperature: what the checkpoint brings of MADTP's.
        taught: of a scorer, where there is one.
        maps: whether MADTP maps this family's tokens before it looks them up, as CLIP's.

    Raises:
        UsageError: the checkpoint can't be pruned so.
    """
    options.check()
    name = options.rule or ("madtp" if has_dictionary else "cls" if taught is None else "taught")
    rule = make_rule(name)
    if rule.reads_guidance and not has_dictionary:
        lacks = "space_dict with a q_map for each layer" if maps else "space_dict"
        without = ", ".join(other for other in RULES if not RULES[other].reads_guidance)
        raise UsageError(
            f"--encoder-pruning {name}: the checkpoint has no {lacks}, which MADTP trains (madtp.safetensors beside "
            f"its weights); accepted without: {without}"
        )
    if rule.reads_scorer and taught is None:
        raise UsageError(
            f"--encoder-pruning {name}: the checkpoint has no scorer beside its weights (taught.safetensors); make one "
            "with catp-calibrate scorer, or say with --encoder-scorer where it is"
        )
    if options.form == "dynamic" and not rule.reads_guidance:
        raise UsageError(f"--encoder-form dynamic: {name} has no temperature to count by, madtp has; give a schedule")
    sizes = encoder_sizes(config)
    layers = _layers(options.layers, sizes.layers)
    merge = options.merge or rule.merge
    if rule.pairs and merge != "nearest":
        raise UsageError(f"--encoder-merge {merge}: {name} merges tokens into their likeness; accepted: nearest")
    if merge == "one" and not rule.weighs:
        raise UsageError(
            f"--encoder-merge one: {name} has scores below 0, which weigh nothing; accepted: nearest, drop"
        )
    spec = EncoderPruningSpec.model_construct(
        rule=name,
        merge=merge,
        form=options.form,
        layers=layers,
        sizes=sizes,
        gflops_dense=dense_gflops(sizes),
        taught=taught if rule.reads_scorer else None,
    )
    if options.form == "dynamic":
        chosen = options.temperature if options.temperature is not None else temperature
        if chosen is None or not LOWEST <= chosen <= HIGHEST:
            found = "no temperature" if chosen is None else f"a temperature of {chosen:g}"
            raise UsageError(
                f"--encoder-form dynamic: the checkpoint has {found} (madtp.json); give --encoder-temperature, from "
                f"{LOWEST:g} to {HIGHEST:g}"
            )
        source = "checkpoint" if options.temperature is None else "--encoder-temperature"
        return _made(spec, temperature=chosen, source=source)
    if options.kept_tokens is not None:
        kept, source = spec.check(options.kept_tokens), "--encoder-kept"
    else:
        share = 0.5 if options.flops is None else options.flops
        kept, source = even_schedule(spec, share), f"--encoder-flops {share:g}: each layer keeps the same share"
    return _made(spec, kept_tokens=kept, gflops_pruned=spec.gflops(kept), source=source)


def _made(spec: EncoderPruningSpec, **values: Any) -> EncoderPruningSpec:
    given = {name: getattr(spec, name) for name in spec.model_fields_set}
    try:
        return EncoderPruningSpec(**given, **values)
    except ValidationError as error:
        raise UsageError(f"encoder pruning: {error.errors()[0]['msg']}") from None


@dataclass(frozen=True)
class TextEncoderSizes:
    """The parts of a text encoder that decide how much of its work depends on a text's tokens."""

    layers: int
    fixed: int = 1  # tokens that are never pruned: the first, of a causal one also the one that ends the text
    reads: int = 2  # products of W x W, beside the MLP's 8, for each token that is left: those of cross-attention


def plan_text_pruning(
    options: EncoderOptions, spec: EncoderPruningSpec, sizes: TextEncoderSizes, guided: bool, counts: bool
) -> QuestionPruningSpec | None:
    """The pruning of a text encoder beside an image encoder's; None where there is none.

    In the dynamic form a question encoder prunes as in the paper. A schedule is a fraction of each text's tokens, for
    these differ in length, and only where it was asked for: at the length of a question little is saved.

    Args:
        guided: whether MADTP's dictionary can guide it.
        counts: whether it has a dynamic form.
    """
    if spec.form == "dynamic":
        if not counts:
            return None
        return QuestionPruningSpec(rule=spec.rule, form="dynamic", temperature=spec.temperature, source=spec.source)
    share = options.text_flops
    if share is None:
        return None
    usable = RULES[spec.rule].reads_maps and (guided or not RULES[spec.rule].reads_guidance)
    rule = spec.rule if usable else "self-cls"
    fraction = min((t / 1000 for t in range(1, 1000)), key=lambda f: abs(text_share(f, sizes) - share))
    if abs(found := text_share(fraction, sizes) - share) > 2 * CLOSE:
        raise UsageError(
            f"--text-encoder-flops {share:g}: of a text of {QUESTION_TOKENS} tokens, {share + found:.2f} is the "
            f"nearest that {sizes.layers} layers can leave; give that"
        )
    return QuestionPruningSpec(rule=rule, form="schedule", fraction=fraction, source=f"--text-encoder-flops {share:g}")


def text_share(fraction: float, sizes: TextEncoderSizes) -> float:
    """Work that remains of a text of QUESTION_TOKENS, of projections and MLPs, which grow with its tokens.

    A layer's self-attention has 4 products of W x W for each token that comes in, its cross-attention, if it has one,
    2 and its MLP 8 for each one that is left. The keys and values of image tokens stay, and are not counted.
    """
    later = 8 + sizes.reads
    rows = text_tokens(QUESTION_TOKENS, sizes.layers, sizes.fixed, round(1000 * fraction))
    work = sum(4 * tokens + later * left for tokens, left in rows)
    return work / ((4 + later) * QUESTION_TOKENS * sizes.layers)


def _layers(text: str, available: int) -> tuple[int, ...]:
    if text == "all":
        return tuple(range(available))
    try:
        chosen = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--encoder-layers {text!r}: accepted: all, or numbers such as 2,5,8") from None
    if list(chosen) != sorted(set(chosen)) or not 0 <= chosen[0] <= chosen[-1] < available:
        raise UsageError(f"--encoder-layers {text}: give ascending numbers from 0 to {available - 1}")
    return chosen
