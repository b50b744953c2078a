"""catp-inspect: what a bundle contains."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from catp.runtime.bundle.chains import DECODE_GRAPH, made_from
from catp.runtime.bundle.encoder_pruning import EncoderPruningSpec
from catp.runtime.bundle.engine_sets import EngineSet, open_set, set_folders
from catp.runtime.bundle.folder import Bundle, open_bundle
from catp.runtime.bundle.manifest import CalibrationSpec, TensorSpec
from catp.runtime.commands.console import busy, make_app, print_json_line, print_line
from catp.runtime.errors import BundleError
from catp.runtime.pruning import describe_default


def inspect(
    bundle: Annotated[Path, typer.Argument(help="Folder written by catp-export.")],
    json_output: Annotated[bool, typer.Option("--json", help="All of it as JSON on standard output.")] = False,
) -> None:
    """Show a bundle's graphs, their tensors, sizes and precision, and whether its engines are up to date.

    Every file is compared with its hash. Needs neither a GPU nor torch.
    """
    with busy("check the bundle"):
        opened = open_bundle(bundle)
        engines = [_engine_set(opened, folder) for folder in set_folders(opened)]
    if json_output:
        print_json_line(
            json.dumps(
                {"bundle": str(opened.path), "manifest": opened.manifest.model_dump(mode="json"), "engines": engines}
            )
        )
        return
    _print(opened, engines)


def _engine_set(bundle: Bundle, folder: Path) -> dict[str, Any]:
    """The description of one engine set; `state` is "current", "stale", or what is wrong with it."""
    try:
        found: EngineSet = open_set(bundle, folder)
        for graph in found.plans:
            found.plan(graph)
    except BundleError as error:
        return {"name": folder.name, "state": str(error)}
    request = found.request
    return {
        "name": folder.name,
        "state": "current" if found.is_current(bundle) else "stale: built from other graphs; run catp-build",
        "target": request.target,
        "target_version": request.target_version,
        "compute_capabilities": request.compute_capabilities,
        "built_at": found.built_at,
        "fixed": {name: number for plan in found.plans.values() for name, number in plan.request.fixed.items()},
        "bytes": sum(plan.plan.size for plan in found.plans.values()),
        "plans": {graph: plan.model_dump(mode="json") for graph, plan in found.plans.items()},
    }


def _print(bundle: Bundle, engines: list[dict[str, Any]]) -> None:
    """To standard output: this is the result."""
    manifest = bundle.manifest
    model = manifest.model
    adapter = f" with adapter {model.adapter}" if model.adapter else ""
    print_line(f"{model.id}{adapter}: {model.family}, {manifest.image.width} x {manifest.image.height} images")
    print_line(f"default: {describe_default(manifest, positions=True)}")
    if manifest.encoder_pruning:
        for line in describe_encoder(manifest.encoder_pruning):
            print_line(line)
    if of_texts := manifest.question_pruning or manifest.text_pruning:
        print_line(f"text encoder: {of_texts.describe()}")
    if manifest.writes_text:
        print_line(f"answers: {manifest.generation.describe()}, at most {manifest.text.max_new_tokens} tokens")
    else:
        head = "image_text_matching" in manifest.graphs
        print_line(f"scores texts: {'probability of a match, and ' if head else ''}contrastive similarity")
    if manifest.logit_scale is not None:
        print_line(f"classes: by a softmax of similarities times {manifest.logit_scale:.6g}")
    if manifest.calibration:
        for line in _cost(manifest.calibration):
            print_line(line)
    for placement in manifest.placements:
        places = ", ".join(f"{graph} by {place.label}" for graph, place in placement.graphs.items())
        print_line(f"--provider auto on {placement.cpu} with {placement.cpus} CPUs: {places or 'all by cpu'}")
    for name, graph in manifest.graphs.items():
        size = f"{graph.bytes / 1e6:,.1f} MB, {graph.operators:,} operators"
        print_line(f"\n{name}: {graph.precision_label}, {size}")
        if name == DECODE_GRAPH:
            print_line(f"  for decode steps; inputs and outputs are those of {made_from(name)}")
            continue
        for label, tensors in (("in ", graph.inputs), ("out", graph.outputs)):
            for line in _tensors(tensors):
                print_line(f"  {label} {line}")
    if not engines:
        print_line("\nNo engines: the graphs run in ONNX Runtime; catp-build makes TensorRT engines.")
    for found in engines:
        print_line(f"\nengines {found['name']}: {found['state']}")
        if "plans" in found:
            baked = ", ".join(f"{name} {number}" for name, number in found["fixed"].items())
            print_line(
                f"  for {found['target']} {found['target_version']} at compute capability "
                f"{', '.join(found['compute_capabilities'])}; {found['bytes'] / 1e6:,.1f} MB; baked in: {baked}"
            )


def describe_encoder(spec: EncoderPruningSpec) -> Iterator[str]:
    """The pruning inside the vision encoder: what decides, and layer by layer what is left."""
    merges = {"one": "into one more token", "nearest": "into the nearest kept token", "drop": "into nothing"}[
        spec.merge
    ]
    yield (
        f"vision encoder: {spec.rule} in {len(spec.layers)} of {spec.sizes.layers} layers, the others {merges}; "
        f"{spec.form} form, from {spec.source}"
    )
    if spec.kept_tokens is None:
        yield f"  temperature {spec.temperature:g}; counts are each batch's own; dense {spec.gflops_dense:,.4g} GFLOPs"
        return
    work = spec.gflops(spec.kept_tokens)
    share = f"{work:,.4g} of {spec.gflops_dense:,.4g} GFLOPs ({work / spec.gflops_dense:.0%})"
    yield f"  {share} an image, scores not counted"
    if confirmed := spec.confirmed:
        low, high = (100 * end for end in confirmed.interval_95)
        dense, pruned = (f" at ratio {ratio:g}" for ratio in confirmed.ratios) if confirmed.ratios else ("", "")
        yield (
            f"  confirmed: {confirmed.metric} {100 * confirmed.before:.1f} % dense{dense}, "
            f"{100 * confirmed.after:.1f} % pruned{pruned} ({low:+.1f} to {high:+.1f} points), "
            f"{confirmed.questions:,} questions of {confirmed.data}"
        )
    kept = dict(zip(spec.layers, spec.kept_tokens))
    for layer, (tokens, left) in enumerate(spec.tokens_by_layer(spec.kept_tokens)):
        keeps = f"keeps {kept[layer]:,} of {tokens - 1:,} patches" if layer in kept else "prunes nothing"
        yield f"  layer {layer}: {tokens:,} tokens, {keeps}, {spec.sizes.layer_gflops(tokens, left):,.3g} GFLOPs"


def _cost(found: CalibrationSpec) -> Iterator[str]:
    """The cost of quantising, a line for each ratio."""
    for change in found.accuracy:
        low, high = (100 * end for end in change.interval_95)
        yield (
            f"calibrated: {found.metric} at ratio {change.ratio:g} {100 * change.before:.1f} % before, "
            f"{100 * change.after:.1f} % after ({low:+.1f} to {high:+.1f} points), {found.questions:,} questions of "
            f"{found.data}"
        )
    if found.drops_query_tokens:
        yield f"calibrated: {100 * found.kept_overlap:.1f} % of kept tokens stayed the same"
    if found.patch_overlap is not None:
        yield f"calibrated: {100 * found.patch_overlap:.1f} % of the patches that the encoder keeps stayed the same"


def _tensors(tensors: tuple[TensorSpec, ...]) -> Iterator[str]:
    """One line each; the many tensors of a cache in one."""
    caches = ("cross_key_values", "past_key_values", "present")
    for name, group in groupby(tensors, lambda tensor: tensor.name.partition(".")[0]):
        first, *others = group
        if name in caches:
            yield f"{len(others) + 1} x {name}.* {first.dtype} {_shape(first)}"
        else:
            yield from (f"{tensor.name} {tensor.dtype} {_shape(tensor)}" for tensor in (first, *others))


def _shape(tensor: TensorSpec) -> str:
    return "[" + ", ".join(str(dimension) for dimension in tensor.shape) + "]"


app = make_app(inspect)
