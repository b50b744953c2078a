"""Conversion of a checkpoint of MADTP's official code (https://github.com/double125/MADTP) to a Hugging Face folder.

A plain BLIP or CLIP, on which that code is built, is converted likewise: it has no `space_dict`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import GenerationConfig
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.utils import SAFE_WEIGHTS_NAME
from transformers.utils import logging as hf_logging

from catp.export.checkpoints.madtp import SETTINGS, SPACE_DICT, WEIGHTS, check_space_dict, check_temperature
from catp.export.conversion.blip_config import Shapes, read_config
from catp.export.conversion.blip_names import POSITION_IDS, TIED, Kind, Task, is_left_out, rename, task_of
from catp.export.conversion.blip_tokenizer import ENCODE, load_tokenizer, save_tokenizer
from catp.export.conversion.clip import convert_clip, is_clip
from catp.export.conversion.clip.folder import TASK as CLIP
from catp.export.conversion.unpickling import Unpickled, unpickle
from catp.export.conversion.weights import Values, check_names, check_shapes, write_weights
from catp.export.nlvr import BlipForNlvr2
from catp.runtime.bundle.publish import published
from catp.runtime.errors import CatpError, UsageError
from catp.runtime.system.progress import Progress, silent

_GENERATION: dict[Kind, dict[str, int]] = {
    "question answering": {"max_length": 10, "min_length": 1, "num_beams": 3},
    "captions": {"max_length": 20, "min_length": 5, "num_beams": 3},
}
"""Settings of the official evaluation; lengths count the tokens that the decoder begins with."""


@dataclass(frozen=True)
class Converted:
    """The outcome of a conversion."""

    task: Task
    config: Any
    """Hugging Face's."""
    names: int
    """Weights of Hugging Face's class, by names; all of them were found."""
    left_out: tuple[str, ...]
    """Names that only training reads."""
    guidance: tuple[int, ...] | None
    """Shape of `space_dict`; None: it is a plain BLIP or CLIP."""
    temperature: float
    """0, which prunes nothing, of a plain one."""


def convert_madtp(
    file: Path, output: Path, tokenizer: str, overwrite: bool = False, progress: Progress = silent
) -> Converted:
    """Convert a `.pth` file; the folder is published in one step.

    Args:
        tokenizer: a local folder or a Hub id with BERT's, or of a CLIP with its own, which is not in the file.
        overwrite: replace a folder that an earlier conversion made.

    Raises:
        UsageError: the file, the tokenizer or the folder is none that can be taken.
        CatpError: the file is broken, or the folder can't be written.
    """
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    with published(output, overwrite, holds=SETTINGS) as folder:
        _check_disk(file, folder)
        raw = folder / ".unpickled"
        raw.mkdir()
        with progress(f"unpickle {file}"):
            content = unpickle(file, raw)
        with progress("convert"):
            found = _convert(f"file {file}", content, folder, tokenizer)
        shutil.rmtree(raw)
    return found


def _check_disk(file: Path, folder: Path) -> None:
    """The weights are written twice: out of the pickle, and renamed."""
    needed = 2 * file.stat().st_size if file.is_file() else 0
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CatpError(
            f"output: the conversion needs {needed / 1e9:,.3f} GB in {folder.parent}, and {free / 1e9:,.3f} GB are "
            "free; free some, or give another folder with --output"
        )


