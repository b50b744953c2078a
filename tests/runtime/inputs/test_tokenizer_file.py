"""A tokenizer that breaks the library, or would fill the memory, is one error that `except Exception` catches."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from catp.runtime.bundle.manifest import TextSpec
from catp.runtime.errors import BundleError, UsageError
from catp.runtime.inputs.text import TextCodec
from catp.runtime.inputs.tokenizer_file import load_tokenizer

SPEC = TextSpec(pad_token_id=0, eos_token_ids=(1,), max_positions=64)
REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


def write(path: Path, **parts: Any) -> Path:
    model = {"type": "WordLevel", "vocab": {"<unk>": 0, "a": 1}, "unk_token": "<unk>"}
    content = {"version": "1.0", "model": model, "added_tokens": [], **parts}
    for name in ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"):
        content.setdefault(name, None)
    path.write_text(json.dumps(content))
    return path


def charsmap(replacement: bytes) -> str:
    """One character, replaced."""
    return base64.b64encode((4).to_bytes(4, "little") + bytes(4) + replacement + b"\0").decode()


def test_a_sound_one_is_the_library_s_own(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", normalizer={"type": "Sequence", "normalizers": [REPLACE] * 3})
    found, reference = load_tokenizer(path), Tokenizer.from_file(str(path))
    assert found.to_str() == reference.to_str()
    assert found.encode("a").ids == reference.encode("a").ids
    found.encode_special_tokens = True
    assert found.encode_special_tokens


@pytest.mark.parametrize("part", ["normalizer", "decoder"])
@pytest.mark.parametrize(
    "inner",
    [
        [REPLACE] * 40,
        [{**REPLACE, "content": "a" * 20_000}],
        [{"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 150}] * 2,
        [{"type": "Replace", "pattern": {"String": ""}, "content": "a" * 150}] * 2,
        [{"type": "Prepend", "prepend": "a" * 150}] * 2,
        [{"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "NFKD"}], "decoders": [REPLACE] * 6}] * 4,
        [{"type": "Precompiled", "precompiled_charsmap": charsmap(b"x" * 150)}] * 2,
    ],
    ids=lambda inner: f"{len(inner)} {inner[0]['type']}",
)
def test_what_multiplies_text_is_refused_before_it_is_loaded(tmp_path: Path, part: str, inner: list[Any]) -> None:
    key = "normalizers" if part == "normalizer" else "decoders"
    path = write(tmp_path / "t.json", **{part: {"type": "Sequence", key: inner}})
    with pytest.raises(BundleError, match=f"its {part} may make more than"):
        load_tokenizer(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000, '{"model": 1}', '{"normalizer": 5}'])
def test_what_is_none_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(BundleError, match="not a tokenizer") as caught:
        load_tokenizer(tmp_path / "t.json")
    assert "\n" not in str(caught.value)


def test_one_of_any_size_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "t.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BundleError, match="more than 268,435,456 bytes"):
        load_tokenizer(tmp_path / "t.json")


def test_a_panic_is_an_exception(tmp_path: Path) -> None:
    """The library panics where a match takes too many steps; a panic is no Exception."""
    pattern = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    path = write(tmp_path / "t.json", pre_tokenizer=pattern)
    codec = TextCodec(path, SPEC)
    assert codec.encode("a") == [1]
    with pytest.raises(BundleError, match="not a tokenizer that works"):
        codec.encode("x" * 5000)


def test_the_length_of_a_prompt_has_a_bound(tmp_path: Path) -> None:
    codec = TextCodec(write(tmp_path / "t.json"), SPEC)
    assert codec.encode("a" * 1_000_000)
    with pytest.raises(UsageError, match="prompt: 1,000,001 characters"):
        codec.encode("a" * 1_000_001)
    with pytest.raises(UsageError, match="not valid Unicode"):
        codec.encode(os.fsdecode(b"\xff"))


def test_all_tokenizers_of_the_demo_families_are_let_through() -> None:
    """What SentencePiece's own table, byte-level and BERT's normalizers make of a character."""
    from catp.runtime.inputs.tokenizer_file import _expansion
    from catp.runtime.limits import EXPANSION

    t5 = [
        {"type": "Precompiled", "precompiled_charsmap": charsmap(b"\xd8\xb5\xd9\x84\xd9\x89" * 6)},
        {"type": "Strip", "strip_left": False, "strip_right": True},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
    ]
    llama = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    for parts in (t5, llama, [{"type": "NFKC"}, {"type": "Lowercase"}], [{"type": "BertNormalizer"}]):
        assert 1 <= _expansion({"type": "Sequence", "normalizers": parts}) <= EXPANSION / 10
