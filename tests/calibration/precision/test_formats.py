"""Every format against numpy: what is stored, and what ONNX Runtime makes of it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from catp.calibration.precision.formats.base import Range, initializer_bytes, single_layer
from catp.calibration.precision.formats.steps import step_size
from catp.calibration.precision.graphs.layers import Layer
from catp.calibration.precision.recipe import make_recipe
from catp.runtime.errors import CatpError
from catp.runtime.providers.onnx_runtime import OrtProvider

DEPTH, WIDTH, ROWS = 96, 40, 6
SEEN = Range(-2.5, 3.0)
"""Some of the activations are outside, and are cut off."""


def make(kind: Any = np.float32, depth: int = DEPTH, seed: int = 0, edit: Callable[[Any], Any] = lambda w: w) -> Any:
    """A layer, its weight [K, N] and what it reads [rows, K]."""
    rng = np.random.default_rng(seed)
    weight = edit(rng.normal(0, 0.05, (depth, WIDTH)) * rng.uniform(0.2, 5, WIDTH)).astype(kind)
    layer = Layer("module", "node", "x", 24, ir.tensor(weight), False)
    return layer, weight, rng.normal(0.2, 1, (ROWS, depth)).astype(kind)


def quantise(layer: Layer, format: str, purpose: str, activations: str | None = None, **options: Any) -> Any:
    recipe = make_recipe(format, purpose, activations, **options)  # type: ignore[arg-type]
    return recipe.fragment(layer, {"x": SEEN} if recipe.needs_ranges else {})


def compute(fragment: onnx.GraphProto, purpose: Any, x: np.ndarray, width: int = WIDTH) -> np.ndarray:
    """As the product runs it."""
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    y = fragment.output[0].name
    inputs, outputs = (
        [helper.make_tensor_value_info(name, kind, ["rows", size])] for name, size in (("x", x.shape[1]), (y, width))
    )
    graph = helper.make_graph(list(fragment.node), "g", inputs, outputs, list(fragment.initializer))
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11).SerializeToString()
    return OrtProvider("cpu").engine_in_memory(model, Path(), purpose).bind({"x": x}).run()[y].numpy()


def stored(fragment: onnx.GraphProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in fragment.initializer}


def operators(fragment: onnx.GraphProto) -> list[str]:
    return sorted(node.op_type for node in fragment.node)


def assert_close(found: np.ndarray, wanted: np.ndarray, tolerance: float = 2e-6) -> None:
    """Relative to the largest."""
    np.testing.assert_allclose(found, wanted, atol=tolerance * float(np.abs(wanted).max()), rtol=0)


def int8_columns(weight: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric, a scale per column."""
    scale = np.abs(weight).max(axis=0) / np.float32(limit)
    return np.clip(np.rint(weight / scale), -limit, limit), scale


