"""The modules that a graph's nodes came from, as PyTorch's exporter notes them."""

from __future__ import annotations

import ast
import re

SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata of nodes: the modules, outermost first, then the node itself."""

_SLICE = re.compile(r"\.slice\([^)]*\)")


def module_of(scopes: str) -> str | None:
    """The innermost module, such as "vision_model.encoder.layers.0.mlp.fc2"; none where it is not noted."""
    try:
        modules = [scope for scope in ast.literal_eval(scopes or "[]")[:-1] if scope]
    except (ValueError, SyntaxError):
        return None
    # A slice of a module list (Llama's `layers[:n]`) is a scope too: its name is no part of the path.
    return _SLICE.sub("", modules[-1]) if modules else None
