"""The patches of one image that each layer of a vision encoder keeps, and where the others went."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from catp.calibration.explanation.scored import check_scored, say_match
from catp.runtime.bundle.encoder_pruning import EncoderPruningSpec, merged_into, positions_of
from catp.runtime.bundle.image_spec import ImageSpec
from catp.runtime.bundle.manifest import Manifest
from catp.runtime.errors import BundleError, UsageError
from catp.runtime.image_sides.pruned_encoder import EncoderWish
from catp.runtime.image_sides.query_tokens import Encoded
from catp.runtime.inputs.image_files import ImageSource
from catp.runtime.inputs.images import load_image, resize
from catp.runtime.pipeline import Pipeline
from catp.runtime.providers.base import to_host

MERGED, GONE = -1, -2
"""In place of a patch: averaged into a token of many patches, by the merge "one"; or left out, by the merge "drop"."""


@dataclass(frozen=True)
class LayerPatches:
    """The result of one layer that prunes."""

    layer: int
    kept: np.ndarray  # int64, patches that still stand for themselves
    merged: int  # tokens that are several patches, beside them
    receiver: dict[int, int]  # of each patch that went: the kept one that it was averaged into, by the merge "nearest"


@dataclass(frozen=True)
class EncoderTrace:
    """One image on its way through a vision encoder that prunes."""

    spec: EncoderPruningSpec
    layers: tuple[LayerPatches, ...]
    positions: np.ndarray  # int64 [I - 1]: the patch that each token after CLS was, -1 for one merged of several
    part_of: np.ndarray  # int64 [patches]: the patch of the token that each is part of at the end, MERGED or GONE
    share: float  # of the dense encoder's work

    @property
    def survivors(self) -> np.ndarray:
        """int64, patches that leave the encoder as tokens of their own, ascending."""
        return self.layers[-1].kept

    @property
    def unseen(self) -> np.ndarray:
        """int64, patches that are part of no token that leaves the encoder, ascending."""
        return np.flatnonzero(self.part_of == GONE)

    def on_patches(self, attention: np.ndarray) -> np.ndarray:
        """Attention to the tokens that leave the encoder, by patch of the image.

        A token that was merged gives each of its patches an equal part. By the merge "one" a later token may hold an
        earlier one, and which is not known: there all merged tokens share the patches that were merged into any.

        Args:
            attention: float32 [..., I], CLS first.

        Returns:
            float32 [..., 1 + patches], CLS first; the sum is that of `attention`, patches nobody sees have 0.
        """
        spread = np.zeros((len(self.positions), len(self.part_of)), np.float32)
        for token, patch in enumerate(self.positions):
            members = np.flatnonzero(self.part_of == (patch if patch >= 0 else MERGED))
            spread[token, members] = 1 / len(members)
        return np.concatenate([attention[..., :1], attention[..., 1:] @ spread], -1)


@dataclass(frozen=True)
class PatchExplanation:
    """One image and prompt, answered by an encoder that prunes."""

    manifest: Manifest
    prompt: str
    pixels: np.ndarray  # uint8 [H, W, 3], resized as the model sees it
    patch: int  # side in pixels
    trace: EncoderTrace
    answer: str


def explain_patches(pipeline: Pipeline, image: ImageSource, prompt: str, encoder: EncoderWish) -> PatchExplanation:
    """Answer a prompt, and record what each layer keeps of the image.

    Args:
        pipeline: of a bundle with an encoder that prunes, and diagnostics.
        encoder: what it keeps.

    Raises:
        UsageError: the bundle has no diagnostics, the encoder can't keep that, or the model reads two images.
        ImageError: the image can't be read.
    """
    manifest = pipeline.manifest
    if not manifest.writes_text:
        check_scored(pipeline, None, None)
    spec = check_traceable(pipeline)
    picture = load_image(image)
    if manifest.writes_text:
        answer = pipeline.generate([picture], [prompt], encoder=encoder)[0].answer
    else:
        answer = say_match(pipeline.match([picture], [prompt], encoder=encoder)[0])
    encoded = pipeline.encode(pipeline.preprocess([picture]), encoder=encoder)
    return PatchExplanation(
        manifest,
        prompt,
        resize(picture, manifest.image),
        patch_size(manifest.image, spec.sizes.patches),
        trace_encoder(spec, encoded, encoder),
        answer,
    )


def check_traceable(pipeline: Pipeline) -> EncoderPruningSpec:
    """The pruning inside a bundle's encoder, if that says what each layer keeps.

    Raises:
        UsageError: the bundle has no diagnostics.
    """
    spec = pipeline.manifest.encoder_pruning
    assert spec is not None
    outputs = {tensor.name for tensor in pipeline.manifest.graphs["vision_encoder"].outputs}
    wanted = [positions_of(layer) for layer in spec.layers[:-1]]
    wanted += [merged_into(layer) for layer in spec.layers] if spec.merge == "nearest" else []
    if not set(wanted) <= outputs:
        raise UsageError(
            f"bundle {pipeline.bundle.path}: exported without diagnostics, so it can't show what each layer keeps; "
            "export with --diagnostics (catp-export --diagnostics --encoder-flops ...)"
        )
    return spec


def trace_encoder(spec: EncoderPruningSpec, encoded: Encoded, encoder: EncoderWish, picture: int = 0) -> EncoderTrace:
    """The way of one image, from the outputs of its vision encoder, diagnostics among them.

    Args:
        encoder: what it was asked to keep.
        picture: row of the batch.
    """
    before, layers = np.arange(spec.sizes.patches), []
    part_of = before.copy()
    for layer in spec.layers:
        after = to_host(encoded["kept_positions" if layer == spec.layers[-1] else positions_of(layer)])[picture]
        receiver = {}
        if spec.merge == "nearest":
            into = to_host(encoded[merged_into(layer)])[picture]
            receiver = {int(patch): int(target) for patch, target in zip(before, into) if patch != target}
            for patch, target in receiver.items():
                part_of[part_of == patch] = target
        else:
            part_of[~np.isin(part_of, after)] = MERGED if spec.merge == "one" else GONE
        layers.append(LayerPatches(layer, np.sort(after[after >= 0]), int((after < 0).sum()), receiver))
        before = after
    counts = to_host(encoded["kept_counts"]).tolist() if spec.form == "dynamic" else encoder.schedule(spec)
    return EncoderTrace(spec, tuple(layers), before, part_of, spec.gflops(counts) / spec.gflops_dense)


def patch_size(spec: ImageSpec, patches: int) -> int:
    """Side in pixels of the square patches that an image is cut into; a margin too small for one is not looked at.

    Raises:
        BundleError: no square grid has so many patches.
    """
    for side in range(min(spec.height, spec.width), 0, -1):
        if (spec.height // side) * (spec.width // side) == patches:
            return side
    raise BundleError(f"{patches} image tokens beside CLS: no grid of square patches in {spec.width} x {spec.height}")
