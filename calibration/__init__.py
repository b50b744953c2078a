"""Data to decisions: what accuracy a bundle keeps, and with which ratio and precision."""

import catp.runtime.system.telemetry  # noqa: F401  before a module here imports ONNX Runtime
