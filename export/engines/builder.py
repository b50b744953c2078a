"""Builds the engine set of a bundle: what is there already is reused, and the whole appears at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx

from catp.export.engines.network import Network, parse
from catp.export.engines.prepare import prepare
from catp.export.engines.profiles import Limits
from catp.export.engines.targets import Builder, check_types, choose_capabilities, open_target
from catp.runtime.bundle.engine_sets import ENGINES, EngineSet, open_set, set_folders, set_key
from catp.runtime.bundle.folder import Bundle, file_spec, open_bundle
from catp.runtime.bundle.plans import (
    PlanRequest,
    PlanSpec,
    Target,
    plan_file,
    read_sidecar,
    sidecar_file,
    write_sidecar,
)
from catp.runtime.bundle.publish import link_or_copy, published
from catp.runtime.errors import BundleError, CatpError, UsageError


@dataclass(frozen=True)
class Built:
    """An engine set, and which of its plans this build made."""

    engines: EngineSet
    new: tuple[str, ...]  # graphs; the other plans were there already


def plan_requests(
    bundle: Bundle,
    target: Builder,
    capabilities: Sequence[str],
    limits: Limits,
    workspace_bytes: int | None = None,
) -> list[PlanRequest]:
    """The plans to build for every graph of a bundle; raises UsageError where the limits contradict each other."""
    manifest = bundle.manifest
    limits.check(manifest)
    return [
        PlanRequest(
            graph=name,
            target=target.name,
            target_version=target.version,
            compute_capabilities=tuple(capabilities),
            onnx_sha256=graph.file.sha256,
            weights_sha256=graph.external_data.sha256 if graph.external_data else None,
            fixed=limits.fixed(graph, manifest),
            profiles=limits.profiles(graph, manifest),
            workspace_bytes=workspace_bytes,
        )
        for name, graph in manifest.graphs.items()
    ]


def build_engines(
    path: Path,
    target: Target,
    compute_capabilities: Sequence[str] = (),
    limits: Limits | None = None,
    workspace_bytes: int | None = None,
    overwrite: bool = False,
    step: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> Built:
    """Build every graph of a bundle into `engines/<key>/`.

    Plans that an equal request made before, in this set or in another of the bundle, are taken over after their hashes
    were checked: only what changed is built.

    Args:
        path: the bundle's folder.
        compute_capabilities: to build for; none: the GPU at hand.
        workspace_bytes: scratch memory that a layer may use at most; None leaves it to the target.
        overwrite: build everything anew.
        step: called around every stage with its description, to show progress.

    Raises:
        UsageError: the target is not installed, can't build for the device, the limits contradict each other, or a
            graph was quantised for another runtime.
        CatpError: a graph can't be built, or can't be written.
    """
    bundle = open_bundle(path, verify=False)
    _check_purpose(bundle)
    opened = open_target(target)
    capabilities = choose_capabilities(opened, compute_capabilities)
    requests = plan_requests(bundle, opened, capabilities, limits or Limits(), workspace_bytes)
    folder = bundle.path / ENGINES / set_key(requests)
    if folder.exists() and not overwrite:
        try:
            found = open_set(bundle, folder)
            # Gigabytes are hashed faster side by side: hashing lets other threads run.
            with ThreadPoolExecutor() as threads:
                list(threads.map(found.plan, found.plans))
        except BundleError:
            pass  # it is rebuilt as far as it was damaged
        else:
            return Built(found, ())
    with step("check the bundle"):
        bundle = open_bundle(path)
    for request in requests:
        check_types(request.graph, _load(bundle, request), request.compute_capabilities)
    new = []
    with published(folder, overwrite=True, holds=None) as temporary:
        for request in requests:
            if overwrite or not _take_over(bundle, request, temporary):
                with step(f"build {request.graph}"):
                    build_plan(bundle, opened, request, temporary)
                new.append(request.graph)
    return Built(open_set(bundle, folder), tuple(new))


def _check_purpose(bundle: Bundle) -> None:
    """Raises UsageError where a graph was quantised for another runtime."""
    for name, spec in bundle.manifest.graphs.items():
        if spec.quantization and spec.quantization.purpose != "tensorrt":
            raise UsageError(
                f"{name}: it is {spec.precision_label}, in operators that TensorRT does not have; quantise the "
                "floating-point bundle with catp-calibrate precision --for tensorrt"
            )


def _load(bundle: Bundle, request: PlanRequest) -> onnx.ModelProto:
    """The graph without its weights."""
    return onnx.load(bundle.graph_file(request.graph), load_external_data=False)


def _take_over(bundle: Bundle, request: PlanRequest, folder: Path) -> bool:
    """Link the plan of an equal request into `folder`; whether there was one, unaltered."""
    for other in set_folders(bundle):
        try:
            spec = read_sidecar(other, request.graph)
            if spec.request != request:
                continue
            path = EngineSet(other, {request.graph: spec}).plan(request.graph)
        except BundleError:
            continue
        for source in (path, sidecar_file(other, request.graph)):
            link_or_copy(source, folder / source.name)
        return True
    return False


def build_plan(bundle: Bundle, target: Builder, request: PlanRequest, folder: Path) -> None:
    """Build one graph, and write its plan and sidecar into `folder`; raises CatpError where TensorRT can't."""
    graph = bundle.manifest.graphs[request.graph]
    started = time.monotonic()
    model = _load(bundle, request)
    left_out = prepare(model, request.fixed)
    network = parse(target, model, bundle.graph_file(request.graph), graph, request.fixed)
    path = plan_file(folder, request.graph)
    path.write_bytes(_serialized(target, request, network))
    inputs, outputs = network.tensors({t.name: t.shape for t in (*graph.inputs, *graph.outputs)})
    write_sidecar(
        folder,
        PlanSpec(
            request=request,
            plan=file_spec(folder, path),
            inputs=inputs,
            outputs=outputs,
            aliases=_aliases(network),
            left_out=left_out,
            layers=network.layers(),
            built_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            build_seconds=round(time.monotonic() - started, 3),
            built_by={name: version(name) for name in ("catp-exporter", "polygraphy", "onnx")},
        ),
    )


