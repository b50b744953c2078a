"""Options that name several texts: separated by commas, or in a file."""

from __future__ import annotations

import json
from pathlib import Path

from catp.runtime.errors import UsageError

FILES = (".txt", ".json")


def read_list(option: str, text: str) -> list[str]:
    """Texts separated by commas, or those of a file.

    Raises:
        UsageError: a file can't be read, or has something else in it.
    """
    path = Path(text)
    if path.suffix in FILES:
        return read_list_file(option, path, "texts separated by commas, ")
    return [part.strip() for part in text.split(",") if part.strip()]


def read_list_file(option: str, path: Path, or_else: str = "") -> list[str]:
    """Texts of a file: a list where its name ends in .json, or else one in each line; empty ones are left out.

    Args:
        or_else: other things that the option takes, for the message.

    Raises:
        UsageError: it can't be read, or has something else in it.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
        found = json.loads(content) if path.suffix == ".json" else [line.strip() for line in content.splitlines()]
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise ValueError("not a list of texts")
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"{option} {path}: {reason}; give {or_else}a .txt file with one in each line, or a .json file with a list"
        ) from None
    return [text for text in found if text]
