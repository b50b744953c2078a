"""A graph's outer shape: it is refused where it has what no export and no calibration writes, before a session is made.

Only straight graphs of known operators are let through: none of these loops, calls, or reads a file, so a graph ends,
and what it reads is listed in the manifest. How large its tensors become is left to the engine.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from catp.runtime.bundle.protobuf import MalformedError, UnknownFieldError, read
from catp.runtime.errors import BundleError
from catp.runtime.limits import GRAPH_BYTES

if TYPE_CHECKING:
    from catp.runtime.bundle.folder import Bundle

_EXPORTED = """
Add And ArgMax Attention Cast Clip Concat Conv Cos Div Equal Expand Gather GatherElements GatherND Gelu Gemm Greater
Identity IsInf LayerNormalization Less LessOrEqual Log MatMul Max Min Mod Mul Neg Not Pow Range Reciprocal ReduceL2
ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape ScatterElements Shape Sigmoid Sin Slice Softmax Split Sqrt
Squeeze Sub Tanh TensorScatter TopK Transpose Unsqueeze Where
"""
"""In bundles of every family, method and precision."""

_ACTIVATIONS = "Erf Exp HardSwish LeakyRelu Mish PRelu Softplus"
"""In those of other checkpoints: what transformers' activations become."""

_CALIBRATED = "DequantizeLinear DynamicQuantizeLinear MatMulInteger QuantizeLinear"

_OF_ONNX_RUNTIME = "GroupQueryAttention MatMulNBits"
"""In calibrated bundles for a CPU."""

OPERATORS: Final[dict[str, frozenset[str]]] = {
    "": frozenset(f"{_EXPORTED} {_ACTIVATIONS} {_CALIBRATED}".split()),
    "com.microsoft": frozenset(_OF_ONNX_RUNTIME.split()),
}
"""By domain, all that these programs write."""

# Field numbers of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, and which of them are looked into.
_GRAPH_FIELD, _NODE_FIELD, _INITIALIZER, _ATTRIBUTE_FIELD, _OP_TYPE, _DOMAIN, _EXTERNAL, _KEY, _VALUE = (
    7, 1, 5, 5, 4, 7, 13, 1, 2,
)  # fmt: skip


def _known(wanted: tuple[int, ...], others: tuple[int, ...]) -> dict[int, bool]:
    return dict.fromkeys(wanted, True) | dict.fromkeys(others, False)


_MODEL = _known((_GRAPH_FIELD,), (1, 2, 3, 4, 5, 6, 8, 14))
"""No functions (25) and no training (20)."""
_GRAPH = _known((_NODE_FIELD, _INITIALIZER), (2, 10, 11, 12, 13, 16))
"""No sparse tensors (15)."""
_NODE = _known((_ATTRIBUTE_FIELD, _OP_TYPE, _DOMAIN), (1, 2, 3, 6, 9))
_ATTRIBUTE = _known((), (1, 2, 3, 4, 7, 8, 9, 13, 20))
"""Numbers and strings: no tensors, graphs, types, and no references to what a function is called with."""
_TENSOR = _known((_EXTERNAL,), (1, 2, 4, 5, 7, 8, 9, 10, 11, 12, 14, 16))
_ENTRY = _known((_KEY, _VALUE), ())


class _RefusedError(ValueError):
    """Something that is not let through."""


def check_graph(bundle: Bundle, graph: str) -> None:
    """Raises BundleError where a graph's file is not of the kind that these programs write, or reads another file than
    the manifest lists for it."""
    spec = bundle.manifest.graphs[graph]
    path = bundle.file(spec.file)
    if spec.file.size > GRAPH_BYTES:
        raise BundleError(f"bundle {bundle.path}: {spec.file.path} has more than {GRAPH_BYTES:,} bytes without weights")
    weights = None
    if spec.external_data is not None:
        listed = PurePosixPath(spec.external_data.path)
        if listed.parent == PurePosixPath(spec.file.path).parent:
            weights = listed.name.encode()
    try:
        reason = refusal(path.read_bytes(), weights)
    except OSError as error:
        raise BundleError(f"bundle {bundle.path}: {spec.file.path} can't be read ({error.strerror})") from None
    if reason:
        raise BundleError(
            f"bundle {bundle.path}: {spec.file.path} {reason}; export the bundle again, from a checkpoint you trust"
        )


def refusal(model: bytes, weights: bytes | None) -> str | None:
    """Why an ONNX file is not let through; None where it is.

    Args:
        weights: the name of the only file beside it that its tensors may be in.
    """
    try:
        _check_model(model, weights)
    except MalformedError as error:
        return f"is no ONNX file ({error})"
    except _RefusedError as error:
        return f"has {error}, which catp-export does not write"
    return None


def _check_model(model: bytes, weights: bytes | None) -> None:
    attributes: set[bytes] = set()
    for _, graph in _read("the model", model, _MODEL):
        for number, content in _read("the graph", graph, _GRAPH):
            if number == _NODE_FIELD:
                _check_node(content, attributes)
            else:
                _check_tensor(content, weights)


def _check_node(node: bytes, attributes: set[bytes]) -> None:
    """`attributes` are those that were let through before: most nodes repeat another's, and reading takes a while."""
    operator = domain = b""
    for number, content in _read("an operator", node, _NODE):
        if number == _ATTRIBUTE_FIELD:
            if content not in attributes:
                _read("an attribute", content, _ATTRIBUTE)
                attributes.add(content)
        elif number == _OP_TYPE:
            operator = content
        else:
            domain = content
    if _text(operator) not in OPERATORS.get(_text(domain), ()):
        name = f"{_text(domain)}.{_text(operator)}" if domain else _text(operator)
        raise _RefusedError(f"an operator {name[:100]!r}")


def _check_tensor(tensor: bytes, weights: bytes | None) -> None:
    for _, content in _read("a tensor", tensor, _TENSOR):
        entry = dict(_read("the place of a tensor", content, _ENTRY))  # of repeated ones the last counts
        if entry.get(_KEY) == b"location" and entry.get(_VALUE) != weights:
            raise _RefusedError(f"weights in the file {_text(entry.get(_VALUE, b''))[:200]!r}")


def _read(what: str, message: bytes, known: dict[int, bool]) -> list[tuple[int, bytes]]:
    try:
        return read(message, known)
    except UnknownFieldError as error:
        raise _RefusedError(f"in {what} a field {error.number} (a graph, a function, a tensor)") from None


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
