"""Loading a checkpoint: a Hub id or a local folder, safetensors only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.utils import logging as hf_logging

from catp.export.checkpoints.adapter import adapter_file, merge_adapter
from catp.export.checkpoints.adapter_config import CONFIG as ADAPTER_CONFIG
from catp.export.checkpoints.reading import cause, reading
from catp.export.checkpoints.weight_files import pickled, stored_dtype, weight_files
from catp.export.families import Family, check_not_quantised, family_of
from catp.runtime.errors import CatpError, UsageError
from catp.runtime.files import is_dir

INSTRUCTION_TOKENIZER = "qformer_tokenizer"
"""Folder of a checkpoint whose Q-Former has a tokenizer of its own, as Hugging Face's processors name it."""


@dataclass
class Checkpoint:
    """A loaded model with eager attention, and what prepares its inputs."""

    id: str
    revision: str | None
    family: Family
    model: Any
    tokenizer: Any
    image_processor: Any
    instruction_tokenizer: Any = None  # the Q-Former's own, where it reads the prompt
    adapter: str | None = None  # what was merged into it

    @property
    def generation_config(self) -> GenerationConfig:
        return self.family.generation_config(self.model)

    @property
    def placeholder_id(self) -> int | None:
        """The id that stands for a query token among a prompt's ids; None: nothing does."""
        name = self.family.placeholder
        return None if name is None else getattr(self.model.config, name)


def load_checkpoint(
    model: str,
    revision: str | None = None,
    dtype: torch.dtype | None = torch.float32,
    adapter: str | None = None,
) -> Checkpoint:
    """Load a checkpoint with Hugging Face `from_pretrained`; HF_HOME and HF_HUB_OFFLINE are honoured.

    Args:
        model: a local folder or a Hub id.
        revision: branch, tag or commit of a Hub id.
        dtype: of the weights; None: the widest that they are stored in. In the type that its file has, a weight is
            mapped: it takes no memory before it is read.
        adapter: a LoRA adapter, a local folder or a Hub id, that is merged into the weights. A tokenizer that it brings
            takes the place of the checkpoint's.

    Raises:
        UsageError: not a checkpoint of a supported family, not safetensors, or unavailable offline; or the adapter
            is not one for it.
        CatpError: the weights are broken or incomplete.
    """
    folder = Path(model)
    if is_dir(folder):
        _check_folder(folder)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    # Code that comes with a checkpoint is never run, and nobody is asked whether it should be.
    source: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(model, **source)
    except Exception as error:  # a configuration can be wrong in as many ways as it has fields
        raise UsageError(_not_found(model, folder, error)) from None
    family = family_of(config, model)
    check_not_quantised(config, model)
    files = weight_files(model, revision)
    stored = stored_dtype(files)
    tokenizer = _tokenizer(model, source, adapter)
    with reading(f"model {model}: its image processor can't be loaded", "save its processor again"):
        image_processor = family.image_processor(model, source)
    instruction_tokenizer = _instruction_tokenizer(model, source) if family.reads_instruction else None
    loaded = _model(family, model, source, dtype or stored, files)
    if adapter is not None:
        merge_adapter(loaded, adapter)
    loaded.eval()
    family.check(loaded, model)
    family.check_tokenizer(tokenizer, model)
    if family.placeholder is not None and getattr(loaded.config, family.placeholder) is None:
        # Checkpoints from before processors had an image token: the one of the tokenizer, or a new one, as Hugging
        # Face's processor adds. No prompt contains it, and its embedding, which there may be none of, is never read.
        known, token = tokenizer.get_vocab(), f"<{family.placeholder.partition('_')[0]}>"
        setattr(loaded.config, family.placeholder, known.get(token, max(known.values()) + 1))
    revision = getattr(config, "_commit_hash", None) or revision
    checkpoint = Checkpoint(model, revision, family, loaded, tokenizer, image_processor, instruction_tokenizer, adapter)
    _check_vocabulary(checkpoint)
    return checkpoint


