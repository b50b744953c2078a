"""The model of a repository, as Triton's Python backend runs it; copied there, and importable nowhere else."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton  # the backend's own

from catp.runtime import CatpError, Pipeline, UsageError

_TAKEN = b"used_dltensor"


class TritonPythonModel:
    """Answers in pieces: Triton calls these methods, by these names."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle beside this file, and run every graph once: the first client waits for nothing."""
        parameters = json.loads(args["model_config"])["parameters"]
        provider = parameters["provider"]["string_value"]
        self._pipeline = Pipeline.load(Path(__file__).parent / "bundle", provider=provider)
        for _ in self._pipeline.stream(np.zeros((8, 8, 3), np.uint8), "a", max_new_tokens=2):
            pass

    def execute(self, requests: list[Any]) -> None:
        """Send each answer as it grows; its last response has an empty text and says so."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                for piece in self._pieces(request):
                    if sender.is_cancelled():
                        break
                    sender.send(_response(piece, last=False))
                last = _response("", last=True)
            except CatpError as error:
                kinds = triton.TritonError
                kind = kinds.INVALID_ARG if isinstance(error, UsageError) else kinds.INTERNAL
                last = triton.InferenceResponse(output_tensors=[], error=kinds(str(error), kind))
            sender.send(last, flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _pieces(self, request: Any) -> Any:
        image, prompt = _read(request, "image"), _read(request, "prompt")
        ratio, most = _read(request, "ratio"), _read(request, "max_new_tokens")
        assert image is not None and prompt is not None  # Triton refuses a request without
        try:
            text = prompt.tobytes().decode()
        except UnicodeDecodeError:
            raise UsageError("prompt: no UTF-8; give the bytes of a text") from None
        return self._pipeline.stream(
            image.tobytes(),
            text,
            None if ratio is None else float(ratio[0]),
            max_new_tokens=None if most is None else int(most[0]),
        )


def _read(request: Any, name: str) -> np.ndarray | None:
    """An input; by DLPack, as a backend that was built for NumPy 1 gives arrays without strides otherwise."""
    tensor = triton.get_input_tensor_by_name(request, name)
    return None if tensor is None else np.from_dlpack(tensor)


def _response(piece: str, last: bool) -> Any:
    text = np.frombuffer(bytearray(piece.encode()), np.uint8)
    return triton.InferenceResponse([_write("text", text), _write("last", np.array([last], np.int32))])


def _write(name: str, array: np.ndarray) -> Any:
    """An output, likewise by DLPack."""
    lent = _Lent(array)
    tensor = triton.Tensor.from_dlpack(name, lent)
    # The backend renames what it has taken as only it does, of which NumPy complains on standard error.
    ctypes.pythonapi.PyCapsule_SetName(ctypes.py_object(lent.capsule), _TAKEN)
    return tensor


class _Lent:
    """An array on its way to the backend, with the capsule that it goes in."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.capsule: Any = None

    def __dlpack__(self, **options: Any) -> Any:
        self.capsule = self._array.__dlpack__(**options)
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()
