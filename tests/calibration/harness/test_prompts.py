from pathlib import Path

from catp.calibration.harness.arguments import Arguments
from catp.calibration.harness.prompts import read_prompt
from catp.runtime import Pipeline
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.bundle.manifest import Manifest

TEXT = "<image>\nwhat is it?\nAnswer the question using a single word or phrase."


def prompt(manifest: Manifest, text: str = TEXT, **arguments: object) -> str:
    return read_prompt(text, Arguments.model_validate({"bundle": "a", **arguments}), manifest)


def test_every_family_reads_what_it_was_trained_on(
    pipeline: Pipeline, instructblip_bundle: Path, vqa_bundle: Path, caption_bundle: Path
) -> None:
    blip2, bare = pipeline.manifest, "what is it?\nAnswer the question using a single word or phrase."
    assert prompt(blip2) == f"Question: {bare} Answer:"
    assert prompt(blip2, first_line=True) == "Question: what is it? Answer:"
    for folder in (instructblip_bundle, vqa_bundle):
        manifest = open_bundle(folder, verify=False).manifest
        assert (prompt(manifest), prompt(manifest, first_line=True)) == (bare, "what is it?")
    captions = open_bundle(caption_bundle, verify=False).manifest
    assert prompt(captions) == ""
    assert prompt(captions, prompt_template="a picture of") == "a picture of"


def test_a_template_stands_around_the_text(pipeline: Pipeline) -> None:
    manifest = pipeline.manifest
    assert prompt(manifest, " why? ", prompt_template="Q: {text} Short answer:") == "Q: why? Short answer:"
    assert prompt(manifest, "{text}", prompt_template="{text}!") == "{text}!"
    assert prompt(manifest, "describe it", prompt_template="") == ""
    assert prompt(manifest, "", prompt_template="a photo of {text}") == "a photo of "


def test_no_text_asks_for_a_caption(pipeline: Pipeline) -> None:
    assert prompt(pipeline.manifest, " \n") == prompt(pipeline.manifest, "<image>") == ""
