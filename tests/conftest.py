"""Bundles and checkpoints that the tests share, each made once per run, whatever the number of processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from blip_official import save_bert_tokenizer, save_official
from checkpoints import (
    save_blip2_t5_checkpoint,
    save_blip_retrieval_checkpoint,
    save_caption_checkpoint,
    save_clip_checkpoint,
    save_instructblip_checkpoint,
    save_instructblip_t5_checkpoint,
    save_nlvr_checkpoint,
    save_odd_checkpoint,
    save_retrieval_checkpoint,
    save_video_checkpoint,
    save_video_t5_checkpoint,
    save_vqa_checkpoint,
)
from typer.testing import CliRunner

from catp.export.checkpoints.loading import Checkpoint, load_checkpoint
from catp.export.commands.export import app as export_command
from catp.export.conversion.madtp import convert_madtp
from catp.export.demo import CHECKPOINT
from catp.export.demo.vqa import CHECKPOINT as SMALL_BLIP
from catp.export.demo.vqa import DENSE as DENSE_BLIP
from catp.export.exporter import export_bundle
from catp.export.image_encoders.plan import EncoderOptions
from catp.runtime import Pipeline
from catp.runtime.commands import console

torch.set_num_threads(1)  # the models are small, and the tests run in two processes
console.ANNOUNCED_AFTER = 3600  # what a command prints must not depend on how busy the machine is

PRUNING_LAYERS = "0,2,4"
"""Of six: an export takes longer with each layer that prunes."""

RARE = {
    "bf16_bundle", "odd_diagnostics_bundle", "instructblip_t5_bundle", "video_t5_bundle", "video_bundle",
    "dynamic_bundle", "fully_pruned_bundle", "both_instructblip_bundle", "instructblip_diagnostics_bundle",
    "both_video_bundle",
}  # fmt: skip
"""Bundles of what others have too, in another combination: each takes as long as a hundred tests."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        asked = getattr(getattr(item, "callspec", None), "params", {}).values()
        named = {name for name in asked if isinstance(name, str)}
        if RARE & {*getattr(item, "fixturenames", ()), *named}:
            item.add_marker(pytest.mark.heavy)


Shared = Callable[[str, Callable[[Path], object]], Path]


def _lives(process: str) -> bool:
    """Whether the process of that number runs; one whose number is not written yet does."""
    return not process or Path(f"/proc/{process}").exists()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Shared:
    """`shared(name, make)`: a folder that the first process to ask for it makes, and the others wait for."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if hasattr(request.config, "workerinput") else base  # pytest-xdist: one base per process

    def get(name: str, make: Callable[[Path], object]) -> Path:
        folder, begun, done, failed = (root / f"{name}{end}" for end in ("", ".begun", ".done", ".failed"))
        try:
            with begun.open("x") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            while not done.exists():
                assert not failed.exists(), f"{name} could not be made in another process"
                # A process that died says nothing more; without this, whoever needs the same would wait for ever.
                assert _lives(begun.read_text()) or done.exists(), f"the process that was to make {name} has died"
                time.sleep(0.1)
            return folder
        try:
            make(folder)
        except BaseException:
            failed.touch()
            raise
        done.touch()
        return folder

    return get


@pytest.fixture(scope="session")
def demo_bundle(shared: Shared) -> Path:
    """The demo model, exported as a user would."""
    return shared("demo-bundle", lambda folder: export_bundle(str(CHECKPOINT), folder))


@pytest.fixture(scope="session")
def half_bundle(shared: Shared) -> Path:
    """The demo model in half precision."""
    return shared("half-bundle", lambda folder: export_bundle(str(CHECKPOINT), folder, precision="fp16"))


@pytest.fixture(scope="session")
def bf16_bundle(shared: Shared) -> Path:
    """The demo model in bfloat16."""
    return shared("bf16-bundle", lambda folder: export_bundle(str(CHECKPOINT), folder, precision="bf16"))


@pytest.fixture(scope="session")
def diagnostics_bundle(shared: Shared) -> Path:
    """`catp-export --diagnostics`: every method's scores are among the Q-Former's outputs."""

    def make(folder: Path) -> None:
        result = CliRunner().invoke(export_command, ["--diagnostics", "-o", str(folder)])
        assert result.exit_code == 0, result.output

    return shared("diagnostics-bundle", make)


@pytest.fixture(scope="session")
def converted_madtp(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`catp-convert madtp`: a folder made of an official checkpoint with random weights."""

    def make(folder: Path) -> None:
        given = tmp_path_factory.mktemp("official")
        save_official(given / "checkpoint.pth")
        convert_madtp(given / "checkpoint.pth", folder, str(save_bert_tokenizer(given / "bert")))

    return shared("converted-madtp", make)


@pytest.fixture(scope="session")
def demo_checkpoint() -> Checkpoint:
    return load_checkpoint(str(CHECKPOINT))


@pytest.fixture(scope="session")
def pipeline(demo_bundle: Path) -> Pipeline:
    return Pipeline.load(demo_bundle)


