"""Bundle to answers: numpy and one engine, never torch or transformers.

from catp.runtime import Pipeline

pipeline = Pipeline.load("bundle", provider="cpu")
answers = pipeline.generate(["photo.jpg"], ["Question: what is this? Answer:"], ratio=0.5)
"""

import catp.runtime.system.telemetry  # noqa: F401  first: what follows may import ONNX Runtime
from catp.runtime.answers import Answer, Timings
from catp.runtime.bundle.generation_settings import GenerationSettings
from catp.runtime.errors import BundleError, CatpError, GraphError, ImageError, UsageError
from catp.runtime.image_sides.pruned_encoder import EncoderWish
from catp.runtime.pipeline import Pipeline

__all__ = [
    "Answer",
    "BundleError",
    "CatpError",
    "EncoderWish",
    "GenerationSettings",
    "GraphError",
    "ImageError",
    "Pipeline",
    "Timings",
    "UsageError",
]
