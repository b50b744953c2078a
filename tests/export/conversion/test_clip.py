"""CLIPs of MADTP's official code, and plain ones, converted: the same vectors, its own weights, or one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from blip_official import save_bert_tokenizer
from checkpoints import clip_tokenizer
from clip_official import (
    ENTRIES,
    ENTRY,
    TURNED,
    official_names,
    official_vectors,
    official_weights,
    save_official_clip,
    tiny_clip,
)
from transformers import AutoImageProcessor, AutoTokenizer, CLIPConfig, CLIPModel
from typer.testing import CliRunner

from catp.export.checkpoints.madtp import read_madtp
from catp.export.commands.convert import app
from catp.export.conversion.clip.names import parts_of
from catp.export.conversion.madtp import convert_madtp
from catp.export.image_encoders.pruned_reference import encode
from catp.runtime import CatpError, UsageError

pytestmark = pytest.mark.usefixtures("in_process")

LARGE = {
    "vision_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                      "num_attention_heads": 16, "image_size": 336, "patch_size": 14},
    "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    "projection_dim": 768,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    clip_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def weights() -> dict[str, Any]:
    return official_weights(tiny_clip())


def test_every_weight_of_the_large_size_has_a_name() -> None:
    with torch.device("meta"):
        wanted = set(CLIPModel(CLIPConfig(**LARGE)).state_dict())  # type: ignore[arg-type]
    names = official_names(24, 12)
    assert all([part.name for part in parts_of(official)] == [ours] for ours, official in names.items())
    turned = {name: official for official, name in map(str.split, TURNED.strip().splitlines())}
    assert all([(part.name, part.turned) for part in parts_of(o)] == [(name, True)] for name, o in turned.items())
    joint = {
        part.name: part.third
        for stem, layers in (("visual.transformer", 24), ("transformer", 12))
        for layer in range(layers)
        for kind in ("weight", "bias")
        for part in parts_of(f"{stem}.resblocks.{layer}.attn.in_proj_{kind}")
    }
    assert {*names, *turned, *joint} == wanted and len(joint) == 6 * 36
    assert joint["vision_model.encoder.layers.23.self_attn.k_proj.bias"] == 1


@pytest.mark.parametrize("temperature", [1.25, None])
def test_vectors_are_those_of_the_original(temperature: float | None, tmp_path: Path, tokenizer: Path) -> None:
    model = save_official_clip(tmp_path / "checkpoint.pth", temperature)
    found = convert_madtp(tmp_path / "checkpoint.pth", tmp_path / "out", str(tokenizer))
    converted, info = CLIPModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()) and found.names == len(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(converted.state_dict()[name], value), name
    assert found.guidance == ((ENTRIES, ENTRY) if temperature else None)
    assert {name.partition(".")[0] for name in found.left_out} >= {"visual_m", "transformer_m", "image_queue"}
    madtp = read_madtp(str(tmp_path / "out"), 128)
    assert madtp.temperature == (temperature or 0.0) and len(madtp.query_maps) == (10 if temperature else 0)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert (processor.size["height"], processor.size["width"]) == (56, 56)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token_id == converted.config.text_config.eos_token_id


def test_maps_of_either_encoder_are_its_own(tmp_path: Path, tokenizer: Path, weights: dict[str, Any]) -> None:
    save_official_clip(tmp_path / "checkpoint.pth")
    convert_madtp(tmp_path / "checkpoint.pth", tmp_path / "out", str(tokenizer))
    madtp = read_madtp(str(tmp_path / "out"), 128)
    for encoder, stem, layers, width in (("vision_model", "visual.", 3, 128), ("text_model", "", 2, 64)):
        found = madtp.guidance("here", encoder, layers, width)
        assert found is not None and found.maps is not None and len(found.maps) == layers
        for layer, token_map in enumerate(found.maps):
            official = f"{stem}transformer.resblocks.{layer}.query_model.q_map.0"
            assert torch.equal(token_map.weight, weights[f"{official}.weight"])
            # The product that a graph has is that of map and dictionary.
            tokens = torch.randn(2, 5, width)
            wanted = (tokens @ weights[f"{official}.weight"].T + weights[f"{official}.bias"]) @ weights["space_dict"].T
            offset = found.offset(layer)
            assert offset is not None
            torch.testing.assert_close(tokens @ found.matrix(layer) + offset, wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(UsageError, match=r"text_model\.2\.q_map\.weight and bias are missing"):
        madtp.guidance("here", "text_model", 3, 64)


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_the_reference_prunes_as_the_official_code(temperature: float, weights: dict[str, Any]) -> None:
    """What graphs are compared with, against formulas written out from that code: counts, and vectors."""
    from catp.export.encoder_pruning.guidance import Guidance, TokenMap

    model = tiny_clip()
    maps = [f"visual.transformer.resblocks.{layer}.query_model.q_map.0" for layer in range(3)]
    guidance = Guidance(
        weights["space_dict"], tuple(TokenMap(weights[f"{name}.weight"], weights[f"{name}.bias"]) for name in maps)
    )
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(2))
    wanted, kept = official_vectors(weights, pixels, temperature)
    found = encode(model.vision_model, pixels, "madtp", "one", (0, 1, 2), None, temperature, guidance)
    assert list(found.counts) == kept and kept[-1] < 40
    with torch.no_grad():
        vectors = model.visual_projection(model.vision_model.post_layernorm(found.embeds[:, 0]))
    torch.testing.assert_close(vectors, wanted, atol=1e-4, rtol=1e-4)
    # By the dictionary alone, without its maps, other tokens would stay: the test can tell them apart.
    other = Guidance(weights["space_dict"][:, :128].repeat(1, 2)[:, :128])
    assert list(encode(model.vision_model, pixels, "madtp", "one", (0, 1, 2), None, temperature, other).counts) != kept


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop("visual.ln_pre.bias"), "weights of CLIPModel are missing: vision_model.pre_layrnorm.bias"),
        (lambda w: w.update({"visual.attnpool.c_proj.weight": torch.ones(2)}), "it has others: visual.attnpool"),
        (lambda w: w.pop("transformer.resblocks.1.query_model.q_map.0.bias"), "are missing: text_model.1.q_map.bias"),
        (lambda w: w.pop("space_dict"), "it has others: text_model.*.q_map.bias (2)"),
        (lambda w: w.update({"space_dict": torch.ones(7, 95)}), "q_map.bias is [96] instead of [95]"),
        (lambda w: w.update({"visual.proj": torch.ones(24, 128)}), "sizes contradict each other: visual_projection"),
        (lambda w: w.update({"visual.positional_embedding": torch.ones(49, 128)}), "are no square"),
        (lambda w: w.update({"ln_final.bias": torch.full((64,), torch.nan)}), "no finite numbers"),
    ],
)
def test_a_file_that_is_no_such_clip_is_refused(
    change: Callable[[dict[str, Any]], object], says: str, weights: dict[str, Any], tokenizer: Path, tmp_path: Path
) -> None:
    changed = dict(weights)
    change(changed)
    torch.save({"model": changed, "temperature": 1.0}, tmp_path / "checkpoint.pth")
    with pytest.raises(CatpError) as caught:
        convert_madtp(tmp_path / "checkpoint.pth", tmp_path / "out", str(tokenizer))
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_another_tokenizer_is_refused_and_the_command_says_what_it_found(tmp_path: Path, tokenizer: Path) -> None:
    save_official_clip(tmp_path / "checkpoint.pth")
    arguments = ["madtp", str(tmp_path / "checkpoint.pth"), "-o", str(tmp_path / "out"), "--tokenizer"]
    refused = CliRunner().invoke(app, [*arguments, str(save_bert_tokenizer(tmp_path / "bert"))])
    assert refused.exit_code == 2 and "accepted: CLIP's" in refused.stderr and not (tmp_path / "out").exists()
    done = CliRunner().invoke(app, [*arguments, str(tokenizer)])
    said = " ".join(done.output.split())
    assert done.exit_code == 0, done.output
    assert "CLIP for texts and images: " in said and f"space_dict {ENTRIES} x {ENTRY}, temperature 1.25" in said
