"""A model that reads image tokens, some of them pruned inside its encoder, behind the server."""

from __future__ import annotations

from pathlib import Path

from servers import chat, running

from catp.export.demo.vqa import samples
from catp.runtime import Pipeline


def test_it_answers_as_the_pipeline_does(pruned_bundle: Path) -> None:
    pipeline = Pipeline.load(pruned_bundle)
    seen = set()
    with running(pipeline, rows=2) as server:
        for sample in samples():
            (wanted,) = pipeline.ask(sample.image, [sample.prompt])
            found = server.ask(**chat(sample.prompt, sample.image)).json()
            assert found["choices"][0]["message"]["content"] == wanted.answer
            assert found["catp"]["kept_indices"] == wanted.kept_indices == sorted(wanted.kept_indices)
            assert found["catp"]["image_cached"] == (sample.image in seen)
            seen.add(sample.image)
    assert 1 < len(seen) < len(samples())


def test_captions_go_on_from_the_text_that_is_sent(caption_bundle: Path) -> None:
    pipeline, image = Pipeline.load(caption_bundle), samples()[0].image
    with running(pipeline, rows=2) as server:
        for text in ("", "what is"):
            (wanted,) = pipeline.ask(image, [text])
            (choice,) = server.ask(**chat(text, image)).json()["choices"]
            assert choice["message"]["content"] == wanted.answer


def test_what_only_votes_can_do_is_refused(pruned_bundle: Path) -> None:
    sample = samples()[0]
    with running(Pipeline.load(pruned_bundle)) as server:
        for fields, words in (
            ({"explain": True}, "has no votes to explain"),
            ({"ratio": 0.5}, "has no query tokens to leave out"),
            ({"keep_mass": 0.5}, "has no query tokens to leave out"),
        ):
            response = server.ask(**chat(sample.prompt, sample.image), **fields)
            assert response.status_code == 400 and words in response.json()["error"]["message"]
