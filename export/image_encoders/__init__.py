"""Image encoders: from pixels to image embeddings, as graphs and by plain PyTorch. One file each."""

from catp.export.image_encoders.base import ImageEncoder
from catp.export.image_encoders.plain import PlainEncoder

__all__ = ["ImageEncoder", "PlainEncoder"]
