"""Checkpoint to bundle: may know torch, transformers and onnx. Import what you need from its modules."""

import catp.runtime.system.telemetry  # noqa: F401  before a module here imports ONNX Runtime
