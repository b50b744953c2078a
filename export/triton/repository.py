"""A bundle as a model of a Triton repository: configuration, the Python backend's model, and the bundle itself.

https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_repository.html; pictures
and prompts are bytes, as the backend of a server built for NumPy 1 can't read strings under NumPy 2.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from catp.runtime.bundle.folder import Bundle
from catp.runtime.bundle.publish import check_free, link_or_copy, published
from catp.runtime.errors import UsageError

CONFIG_NAME = "config.pbtxt"

_CONFIG = """\
# Written by catp-export. A request: the bytes of a JPEG, PNG or WebP, and of a prompt in UTF-8.
# Its responses: parts of the answer's text in UTF-8; the last one is empty, and its "last" is 1.
name: "{name}"
backend: "python"
max_batch_size: 0
model_transaction_policy {{ decoupled: true }}
input [
  {{ name: "image" data_type: TYPE_UINT8 dims: [ -1 ] }},
  {{ name: "prompt" data_type: TYPE_UINT8 dims: [ -1 ] }},
  {{ name: "ratio" data_type: TYPE_FP32 dims: [ 1 ] optional: true }},
  {{ name: "max_new_tokens" data_type: TYPE_INT32 dims: [ 1 ] optional: true }}
]
output [
  {{ name: "text" data_type: TYPE_UINT8 dims: [ -1 ] }},
  {{ name: "last" data_type: TYPE_INT32 dims: [ 1 ] }}
]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
parameters {{ key: "provider" value: {{ string_value: "{provider}" }} }}
"""


def check_place(repository: Path, name: str, overwrite: bool = False) -> None:
    """Raises UsageError where the repository has another model of that name, or can't have one."""
    if repository.exists() and not repository.is_dir():
        raise UsageError(f"--triton {repository}: it is a file; give a folder")
    check_free(repository / name, overwrite, CONFIG_NAME)


def write_repository(bundle: Bundle, repository: Path, provider: str = "cpu", overwrite: bool = False) -> Path:
    """The bundle as a model of the repository, under its own name.

    Args:
        provider: what executes the graphs there.
        overwrite: a model of that name is replaced.

    Returns:
        The model's folder; files of the bundle have second names in it, where both are in one file system.

    Raises:
        UsageError: the bundle answers no questions about single pictures, or the place is taken.
        CatpError: it can't be written.
    """
    manifest, name = bundle.manifest, bundle.path.resolve().name
    if not manifest.writes_text or manifest.model.frames is not None:
        raise UsageError(
            f"--triton: bundle {bundle.path} is {manifest.model.family}; "
            "accepted: bundles that answer questions about one picture. Serve it with catp-serve"
        )
    check_place(repository, name, overwrite)
    model = repository / name
    with published(model, overwrite, CONFIG_NAME) as folder:
        version = folder / "1"
        version.mkdir()
        shutil.copytree(bundle.path, version / "bundle", copy_function=link_or_copy)
        shutil.copyfile(Path(__file__).with_name("model.py"), version / "model.py")
        (folder / CONFIG_NAME).write_text(_CONFIG.format(name=name, provider=provider))
    return model
