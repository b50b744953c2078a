"""The patches of one image that each layer of a vision encoder keeps, and where the others went."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from catp.calibration.explanation.explanation import patch_size
from catp.runtime.bundle.encoder_pruning import EncoderPruningSpec, merged_into, positions_of
from catp.runtime.bundle.manifest import Manifest
from catp.runtime.errors import UsageError
from catp.runtime.image_sides.pruned_encoder import EncoderWish
from catp.runtime.inputs.image_files import ImageSource
from catp.runtime.inputs.images import load_image, resize
from catp.runtime.pipeline import Pipeline
from catp.runtime.providers.base import to_host


@dataclass(frozen=True)
class LayerPatches:
    """The result of one layer that prunes."""

    layer: int
    kept: np.ndarray  # int64, patches that still stand for themselves
    merged: int  # tokens that are several patches, beside them
    receiver: dict[int, int]  # of each patch that went: the kept one that it was averaged into, by the merge "nearest"


@dataclass(frozen=True)
class PatchExplanation:
    """One image and prompt, answered by an encoder that prunes."""

    manifest: Manifest
    prompt: str
    pixels: np.ndarray  # uint8 [H, W, 3], resized as the model sees it
    patch: int  # side in pixels
    layers: tuple[LayerPatches, ...]
    share: float  # of the dense encoder's work
    answer: str

    @property
    def spec(self) -> EncoderPruningSpec:
        assert self.manifest.encoder_pruning is not None
        return self.manifest.encoder_pruning


def explain_patches(pipeline: Pipeline, image: ImageSource, prompt: str, encoder: EncoderWish) -> PatchExplanation:
    """Answer a prompt, and record what each layer keeps of the image.

    Args:
        pipeline: of a bundle with an encoder that prunes, and diagnostics.
        encoder: what it keeps.

    Raises:
        UsageError: the bundle has no diagnostics, or the encoder can't keep that.
        ImageError: the image can't be read.
    """
    manifest = pipeline.manifest
    spec = manifest.encoder_pruning
    assert spec is not None
    outputs = {tensor.name for tensor in manifest.graphs["vision_encoder"].outputs}
    wanted = [positions_of(layer) for layer in spec.layers[:-1]]
    wanted += [merged_into(layer) for layer in spec.layers] if spec.merge == "nearest" else []
    if not set(wanted) <= outputs:
        raise UsageError(
            f"bundle {pipeline.bundle.path}: exported without diagnostics, so it can't show what each layer keeps; "
            "export with --diagnostics (catp-export --diagnostics --encoder-flops ...)"
        )
    picture = load_image(image)
    (answer,) = pipeline.generate([picture], [prompt], encoder=encoder)
    encoded = {
        name: to_host(value) for name, value in pipeline.encode(pipeline.preprocess([picture]), encoder=encoder).items()
    }
    before, layers = np.arange(spec.sizes.patches), []
    for layer in spec.layers:
        last = layer == spec.layers[-1]
        after = encoded["kept_positions" if last else positions_of(layer)][0]
        receiver = {}
        if spec.merge == "nearest":
            into = encoded[merged_into(layer)][0]
            receiver = {int(patch): int(target) for patch, target in zip(before, into) if patch != target}
        layers.append(LayerPatches(layer, np.sort(after[after >= 0]), int((after < 0).sum()), receiver))
        before = after
    counts = encoded["kept_counts"].tolist() if spec.form == "dynamic" else encoder.schedule(spec)
    return PatchExplanation(
        manifest,
        prompt,
        resize(picture, manifest.image),
        patch_size(manifest.image, spec.sizes.patches),
        tuple(layers),
        spec.gflops(counts) / spec.gflops_dense,
        answer.answer,
    )
