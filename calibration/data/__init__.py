"""Questions that measure a bundle's accuracy: the demo's scenes, easy-vqa, VQAv2, or a file of one's own."""

from __future__ import annotations

from pathlib import Path

from catp.calibration.data.dataset import DataSet, VqaExample
from catp.calibration.data.demo import DemoScenes
from catp.calibration.data.easy_vqa import NAME, EasyVqa
from catp.calibration.data.errors import DataError
from catp.calibration.data.jsonl import read_jsonl
from catp.calibration.data.nlvr2 import is_nlvr2, read_nlvr2
from catp.calibration.data.vqa_folder import open_vqa
from catp.runtime.errors import UsageError
from catp.runtime.files import is_dir

__all__ = ["DataError", "DataSet", "VqaExample", "open_data"]


def open_data(name_or_path: str) -> DataSet:
    """A data set by what it is: `demo`, `easy-vqa`, a folder with VQAv2 (or its file of questions), or a .jsonl file;
    a file of NLVR2's statements is known by its first line.

    A folder of such a name is written ./demo.

    Raises:
        UsageError: it is none of these, or something in the folder is missing or ambiguous.
        DataError: a file is broken.
    """
    if name_or_path == "demo":
        return DemoScenes()
    if name_or_path == NAME:
        return EasyVqa()
    path = Path(name_or_path)
    if is_nlvr2(path):
        return read_nlvr2(path)
    if path.suffix.lower() == ".jsonl":
        return read_jsonl(path)
    if is_dir(path) or path.suffix.lower() == ".json":
        return open_vqa(path)
    raise UsageError(
        f"data {name_or_path!r}: no such data set; accepted: demo, easy-vqa, a folder with VQAv2 as its zip files "
        "unpack, or a .jsonl file"
    )
