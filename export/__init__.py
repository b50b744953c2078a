"""Checkpoint to bundle: may know torch, transformers and onnx. Import what you need from its modules."""
