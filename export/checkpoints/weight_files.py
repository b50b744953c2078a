"""A checkpoint's safetensors: which files they are, and in what type they hold weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from catp.export.checkpoints.reading import reading
from catp.runtime.errors import UsageError
from catp.runtime.files import is_dir

_HALF = {"F16": torch.float16, "BF16": torch.bfloat16}


def weight_files(model: str, revision: str | None = None) -> list[Path]:
    """The files that transformers reads: `model.safetensors`, or those that the index beside it names, and no other.

    Args:
        model: a local folder or a Hub id, whose weights are fetched.

    Returns:
        None where the Hub has none of these names, which loading the model explains.

    Raises:
        UsageError: of a local folder, it has none of these names, or not all that its index names.
        CatpError: the index is none, or the Hub can't be reached.
    """
    if whole := find_file(model, SAFE_WEIGHTS_NAME, revision):
        return [whole]
    if index := find_file(model, SAFE_WEIGHTS_INDEX_NAME, revision):
        names = _names(model, index)
        files = {name: find_file(model, name, revision) for name in names}
        if missing := [name for name, path in files.items() if path is None]:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise UsageError(
                f"model {model}: {', '.join(missing[:3])}{more} of the {len(names)} files that {index.name} names "
                f"{'is' if len(missing) == 1 else 'are'} missing; fetch or save the checkpoint again"
            )
        return [path for path in files.values() if path is not None]
    if is_dir(Path(model)):
        raise UsageError(_no_weights(Path(model)))
    return []


def find_file(model: str, name: str, revision: str | None = None) -> Path | None:
    """A file of a checkpoint, fetched where that is on the Hub; None where the checkpoint has none of this name.

    Raises:
        CatpError: the Hub can't be reached.
    """
    if is_dir(Path(model)):
        return path if (path := Path(model) / name).is_file() else None
    with reading(f"model {model}: {name} can't be fetched", "check the network and the free disk"):
        fetched = cached_file(model, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if fetched is None else Path(fetched)


def stored_dtype(files: Sequence[Path]) -> torch.dtype:
    """The type that holds every weight exactly: half precision where all of them share one, float32 elsewhere.

    The files are asked, not config.json, which says what somebody once wanted to load.

    Raises:
        CatpError: a file is broken; the message names it.
    """
    found = set()
    for path in files:
        with (
            reading(f"weights {path}: the file is broken", "fetch or save the checkpoint again"),
            safe_open(path, framework="pt") as file,
        ):
            found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (it's no dict)
    return _HALF.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32


def pickled(model: str) -> str:
    """The message for a checkpoint that has no safetensors."""
    return (
        f"model {model}: it has no safetensors weights, and pickled ones (.bin) are refused: unpickling runs whatever "
        "code they contain; convert them "
        "where you trust them: from_pretrained(...).save_pretrained(folder, safe_serialization=True)"
    )


def _names(model: str, index: Path) -> list[str]:
    """The files of an index, each once."""
    with reading(f"model {model}: {index.name} is broken", "fetch or save the checkpoint again"):
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        if not names or not all(isinstance(name, str) and name for name in names):
            raise ValueError("its weight_map names no files")
        return sorted(names)


def _no_weights(folder: Path) -> str:
    wanted = f"neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}"
    if others := sorted(path.name for path in folder.glob("*.safetensors")):
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        return (
            f"model {folder}: it has {wanted}, which are read, but {', '.join(others[:3])}{more}; where these are the "
            f"weights (a variant, say), rename a single one to {SAFE_WEIGHTS_NAME}; of several, fetch the index too"
        )
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        return pickled(str(folder))
    return f"model {folder}: the folder has no *.safetensors weights ({wanted}); fetch or save the checkpoint again"