@pytest.fixture(scope="session")
def odd_checkpoint(shared: Shared) -> Path:
    """A checkpoint unlike the demo in every dimension, with random weights and peaked attention."""
    return shared("odd-checkpoint", save_odd_checkpoint)


@pytest.fixture(scope="session")
def t5_checkpoint(shared: Shared) -> Path:
    """BLIP-2 with a Flan-T5."""
    return shared("t5-checkpoint", save_blip2_t5_checkpoint)


@pytest.fixture(scope="session")
def t5_bundle(t5_checkpoint: Path, shared: Shared) -> Path:
    return shared("t5-bundle", lambda folder: export_bundle(str(t5_checkpoint), folder, ratio=0.3))


@pytest.fixture(scope="session")
def instructblip_checkpoint(shared: Shared) -> Path:
    """InstructBLIP with a Llama."""
    return shared("instructblip-checkpoint", save_instructblip_checkpoint)


@pytest.fixture(scope="session")
def instructblip_bundle(instructblip_checkpoint: Path, shared: Shared) -> Path:
    """With the self-attention method, which reads the maps that also hold the instruction."""
    return shared(
        "instructblip-bundle",
        lambda folder: export_bundle(str(instructblip_checkpoint), folder, ratio=0.3, method="self-attention"),
    )


@pytest.fixture(scope="session")
def instructblip_diagnostics_bundle(instructblip_checkpoint: Path, shared: Shared) -> Path:
    """The same with what its vote reads."""
    options = {"ratio": 0.3, "method": "self-attention", "diagnostics": True}
    return shared(
        "instructblip-diagnostics-bundle", lambda folder: export_bundle(str(instructblip_checkpoint), folder, **options)
    )


@pytest.fixture(scope="session")
def instructblip_t5_checkpoint(shared: Shared) -> Path:
    """InstructBLIP with a Flan-T5."""
    return shared("instructblip-t5-checkpoint", save_instructblip_t5_checkpoint)


@pytest.fixture(scope="session")
def instructblip_t5_bundle(instructblip_t5_checkpoint: Path, shared: Shared) -> Path:
    return shared("instructblip-t5-bundle", lambda folder: export_bundle(str(instructblip_t5_checkpoint), folder))


@pytest.fixture(scope="session")
def video_checkpoint(shared: Shared) -> Path:
    """InstructBLIP on videos with a Llama."""
    return shared("video-checkpoint", save_video_checkpoint)


@pytest.fixture(scope="session")
def video_bundle(video_checkpoint: Path, shared: Shared) -> Path:
    options = {"ratio": 0.3, "diagnostics": True}
    return shared("video-bundle", lambda folder: export_bundle(str(video_checkpoint), folder, **options))


@pytest.fixture(scope="session")
def video_t5_checkpoint(shared: Shared) -> Path:
    """InstructBLIP on videos with a Flan-T5."""
    return shared("video-t5-checkpoint", save_video_t5_checkpoint)


@pytest.fixture(scope="session")
def video_t5_bundle(video_t5_checkpoint: Path, shared: Shared) -> Path:
    return shared("video-t5-bundle", lambda folder: export_bundle(str(video_t5_checkpoint), folder, method="l2-norm"))


@pytest.fixture(scope="session")
def retrieval_checkpoint(shared: Shared) -> Path:
    """BLIP-2 for image-text retrieval."""
    return shared("retrieval-checkpoint", save_retrieval_checkpoint)


@pytest.fixture(scope="session")
def retrieval_bundle(retrieval_checkpoint: Path, shared: Shared) -> Path:
    return shared("retrieval-bundle", lambda folder: export_bundle(str(retrieval_checkpoint), folder))


@pytest.fixture(scope="session")
def blip_retrieval_checkpoint(shared: Shared) -> Path:
    """BLIP for image-text retrieval."""
    return shared("blip-retrieval-checkpoint", save_blip_retrieval_checkpoint)


@pytest.fixture(scope="session")
def blip_retrieval_bundle(blip_retrieval_checkpoint: Path, shared: Shared) -> Path:
    return shared("blip-retrieval-bundle", lambda folder: export_bundle(str(blip_retrieval_checkpoint), folder))


@pytest.fixture(scope="session")
def clip_checkpoint(shared: Shared) -> Path:
    """CLIP."""
    return shared("clip-checkpoint", save_clip_checkpoint)


@pytest.fixture(scope="session")
def clip_bundle(clip_checkpoint: Path, shared: Shared) -> Path:
    return shared("clip-bundle", lambda folder: export_bundle(str(clip_checkpoint), folder))


@pytest.fixture(scope="session")
def pruned_clip_bundle(clip_checkpoint: Path, shared: Shared) -> Path:
    """With a vision encoder that prunes, as is usual: by its CLS token."""
    options = EncoderOptions("cls", 0.6)
    return shared("pruned-clip-bundle", lambda folder: export_bundle(str(clip_checkpoint), folder, encoder=options))


