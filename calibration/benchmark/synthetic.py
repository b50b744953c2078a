"""Bundles of true sizes with random weights: what a geometry costs needs nobody's weights.

torch is used in a process of its own, which takes its memory along when it ends: what is timed comes after it.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from catp.calibration.benchmark.contenders.described import RANDOM_WEIGHTS
from catp.calibration.benchmark.contenders.registry import check_installed
from catp.calibration.benchmark.machine import available_memory
from catp.runtime.errors import CatpError, UsageError
from catp.runtime.files import is_dir
from catp.runtime.system.progress import Progress, silent

Preset = Literal["tiny", "mid", "blip2-opt-2.7b", "blip2-flan-t5-xl", "blip-caption"]
BUNDLE, PRUNED = "bundle", "pruned"
"""Folders beside the checkpoint."""

QUERIES = 32
IMAGE_SIZE, PATCH = 224, 14  # pixels, of a side
SHARD = 1_000_000_000
"""Bytes from which on weights are written to a file of the checkpoint."""

MEMORY_COPIES, DISK_COPIES = 0.1, 1
"""How often the float32 weights are in memory at most, while they are timed, and on disk: beside those of bundles."""
WORD_EMBEDDINGS = 0.05
"""Standard deviation. OPT's head is the same table: with larger ones the best tokens differ by rounding errors."""


@dataclass(frozen=True)
class Tower:
    """A stack of transformer layers."""

    layers: int
    width: int
    heads: int
    feed_forward: int

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width}: {self.heads} heads can't share it equally")


@dataclass(frozen=True)
class Sizes:
    """A BLIP-2 with 224 x 224 images, patches of 14, and 32 query tokens."""

    vision: Tower
    qformer: Tower  # cross-attention in every second layer
    language: Tower  # of Flan-T5 the encoder, and the decoder is another one
    vocabulary: int
    positions: int = 2048  # of OPT
    flan_t5: bool = False  # as language model, in place of OPT


SIZES: dict[str, Sizes] = {
    "mid": Sizes(Tower(12, 768, 12, 3072), Tower(12, 768, 12, 3072), Tower(12, 768, 12, 3072), vocabulary=50272),
    "blip2-opt-2.7b": Sizes(
        Tower(39, 1408, 16, 6144), Tower(12, 768, 12, 3072), Tower(32, 2560, 32, 10240), vocabulary=50304
    ),
    "blip2-flan-t5-xl": Sizes(
        Tower(39, 1408, 16, 6144), Tower(12, 768, 12, 3072), Tower(24, 2048, 32, 5120), vocabulary=32128, flan_t5=True
    ),
}
"""BLIP-2's, but for those of the demo, which are "tiny"."""


@dataclass(frozen=True)
class BlipSizes:
    """A BLIP, without a Q-Former: its text models read image tokens."""

    architecture: str  # Hugging Face's class
    vision: Tower
    text: Tower
    vocabulary: int
    side: int  # pixels of an image, of a side
    patch: int  # pixels, of a side
    positions: int = 512


BLIP: dict[str, BlipSizes] = {
    "blip-caption": BlipSizes(
        "BlipForConditionalGeneration", Tower(12, 768, 12, 3072), Tower(12, 768, 12, 3072), 30524, side=384, patch=16
    ),
}
"""BLIP's, as of Salesforce/blip-image-captioning-base."""


@dataclass(frozen=True)
class Made:
    """Folders of a checkpoint and of bundles exported from it."""

    checkpoint: Path
    bundle: Path
    pruned: Path | None  # with a vision encoder that prunes


@dataclass(frozen=True)
class Inside:
    """Pruning inside the vision encoder, for a second bundle."""

    rule: str | None  # None: the exporter's choice
    shares: tuple[float, ...]  # of the dense encoder's work; the first one's schedule is the bundle's own


@contextmanager
def made(name: Preset, keep: Path | None, step: Progress = silent, inside: Inside | None = None) -> Iterator[Made]:
    """A synthetic checkpoint and its bundles, in `keep`, or in a temporary folder that is gone afterwards.

    Raises:
        UsageError: `keep` is taken, or what exports checkpoints is not installed.
        CatpError: memory or disk don't suffice, or the export failed.
    """
    check_installed(f"--synthetic {name}", "export,cpu", "torch", "transformers", "onnx", "onnxscript", "onnxruntime")
    if keep is not None:
        yield _make_in(keep, name, step, inside)
        return
    with tempfile.TemporaryDirectory(prefix="catp-synthetic-") as folder:
        yield _make_in(Path(folder), name, step, inside)


