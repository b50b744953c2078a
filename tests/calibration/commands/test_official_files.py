"""catp-eval of official files: the lines of docs/encoder-pruning.md as they stand, on small files of the same form."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from blip_official import save_bert_tokenizer, save_official
from checkpoints import clip_tokenizer
from clip_official import save_official_clip
from documents import blocks
from nlvr_official import content_of, tiny, with_guidance
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner
from vqa_folder import write_vqa_folder

from catp.calibration.commands.eval import app
from catp.calibration.data.demo_pairs import DemoPairs
from catp.export.demo import scenes

LINES = {
    shlex.split(line)[1]: shlex.split(line)[1:]
    for block in blocks("docs/encoder-pruning.md", "sh")
    for line in block.splitlines()
}
"""By file."""


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the lines name."""
    root = tmp_path_factory.mktemp("official")
    save_bert_tokenizer(root / "bert-base-uncased")
    clip_tokenizer().save_pretrained(root / "openai" / "clip-vit-large-patch14-336")
    for name, task in (("vqa", "question answering"), ("caption", "captions"), ("retrieval", "retrieval")):
        save_official(root / f"madtp_{name}.pth", task, seed=7, positions=64, places=1.0)
    torch.save(with_guidance(content_of(tiny())), root / "madtp_nlvr.pth")
    save_official_clip(root / "madtp_clip.pth")
    write_vqa_folder(root / "vqav2")
    (root / "answer_list.json").write_text(json.dumps(["red", "it", "what is red", "nothing"]))
    for name in ("coco/coco_karpathy_test.json", "flickr30k/flickr30k_test.json"):
        file = root / name
        (file.parent / "val").mkdir(parents=True)
        entries = []
        for number, example in enumerate(scenes.examples(6, seed=6)):
            example.image.save(file.parent / "val" / f"{number}.png")
            entries.append({"image": f"val/{number}.png", "caption": ["what is it " * (1 + number), "red a"]})
        file.write_text(json.dumps(entries))
    (root / "nlvr2").mkdir()
    lines = []
    for number, question in enumerate(DemoPairs(4, 3)):
        for place, image in enumerate(question.images):
            image.save(root / "nlvr2" / f"test1-{number}-0-img{place}.png")  # type: ignore[union-attr]
        lines.append({"sentence": "it is red", "label": str(number % 2 == 0), "identifier": f"test1-{number}-0-0"})
    (root / "nlvr2" / "test1.json").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return root


def test_every_task_has_a_line() -> None:
    assert set(LINES) == {f"madtp_{task}.pth" for task in ("vqa", "caption", "retrieval", "nlvr", "clip")}


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("file", "words", "own"),
    [
        ("madtp_vqa.pth", "VQA accuracy, 8 questions", 0.75),
        ("madtp_caption.pth", "CIDEr-D", 0.75),
        ("madtp_retrieval.pth", "re-ranked by the matching head", None),
        ("madtp_nlvr.pth", "Exact match, 4 questions", 1.25),
        ("madtp_clip.pth", "by similarity alone", None),
    ],
)
def test_the_line_prints_the_metric_beside_the_work(
    file: str, words: str, own: float | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    result = run(*LINES[file], "--json")
    assert result.exit_code == 0, result.output
    said = " ".join(result.stderr.split())
    assert words in said and "as MADTP" in said and f"Converting {file} for this run only" in said
    assert f"catp-export --model {Path(file).stem} --encoder-form dynamic" in said
    report = json.loads(result.stdout.splitlines()[-1])
    dense, pruned = report["settings"] if own is None else report["scores"]
    work = "encoder_gflops" if own is None else "gflops"
    assert pruned[work] < dense[work] and pruned["answer_gflops"] <= dense["answer_gflops"]
    if own is None:
        assert dense["setting"]["encoder_temperature"] == 0 and pruned["setting"]["encoder_temperature"] is None
    else:
        assert [one["setting"]["temperature"] for one in (dense, pruned)] == [0, own]
    assert not list(folder.glob("catp*"))


@pytest.mark.heavy
def test_the_work_of_a_statement_is_what_pytorch_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    result = run(*LINES["madtp_nlvr.pth"], "--json")
    dense = json.loads(result.stdout.splitlines()[-1])["scores"][0]
    length = round(json.loads(result.stdout.splitlines()[-1])["prompt_tokens"])
    model, ids = tiny(), torch.ones(1, length, dtype=torch.long)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(2, 3, 32, 32), ids, torch.ones_like(ids))
    assert dense["answer_gflops"] == pytest.approx(counter.get_total_flops() / 1e9, rel=1e-6)
    row = re.search(r"\n. temperature 0 .*", result.stderr)
    assert row and f"{dense['answer_gflops'] / 2:.4g}" in row[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["madtp_vqa.pth"], "madtp_vqa.pth: the vocabulary is not in a .pth file"),
        (["coco", "--tokenizer", "bert-base-uncased"], "--tokenizer bert-base-uncased: coco is no .pth or .pt file"),
        (["missing.pth", "--tokenizer", "bert-base-uncased"], "missing.pth"),
        (["x", "--encoder-flops", "0.5", "--encoder-temperatures", "0"], "--encoder-flops, --encoder-temperatures"),
        (["x", "--encoder-temperatures", "0,ours"], "encoder temperatures 'ours'"),
    ],
)
def test_what_can_not_be_converted_is_refused(
    arguments: list[str], words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    result = run(*arguments)
    assert result.exit_code == 2 and words in " ".join(result.stderr.split())
    assert result.stderr.count("error:") == 1
