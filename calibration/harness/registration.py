"""The registration of bundles as a model of lmms-eval, which finds it by its entry point `lmms_eval.models`."""

from __future__ import annotations

from lmms_eval.models.registry_v2 import ModelManifest

NAME = "catp"
"""As --model has it."""


def manifest() -> ModelManifest:
    """The entry of the harness's registry. The class itself is imported when a run asks for it."""
    return ModelManifest(model_id=NAME, simple_class_path="catp.calibration.harness.plugin.BundleModel")
