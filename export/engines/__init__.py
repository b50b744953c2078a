"""Engines from a bundle's graphs: ONNX to TensorRT plans, for both TensorRT products."""