def uint8(x: np.ndarray, low: float, high: float) -> tuple[np.ndarray, float, int]:
    """x between low and high, and 0, as 0 .. 255; scale and zero point."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255)
    zero = int(np.rint(-low / scale))
    return np.clip(np.rint(x / scale) + zero, 0, 255), float(scale), zero


@pytest.mark.parametrize("reduced", [False, True])
def test_dynamic_int8(reduced: bool) -> None:
    layer, weight, x = make()
    fragment = quantise(layer, "int8", "cpu", reduce_range=reduced)
    assert operators(fragment) == ["Cast", "DynamicQuantizeLinear", "MatMulInteger", "Mul", "Mul"]
    w, scales = int8_columns(weight, 64 if reduced else 127)
    tensors = stored(fragment)
    assert tensors["node.weight_quantized"].dtype == np.int8 and not tensors["node.weight_zero_point"].any()
    np.testing.assert_array_equal(tensors["node.weight_quantized"], w)
    # 7 bits: the sum of two products with 255 fits into 16 bits, which older CPUs add them in.
    assert np.abs(w).max() == (64 if reduced else 127) and (not reduced or 2 * 255 * np.abs(w).max() < 2**15)
    np.testing.assert_allclose(tensors["node.weight_scale"], scales, rtol=1e-6)
    for shift in (0.0, 4.0, -4.0):  # the second and third time, all activations have one sign
        values = (x * (0.3 if shift else 1) + shift).astype(np.float32)
        q, scale, zero = uint8(values, values.min(), values.max())
        assert_close(compute(fragment, "cpu", values), ((q - zero) @ w) * scale * scales)


@pytest.mark.parametrize("reduced", [False, True])
def test_static_int8_for_a_cpu(reduced: bool) -> None:
    layer, weight, x = make()
    fragment = quantise(layer, "int8", "cpu", "static", reduce_range=reduced)
    assert operators(fragment) == ["DequantizeLinear", "DequantizeLinear", "MatMul", "QuantizeLinear"]
    w, scales = int8_columns(weight, 64 if reduced else 127)
    q, scale, zero = uint8(x, SEEN.low, SEEN.high)
    tensors = stored(fragment)
    assert tensors["x_zero_point"].dtype == np.uint8 and tensors["x_zero_point"] == zero != 0
    np.testing.assert_array_equal(tensors["node.weight_quantized"], w)
    assert (x > SEEN.high).any() and q.max() == 255
    assert_close(compute(fragment, "cpu", x), ((q - zero) @ w) * scale * scales)


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_static_int8_for_tensorrt(kind: Any) -> None:
    layer, weight, x = make(kind)
    fragment = quantise(layer, "int8", "tensorrt")
    tensors = stored(fragment)
    # It takes nothing but int8 around 0.
    assert {name: array.dtype for name, array in tensors.items() if name.endswith("zero_point")} == {
        "x_zero_point": np.int8,
        "node.weight_zero_point": np.int8,
    }
    assert not tensors["x_zero_point"].any() and not tensors["node.weight_zero_point"].any()
    scale = np.float32(3.0 / 127).astype(kind)  # the larger end of what was seen
    assert tensors["x_scale"].dtype == kind and tensors["x_scale"] == pytest.approx(scale, rel=1e-3)
    w, _ = int8_columns(weight.astype(np.float32), 127)
    assert np.abs(tensors["node.weight_quantized"] - w).max() <= (0 if kind == np.float32 else 1)
    scales = tensors["node.weight_scale"].astype(np.float64)
    np.testing.assert_allclose(scales * 127, np.abs(weight.astype(np.float64)).max(axis=0), rtol=1e-3)
    q = np.clip(np.rint(x.astype(np.float32) / tensors["x_scale"].astype(np.float32)), -128, 127)
    wanted = (q * float(tensors["x_scale"])) @ (tensors["node.weight_quantized"] * scales)
    assert_close(compute(fragment, "tensorrt", x), wanted, 1e-5 if kind == np.float32 else 5e-3)


def nibbles(packed: np.ndarray) -> np.ndarray:
    """[..., 2 n]: the lower half of each byte comes first."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


