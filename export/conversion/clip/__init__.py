"""CLIPs of OpenAI's code, and of MADTP's built on it, to Hugging Face's."""

from __future__ import annotations

from catp.export.conversion.clip.folder import convert_clip, is_clip

__all__ = ["convert_clip", "is_clip"]
