"""The table of families and checks in the README: every cell is computed here, and the README holds what came out."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from commands_by_family import check_row, notes_of, row_of, write_data, written_rows
from documents import table, text_of
from PIL import Image
from transformers import DynamicCache, EncoderDecoderCache
from transformers.models.auto.processing_auto import AutoProcessor
from typer.testing import CliRunner

from catp.calibration.commands.calibrate import app as calibrate_command
from catp.calibration.commands.eval import app as eval_command
from catp.export.checkpoints.loading import Checkpoint, load_checkpoint
from catp.export.commands.build import app as build_command
from catp.export.demo import CHECKPOINT, scenes
from catp.export.exporter import export_bundle
from catp.export.image_encoders.plan import EncoderOptions
from catp.export.verification.reference import Reference
from catp.runtime import Pipeline, UsageError
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.bundle.manifest import Positions
from catp.runtime.image_sides.pruned_encoder import EncoderWish

NEW_TOKENS = 6
YES = "yes"
NO_TOKENS = "scores texts"
NO_VOTE = "no vote"


@dataclass
class Family:
    """A bundle, its checkpoint, and eight questions of different length about as many images, or videos."""

    bundle: Path
    checkpoint: Path

    @cached_property
    def pipeline(self) -> Pipeline:
        return Pipeline.load(self.bundle)

    @cached_property
    def hugging_face(self) -> Checkpoint:
        return load_checkpoint(str(self.checkpoint))

    @cached_property
    def processor(self) -> Any:
        return AutoProcessor.from_pretrained(self.checkpoint, backend="pil")

    @cached_property
    def examples(self) -> list[scenes.Example]:
        return list(scenes.examples(8, seed=5))

    @property
    def frames(self) -> int:
        return self.pipeline.manifest.model.frames or 1

    @property
    def votes(self) -> bool:
        return self.pipeline.manifest.vote is not None

    @property
    def judges(self) -> bool:
        return self.pipeline.manifest.model.language == "two-images"

    @property
    def pairs(self) -> list[tuple[Any, Any]]:
        """Each image with the next one."""
        return [(self.images[row], self.images[(row + 1) % 8]) for row in range(8)]

    @property
    def pictures(self) -> list[list[Image.Image]]:
        """Of each image or video."""
        pictures = [example.image for example in self.examples]
        return [[pictures[(row + frame) % len(pictures)] for frame in range(self.frames)] for row in range(8)]

    @cached_property
    def images(self) -> list[Any]:
        """As the pipeline is given them."""
        return [frames if self.pipeline.manifest.model.frames else frames[0] for frames in self.pictures]

    @property
    def prompts(self) -> list[str]:
        return [" ".join([e.question.prompt, *["and"] * (i % 4)]) for i, e in enumerate(self.examples)]

    def answers(self, rows: list[int], **options: Any) -> list[Any]:
        """Of these questions, as one batch."""
        images, prompts = [self.images[row] for row in rows], [self.prompts[row] for row in rows]
        return self.pipeline.generate(images, prompts, max_new_tokens=NEW_TOKENS, **options)

    def _inputs(self, row: int) -> Any:
        return self.processor(images=self.images[row], text=self.prompts[row], return_tensors="pt")

    def _video_inputs(self, row: int) -> Any:
        """What Hugging Face's processor of videos makes, which needs torchvision."""
        tokenizer, model = self.hugging_face.tokenizer, self.hugging_face.model
        text = "<video>" * model.config.num_query_tokens * self.frames
        ids = tokenizer(text, add_special_tokens=False).input_ids + tokenizer(self.prompts[row]).input_ids
        instruction = self.hugging_face.instruction_tokenizer(self.prompts[row], return_tensors="pt")
        pixel_values = self.hugging_face.image_processor(self.pictures[row], return_tensors="pt").pixel_values
        return {
            "pixel_values": pixel_values[None],
            "qformer_input_ids": instruction.input_ids,
            "qformer_attention_mask": instruction.attention_mask,
            "input_ids": torch.tensor([ids]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        }

    @torch.no_grad()
    def generate(self, row: int, num_beams: int = 1) -> list[int]:
        """By Hugging Face's processor and `generate()`, nothing of ours in between."""
        inputs = self._video_inputs(row) if self.pipeline.manifest.model.frames else self._inputs(row)
        model = self.hugging_face.model
        if not self.votes:  # what comes back are the tokens of its decoder alone, a caption's beginning among them
            captions = self.pipeline.manifest.model.language == "captioning"
            begun = inputs["input_ids"].shape[1] - 1 if captions else 1
            output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=num_beams)
            return _without_pads(self, output[0, begun:].tolist())
        if model.language_model.config.is_encoder_decoder:  # its own cache has too few layers for a deeper decoder
            inputs["cache"] = EncoderDecoderCache(DynamicCache(), DynamicCache())
        output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=num_beams)[0].tolist()
        # What comes back may begin with the prompt or with the decoder's start token.
        given = inputs["input_ids"][0].tolist()
        if output[: len(given)] == given:
            return _without_pads(self, output[len(given) :])
        start = model.language_model.generation_config.decoder_start_token_id
        return _without_pads(self, output[1:] if start is not None else output)


