"""Optimization profiles: what each free dimension of a graph may be in each kind of call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from catp.runtime.bundle.encoder_pruning import left_by
from catp.runtime.bundle.manifest import GraphSpec, Manifest, TensorSpec
from catp.runtime.bundle.plans import REPEATED, Profile, ShapeRange
from catp.runtime.errors import UsageError
from catp.runtime.pruning import num_kept

_USUAL_PROMPT = 16
"""Prompt length to optimise for, in tokens: a question."""

_MOST = 1 << 20
"""Of anything; TensorRT's own limit is a tensor's size."""

Extent = tuple[int, int, int]
"""min, opt, max."""


@dataclass(frozen=True)
class Limits:
    """How large the calls may be that the engines must serve.

    Raises:
        UsageError: they contradict each other.
    """

    max_batch: int = 4
    max_prompt: int = 64  # tokens
    max_length: int = 128  # slots of the KV cache: kept tokens, prompt and answer, or fewer of them
    ratio: float | None = None  # to optimise for; None: the bundle's default
    fixed_ratio: bool = False  # fold num_kept into the graph: faster, and the one ratio left
    fixed_schedule: bool = False  # likewise the schedule of a vision encoder that prunes
    dynamic_encoder: bool = False  # build encoders whose device knows alone how many tokens are left: never executed

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_prompt", "max_length"):
            if not 1 <= getattr(self, name) <= _MOST:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: give 1 to {_MOST:,}")

    def kept(self, manifest: Manifest) -> Extent:
        """How many query tokens, or image tokens where there are none, are kept."""
        if manifest.vote is None:
            if self.ratio or self.fixed_ratio:
                asked = f"--ratio {self.ratio:g}" if self.ratio else "--fixed-ratio"
                raise UsageError(
                    f"{asked}: {manifest.model.family} has no query tokens to leave out; leave the option out"
                )
            return self._image_tokens(manifest)
        pruning = manifest.pruning
        ratio = pruning.ratio if self.ratio is None else self.ratio
        if pruning.method == "none" and ratio > 0:
            raise UsageError(f"--ratio {ratio:g}: this bundle was exported with --method none and keeps every token")
        best = num_kept(ratio, pruning.num_query_tokens)
        if self.fixed_ratio or pruning.method == "none":
            return best, best, best
        return 1, best, pruning.num_query_tokens

    def _image_tokens(self, manifest: Manifest) -> Extent:
        """How many image tokens leave the encoder."""
        pruning = manifest.encoder_pruning
        if pruning is None:
            tokens = manifest.tokens
            return tokens, tokens, tokens
        least, most = (kept[-1] + pruning.added + 1 for kept in pruning.bounds())
        if pruning.kept_tokens is None:
            return least, (least + pruning.sizes.patches + 1) // 2, pruning.sizes.patches + 1
        usual = pruning.kept_tokens[-1] + pruning.added + 1
        return (usual, usual, usual) if self.fixed_schedule else (least, usual, most)

    def prefix(self, manifest: Manifest) -> Extent:
        """How many tokens the language model reads before a prompt: of a video, those of all its frames."""
        least, usual, most = self.kept(manifest)
        frames = manifest.model.frames or 1
        return least, usual * frames, most * frames

    def check(self, manifest: Manifest) -> None:
        """Refuse a cache that the largest call does not fit.

        Raises:
            UsageError: with the smallest length that would do.
        """
        self.kept(manifest)  # refuses what the bundle can't do
        pruning = manifest.encoder_pruning
        dynamic = pruning is not None and pruning.form == "dynamic"
        counts = dynamic or manifest.question_pruning is not None or manifest.text_pruning is not None
        if counts and not self.dynamic_encoder:
            what, instead = (
                ("encoders of this bundle count tokens for themselves (dynamic form)", "export with --encoder-flops")
                if dynamic
                else ("text encoder of this bundle prunes", "export without --text-encoder-flops")
            )
            raise UsageError(
                f"the {what}, which TensorRT builds and nobody has executed; give --dynamic-encoder to build it all "
                f"the same, or {instead}"
            )
        if self.dynamic_encoder and not counts:
            raise UsageError("--dynamic-encoder: no encoder of this bundle counts tokens for itself; leave it out")
        if self.fixed_schedule and (pruning is None or pruning.kept_tokens is None):
            raise UsageError(
                "--fixed-schedule: the vision encoder of this bundle has no schedule; leave it out, or export with "
                "--encoder-flops"
            )
        if self.fixed_ratio and manifest.pruning.keep_mass is not None:
            raise UsageError(
                "--fixed-ratio: this bundle keeps a share of each image's votes by default, so differently many "
                "tokens; leave --fixed-ratio out, or export with --ratio"
            )
        if manifest.model.language not in ("decoder-only", "captioning"):
            return  # a cache, if there is one, holds nothing but the answer
        most = 0 if manifest.vote is None else self.prefix(manifest)[2]
        if most + self.max_prompt > self.max_length:
            raise UsageError(
                f"--max-length {self.max_length}: {most} image tokens and a prompt of {self.max_prompt} do not fit; "
                f"give at least {most + self.max_prompt}, plus the tokens to generate, or a smaller --max-prompt"
            )

    def fixed(self, graph: GraphSpec, manifest: Manifest) -> dict[str, int]:
        """Free dimensions of a graph that become numbers."""
        numbers = {"max_length": self.max_length}
        if self.fixed_ratio and any(tensor.name == "num_kept" for tensor in graph.inputs):
            numbers["num_kept"] = self.kept(manifest)[1]
        pruning = manifest.encoder_pruning
        schedule: dict[str, int] = {}
        if self.fixed_schedule and pruning is not None and pruning.kept_tokens is not None:
            added = pruning.added
            tokens = pruning.kept_tokens[-1] + added + 1  # with CLS
            numbers |= {"image_tokens": tokens, left_by(-1, added): tokens - 1, left_by(-1, added + 1): tokens}
            numbers |= {left_by(place, added): kept + added for place, kept in enumerate(pruning.kept_tokens)}
            if any(tensor.name == "kept_tokens" for tensor in graph.inputs):
                schedule = {f"kept_tokens.{place}": kept for place, kept in enumerate(pruning.kept_tokens)}
        return {name: number for name, number in numbers.items() if name in _dimensions(graph)} | schedule

    def profiles(self, graph: GraphSpec, manifest: Manifest) -> tuple[Profile, ...]:
        """One profile for every kind of call that the orchestrator makes of the graph."""
        # A video's frames are images of their own to the graphs that see and choose, and one prefix to the others; so
        # are the two images of a pair.
        images = any(tensor.name in ("pixel_values", "num_kept") for tensor in graph.inputs)
        kept = self.kept(manifest) if images else self.prefix(manifest)
        at_a_time = 2 if manifest.model.language == "two-images" else manifest.model.frames or 1
        together = at_a_time if images else 1
        batch = (1, together, self.max_batch * together)
        prompt = (1, min(_USUAL_PROMPT, self.max_prompt), self.max_prompt)
        encoded = (kept[0] + prompt[0], kept[1] + prompt[1], kept[2] + prompt[2])
        once: dict[str, Extent] = {"batch": batch, "seq": prompt, "num_kept": kept, "encoded": encoded}
        once |= {
            "instruction": prompt,
            "text": prompt,
            "question": prompt,
            "image_tokens": self._image_tokens(manifest),
            "kept_question": prompt,
        }
        step: dict[str, Extent] = {**once, "seq": (1, 1, 1), "num_kept": (0, 0, 0)}
        fixed, dimensions = self.fixed(graph, manifest), _dimensions(graph)
        pruning = manifest.encoder_pruning
        if pruning is not None and pruning.kept_tokens is not None and "kept_tokens.0" not in fixed:
            least, most = pruning.bounds()
            schedule = {"kept_tokens": ShapeRange(min=least, opt=pruning.kept_tokens, max=most)}
        else:
            schedule = {}
        if "max_length" not in dimensions:
            reads = "seq" in dimensions or "question" in dimensions
            return (_profile("prefill" if reads else "images", graph, once, fixed, schedule),)
        # With a cache: what reads prompts too is called in two ways, a text decoder one token at a time alone.
        calls = {"prefill": once, REPEATED: step} if "seq" in dimensions else {REPEATED: step}
        return tuple(_profile(name, graph, extents, fixed) for name, extents in calls.items())


def _dimensions(graph: GraphSpec) -> set[str]:
    return {d for tensor in (*graph.inputs, *graph.outputs) for d in tensor.shape if isinstance(d, str)}


def _profile(
    name: str,
    graph: GraphSpec,
    extents: Mapping[str, Extent],
    fixed: Mapping[str, int],
    values: Mapping[str, ShapeRange] | None = None,
) -> Profile:
    """Args: `values`: of inputs that are lists of numbers by which dimensions are computed."""
    values = values or {}
    every = {**{dimension: (number,) * 3 for dimension, number in fixed.items()}, **extents}
    inputs = [tensor for tensor in graph.inputs if tensor.name not in fixed and f"{tensor.name}.0" not in fixed]
    # An input named like a dimension says how large that dimension is: TensorRT calls it a shape tensor.
    return Profile(
        name=name,
        shapes={tensor.name: _range(tensor, every) for tensor in inputs if tensor.name not in {**every, **values}},
        values={
            **{tensor.name: values[tensor.name] for tensor in inputs if tensor.name in values},
            **{
                tensor.name: ShapeRange(
                    **{which: (extent,) for which, extent in zip(("min", "opt", "max"), every[tensor.name])}
                )
                for tensor in inputs
                if tensor.name in every
            },
        },
    )


def _range(tensor: TensorSpec, extents: Mapping[str, Extent]) -> ShapeRange:
    def shape(which: int) -> tuple[int, ...]:
        return tuple(d if isinstance(d, int) else extents[d][which] for d in tensor.shape)

    return ShapeRange(min=shape(0), opt=shape(1), max=shape(2))