def _aliases(network: Network) -> dict[str, str]:
    """Outputs that are written in an input's memory: KVCacheUpdate's result is its cache.

    https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/transformers-kv-cache.html
    """
    definition = network.definition
    layers = (definition.get_layer(index) for index in range(definition.num_layers))
    return {
        layer.get_output(0).name: layer.get_input(0).name for layer in layers if layer.type.name == "KV_CACHE_UPDATE"
    }


def _serialized(target: Builder, request: PlanRequest, network: Network) -> Any:
    """The plan's bytes. Raises CatpError where TensorRT can't build it."""
    from polygraphy.backend.trt import CreateConfig, EngineBytesFromNetwork, Profile
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    profiles = []
    for ranges in request.profiles:
        profile = Profile()
        for name, extent in {**ranges.shapes, **ranges.values}.items():
            profile.add(name, min=extent.min, opt=extent.opt, max=extent.max)
        profiles.append(profile)
    options: dict[str, Any] = {"profiles": profiles}
    if request.workspace_bytes is not None:
        options["memory_pool_limits"] = {target.trt.MemoryPoolType.WORKSPACE: request.workspace_bytes}
    if request.target == "tensorrt-rtx":
        from polygraphy.backend.tensorrt_rtx.config import CreateConfigRTX

        pairs = [tuple(map(int, capability.split("."))) for capability in request.compute_capabilities]
        if all(f"SM{major}{minor}" in target.trt.ComputeCapability.__members__ for major, minor in pairs):
            config = CreateConfigRTX(compute_capabilities=pairs, **options)
        else:  # not listed: `make gpu-check` asks for the device at hand all the same
            config = CreateConfigRTX(use_gpu=True, **options)
    else:
        config = CreateConfig(**options)
    parsed = (network.builder, network.definition, network.parser)
    network.logger.messages.clear()
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        try:
            return EngineBytesFromNetwork(parsed, config)()
        except PolygraphyException:
            raise CatpError(
                f"{request.graph}: {target.name} {target.version} can't build it: {network.complaints}"
            ) from None