def _without_pads(family: Family, tokens: list[int]) -> list[int]:
    """Beam search pads what ends before its longest beam does."""
    ends = set(family.pipeline.manifest.text.eos_token_ids)
    end = next((place + 1 for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:end]


def graphs(family: Family) -> str:
    """What the export measured against PyTorch, graph by graph."""
    manifest = family.pipeline.manifest
    assert {check.subject for check in manifest.parity} >= set(manifest.graphs)
    assert all(check.passed for check in manifest.parity if not check.advisory)
    return YES


def tokens(family: Family) -> str:
    actual = [answer.token_ids for answer in family.answers(list(range(8)), ratio=0)]
    assert actual == [family.generate(row) for row in range(8)]
    assert len({tuple(ids) for ids in actual}) > 4  # a model that says the same of everything shows nothing
    return YES


def batches(family: Family) -> str:
    for ratio in (0.0, 0.5) if family.votes else (0.0,):
        together = family.answers(list(range(8)), ratio=ratio)
        alone = [family.answers([row], ratio=ratio)[0] for row in range(8)]
        assert [(a.token_ids, a.kept_indices) for a in together] == [(a.token_ids, a.kept_indices) for a in alone]
    return YES


def beams(family: Family) -> str:
    """Three beams: `generate()`'s tokens, and those of a batch of eight, pruned."""
    together = family.answers(list(range(8)), ratio=0, num_beams=3)
    assert [answer.token_ids for answer in together] == [family.generate(row, num_beams=3) for row in range(8)]
    ratio = 0.5 if family.votes else 0
    together = family.answers(list(range(8)), ratio=ratio, num_beams=3)
    alone = [family.answers([row], ratio=ratio, num_beams=3)[0] for row in range(8)]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    return YES


def pruned(family: Family, positions: Positions) -> str:
    """The tokens of Hugging Face's language model, given the same kept tokens."""
    if not family.votes:
        with pytest.raises(UsageError, match="has no query tokens to leave out"):
            family.answers([0], ratio=0.4, positions=positions)
        return NO_VOTE
    reference = Reference(family.hugging_face)
    frames = [frame for frames in family.pictures for frame in frames]
    prompts = [prompt for prompt in family.prompts for _ in range(family.frames)]
    seen = reference.image_embeds(reference.pixel_values(frames))
    embeds, weights = seen.embeds, seen.weights
    query_embeds, _ = reference.query_embeds(embeds, weights, reference.instructions(prompts))
    query_embeds = query_embeds.reshape(8, -1, query_embeds.shape[2])  # frames one after another
    for row, answer in enumerate(family.answers(list(range(8)), ratio=0.4, positions=positions)):
        ids = reference.tokenize(family.prompts[row])
        expected = reference.continue_greedily(query_embeds[row], answer.kept_indices, positions, ids, NEW_TOKENS)
        assert answer.token_ids == expected.token_ids
    return YES


def original(family: Family) -> str:
    return pruned(family, "original")


def compact(family: Family) -> str:
    return pruned(family, "compact")


def engines(family: Family) -> str:
    pytest.importorskip("tensorrt_rtx")
    with tempfile.TemporaryDirectory() as folder:  # other tests share the bundle itself
        copy = shutil.copytree(family.bundle, Path(folder) / "bundle", copy_function=os.link)
        result = CliRunner().invoke(
            build_command,
            [str(copy), "--target", "tensorrt-rtx", "--compute-capability", "8.6", "--max-length", "192"],
        )
    assert result.exit_code == 0, result.output
    return "builds"


def evaluated(family: Family) -> str:
    if family.pipeline.manifest.model.language == "captioning":
        return evaluated_captions(family)
    result = CliRunner().invoke(eval_command, [str(family.bundle), "--limit", "4", "--ratios", "0.5"])
    if not family.pipeline.manifest.writes_text and not family.judges:
        assert result.exit_code == 2 and "which scores texts and answers no questions" in result.stderr
        return recall(family)
    if not family.votes:
        assert result.exit_code == 2 and "has no query tokens to leave out" in result.stderr
        result = CliRunner().invoke(eval_command, [str(family.bundle), "--limit", "4"])
    assert result.exit_code == 0, result.output
    return YES


def evaluated_captions(family: Family) -> str:
    """No questions, but texts that captions begin with and go on as."""
    refused = CliRunner().invoke(eval_command, [str(family.bundle), "--limit", "4"])
    assert refused.exit_code == 2 and "which answers no questions; give --data" in refused.stderr
    with tempfile.TemporaryDirectory() as folder:
        data, pictures = Path(folder) / "captions.jsonl", family.images[:2]
        for name, picture in zip("ab", pictures):
            picture.save(Path(folder) / f"{name}.png")
        follows = family.pipeline.generate(pictures[:1], ["what is"])[0].answer
        lines = [
            {"image": "a.png", "question": "what is", "answers": [follows]},
            {"image": "b.png", "question": "what is", "answers": ["nothing of the kind"]},
        ]
        data.write_text("".join(json.dumps(line) + "\n" for line in lines))
        result = CliRunner().invoke(eval_command, [str(family.bundle), "--data", str(data), "--json"])
    assert result.exit_code == 0, result.output
    (score,) = json.loads(result.stdout)["scores"]
    assert score["accuracy"] == 0.5
    return "with data of its own"


def recall(family: Family) -> str:
    """Of pictures with captions; tests/calibration/retrieval/ compares it with its definition."""
    with tempfile.TemporaryDirectory() as folder:
        entries = []
        for number, (frames, prompt) in enumerate(zip(family.pictures, family.prompts)):
            frames[0].save(Path(folder) / f"{number}.png")
            entries.append({"image": f"{number}.png", "caption": [prompt]})
        (Path(folder) / "test.json").write_text(json.dumps(entries))
        result = CliRunner().invoke(eval_command, [str(family.bundle), "--data", f"{folder}/test.json", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["images"] == 8
    return "recall"


def inside(family: Family) -> str:
    """Exported anew with a vision encoder that prunes, against Hugging Face's model that sees what it leaves."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = export_bundle(str(family.checkpoint), Path(folder) / "bundle", encoder=EncoderOptions("norm", 0.85))
        assert all(check.passed for check in bundle.manifest.parity if not check.advisory)
        spec, pipeline = bundle.manifest.encoder_pruning, Pipeline.load(bundle.path)
        assert spec is not None and spec.kept_tokens is not None
        wishes = [EncoderWish(), EncoderWish(kept_tokens=(spec.kept_tokens[0] - 1, *spec.kept_tokens[1:]))]
        for wish in wishes:
            ratio = 0.5 if family.votes else None
            if family.judges:
                first, *_ = pipeline.judge(family.pairs, family.prompts, wish)
                (pair,) = pipeline.judge(family.pairs[:1], family.prompts[:1], wish)
                assert first.probability_of_true == pytest.approx(pair.probability_of_true, abs=1e-5)
            elif not pipeline.manifest.writes_text:
                found = pipeline.match(family.images, family.prompts, ratio, wish)
                pair = pipeline.match(family.images[:1], family.prompts[:1], ratio, wish)[0]
                assert found[0].kept_indices == pair.kept_indices
                assert found[0].similarity == pytest.approx(pair.similarity, abs=1e-5)
                assert found[0].probability == (pair.probability and pytest.approx(pair.probability, abs=1e-5))
            else:
                options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "encoder": wish}
                together = pipeline.generate(family.images, family.prompts, ratio, **options)
                pairs = zip(family.images, family.prompts)
                alone = [pipeline.generate([image], [text], ratio, **options)[0] for image, text in pairs]
                assert [(a.token_ids, a.kept_indices) for a in together] == [
                    (a.token_ids, a.kept_indices) for a in alone
                ]
    return YES


def matches(family: Family) -> str:
    """What retrieval has in place of tokens; tests/runtime/matching/ compares them with Hugging Face's."""
    for ratio in (0.0, 0.5) if family.votes else (0.0,):
        together = family.pipeline.match(family.images, family.prompts, ratio)
        pairs = zip(family.images, family.prompts)
        alone = [family.pipeline.match([image], [text], ratio)[0] for image, text in pairs]
        assert [match.kept_indices for match in together] == [match.kept_indices for match in alone]
        for a, b in zip(together, alone):
            assert a.similarity == pytest.approx(b.similarity, abs=1e-5)
            assert a.probability == (b.probability and pytest.approx(b.probability, abs=1e-5))
    return YES


def judgements(family: Family) -> str:
    """Likewise of statements about two images: tests/runtime/matching/test_two_images.py."""
    together = family.pipeline.judge(family.pairs, family.prompts)
    for verdict, pair, said in zip(together, family.pairs, family.prompts):
        (alone,) = family.pipeline.judge([pair], [said])
        assert verdict.probability_of_true == pytest.approx(alone.probability_of_true, abs=1e-5)
    return YES


CHECKS: dict[str, Callable[[Family], str]] = {
    "graphs": graphs,
    "tokens of `generate()`": tokens,
    "8 in a batch as alone": batches,
    "3 beams": beams,
    "pruned, original positions": original,
    "pruned, compact": compact,
    "prunes inside": inside,
    "TensorRT-RTX": engines,
    "`catp-eval`": evaluated,
}

FAMILIES = {
    "BLIP-2 with OPT": ("demo_bundle", None),
    "BLIP-2 with Llama": ("odd_bundle", "odd_checkpoint"),
    "BLIP-2 with Flan-T5": ("t5_bundle", "t5_checkpoint"),
    "InstructBLIP with Vicuna": ("instructblip_bundle", "instructblip_checkpoint"),
    "InstructBLIP with Flan-T5": ("instructblip_t5_bundle", "instructblip_t5_checkpoint"),
    "InstructBLIP on videos, with Vicuna": ("video_bundle", "video_checkpoint"),
    "InstructBLIP on videos, with Flan-T5": ("video_t5_bundle", "video_t5_checkpoint"),
    "BLIP for question answering": ("vqa_bundle", "vqa_checkpoint"),
    "BLIP for captions": ("caption_bundle", "caption_checkpoint"),
    "BLIP for two images": ("nlvr_bundle", "nlvr_checkpoint"),
    "BLIP-2 for retrieval": ("retrieval_bundle", "retrieval_checkpoint"),
    "BLIP for retrieval": ("blip_retrieval_bundle", "blip_retrieval_checkpoint"),
    "CLIP": ("clip_bundle", "clip_checkpoint"),
}
"""Fixtures of the bundle and of its checkpoint; None: the demo's."""


@pytest.fixture(scope="module")
def families(request: pytest.FixtureRequest) -> Callable[[str], Family]:
    made: dict[str, Family] = {}

    def get(name: str) -> Family:
        if name not in made:
            bundle, checkpoint = FAMILIES[name]
            made[name] = Family(
                request.getfixturevalue(bundle), request.getfixturevalue(checkpoint) if checkpoint else CHECKPOINT
            )
        return made[name]

    return get


ALWAYS = ("BLIP-2 with OPT", "BLIP for captions", "CLIP")
"""Families of every kind of answer, at once; the others are among the heavy tests, as an export each takes long."""


@pytest.mark.parametrize(
    "check", [pytest.param(name, marks=pytest.mark.heavy) if CHECKS[name] is inside else name for name in CHECKS]
)
@pytest.mark.parametrize(
    "family", [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.heavy) for name in FAMILIES]
)
def test_family(families: Callable[[str], Family], family: str, check: str) -> None:
    found = families(family)
    if not found.pipeline.manifest.writes_text and CHECKS[check] not in (graphs, inside, engines, evaluated):
        compared = judgements if found.judges else matches
        cell = compared(found) if CHECKS[check] is batches else NO_TOKENS
    else:
        cell = CHECKS[check](found)
    written = {row: dict(zip(CHECKS, cells)) for row, *cells in table("README.md", f"| {next(iter(CHECKS))}")}
    assert cell == written[family][check]


CALIBRATED = "family | `--to int8 --for cpu`"


def calibrated(family: Family, *data: str) -> tuple[str, str]:
    """The family's INT8 bundle and its budget's measure; the budget is wide, since few questions decide little."""
    with tempfile.TemporaryDirectory() as folder:
        few = ["--samples", "16", "--questions", "10", "--no-sensitivity"]
        wide = ["--max-accuracy-drop", "0.95", "--min-kept-overlap", "0"]
        arguments = ["precision", str(family.bundle), "--to", "int8", "--for", "cpu", *few, *wide, *data]
        result = CliRunner().invoke(calibrate_command, [*arguments, "-o", f"{folder}/int8"])
        if result.exit_code == 2:
            reasons = {
                "answers no questions; give --data": "with data of its own",
            }
            (reason,) = (reason for words, reason in reasons.items() if words in result.stderr)
            return reason, ""
        assert result.exit_code == 0, result.output
        manifest = open_bundle(Path(folder) / "int8").manifest
        assert all(graph.quantization or name == "image_embedding" for name, graph in manifest.graphs.items())
        assert manifest.calibration is not None
        return YES, manifest.calibration.metric


@pytest.mark.heavy
@pytest.mark.parametrize("name", FAMILIES)
def test_family_in_int8(families: Callable[[str], Family], name: str, tmp_path: Path) -> None:
    family = families(name)
    cell, metric = calibrated(family)
    if cell == "with data of its own" or metric == "same best text":
        questions, entries = [], []
        for number, example in enumerate(scenes.examples(60, seed=3)):
            example.image.save(tmp_path / f"{number}.png")
            text = f"a {example.scene.things[0].color} {example.scene.things[0].shape}"
            entries.append({"image": f"{number}.png", "caption": text})
            questions.append({"image": f"{number}.png", "question": "what is", "answers": [text]})
        (tmp_path / "captions.json").write_text(json.dumps(entries))
        (tmp_path / "begun.jsonl").write_text("".join(json.dumps(line) + "\n" for line in questions))
        given = "begun.jsonl" if cell == "with data of its own" else "captions.json"
        made, with_data = calibrated(family, "--data", str(tmp_path / given))
        assert made == YES
        metric = f"{with_data}; without captions, {metric}" if metric else with_data
    written = {row: cells for row, *cells in table("docs/precision.md", CALIBRATED)}
    assert list(written) == list(FAMILIES) and [cell, metric] == written[name]


def test_the_readme_has_a_row_for_each_family_and_a_column_for_each_check() -> None:
    assert f"| | {' | '.join(CHECKS)} |" in text_of("README.md")
    assert [row for row, *_ in table("README.md", f"| {next(iter(CHECKS))}")] == list(FAMILIES)


@pytest.fixture(scope="module")
def own_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


LIGHT = ("BLIP for captions", "CLIP")
"""Families that a change of what commands take is noticed by at once; of the others, in the heavy tests."""


@pytest.mark.parametrize("name", [n if n in LIGHT else pytest.param(n, marks=pytest.mark.heavy) for n in FAMILIES])
def test_what_commands_take(
    families: Callable[[str], Family], name: str, own_data: Path, pruned_bundle: Path, tmp_path: Path
) -> None:
    """`CATP_WRITE_TABLES=1 pytest tests/test_families.py -k commands_take` writes the table anew."""
    pytest.importorskip("tensorrt_rtx")
    pruning = open_bundle(pruned_bundle, verify=False).manifest.encoder_pruning
    copy = shutil.copytree(families(name).bundle, tmp_path / "bundle")
    check_row(name, row_of(copy, pruning, own_data))


def test_notes_are_those_that_the_table_of_commands_names() -> None:
    rows = written_rows()
    assert list(rows) == list(FAMILIES)
    notes = notes_of(rows)
    below = text_of("docs/families.md").partition("| CLIP | yes |")[2].split("\n\n")[1]
    assert below.splitlines() == notes
