"""The sidecar of a TensorRT plan: what the plan was built from, for what, and how it may be called."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError, model_validator

from catp.runtime.bundle.manifest import FileSpec, TensorSpec
from catp.runtime.bundle.strict import Strict
from catp.runtime.errors import BundleError

SIDECAR_VERSION: Final = 1

Target = Literal["tensorrt", "tensorrt-rtx"]
"""What runs a plan."""

MODULES: Final[dict[str, str]] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""One Python API under two names."""

REPEATED = "decode"
"""The profile whose calls are repeated with the same shapes and memory."""

REBUILD = "build again with catp-build --overwrite"

Capability = Annotated[str, Field(pattern=r"^\d+\.\d$")]
"""A CUDA compute capability, such as "8.6"."""


class ShapeRange(Strict):
    """Smallest, most likely and largest shape of an input, or values of a shape tensor."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    @model_validator(mode="after")
    def _ordered(self) -> ShapeRange:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise ValueError("min, opt and max differ in length")
        if any(not 0 <= low <= best <= high for low, best, high in zip(self.min, self.opt, self.max)):
            raise ValueError(f"not in order: min {self.min}, opt {self.opt}, max {self.max}")
        return self

    def holds(self, values: tuple[int, ...]) -> bool:
        return len(values) == len(self.min) and all(
            low <= value <= high for low, value, high in zip(self.min, values, self.max)
        )


class Profile(Strict):
    """One optimization profile: what every input may be in a kind of call."""

    name: str
    shapes: dict[str, ShapeRange]
    values: dict[str, ShapeRange] = Field(default={}, description="of shape tensors, which live in host memory")


class PlanRequest(Strict):
    """Everything that decides what a plan becomes; equal requests need only one build."""

    graph: str
    target: Target
    target_version: str
    compute_capabilities: tuple[Capability, ...] = Field(min_length=1)
    onnx_sha256: str
    weights_sha256: str | None
    fixed: dict[str, int] = Field(description="free dimensions of the ONNX file that became numbers, and inputs")
    profiles: tuple[Profile, ...] = Field(min_length=1)
    workspace_bytes: int | None

    def fingerprint(self) -> str:
        """Hex digest of the request."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def fixed_numbers(name: str, fixed: Mapping[str, int]) -> tuple[int, ...]:
    """The content of an input that a build folded into the graph; nothing where it did not.

    Args:
        fixed: of a request: a number by the input's name, or one for each place, `name.0`, `name.1`, ...
    """
    if name in fixed:
        return (fixed[name],)
    places = range(sum(key.rpartition(".")[0] == name for key in fixed))
    return tuple(fixed[f"{name}.{place}"] for place in places)


class PlanSpec(Strict):
    """The content of `<graph>.json` beside `<graph>.engine`."""

    schema_version: Literal[1] = SIDECAR_VERSION
    request: PlanRequest
    plan: FileSpec
    inputs: tuple[TensorSpec, ...] = Field(description="of the network; a number where the build fixed a dimension")
    outputs: tuple[TensorSpec, ...]
    aliases: dict[str, str] = Field(description="output -> the input whose memory it must share")
    left_out: tuple[str, ...] = Field(
        description="attributes of the graph's operators that the target has no choice for"
    )
    layers: dict[str, int] = Field(description="layers of the network definition, by type")
    built_at: str = Field(description="UTC, ISO 8601")
    build_seconds: float = Field(ge=0)
    built_by: dict[str, str] = Field(description="versions of the libraries that built it")

    @property
    def graph(self) -> str:
        return self.request.graph


def plan_file(folder: Path, graph: str) -> Path:
    return folder / f"{graph}.engine"


def sidecar_file(folder: Path, graph: str) -> Path:
    return folder / f"{graph}.json"


def write_sidecar(folder: Path, spec: PlanSpec) -> None:
    """Write `<graph>.json`, sealed with a digest of its own content."""
    sidecar_file(folder, spec.graph).write_bytes(_sealed(spec))


def read_sidecar(folder: Path, graph: str) -> PlanSpec:
    """The sidecar of a plan in an engine set's folder.

    Raises:
        BundleError: missing, altered, of another schema, or about another plan; the message names the file.
    """
    path = sidecar_file(folder, graph)
    try:
        content = path.read_bytes()
        fields = json.loads(content)
        version = fields["schema_version"]
        fields.pop("sha256", None)
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise BundleError(f"{path}: not readable as a plan's sidecar; {REBUILD}") from None
    if version != SIDECAR_VERSION:
        raise BundleError(f"{path}: schema version {version}, not {SIDECAR_VERSION}; {REBUILD}")
    try:
        spec = PlanSpec.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "sidecar"
        raise BundleError(f"{path}: {where}: {first['msg']}; {REBUILD}") from None
    # Byte for byte: whoever edits a range or a version by hand gets no plan that misbehaves on a GPU.
    if content != _sealed(spec):
        raise BundleError(f"{path}: it was altered (its seal does not match); {REBUILD}")
    if spec.graph != graph or spec.plan.path != plan_file(folder, graph).name:
        raise BundleError(f"{path}: it describes another plan ({spec.plan.path}); {REBUILD}")
    return spec


def _sealed(spec: PlanSpec) -> bytes:
    fields = spec.model_dump(mode="json")
    fields["sha256"] = hashlib.sha256(json.dumps(fields).encode()).hexdigest()
    return (json.dumps(fields, indent=1) + "\n").encode()
