"""catp-convert: checkpoints in formats of their own to Hugging Face folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from catp.runtime.commands.console import busy, console, make_group
from catp.runtime.errors import UsageError
from catp.runtime.system.optional_imports import reason_of

EXAMPLE_TOKENIZER = "Salesforce/blip-vqa-base"
CLIP_TOKENIZER = "openai/clip-vit-large-patch14-336"


def convert_madtp(
    file: Annotated[Path, typer.Argument(help="The .pth file that MADTP's or BLIP's official code saved.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the Hugging Face checkpoint.")],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help=f"BERT's tokenizer, which is not in the file: a local folder or a Hub id ({EXAMPLE_TOKENIZER}); "
            f"of a CLIP its own ({CLIP_TOKENIZER})."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier conversion.")] = False,
) -> None:
    """Convert a BLIP for question answering, captions, retrieval or NLVR2, or a CLIP, with MADTP's part or without.

    The file is unpickled in a process of its own, and no code in it is run. Every weight is accounted for, or nothing
    is written. For example:

    catp-convert madtp checkpoint_02.pth --tokenizer Salesforce/blip-vqa-base -o blip-vqa-madtp

    catp-convert blip model_base_vqa_capfilt_large.pth --tokenizer Salesforce/blip-vqa-base -o blip-vqa
    """
    if tokenizer is None:
        raise UsageError(
            "--tokenizer is missing: the vocabulary is not in a .pth file; give a folder or Hub id with "
            f"bert-base-uncased's tokenizer, such as {EXAMPLE_TOKENIZER}, or of a CLIP its own, such as "
            f"{CLIP_TOKENIZER}"
        )
    try:
        from catp.export.conversion import madtp
        from catp.export.conversion.listing import listed
    except ImportError as error:
        raise UsageError(
            f"catp-convert needs {error.name}, which {reason_of(error, error.name)}; pip install '.[export]'"
        ) from None
    found = madtp.convert_madtp(file, output, tokenizer, overwrite, busy)
    vision = found.config.vision_config
    pruning = (
        f"space_dict {' x '.join(map(str, found.guidance))}, temperature {found.temperature:g}"
        if found.guidance
        else f"no space_dict, so it is a plain {found.task.title[:4]}"
    )
    console.print(
        f"{found.task.title}: {found.names} of {found.names} weights, images of {vision.image_size} pixels in "
        f"patches of {vision.patch_size}; {pruning}",
        soft_wrap=True,
    )
    if found.left_out:
        console.print(escape(f"Left out, as only training reads it: {listed(found.left_out)}"), soft_wrap=True)
    console.print(f"Published {escape(str(output))}", soft_wrap=True)


app = make_group(
    "Convert checkpoints of other projects to Hugging Face folders. Both names take the same files.",
    {"madtp": convert_madtp, "blip": convert_madtp},
)
