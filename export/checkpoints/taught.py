"""A scorer of image tokens that was taught, beside a checkpoint's weights.

`taught.safetensors` has a row for each layer of the vision encoder, `taught.json` how it came about. `catp-calibrate
scorer` writes both; the rule `taught` reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from catp.export.checkpoints.reading import reading
from catp.export.checkpoints.weight_files import find_file
from catp.runtime.bundle.encoder_pruning import TaughtSpec
from catp.runtime.errors import UsageError

WEIGHTS = "taught.safetensors"
RECORD = "taught.json"
SCORERS = "scorers"
"""The tensor's name."""

_AGAIN = "make it again with catp-calibrate scorer"


@dataclass(frozen=True)
class TaughtScorer:
    """A scorer with the record of how it was taught."""

    scorers: torch.Tensor  # float32 [L, W], a row for each layer: a token's score is its product with it
    record: TaughtSpec


def read_taught(model: str, layers: int, width: int, revision: str | None = None) -> TaughtScorer | None:
    """The files of a folder or a Hub id; None where it has none.

    Args:
        layers, width: of the vision encoder.

    Raises:
        UsageError: they are of another encoder.
        CatpError: a file is broken, or the Hub can't be reached.
    """
    weights, record = (find_file(model, name, revision) for name in (WEIGHTS, RECORD))
    if weights is None or record is None:
        if weights is None and record is None:
            return None
        raise UsageError(f"model {model}: {WEIGHTS} and {RECORD} belong together, and one is missing; {_AGAIN}")
    where = f"model {model}: {WEIGHTS}"
    with reading(f"{where} is broken", _AGAIN):
        tensors = load_file(weights)
    scorers = tensors.get(SCORERS)
    if scorers is None or len(tensors) > 1:
        raise UsageError(f"{where} has {', '.join(sorted(tensors)[:3]) or 'nothing'}; accepted: {SCORERS}; {_AGAIN}")
    if tuple(scorers.shape) != (layers, width):
        raise UsageError(
            f"{where}: {SCORERS} is {list(scorers.shape)}, and the vision encoder has {layers} layers of {width}; "
            f"{_AGAIN} from this checkpoint"
        )
    if not scorers.is_floating_point() or not bool(scorers.isfinite().all()):
        raise UsageError(f"{where}: {SCORERS} has values that are no finite numbers; {_AGAIN}")
    try:
        found = TaughtSpec.model_validate_json(record.read_bytes())
    except (ValidationError, OSError):
        raise UsageError(f"model {model}: {RECORD} is no record of a scorer; {_AGAIN}") from None
    if len(found.explained) != layers:
        raise UsageError(f"model {model}: {RECORD} is about {len(found.explained)} layers, not {layers}; {_AGAIN}")
    return TaughtScorer(scorers.float(), found)


def write_taught(found: TaughtScorer, folder: Path) -> None:
    """Both files, in a folder that exists; the record last, so that half of it is none."""
    (folder / RECORD).unlink(missing_ok=True)
    save_file({SCORERS: found.scorers.contiguous()}, folder / WEIGHTS)
    (folder / RECORD).write_text(found.record.model_dump_json(indent=1) + "\n")
