"""Prompts as the model reads them: the text of a task, and the words around it."""

from __future__ import annotations

from catp.calibration.harness.arguments import PLACE, Arguments
from catp.runtime.bundle.manifest import Manifest

BLIP2 = f"Question: {PLACE} Answer:"


def template_of(arguments: Arguments, manifest: Manifest) -> str:
    """The words around every text: those given, or else the family's own.

    BLIP-2 reads "Question: ... Answer:", as behind catp-serve. A model whose Q-Former reads the text, or that reads
    image tokens itself, gets the text alone, as it was trained. One for captions begins with nothing: tasks ask for
    captions in words that it would go on from.
    """
    if arguments.prompt_template is not None:
        return arguments.prompt_template
    if manifest.model.language == "captioning":
        return ""
    return BLIP2 if manifest.vote is not None and not manifest.reads_instruction else PLACE


def read_prompt(text: str, arguments: Arguments, manifest: Manifest) -> str:
    """The prompt of a task's text. A text that is empty asks for a caption, unless a template was given.

    The places of pictures, `<image>`, are left out, as by the harness's own InstructBLIP: the picture comes first.
    """
    text = text.replace("<image>", "").strip()
    if arguments.first_line:
        text = text.partition("\n")[0].strip()
    if not text and arguments.prompt_template is None:
        return ""
    return template_of(arguments, manifest).replace(PLACE, text)