def _make_in(folder: Path, name: Preset, step: Progress, inside: Inside | None) -> Made:
    found = _folders(folder, name, inside is not None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
    except OSError as error:
        raise UsageError(f"--keep {folder}: no folder can be made there ({error.strerror}); give another one") from None
    if taken:
        held = f"{folder / PRUNED} --dense {found.bundle}" if is_dir(folder / PRUNED) else f"{found.bundle}"
        again = f", or time what it holds: catp-bench run {held} --checkpoint {found.checkpoint}"
        raise UsageError(
            f"--keep {folder}: the folder is not empty; give another one{again if is_dir(found.bundle) else ''}"
        )
    context = multiprocessing.get_context("spawn")
    with step(f"make and export {name} with random weights"), ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            pool.submit(_make, name, found, inside).result()
        except BrokenProcessPool:
            raise CatpError(
                f"--synthetic {name}: the process that exported it was killed, as systems do when memory runs out; "
                "free some, or give a smaller one"
            ) from None
    return found


def _folders(folder: Path, name: Preset, pruned: bool) -> Made:
    return Made(folder / f"synthetic-{name}", folder / BUNDLE, folder / PRUNED if pruned else None)


def _make(name: Preset, made: Made, inside: Inside | None) -> None:
    import torch

    from catp.export.exporter import export_bundle
    from catp.export.image_encoders.plan import EncoderOptions

    torch.manual_seed(0)
    _save_checkpoint(name, made.checkpoint, inside)
    export_bundle(str(made.checkpoint), made.bundle)
    if inside is not None and made.pruned is not None:
        options = EncoderOptions(rule=inside.rule, flops=inside.shares[0])
        export_bundle(str(made.checkpoint), made.pruned, encoder=options)


def _save_checkpoint(name: Preset, folder: Path, inside: Inside | None) -> None:
    from transformers import AutoTokenizer, Blip2Processor, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    from catp.export.demo import CHECKPOINT, vqa
    from catp.export.image_encoders.plan import EncoderOptions, plan_pruning

    tokenizer = AutoTokenizer.from_pretrained(vqa.CHECKPOINT if name in BLIP else CHECKPOINT)
    config = _config(name, tokenizer)
    if inside is not None:
        for share in inside.shares:  # one that can't be reached is refused before anything is made
            options = EncoderOptions(rule=inside.rule, flops=share)
            plan_pruning(options, config, has_dictionary=False, temperature=None)
    model = _weightless(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    writer = model.text_decoder if name in BLIP else model.language_model
    language = sum(parameter.numel() for parameter in writer.parameters())
    check_room(name, parameters, folder.parent, again=parameters - language if inside else 0)
    folder.mkdir()
    _save_weights(model, folder)
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    side = config.vision_config.image_size
    image_processor = BlipImageProcessorPil(size={"height": side, "width": side})
    if name in BLIP:
        BlipProcessor(image_processor, tokenizer).save_pretrained(folder)
    else:
        Blip2Processor(image_processor, tokenizer, num_query_tokens=config.num_query_tokens).save_pretrained(folder)
    image_processor.save_pretrained(folder)


def _weightless(config: Any) -> Any:
    """The model on the meta device. Flan-T5's head is not its table of embeddings, which transformers' T5 takes it for
    until it finds both in a checkpoint.
    """
    import torch
    import transformers

    (architecture,) = config.architectures
    with torch.device("meta"):
        model = getattr(transformers, architecture)(config).eval()
    if config.text_config.is_encoder_decoder:
        head = model.language_model.lm_head
        head.weight = torch.nn.Parameter(torch.empty_like(head.weight))
        del model.all_tied_weights_keys["language_model.lm_head.weight"]
    return model


def _save_weights(model: Any, folder: Path) -> None:
    """Draw the weights of a model without any and save them, layer by layer: a file's worth is in memory at most."""
    from safetensors.torch import save_file

    index: dict[str, str] = {}
    size = 0
    shard: dict[str, Any] = {}

    def save() -> None:
        name = f"model-{len(set(index.values())) + 1:05}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(shard, name))
        shard.clear()

    for weights in _drawn(model):
        shard |= weights
        size += sum(tensor.nbytes for tensor in weights.values())
        if sum(tensor.nbytes for tensor in shard.values()) > SHARD:
            save()
    if shard:
        save()
    content = {"metadata": {"total_size": size}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2) + "\n")


def _drawn(model: Any) -> Iterator[dict[str, Any]]:
    """Random weights by name, of one layer of a model on the meta device after the other, and of all the rest."""
    import torch

    from catp.export.demo.untrained import spread_weights

    lists = [part for part in model.modules() if isinstance(part, torch.nn.ModuleList)]
    nested = {part for outer in lists for part in outer.modules() if part is not outer}  # as T5's layers have them
    layers = [list(layer.modules()) for part in lists if part not in nested for layer in part]
    inside = {module for layer in layers for module in layer}
    for piece in (*layers, [module for module in model.modules() if module not in inside]):
        for module in piece:
            module.to_empty(device="cpu", recurse=False)
        model.tie_weights(recompute_mapping=False)
        for module in piece:
            model._init_weights(module)
        # Of the whole model, all of which costs nothing that is on the meta device.
        (_spread_blip if model.config.model_type == "blip" else spread_weights)(model)
        if model.get_input_embeddings() in piece:
            with torch.no_grad():
                head = getattr(model, "text_decoder", model).get_output_embeddings()
                tied = head.weight is model.get_input_embeddings().weight
                model.get_input_embeddings().weight.normal_(0, WORD_EMBEDDINGS if tied else 1)
        copies = model.all_tied_weights_keys
        yield {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_meta and name not in copies}
        for module in piece:
            module.to_empty(device="meta", recurse=False)


def _spread_blip(model: Any) -> None:
    """Random weights with which pictures and words count: Hugging Face's image tokens are all alike."""
    import torch

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                module.weight.normal_(0, module.weight[0].numel() ** -0.5)
        model.vision_model.embeddings.position_embedding.normal_(0, 1)


def _config(name: Preset, tokenizer: Any) -> Any:
    config = _blip_config(BLIP[name], tokenizer) if name in BLIP else _blip2_config(name, tokenizer)
    setattr(config, RANDOM_WEIGHTS, True)
    return config


def _blip_config(sizes: BlipSizes, tokenizer: Any) -> Any:
    from transformers import BlipConfig

    vision, text = sizes.vision, sizes.text
    config = BlipConfig(
        vision_config={
            "hidden_size": vision.width, "intermediate_size": vision.feed_forward, "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads, "image_size": sizes.side, "patch_size": sizes.patch,
            "layer_norm_eps": 1e-6,
        },
        text_config={
            "vocab_size": sizes.vocabulary, "hidden_size": text.width, "intermediate_size": text.feed_forward,
            "num_hidden_layers": text.layers, "num_attention_heads": text.heads, "encoder_hidden_size": vision.width,
            "max_position_embeddings": sizes.positions, "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.sep_token_id, "sep_token_id": tokenizer.sep_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
    )  # fmt: skip
    config.architectures = [sizes.architecture]
    return config


def _blip2_config(name: Preset, tokenizer: Any) -> Any:
    from transformers import Blip2Config, Blip2QFormerConfig, Blip2VisionConfig

    from catp.export.demo.untrained import make_config

    if name == "tiny":
        config = make_config(tokenizer)
    else:
        sizes = SIZES[name]
        vision, qformer = sizes.vision, sizes.qformer
        config = Blip2Config(
            vision_config=Blip2VisionConfig(
                hidden_size=vision.width, intermediate_size=vision.feed_forward, num_hidden_layers=vision.layers,
                num_attention_heads=vision.heads, image_size=IMAGE_SIZE, patch_size=PATCH, initializer_range=0.02,
            ),
            qformer_config=Blip2QFormerConfig(
                vocab_size=len(tokenizer), hidden_size=qformer.width, intermediate_size=qformer.feed_forward,
                num_hidden_layers=qformer.layers, num_attention_heads=qformer.heads, cross_attention_frequency=2,
                encoder_hidden_size=vision.width,
            ),
            text_config=_flan_t5(sizes) if sizes.flan_t5 else _opt(sizes),
            num_query_tokens=QUERIES,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        )  # fmt: skip
    config.architectures = ["Blip2ForConditionalGeneration"]  # by which other programs know what it is for
    return config


def _opt(sizes: Sizes) -> Any:
    from transformers import OPTConfig

    from catp.export.demo.untrained import EOS, PAD

    language = sizes.language
    return OPTConfig(
        vocab_size=sizes.vocabulary, hidden_size=language.width, word_embed_proj_dim=language.width,
        ffn_dim=language.feed_forward, num_hidden_layers=language.layers, num_attention_heads=language.heads,
        max_position_embeddings=sizes.positions, bos_token_id=EOS, eos_token_id=EOS, pad_token_id=PAD,
    )  # fmt: skip


def _flan_t5(sizes: Sizes) -> Any:
    from transformers import AutoConfig

    from catp.export.demo.untrained import EOS, PAD

    language = sizes.language
    return AutoConfig.for_model(
        "t5", vocab_size=sizes.vocabulary, d_model=language.width, d_kv=language.width // language.heads,
        d_ff=language.feed_forward, num_layers=language.layers, num_heads=language.heads,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
        pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=PAD,
    )  # fmt: skip


def check_room(name: str, parameters: int, folder: Path, again: int = 0) -> None:
    """Raises CatpError where making, exporting and timing a model of so many parameters would fail for want of room.

    Args:
        again: of the parameters, those that a second bundle doesn't share with the first in memory; on disk it shares
            nothing. 0: there is one bundle.
    """
    weights, bundles = 4 * parameters, 2 if again else 1
    for what, needed, free in (
        ("memory", (MEMORY_COPIES + 1) * weights + 4 * again, available_memory()),
        (f"disk in {folder}", (DISK_COPIES + bundles) * weights, shutil.disk_usage(folder).free),
    ):
        if free is not None and free < needed:
            raise CatpError(
                f"--synthetic {name}: {parameters / 1e6:,.0f} million parameters need about {needed / 1e9:,.1f} GB of "
                f"{what}, and {free / 1e9:,.1f} GB are free; free some, or give a smaller one"
            )