def _convert(where: str, content: Unpickled, folder: Path, tokenizer_source: str) -> Converted:
    with safe_open(content.tensors, framework="pt") as tensors:
        stored = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 (it's no dict)
        shapes = {name: tuple(part.get_shape()) for name, part in stored.items()}
        names = {**{name: name for name in shapes}, **content.aliases}
        pruned = SPACE_DICT in names
        temperature = check_temperature(where, content.temperature) if pruned else 0.0
        if is_clip(names):
            values = Values(where, tensors)
            config, count, left_out, guidance = convert_clip(where, names, shapes, values, folder, tokenizer_source)
            _finish(folder, temperature)
            return Converted(CLIP, config, count, left_out, _shape(guidance), temperature)
        task = task_of(where, names)
        left_out = tuple(name for name in names if is_left_out(task, name))
        renamed = {name: rename(task, name) for name in names if name != SPACE_DICT and name not in left_out}
        mapped = {new: names[old] for old, new in renamed.items() if new is not None}
        config = read_config(where, task, {new: shapes[old] for new, old in mapped.items()})
        if pruned:
            check_space_dict(where, shapes[names[SPACE_DICT]], config.vision_config.hidden_size)
        wanted = _shapes_of(task, config)
        check_names(where, task, wanted, mapped, [old for old, new in renamed.items() if new is None])
        check_shapes(where, wanted, {new: shapes[old] for new, old in mapped.items()})
        # Before the weights are read: a wrong tokenizer is known at once.
        tokenizer = load_tokenizer(
            tokenizer_source, config.text_config.vocab_size, config.text_config.max_position_embeddings
        )
        values = Values(where, tensors)
        _check_positions(values, {name: names[name] for name in left_out if POSITION_IDS.fullmatch(name)})
        _check_tied(values, mapped)
        weights = {new: values.weight(old) for new, old in mapped.items() if new not in TIED}
        write_weights(folder / SAFE_WEIGHTS_NAME, weights)
        guidance = values.weight(names[SPACE_DICT]) if pruned else None
        if guidance is not None:
            write_weights(folder / WEIGHTS, {SPACE_DICT: guidance.float()})
    _name_tokens(config, tokenizer)
    types = {value.dtype for value in weights.values()}
    config.dtype = types.pop() if len(types) == 1 else torch.float32
    config.save_pretrained(folder)
    _finish(folder, temperature)
    side = config.vision_config.image_size
    BlipImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)
    # Questions begin with [ENC] in the official code. Texts for retrieval begin with [CLS] where they are compared by
    # their features, which is what a tokenizer can say once.
    asks = task.kind in ("question answering", "statements about two images")
    save_tokenizer(tokenizer, folder, ENCODE if asks else "[CLS]")
    if task.kind in _GENERATION:
        text = config.text_config
        ids = {"bos_token_id": text.bos_token_id, "eos_token_id": text.sep_token_id, "pad_token_id": text.pad_token_id}
        GenerationConfig(**ids, **_GENERATION[task.kind]).save_pretrained(folder)
    return Converted(task, config, len(wanted), left_out, _shape(guidance), temperature)


def _finish(folder: Path, temperature: float) -> None:
    """Write the temperature, beside a configuration and weights that are there."""
    (folder / SETTINGS).write_text(json.dumps({"temperature": temperature}) + "\n")
    for path in folder.glob("*.safetensors"):  # which safetensors writes for nobody else to read
        path.chmod((folder / "config.json").stat().st_mode)


def _shape(guidance: torch.Tensor | None) -> tuple[int, ...] | None:
    return None if guidance is None else tuple(guidance.shape)


def _shapes_of(task: Task, config: Any) -> Shapes:
    """Shapes of the weights of Hugging Face's class, by its names; tied ones are there under each."""
    with torch.device("meta"):
        model = (getattr(transformers, task.architecture, BlipForNlvr2))(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _check_positions(values: Values, position_ids: Mapping[str, str]) -> None:
    for name, stored in position_ids.items():
        value = values.get(stored).flatten()
        if not torch.equal(value, torch.arange(len(value), dtype=value.dtype)):
            raise UsageError(f"{values.where}: {name} does not count from 0, as Hugging Face's positions do")


def _check_tied(values: Values, mapped: Mapping[str, str]) -> None:
    """Hugging Face's class has one weight where two of the official code's names are said to be one."""
    for name, other in TIED.items():
        if name in mapped and not torch.equal(values.weight(mapped[name]), values.weight(mapped[other])):
            raise UsageError(f"{values.where}: {name} and {other} differ, and Hugging Face's class has one for both")


def _name_tokens(config: Any, tokenizer: Any) -> None:
    """Write the ids of the tokens that frame an answer into the configuration."""
    text = config.text_config
    text.bos_token_id, text.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
    text.sep_token_id = text.eos_token_id = tokenizer.sep_token_id
