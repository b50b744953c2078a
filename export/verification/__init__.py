"""Exported graphs against the checkpoint run by PyTorch, before anything is published."""
