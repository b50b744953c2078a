"""A checkpoint of a preset's sizes in a folder, as Hugging Face's classes save one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from catp.calibration.benchmark.synthetic.configurations import make_config, make_tokenizer
from catp.calibration.benchmark.synthetic.sizes import BLIP, CLIP, Preset
from catp.calibration.benchmark.synthetic.weights import save_weights


def save_checkpoint(
    name: Preset,
    folder: Path,
    check_config: Callable[[Any], None] = lambda config: None,
    check_parameters: Callable[[int, int], None] = lambda parameters, apart: None,
) -> None:
    """Model, tokenizer and image processor, in a folder that there is not yet.

    Args:
        check_config: called before anything is made.
        check_parameters: called before weights are drawn with the number of all parameters, and of those that two
            bundles don't share whose vision encoders prune differently.
    """
    tokenizer = make_tokenizer(name)
    config = make_config(name, tokenizer)
    check_config(config)
    model = make_weightless(config)
    language = getattr(model, "language_model", None)
    check_parameters(count(model), count(model.vision_model) if language is None else count(model) - count(language))
    folder.mkdir()
    save_weights(model, folder)
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    image_processor = _save_processor(name, config, tokenizer, folder)
    image_processor.save_pretrained(folder)


def _save_processor(name: Preset, config: Any, tokenizer: Any, folder: Path) -> Any:
    """The image processor, after the processor that holds it was saved."""
    from transformers import Blip2Processor, BlipProcessor, CLIPProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    side = config.vision_config.image_size
    square = {"height": side, "width": side}
    if name in CLIP:
        images: Any = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=square)
        CLIPProcessor(images, tokenizer).save_pretrained(folder)
        return images
    images = BlipImageProcessorPil(size=square)
    if name in BLIP:
        BlipProcessor(images, tokenizer).save_pretrained(folder)
    else:
        Blip2Processor(images, tokenizer, num_query_tokens=config.num_query_tokens).save_pretrained(folder)
    return images


def make_weightless(config: Any) -> Any:
    """The model on the meta device. Flan-T5's head is not its table of embeddings, which transformers' T5 takes it for
    until it finds both in a checkpoint.
    """
    import torch

    from catp.export.families import family_of

    with torch.device("meta"):
        model = family_of(config, "synthetic").model_class()(config).eval()
    if config.text_config.is_encoder_decoder:
        head = model.language_model.lm_head
        head.weight = torch.nn.Parameter(torch.empty_like(head.weight))
        del model.all_tied_weights_keys["language_model.lm_head.weight"]
    return model


def count(model: Any) -> int:
    """Parameters of a module."""
    return sum(parameter.numel() for parameter in model.parameters())
