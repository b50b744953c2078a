"""A bundle's `engines/` folder: one engine set per build, each with a plan for every graph."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from catp.runtime.bundle.folder import Bundle
from catp.runtime.bundle.plans import REBUILD, PlanRequest, PlanSpec, plan_file, read_sidecar
from catp.runtime.errors import BundleError, UsageError
from catp.runtime.files import sha256

ENGINES = "engines"


@dataclass(frozen=True)
class EngineSet:
    """engines/<key>/: plans that were built together and run together."""

    folder: Path
    plans: Mapping[str, PlanSpec]  # by graph

    @property
    def key(self) -> str:
        return self.folder.name

    @property
    def request(self) -> PlanRequest:
        """Any plan's: target, version and compute capabilities are the same for all."""
        return next(iter(self.plans.values())).request

    @property
    def built_at(self) -> str:
        return max(plan.built_at for plan in self.plans.values())

    def is_current(self, bundle: Bundle) -> bool:
        """Whether every plan was built from the graph that the bundle has now."""
        graphs = bundle.manifest.graphs
        return set(graphs) == set(self.plans) and all(
            _sources(bundle, name) == (plan.request.onnx_sha256, plan.request.weights_sha256)
            for name, plan in self.plans.items()
        )

    def plan(self, graph: str) -> Path:
        """The plan file of a graph, after comparing its content with the sidecar.

        Raises:
            BundleError: missing or altered.
        """
        path, spec = plan_file(self.folder, graph), self.plans[graph].plan
        if not path.is_file():
            raise BundleError(f"{path}: missing; {REBUILD}")
        if path.stat().st_size != spec.size or sha256(path) != spec.sha256:
            raise BundleError(f"{path}: it was altered (its sha256 is not the sidecar's); {REBUILD}")
        return path


def _sources(bundle: Bundle, graph: str) -> tuple[str, str | None]:
    spec = bundle.manifest.graphs[graph]
    return spec.file.sha256, spec.external_data.sha256 if spec.external_data else None


def set_key(requests: Iterable[PlanRequest]) -> str:
    """The name of the folder for plans that answer these requests: target, version, compute capability, and a digest of
    everything else that decides them (profiles, fixed dimensions, ONNX hashes)."""
    requests = sorted(requests, key=lambda request: request.graph)
    first = requests[0]
    digest = hashlib.sha256("".join(request.fingerprint() for request in requests).encode()).hexdigest()
    capabilities = "+".join(capability.replace(".", "") for capability in first.compute_capabilities)
    return f"{first.target}-{first.target_version}-sm{capabilities}-{digest[:12]}"


def open_set(bundle: Bundle, folder: Path) -> EngineSet:
    """Read and check the sidecars of one engine set.

    Raises:
        BundleError: a sidecar is missing or altered, or the set is not the one that its name says.
    """
    plans = {graph: read_sidecar(folder, graph) for graph in bundle.manifest.graphs}
    if set_key(plan.request for plan in plans.values()) != folder.name:
        raise BundleError(f"{folder}: its plans are not the ones its name stands for; {REBUILD}")
    return EngineSet(folder, plans)


def set_folders(bundle: Bundle) -> list[Path]:
    """The folders of all engine sets, sound or not."""
    return sorted(path for path in (bundle.path / ENGINES).glob("[!.]*") if path.is_dir())


def reusable_sets(bundle: Bundle, folder: Path) -> list[Path]:
    """Engine sets of the bundle in `folder` that have a plan for a graph of this one: worth taking along."""
    found = []
    for path in sorted((folder / ENGINES).glob("[!.]*")):
        for graph in bundle.manifest.graphs:
            try:
                request = read_sidecar(path, graph).request
            except BundleError:
                continue
            if _sources(bundle, graph) == (request.onnx_sha256, request.weights_sha256):
                found.append(path)
                break
    return found


def choose_set(bundle: Bundle, target: str, version: str, compute_capability: str, key: str | None = None) -> EngineSet:
    """The engine set to run: `key`, or the one built last among those that fit the library and the device.

    Raises:
        UsageError: no set fits; the message says what there is and what to do.
        BundleError: the set asked for was altered.
    """
    folders = set_folders(bundle)
    if key is not None:
        folders = [folder for folder in folders if folder.name == key]
        if not folders:
            known = ", ".join(folder.name for folder in set_folders(bundle)) or "none"
            raise UsageError(f"engines {key!r}: bundle {bundle.path} has none of that name; it has: {known}")
    wanted = f"{target} {version} at compute capability {compute_capability}"
    build = f"catp-build {bundle.path} --target {target} --compute-capability {compute_capability}"
    refused: list[str] = []
    fitting: list[EngineSet] = []
    for folder in folders:
        try:
            found = open_set(bundle, folder)
        except BundleError as error:
            if len(folders) == 1:
                raise
            refused.append(str(error))
            continue
        reason = _misfit(bundle, found, target, version, compute_capability)
        if reason is None:
            fitting.append(found)
        else:
            refused.append(f"{folder.name} {reason}")
    if not fitting:
        there = "; ".join(refused) or "the bundle has no engines"
        raise UsageError(f"no engines for {wanted} ({there}); build them: {build}")
    return max(fitting, key=lambda found: found.built_at)


def _misfit(bundle: Bundle, found: EngineSet, target: str, version: str, capability: str) -> str | None:
    """Why a set can't run here; None where it can."""
    request = found.request
    if request.target != target:
        return f"is for {request.target}"
    if request.target_version != version:  # plans are only promised to load in the version that built them
        return f"is for version {request.target_version}"
    if capability not in request.compute_capabilities:
        return f"is for compute capability {', '.join(request.compute_capabilities)}"
    if not found.is_current(bundle):
        return "was built from other graphs"
    return None
