"""How a plan is called: profile, shapes and shared memory, decided on the host before the device is touched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from catp.runtime.bundle.manifest import TensorSpec
from catp.runtime.bundle.plans import PlanSpec, Profile, fixed_numbers
from catp.runtime.errors import UsageError

Shape = tuple[int, ...]

_OPTIONS = {"batch": "--max-batch", "seq": "--max-prompt", "num_kept": "--ratio", "max_length": "--max-length"}
"""Options of catp-build that widen a dimension."""


_FOLDED = {"num_kept": ("ratio", "--fixed-ratio"), "kept_tokens": ("encoder schedule", "--fixed-schedule")}
"""Inputs that a build may fold into the graph: what users call them, and the option that does it."""


@dataclass(frozen=True)
class Launch:
    """One way to call a plan."""

    profile: int
    inputs: dict[str, Shape]  # tensors in device memory
    values: dict[str, Shape]  # shape tensors: their content, which stays in host memory
    outputs: dict[str, Shape]


def plan_launch(spec: PlanSpec, inputs: Mapping[str, Shape], values: Mapping[str, Shape]) -> Launch:
    """Choose the profile that a call fits, and compute the shapes of its outputs.

    Args:
        spec: the plan's sidecar.
        inputs: shape of every input in device memory.
        values: content of every shape tensor and of every input that the build folded into the graph.

    Raises:
        UsageError: the call is larger than the plan was built for; the message names the option that widens it.
        ValueError: the inputs are not the plan's, or contradict each other.
    """
    fixed = spec.request.fixed
    folded = {name: fixed_numbers(name, fixed) for name in values}
    for name, built in folded.items():
        if built and values[name] != built:
            what, option = _FOLDED[name]
            raise UsageError(
                f"{spec.graph}: {name} is {_listed(values[name])}, and these engines were built for {_listed(built)} "
                f"alone; use the {what} they were built for, or build without {option}"
            )
    values = {name: value for name, value in values.items() if not folded[name]}
    profile = _choose_profile(spec, inputs, values)
    extents = dict(fixed)
    for tensor in spec.inputs:
        shape = values[tensor.name] if tensor.name in values else inputs[tensor.name]
        if tensor.name in values:
            extents[tensor.name], extents[f"{tensor.name}[-1]"] = shape[0], shape[-1]
        for dimension, extent in zip(tensor.shape, inputs.get(tensor.name, ())):
            if isinstance(dimension, str) and extents.setdefault(dimension, extent) != extent:
                raise ValueError(
                    f"{spec.graph}: {tensor.name} is {_text(shape)}, but {dimension} is {extents[dimension]}"
                )
    outputs = {tensor.name: _resolve(tensor, extents) for tensor in spec.outputs}
    return Launch(profile, dict(inputs), values, outputs)


def shared_addresses(spec: PlanSpec, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> dict[str, int]:
    """Addresses of the outputs that live in an input's memory: the KV cache is updated in place.

    Raises:
        ValueError: an output was given memory of its own; the plan would write to neither as expected.
    """
    shared = {output: inputs[source] for output, source in spec.aliases.items()}
    for output, address in shared.items():
        if outputs.get(output, address) != address:
            raise ValueError(f"{spec.graph}: {output} must be bound to the memory of {spec.aliases[output]}")
    return shared


def _choose_profile(spec: PlanSpec, inputs: Mapping[str, Shape], values: Mapping[str, Shape]) -> int:
    misfits = []
    for index, profile in enumerate(spec.request.profiles):
        misfit = next(_misfits(spec, profile, inputs, values), None)
        if misfit is None:
            return index
        misfits.append(misfit)
    # The last profile is the narrowest kind of call; what the first one refuses is what the user can change.
    raise UsageError(f"{spec.graph}: {misfits[0]}")


def _misfits(
    spec: PlanSpec, profile: Profile, inputs: Mapping[str, Shape], values: Mapping[str, Shape]
) -> Iterator[str]:
    for ranges, given in ((profile.shapes, inputs), (profile.values, values)):
        if set(ranges) != set(given):
            raise ValueError(f"{spec.graph}: bound {sorted(given)}, but it takes {sorted(ranges)}")
        for name, allowed in ranges.items():
            if not allowed.holds(given[name]):
                yield (
                    f"{name} is {_text(given[name])}, and these engines take {_text(allowed.min)} to "
                    f"{_text(allowed.max)}; {_advice(spec, name, given[name], allowed.min, allowed.max)}"
                )


def _advice(spec: PlanSpec, name: str, given: Shape, low: Shape, high: Shape) -> str:
    tensor = next(tensor for tensor in spec.inputs if tensor.name == name)
    dimensions = (name,) if name in _OPTIONS else tensor.shape
    for dimension, extent, least, most in zip(dimensions, given, low, high):
        if not least <= extent <= most and dimension in _OPTIONS:
            return f"give a smaller {dimension}, or build with another {_OPTIONS[str(dimension)]}"
    return "export and build again"


def _resolve(tensor: TensorSpec, extents: Mapping[str, int]) -> Shape:
    return tuple(d if isinstance(d, int) else _extent(d, extents) for d in tensor.shape)


def _extent(dimension: str, extents: Mapping[str, int]) -> int:
    """A dimension's number, also of one such as "kept_tokens[-1] + 2"."""
    if dimension in extents:
        return extents[dimension]
    name, _, more = dimension.partition(" + ")
    if name not in extents or not more.isdecimal():
        raise UsageError(
            f"{dimension}: the device alone knows this size, and no such engine was ever executed; export with a "
            "schedule, or use --provider cpu"
        )
    return extents[name] + int(more)


def _listed(numbers: Shape) -> str:
    return ",".join(map(str, numbers))


def _text(shape: Shape) -> str:
    return "x".join(str(extent) for extent in shape)