def _model(family: Family, model: str, source: Mapping[str, Any], dtype: torch.dtype, files: Sequence[Path]) -> Any:
    """The model with all of its weights, in `dtype`."""
    try:
        with reading(f"model {model}: it can't be loaded", "fetch or save the checkpoint again"):
            loaded, info = family.model_class().from_pretrained(
                model,
                **source,
                dtype=dtype,
                attn_implementation="eager",
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are named below
                output_loading_info=True,
            )
    except CatpError:
        if not files:  # on the Hub there are none, and none that somebody has converted
            raise UsageError(pickled(model)) from None
        raise
    if missing := sorted(info["missing_keys"]):
        raise CatpError(f"model {model}: weights are missing: {_some(missing)}; save the checkpoint again")
    if other := [f"{name} {list(found)} instead of {list(wanted)}" for name, found, wanted in info["mismatched_keys"]]:
        raise CatpError(
            f"model {model}: weights have other shapes than config.json says: {_some(sorted(other))}; "
            "fetch or save the checkpoint again"
        )
    return loaded


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _tokenizer(model: str, source: Mapping[str, Any], adapter: str | None) -> Any:
    """The tokenizer of the prompts."""
    own: dict[str, Any] = {"trust_remote_code": False}
    where, name, given = ("model", model, {**own, **source})
    if adapter is not None and adapter_file(adapter, "tokenizer_config.json") is not None:
        where, name, given = ("adapter", adapter, own)
    with reading(f"{where} {name}: its tokenizer can't be loaded", "save its tokenizer again"):
        tokenizer = AutoTokenizer.from_pretrained(name, **given)
        ids = tokenizer("Question:").input_ids
    if not ids:
        raise UsageError(f"{where} {name}: it has no tokenizer (tokenizer.json); save its processor beside the weights")
    return tokenizer


def _instruction_tokenizer(model: str, source: Mapping[str, Any]) -> Any:
    """The tokenizer of what the Q-Former reads, which lies in a folder of its own."""
    where = f"model {model}: the tokenizer of its Q-Former, in the folder {INSTRUCTION_TOKENIZER}/,"
    advice = "save its processor (processor.save_pretrained(folder)) beside the weights"
    if is_dir(Path(model)) and not is_dir(Path(model) / INSTRUCTION_TOKENIZER):
        raise UsageError(f"{where} is missing; {advice}")
    with reading(f"{where} can't be loaded", advice):
        tokenizer = AutoTokenizer.from_pretrained(model, **source, subfolder=INSTRUCTION_TOKENIZER)
        ids = tokenizer("Question:").input_ids
    if not ids:
        raise UsageError(f"{where} has no words (tokenizer.json is missing); {advice}")
    return tokenizer


def _check_vocabulary(checkpoint: Checkpoint) -> None:
    """Every token that a prompt can have needs an embedding; the image's placeholder is never looked up."""
    model, rows = checkpoint.id, len(checkpoint.family.word_embeddings(checkpoint.model).weight)
    known = checkpoint.tokenizer.get_vocab().values()
    used = max(number for number in known if number != checkpoint.placeholder_id)
    if used >= rows:
        raise UsageError(
            f"model {model}: its tokenizer has tokens up to {used}, and its language model has embeddings for {rows}; "
            "call resize_token_embeddings(len(tokenizer)) and save both again"
        )


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        if (folder / ADAPTER_CONFIG).is_file():
            raise UsageError(
                f"model {folder}: it is an adapter; give the model that it was trained on, and --adapter {folder}"
            )
        raise UsageError(
            f"model {folder}: the folder has no config.json; give a Hugging Face checkpoint folder or a Hub id"
        )


def _not_found(model: str, folder: Path, error: Exception) -> str:
    if is_dir(folder):
        return f"model {model}: config.json is not a supported model's ({cause(error)})"
    return (
        f"model {model}: no such folder here, and the Hub gave nothing ({cause(error)}); "
        "check the name and the network, or give a local checkpoint folder"
    )
