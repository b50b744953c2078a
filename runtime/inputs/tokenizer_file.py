"""tokenizer.json, which comes with a bundle: what it can do to this process is bounded, and its failures are errors."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from catp.runtime.errors import BundleError
from catp.runtime.limits import EXPANSION, TOKENIZER_BYTES

_FACTORS = {"NFD": 4, "NFC": 3, "NFKD": 18, "NFKC": 18, "Lowercase": 3, "ByteLevel": 4, "BertNormalizer": 12}
"""Characters that others make of one at most (https://unicode.org/faq/normalization.html)."""


def load_tokenizer(path: Path) -> Any:
    """The tokenizer in a file: a `tokenizers.Tokenizer` whose methods raise BundleError where the library fails.

    Raises:
        BundleError: it is none, or one that could fill the memory.
    """
    try:
        if path.stat().st_size > TOKENIZER_BYTES:
            raise BundleError(f"{path}: it has more than {TOKENIZER_BYTES:,} bytes; export the bundle again")
        content = json.loads(path.read_bytes())
        for part in ("normalizer", "decoder"):
            # Before the library reads it: it normalizes added tokens when it loads them.
            if _expansion(content.get(part)) > EXPANSION:
                raise BundleError(
                    f"{path}: its {part} may make more than {EXPANSION:,} characters of one; export the bundle again, "
                    "from a checkpoint that you trust"
                )
    except (OSError, ValueError, RecursionError, AttributeError, TypeError, LookupError) as error:
        raise BundleError(f"{path}: not a tokenizer ({error}); export the bundle again") from None
    return _Guarded(_guarded(Tokenizer.from_file, path)(str(path)), path)


class _Guarded:
    """A tokenizer whose panics are errors: as they come, `except Exception` does not catch them."""

    def __init__(self, tokenizer: Tokenizer, path: Path) -> None:
        self.__dict__.update(_tokenizer=tokenizer, _path=path)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._tokenizer, name)
        return _guarded(found, self._path) if callable(found) else found

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._tokenizer, name, value)


def _guarded(call: Callable[..., Any], path: Path) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
            raise
        except BaseException as error:  # tokenizers raises bare Exception, and panics as a BaseException
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise BundleError(f"{path}: not a tokenizer that works ({reason}); export the bundle again") from None

    return run


def _expansion(part: Mapping[str, Any] | None) -> float:
    """Characters that a normalizer, or a decoder, may make of one: those of its parts multiply."""
    if part is None:
        return 1
    kind = part["type"]
    if kind == "Sequence":
        product = 1.0
        for inner in part.get("normalizers", part.get("decoders", ())):
            product *= _expansion(inner)
        return product
    if kind == "Replace":
        pattern = part["pattern"].get("String") or ""
        # A regular expression may match nothing, between all characters.
        return max(1.0, len(part["content"]) / len(pattern)) if pattern else 1.0 + len(part["content"])
    if kind == "Prepend":
        return 1.0 + len(part["prepend"])
    if kind == "Precompiled":
        return _longest_replacement(part["precompiled_charsmap"])
    return float(_FACTORS.get(kind, 1))


def _longest_replacement(charsmap: str | None) -> float:
    """The longest replacement in SentencePiece's table: a trie's size, the trie, and texts that end in zeros."""
    table = base64.b64decode(charsmap or "")
    replacements = table[4 + int.from_bytes(table[:4], "little") :]
    return float(max((len(text) for text in replacements.split(b"\0")), default=1) or 1)
