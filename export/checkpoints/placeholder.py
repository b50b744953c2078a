"""The id that stands for a query token among a prompt's ids, where Hugging Face's models are run.

They look its embedding up, and then put the query token in its place. Checkpoints from before processors had a file
name none, or one without an embedding, or one that prompts contain too: none of that matters here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_NO_TOKEN = -1


@contextmanager
def placeholder_without_embedding(model: Any, name: str) -> Iterator[int]:
    """The id that stands for a query token while it lasts: no token's, and without an embedding.

    Args:
        name: of the configuration's field that names it, "image_token_index".
    """

    def look_up_another(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0].clamp(min=0), *inputs[1:])

    configured = getattr(model.config, name)
    hook = model.get_input_embeddings().register_forward_pre_hook(look_up_another)
    setattr(model.config, name, _NO_TOKEN)
    try:
        yield _NO_TOKEN
    finally:
        setattr(model.config, name, configured)
        hook.remove()
