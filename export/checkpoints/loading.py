"""Loading a checkpoint: a Hub id or a local folder, safetensors only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.utils import logging as hf_logging

from catp.export.checkpoints.adapter import CONFIG as ADAPTER_CONFIG
from catp.export.checkpoints.adapter import adapter_file, merge_adapter
from catp.export.checkpoints.weight_files import stored_dtype
from catp.export.families import Family, family_of
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

    @property
    def generation_config(self) -> GenerationConfig:
        # Hugging Face's BLIP-2 generates with its language model's configuration, not with its own.
        language_model = getattr(self.model, "language_model", None)
        return GenerationConfig() if language_model is None else language_model.generation_config

    @property
    def placeholder_id(self) -> int:
        """What stands for a query token among a prompt's ids."""
        return getattr(self.model.config, _placeholder(self.family))


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
        UsageError: not a checkpoint of a supported family, not safetensors, or not to be had offline; or the adapter
            is none of it.
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
    try:
        loaded, info = family.model_class().from_pretrained(
            model,
            **source,
            dtype=dtype or stored_dtype(model, revision),
            attn_implementation="eager",
            use_safetensors=True,
            output_loading_info=True,
        )
        tokenizer = _tokenizer(model, source, adapter)
        image_processor = family.image_processor(model, source)
        instruction_tokenizer = None
        if family.reads_instruction:
            instruction_tokenizer = AutoTokenizer.from_pretrained(model, **source, subfolder=INSTRUCTION_TOKENIZER)
    except SafetensorError as error:
        raise CatpError(f"model {model}: its weights are broken ({error}); fetch or save them again") from None
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, OSError) and "safetensors" in str(error):
            raise UsageError(_pickled(model)) from None
        raise CatpError(f"model {model}: it can't be loaded ({_first_line(error)})") from None
    if info["missing_keys"]:
        names = sorted(info["missing_keys"])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise CatpError(f"model {model}: weights are missing: {', '.join(names[:3])}{more}; save the checkpoint again")
    if adapter is not None:
        merge_adapter(loaded, adapter)
    loaded.eval()
    family.check(loaded, model)
    if not tokenizer("Question:").input_ids:
        raise UsageError(f"model {model}: it has no tokenizer (tokenizer.json); save its processor beside the weights")
    if getattr(loaded.config, _placeholder(family)) is None:
        # Checkpoints from before processors had an image token: any id will do that no prompt contains.
        known = tokenizer.get_vocab()
        setattr(loaded.config, _placeholder(family), known.get(f"<{family.sees}>", tokenizer.pad_token_id))
    revision = getattr(config, "_commit_hash", None) or revision
    checkpoint = Checkpoint(model, revision, family, loaded, tokenizer, image_processor, instruction_tokenizer)
    _check_vocabulary(checkpoint)
    return checkpoint


def _placeholder(family: Family) -> str:
    return f"{family.sees}_token_index"


def _tokenizer(model: str, source: Mapping[str, Any], adapter: str | None) -> Any:
    if adapter is not None and adapter_file(adapter, "tokenizer_config.json") is not None:
        return AutoTokenizer.from_pretrained(adapter, trust_remote_code=False)
    return AutoTokenizer.from_pretrained(model, **source)


def _check_vocabulary(checkpoint: Checkpoint) -> None:
    """Every token that a prompt can have needs an embedding; the image's placeholder is never looked up."""
    model, rows = checkpoint.id, len(checkpoint.model.get_input_embeddings().weight)
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
    if not any(folder.glob("*.safetensors")):
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
            raise UsageError(_pickled(str(folder)))
        raise UsageError(f"model {folder}: the folder has no *.safetensors weights")


def _pickled(model: str) -> str:
    return (
        f"model {model}: it has no safetensors weights, and pickled ones (.bin) are refused: unpickling runs whatever "
        "code they contain; convert them "
        "where you trust them: from_pretrained(...).save_pretrained(folder, safe_serialization=True)"
    )


def _not_found(model: str, folder: Path, error: Exception) -> str:
    if is_dir(folder):
        return f"model {model}: config.json is not a supported model's ({_first_line(error)})"
    return (
        f"model {model}: no such folder here, and the Hub gave nothing ({_first_line(error)}); "
        "check the name and the network, or give a local checkpoint folder"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