@pytest.mark.parametrize("depth", [DEPTH, 40])
@pytest.mark.parametrize("block", [16, 32, 128])
def test_int4_for_a_cpu(block: int, depth: int) -> None:
    """Also where the last block is not full."""
    layer, weight, x = make(depth=depth)
    fragment = quantise(layer, "int4", "cpu", block_size=block)
    (node,) = fragment.node
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    assert (node.op_type, node.domain) == ("MatMulNBits", "com.microsoft")
    assert attributes == {"K": depth, "N": WIDTH, "bits": 4, "block_size": block, "accuracy_level": 4}
    packed, scales, zeros = (stored(fragment)[name] for name in node.input[1:4])
    blocks = -(-depth // block)
    scales = scales.reshape(WIDTH, blocks, 1)
    zero = nibbles(zeros.reshape(WIDTH, -1))[:, :blocks, None]
    values = (nibbles(packed).astype(np.float64) - zero) * scales
    restored = values.reshape(WIDTH, -1)[:, :depth].T
    steps = np.repeat(np.abs(scales[:, :, 0]), block, axis=1)[:, :depth].T
    assert (np.abs(restored - weight) <= 0.5 * steps * 1.001 + 1e-7).all()
    # A block between low and high, and 0, has fifteen steps.
    for n, b in np.ndindex(WIDTH, blocks):
        part = weight[b * block : (b + 1) * block, n]
        spread = max(part.max(), 0) - min(part.min(), 0)
        assert scales[n, b, 0] == pytest.approx(spread / 15, rel=1e-4)
    # Inside, activations become int8 block by block: about one part in 250 of the largest.
    error = compute(fragment, "cpu", x) - x.astype(np.float64) @ restored
    assert np.sqrt(np.mean(error**2)) < 0.01 * (x @ restored).std()


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("block", [16, 32])
def test_int4_for_tensorrt(block: int, kind: Any) -> None:
    layer, weight, x = make(kind)
    fragment = quantise(layer, "int4", "tensorrt", block_size=block)
    assert operators(fragment) == ["DequantizeLinear", "MatMul"]
    (restore,) = (node for node in fragment.node if node.op_type == "DequantizeLinear")
    assert {a.name: a.i for a in restore.attribute} == {"axis": 0, "block_size": block}
    tensors = stored(fragment)
    q, scales = tensors[restore.input[0]], tensors[restore.input[1]]
    assert q.dtype == ml_dtypes.int4 and q.shape == weight.shape and scales.shape == (DEPTH // block, WIDTH)
    assert not [name for name in restore.input[2:] if tensors[name].any()]  # no zero point but 0
    steps = np.repeat(scales.astype(np.float64), block, axis=0)
    restored = q.astype(np.float64) * steps
    relative = np.abs(restored - weight.astype(np.float64)) / np.abs(steps)
    # -8 .. 7: the block's largest becomes -8, whatever its sign; what is nearly as large on the other side is cut off.
    cut = weight.astype(np.float64) / steps > 7.5
    slack = 1e-4 if kind == np.float32 else 0.01
    assert (relative[~cut] <= 0.5 + slack).all() and (relative[cut] <= 1 + slack).all() and cut.mean() < 0.05
    assert_close(
        compute(fragment, "tensorrt", x), x.astype(np.float64) @ restored, 1e-5 if kind == np.float32 else 5e-3
    )


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_fp8(kind: Any) -> None:
    layer, weight, x = make(kind)
    fragment = quantise(layer, "fp8", "tensorrt")
    assert operators(fragment) == ["DequantizeLinear", "DequantizeLinear", "MatMul", "QuantizeLinear"]
    fp8 = ml_dtypes.float8_e4m3fn
    tensors = stored(fragment)
    assert tensors["node.weight_fp8"].dtype == tensors["x_fp8_zero"].dtype == fp8
    scales, scale = tensors["node.weight_fp8_scale"].astype(np.float64), float(tensors["x_fp8_scale"])
    assert scale == pytest.approx(3.0 / 448, rel=1e-3)
    np.testing.assert_allclose(scales * 448, np.abs(weight.astype(np.float64)).max(axis=0), rtol=1e-3)
    restored = tensors["node.weight_fp8"].astype(np.float64) * scales
    # Three bits of mantissa: half a step is a sixteenth of the number, or of the smallest normal one.
    floor = 2.0**-6 * scales
    assert (np.abs(restored - weight) <= np.maximum(np.abs(weight), floor) / 16 * 1.01).all()
    q = np.clip(x.astype(np.float32) / np.float32(scale), -448, 448).astype(fp8).astype(np.float64)
    assert (np.abs(x) > 3.0).any() and np.abs(q).max() == 448
    wanted = (q * scale) @ restored
    found = compute(fragment, "tensorrt", x)
    if kind == np.float32:
        assert_close(found, wanted, 1e-5)
    else:  # x / scale is rounded to float16 first, which moves a few activations to the next number
        assert np.sqrt(np.mean((found - wanted) ** 2)) < 0.005 * wanted.std()


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_tables_have_a_scale_for_each_row(format: str, run: Callable) -> None:
    table, weight, _ = make(edit=lambda w: w * (np.arange(DEPTH) != 3)[:, None])  # a token that was never seen
    fragment = quantise(replace(table, is_table=True, input="ids"), format, "cpu")
    tensors = stored(fragment)
    scales = np.abs(weight).max(axis=1, keepdims=True) / 127
    q, scale = tensors["node.int8"], tensors["node.scale"]
    assert (q.dtype, q.shape, scale.shape) == (np.int8, weight.shape, (DEPTH, 1)) and np.abs(q).max() == 127
    np.testing.assert_allclose(scale, scales, rtol=1e-6, atol=1e-30)
    assert (np.abs(q * scale - weight) <= 0.5001 * scales).all()
    assert initializer_bytes(fragment) == DEPTH * (WIDTH + 4)
    ids = np.array([[0, 3, 95], [7, 7, 1]])
    model = helper.make_model(fragment, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    del model.graph.input[:], model.graph.output[:]
    model.graph.input.append(helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["a", "b"]))
    model.graph.output.append(helper.make_tensor_value_info(fragment.output[0].name, onnx.TensorProto.FLOAT, None))
    (found,) = run(model.SerializeToString(), Path(), {"ids": ids}).values()
    np.testing.assert_allclose(found, (q * scale)[ids], rtol=1e-6)
    assert found.shape == (2, 3, WIDTH) and not found[0, 1].any()


@pytest.mark.parametrize(
    ("format", "purpose", "activations", "wanted"),
    [
        ("int8", "cpu", "dynamic", DEPTH * WIDTH + WIDTH * (4 + 1)),
        ("int8", "cpu", "static", DEPTH * WIDTH + (WIDTH + 1) * (4 + 1)),
        ("int8", "tensorrt", "static", DEPTH * WIDTH + (WIDTH + 1) * (4 + 1)),
        ("fp8", "tensorrt", "static", DEPTH * WIDTH + (WIDTH + 1) * (4 + 1)),
        ("int4", "cpu", None, DEPTH * WIDTH // 2 + 3 * WIDTH * 4 + 2 * WIDTH),  # three zero points take two bytes
        ("int4", "tensorrt", None, DEPTH * WIDTH // 2 + 3 * WIDTH * 4),
    ],
)
def test_bytes_are_those_of_weights_scales_and_zero_points(
    format: str, purpose: str, activations: str | None, wanted: int
) -> None:
    layer, _, _ = make()
    fragment = quantise(layer, format, purpose, activations, block_size=32)
    assert initializer_bytes(fragment) == wanted == sum(
        -(-int(np.prod(t.dims)) * bits(t.data_type) // 8) for t in fragment.initializer
    )  # fmt: skip


def bits(data_type: int) -> int:
    named: Mapping[str, int] = {"FLOAT": 32, "INT8": 8, "UINT8": 8, "FLOAT8E4M3FN": 8, "INT4": 4}
    return named[onnx.TensorProto.DataType.Name(data_type)]


_CASES = [
    ("int8", "cpu", "dynamic", np.float32),
    ("int8", "cpu", "static", np.float32),
    ("int8", "tensorrt", "static", np.float32),
    ("int8", "tensorrt", "static", np.float16),
    ("int4", "cpu", None, np.float32),
    ("int4", "tensorrt", None, np.float32),
    ("int4", "tensorrt", None, np.float16),
    ("fp8", "tensorrt", None, np.float32),
    ("fp8", "tensorrt", None, np.float16),
]  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("format", "purpose", "activations", "kind"), _CASES)
def test_an_output_that_nothing_contributes_to_stays_0(
    format: str, purpose: str, activations: str | None, kind: Any
) -> None:
    """A column of zeros has no largest number to be scaled by."""

    def edit(weight: np.ndarray) -> np.ndarray:
        weight[:, 3] = 0
        return weight

    layer, weight, x = make(kind, edit=edit)
    found = compute(quantise(layer, format, purpose, activations, block_size=32), purpose, x)
    assert not found[:, 3].any()
    wanted = x.astype(np.float64) @ weight.astype(np.float64)
    assert np.sqrt(np.mean((found - wanted) ** 2)) < 0.15 * wanted.std()


def error(fragment: onnx.GraphProto, purpose: str, x: np.ndarray, weight: np.ndarray) -> float:
    """Root mean square, relative to the product's own, in float64."""
    wanted = x.astype(np.float64) @ weight.astype(np.float64)
    found = compute(fragment, purpose, x).astype(np.float64)
    return float(np.sqrt(np.mean((found - wanted) ** 2)) / max(np.sqrt(np.mean(wanted**2)), 1e-300))


HALF_CASES = [case for case in _CASES if case[3] == np.float16]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("factor", [3e-3, 1e-4, 1e-5, 1e-6, 1e-7])
@pytest.mark.parametrize(("format", "purpose", "activations", "kind"), HALF_CASES)
def test_tiny_weights_in_half_precision_are_as_close_as_others(
    format: str, purpose: str, activations: str | None, kind: Any, factor: float
) -> None:
    """All of them, and those of some columns only: scales of 1e-10 are none in float16."""
    for columns in (slice(None), slice(1, 9)):

        def edit(weight: np.ndarray, columns: slice = columns) -> np.ndarray:
            weight[:, columns] *= 2 * factor
            return weight

        layer, weight, x = make(kind, edit=edit)
        fragment = quantise(layer, format, purpose, activations, **({"block_size": 32} if format == "int4" else {}))
        found = [t for name, t in stored(fragment).items() if "scale" in name]
        assert all(np.isfinite(scale).all() and scale.all() for scale in found)
        # The columns alone, or the others would hide them; the product itself has steps of 6e-8.
        narrow = np.clip(x, -2.5, 2.5)
        own = compute(fragment, purpose, narrow)[:, columns].astype(np.float64)
        exact = narrow.astype(np.float64) @ weight[:, columns].astype(np.float64)
        limit = {"int8": 0.02, "fp8": 0.05, "int4": 0.15}[format] * np.sqrt(np.mean(exact**2)) + 2.0**-25
        assert np.sqrt(np.mean((own - exact) ** 2)) < limit < 0.9 * exact.std()


@pytest.mark.parametrize("sign", [1, -1])
def test_int4_has_all_multiples_of_the_smallest_number(sign: int) -> None:
    """Up to 8 of them, whatever the sign of the largest."""
    multiples = np.random.default_rng(0).integers(-7, 8, (64, WIDTH))
    multiples[::32] = 8
    weight = (sign * multiples * float(np.finfo(np.float16).smallest_subnormal)).astype(np.float16)
    layer = Layer("module", "node", "x", 24, ir.tensor(weight), False)
    eye = np.eye(64, dtype=np.float16)
    np.testing.assert_array_equal(compute(quantise(layer, "int4", "tensorrt", block_size=32), "tensorrt", eye), weight)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("largest", [1e-3, 2e-5, 1e-6, 2e-7])
@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_tiny_inputs_in_half_precision_are_read(format: str, largest: float) -> None:
    """What a nearly dead layer puts out: whole multiples of float16's smallest number, which survive."""
    layer, weight, x = make(np.float16)
    x = (x * (largest / np.abs(x).max())).astype(np.float16)
    recipe = make_recipe(format, "tensorrt")  # type: ignore[arg-type]
    fragment = recipe.fragment(layer, {"x": Range(float(x.min()), float(x.max()))})
    scale = next(t for name, t in stored(fragment).items() if name in ("x_scale", "x_fp8_scale"))
    assert scale > 0 and np.isfinite(scale) and float(scale) * {"int8": 127, "fp8": 448}[format] >= np.abs(x).max()
    exact = x.astype(np.float64) @ weight.astype(np.float64)
    plain = compute(single_layer(layer).graph, "tensorrt", x)  # rounds the product as well
    found = compute(fragment, "tensorrt", x)
    rms = np.sqrt(np.mean((found - exact) ** 2))
    assert rms <= np.sqrt(np.mean((plain - exact) ** 2)) + {"int8": 0.03, "fp8": 0.06}[format] * exact.std()


@pytest.mark.parametrize("format", ["int8", "fp8"])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_an_input_that_was_always_0_stays_0(format: str, kind: Any) -> None:
    layer, _, x = make(kind)
    fragment = make_recipe(format, "tensorrt").fragment(layer, {"x": Range(0.0, 0.0)})  # type: ignore[arg-type]
    assert not compute(fragment, "tensorrt", np.zeros_like(x)).any()
    assert np.isfinite(compute(fragment, "tensorrt", x)).all()


@pytest.mark.parametrize("factor", [1.0, 1e-6, 1e-30])
def test_inputs_of_any_size_scaled_call_by_call(factor: float) -> None:
    layer, weight, x = make()
    fragment = quantise(layer, "int8", "cpu")
    assert error(fragment, "cpu", (x * factor).astype(np.float32), weight) < 0.02
    assert not compute(fragment, "cpu", np.zeros_like(x)).any()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("format", "purpose", "activations", "kind"), _CASES)
def test_a_matrix_of_zeros(format: str, purpose: str, activations: str | None, kind: Any) -> None:
    layer, _, x = make(kind, edit=np.zeros_like)
    found = compute(quantise(layer, format, purpose, activations, block_size=32), purpose, x)
    assert found.shape == (ROWS, WIDTH) and not found.any()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1e-37, 1e-39, 1e-44])
@pytest.mark.parametrize(("format", "purpose", "activations"), [c[:3] for c in _CASES if c[3] == np.float32])
def test_numbers_at_the_end_of_float32_are_no_noise(
    format: str, purpose: str, activations: str | None, size: float
) -> None:
    """Where a scale would no longer be a normal number, steps are as coarse as they have to be, or all is 0."""
    layer, weight, x = make(edit=lambda w: w * (size / np.abs(w).max()))
    found = compute(quantise(layer, format, purpose, activations, block_size=32), purpose, x).astype(np.float64)
    exact = x.astype(np.float64) @ weight.astype(np.float64)
    assert np.isfinite(found).all()
    assert np.sqrt(np.mean((found - exact) ** 2)) <= 1.3 * np.sqrt(np.mean(exact**2))


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_steps_against_float64(kind: Any) -> None:
    info, dtype = np.finfo(kind), np.dtype(kind)
    largest = np.concatenate([[0.0], 10.0 ** np.linspace(np.log10(float(info.smallest_subnormal)), 4, 400)])
    for steps in (8, 127, 448):
        sizes = step_size(largest, steps, dtype).astype(np.float64)
        exact = largest / steps
        assert (sizes > 0).all() and step_size(largest, steps, dtype).dtype == dtype
        normal = exact >= float(info.tiny)
        np.testing.assert_array_equal(sizes[normal], exact[normal].astype(kind).astype(np.float64))
        if kind == np.float16:  # the next one that reaches as far
            smallest = float(info.smallest_subnormal)
            np.testing.assert_array_equal(sizes[~normal], np.maximum(np.ceil(exact[~normal] / smallest), 1) * smallest)
        else:
            assert (sizes[~normal] == float(info.tiny)).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize(("format", "purpose", "activations", "kind"), _CASES)
def test_weights_that_are_no_number_are_refused(
    format: str, purpose: str, activations: str | None, kind: Any, wrong: float
) -> None:
    layer, weight, _ = make(kind)
    weight[5, 7] = wrong
    with pytest.raises(CatpError, match=r"module: it has weights that are no number, or infinite.*--exclude module"):
        quantise(layer, format, purpose, activations)
    with pytest.raises(CatpError, match="module: it has weights"):
        quantise(replace(layer, is_table=True), "int8", "cpu")


def test_a_transposed_weight_is_the_same_layer() -> None:
    layer, weight, x = make()
    turned = Layer("module", "node", "x", 24, ir.tensor(np.ascontiguousarray(weight.T)), True)
    assert (turned.depth, turned.nbytes) == (layer.depth, layer.nbytes)
    for format in ("int8", "int4"):
        one, other = (quantise(either, format, "cpu") for either in (layer, turned))
        assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
    assert compute(one, "cpu", x).shape == (ROWS, WIDTH)
