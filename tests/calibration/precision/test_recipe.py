"""Which formats go with which runtime, and what is chosen where nothing is asked for."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx_ir as ir
import pytest

from catp.calibration.commands.calibrate_precision import make_recipes
from catp.calibration.precision.formats import FORMATS
from catp.calibration.precision.graphs.layers import Layer
from catp.calibration.precision.recipe import BLOCK_SIZES, Recipe, make_recipe
from catp.runtime import UsageError
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.bundle.manifest import Format


@pytest.mark.parametrize(
    ("format", "purpose", "asked", "activations", "needs_ranges"),
    [
        ("int8", "cpu", None, "dynamic", False),
        ("int8", "cpu", "dynamic", "dynamic", False),
        ("int8", "cpu", "static", "static", True),
        ("int8", "tensorrt", None, "static", True),
        ("int8", "tensorrt", "static", "static", True),
        ("fp8", "tensorrt", None, "static", True),
        ("int4", "cpu", None, "float", False),
        ("int4", "tensorrt", None, "float", False),
        ("int4", "cpu", "dynamic", "float", False),  # beside graphs in int8, which are asked for the same
        ("int4", "tensorrt", "static", "float", False),
    ],
)
def test_activations(format: Any, purpose: Any, asked: Any, activations: str, needs_ranges: bool) -> None:
    recipe = make_recipe(format, purpose, asked)
    assert (recipe.format, recipe.purpose) == (format, purpose)
    assert (recipe.activations, recipe.needs_ranges) == (activations, needs_ranges)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fp8", "cpu"), r"fp8 for cpu: ONNX Runtime has no FP8 kernels for CPUs; give int8, or --for tensorrt"),
        (("int8", "tensorrt", "dynamic"), r"dynamic activations for tensorrt: .*; give static"),
        (("fp8", "tensorrt", "dynamic"), r"dynamic activations for fp8: it has none; give static"),
        (("int8", "cpu", "float"), r"activations 'float': unknown; accepted: static, dynamic"),
        (("int4", "cpu", None, 48), r"block size 48: .*; accepted: 16, 32, 64, 128, 256"),
        (("int4", "cpu", None, 0), r"block size 0: "),
        (("int16", "cpu"), r"int16 for cpu: unknown; accepted: int8, fp8, int4 for cpu or tensorrt"),
        (("int8", "openvino"), r"int8 for openvino: unknown"),
    ],
)
def test_what_can_not_be_computed_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_recipe(*arguments)


def test_a_manifest_knows_every_format() -> None:
    assert tuple(FORMATS) == get_args(Format)


def test_block_sizes() -> None:
    assert [make_recipe("int4", "cpu", None, size).block_size for size in BLOCK_SIZES] == [16, 32, 64, 128, 256]
    assert make_recipe("int4", "cpu").block_size == 128


def layer(depth: int) -> Layer:
    return Layer("l", "n", "x", 24, ir.tensor(np.zeros((depth, 8), np.float32)), False)


def test_tensorrt_takes_whole_blocks_alone() -> None:
    recipe = make_recipe("int4", "tensorrt", None, 64)
    assert [recipe.takes(layer(depth)) for depth in (64, 128, 96, 60)] == [True, True, False, False]
    for other in (
        make_recipe("int4", "cpu", None, 64),
        make_recipe("int8", "tensorrt"),
        make_recipe("fp8", "tensorrt"),
    ):
        assert all(other.takes(layer(depth)) for depth in (64, 96, 60))


def test_tables_are_for_a_cpu() -> None:
    table = replace(layer(60), is_table=True)
    assert all(make_recipe(format, "cpu").takes(table) for format in ("int8", "int4"))  # type: ignore[arg-type]
    assert not any(make_recipe(format, "tensorrt").takes(table) for format in ("int8", "fp8", "int4"))  # type: ignore[arg-type]


def test_precisions_that_a_graph_may_have(demo_bundle: Path, half_bundle: Path) -> None:
    full = open_bundle(demo_bundle).manifest.graphs["vision_encoder"]
    half = open_bundle(half_bundle).manifest.graphs["vision_encoder"]
    for format in ("int8", "int4"):
        make_recipe(format, "cpu").check("vision_encoder", full)  # type: ignore[arg-type]
        make_recipe(format, "tensorrt").check("vision_encoder", half)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=r"vision_encoder: it is in fp16, .* --precision fp32"):
            make_recipe(format, "cpu").check("vision_encoder", half)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"vision_encoder: it is in bf16, .*; give an fp32 or fp16 bundle"):
        make_recipe("int8", "tensorrt").check("vision_encoder", full.model_copy(update={"precision": "bf16"}))


@pytest.mark.parametrize(
    ("to", "own", "wanted"),
    [
        ("int8", (None, None, None), ("int8", "int8", "int8")),
        ("int8", (None, None, "int4"), ("int8", "int8", "int4")),
        ("int8", ("none", None, "none"), (None, "int8", None)),
        ("int4", (None, None, None), (None, None, "int4")),  # it pays where weights are read more than used
        ("int4", ("int4", "int8", None), ("int4", "int8", "int4")),
        (None, (None, "int8", None), (None, "int8", None)),
    ],
)
def test_graphs_have_formats_of_their_own(to: Any, own: Any, wanted: Any) -> None:
    recipes: dict[str, Recipe] = make_recipes(to, own, "cpu", None, 32, True)
    names = ("vision_encoder", "qformer_voting", "language_model")
    assert tuple(recipes[name].format if name in recipes else None for name in names) == wanted
    for recipe in recipes.values():
        assert (recipe.options.block_size, recipe.options.reduce_range) == (32, True)


@pytest.mark.parametrize(
    ("to", "own"), [(None, (None, None, None)), ("int8", ("none",) * 3), ("int4", (None, None, "none"))]
)
def test_nothing_to_quantise_is_a_mistake(to: Any, own: Any) -> None:
    with pytest.raises(UsageError, match="nothing to quantise: give --to, or one of --vision, --qformer, --language"):
        make_recipes(to, own, "cpu", None, 128, False)