@pytest.fixture(scope="session")
def vqa_checkpoint(shared: Shared) -> Path:
    """BLIP for question answering."""
    return shared("vqa-checkpoint", save_vqa_checkpoint)


@pytest.fixture(scope="session")
def vqa_bundle(vqa_checkpoint: Path, shared: Shared) -> Path:
    return shared("vqa-bundle", lambda folder: export_bundle(str(vqa_checkpoint), folder))


@pytest.fixture(scope="session")
def caption_checkpoint(shared: Shared) -> Path:
    """BLIP for captions."""
    return shared("caption-checkpoint", save_caption_checkpoint)


@pytest.fixture(scope="session")
def caption_bundle(caption_checkpoint: Path, shared: Shared) -> Path:
    return shared("caption-bundle", lambda folder: export_bundle(str(caption_checkpoint), folder))


@pytest.fixture(scope="session")
def nlvr_checkpoint(shared: Shared) -> Path:
    """BLIP for statements about two images."""
    return shared("nlvr-checkpoint", save_nlvr_checkpoint)


@pytest.fixture(scope="session")
def nlvr_bundle(nlvr_checkpoint: Path, shared: Shared) -> Path:
    return shared("nlvr-bundle", lambda folder: export_bundle(str(nlvr_checkpoint), folder))


@pytest.fixture(scope="session")
def pruned_bundle(shared: Shared) -> Path:
    """The small BLIP that was trained with MADTP, pruning in three layers of its vision encoder, by a schedule."""
    options = EncoderOptions(flops=0.6, layers=PRUNING_LAYERS)
    return shared(
        "pruned-bundle", lambda folder: export_bundle(str(SMALL_BLIP), folder, encoder=options, diagnostics=True)
    )


@pytest.fixture(scope="session")
def fully_pruned_bundle(shared: Shared) -> Path:
    """The dense one, pruning in every layer of both encoders by a rule without training, in half precision."""
    options = EncoderOptions(rule="cls", flops=0.7, text_flops=0.7)
    return shared(
        "fully-pruned-bundle",
        lambda folder: export_bundle(str(DENSE_BLIP), folder, encoder=options, diagnostics=True, precision="fp16"),
    )


@pytest.fixture(scope="session")
def twice_pruned_bundle(shared: Shared) -> Path:
    """The demo model, pruning image tokens inside its vision encoder and query tokens after it."""
    options = EncoderOptions(rule="tome", flops=0.8)
    return shared("twice-pruned-bundle", lambda folder: export_bundle(str(CHECKPOINT), folder, encoder=options))


@pytest.fixture(scope="session")
def dynamic_bundle(shared: Shared) -> Path:
    """The same, counting for itself."""
    options = EncoderOptions(form="dynamic", layers=PRUNING_LAYERS)
    return shared("dynamic-bundle", lambda folder: export_bundle(str(SMALL_BLIP), folder, encoder=options))


@pytest.fixture(scope="session")
def both_bundle(shared: Shared) -> Path:
    """The demo, of which image tokens are pruned inside the vision encoder, and query tokens after it."""
    arguments = ["--encoder-pruning", "tome", "--encoder-flops", "0.7", "--diagnostics", "-o"]

    def make(folder: Path) -> None:
        result = CliRunner().invoke(export_command, [*arguments, str(folder)])
        assert result.exit_code == 0, result.output
        # At the end of what it printed.
        default = "catp keeps 16 of 32 query tokens at ratio 0.5; tome leaves 17 of 37 image tokens, 70% of the"
        assert f"{default} encoder's work. Next: catp-run" in " ".join(result.stderr.split())

    return shared("both-bundle", make)


@pytest.fixture(scope="session")
def both_instructblip_bundle(instructblip_checkpoint: Path, shared: Shared) -> Path:
    """InstructBLIP, whose Q-Former reads the prompt, after an encoder that drops image tokens."""
    options = EncoderOptions(rule="cls", flops=0.85, merge="drop")
    return shared(
        "twice-pruned-instructblip-bundle",
        lambda folder: export_bundle(str(instructblip_checkpoint), folder, encoder=options, diagnostics=True),
    )


@pytest.fixture(scope="session")
def both_video_bundle(video_checkpoint: Path, shared: Shared) -> Path:
    """InstructBLIP on videos, after an encoder that merges image tokens."""
    options = EncoderOptions(rule="cls", flops=0.85, merge="nearest")
    return shared(
        "twice-pruned-video-bundle",
        lambda folder: export_bundle(str(video_checkpoint), folder, ratio=0.3, encoder=options, diagnostics=True),
    )


@pytest.fixture(scope="session")
def odd_bundle(odd_checkpoint: Path, shared: Shared) -> Path:
    return shared("odd-bundle", lambda folder: export_bundle(str(odd_checkpoint), folder, ratio=0.3))


@pytest.fixture(scope="session")
def odd_diagnostics_bundle(odd_checkpoint: Path, shared: Shared) -> Path:
    """Every method is compared on a second checkpoint."""
    return shared("odd-diagnostics-bundle", lambda folder: export_bundle(str(odd_checkpoint), folder, diagnostics=True))
