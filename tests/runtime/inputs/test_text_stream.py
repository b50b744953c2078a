"""Text while it grows: whole characters, no beginnings of stop strings, and together the answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from catp.export.demo import samples
from catp.runtime import Pipeline, UsageError
from catp.runtime.bundle.manifest import TextSpec
from catp.runtime.generation.stopping import StopStrings
from catp.runtime.inputs.text import TextCodec
from catp.runtime.inputs.text_stream import TextStream

SPEC = TextSpec(pad_token_id=0, eos_token_ids=(), max_positions=9)
TEXT = "naïve 🙂 日本 end. "
EVERY_BYTE = "".join(map(chr, range(0x21, 0x180))) + "\u07ff\u0800\uffff\U0001f642"
"""Characters whose UTF-8 has every byte from 0x80 to 0xBF, the gap of byte-level tables at 0xAD among them."""


def byte_level(file: Path) -> TextCodec:
    """Every byte a token, as rare characters are for OPT."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(file))
    return TextCodec(file, SPEC)


def byte_fallback(file: Path) -> TextCodec:
    """Letters, and bytes for what is none of them, as Llama's sentencepiece has it."""
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz."]
    tokenizer = Tokenizer(
        models.BPE({name: i for i, name in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.save(str(file))
    return TextCodec(file, SPEC)


@pytest.fixture(params=[byte_level, byte_fallback])
def codec(request: pytest.FixtureRequest, tmp_path: Path) -> TextCodec:
    return request.param(tmp_path / "tokenizer.json")


def pieces(codec: TextCodec, ids: list[int], *stop_strings: str) -> list[str]:
    stream = TextStream(codec, stop_strings)
    return [stream.advance(ids[: end + 1]) for end in range(len(ids))] + [stream.finish(ids)]


def test_characters_are_never_split(codec: TextCodec) -> None:
    ids = codec.encode(TEXT)
    assert len(ids) > len(TEXT)  # characters of several tokens
    found = pieces(codec, ids)
    assert "".join(found) == TEXT.strip() and "\ufffd" not in "".join(found)
    assert "🙂" in "".join(found) and sum(bool(piece) for piece in found) > 10  # it really streams


def test_special_tokens_are_no_pieces(pipeline: Pipeline) -> None:
    """Wherever they come: what a stream tells is what is decoded in the end."""
    codec = pipeline._text
    end, pad = (codec._tokenizer.token_to_id(name) for name in ("</s>", "<pad>"))
    words = codec.encode("a black diamond")[1:]
    ids = [pad, *words[:2], pad, end, *words[2:], end]
    assert "".join(pieces(codec, ids)) == codec.decode(ids) == "a black diamond"
    assert codec.piece(end) == b"</s>"  # which a stop string may be


def test_what_may_become_a_stop_string_is_held_back(codec: TextCodec) -> None:
    ids = codec.encode("an end of it")
    assert [piece for piece in pieces(codec, ids, "end.", "of it all") if piece][-1] == " of it"
    assert "".join(pieces(codec, ids, "end.", "of it all")) == "an end of it"
    assert "".join(pieces(codec, ids, "en", "f")) == "an" == codec.decode(ids, ["en", "f"])
    assert pieces(codec, codec.encode("a en"), "endless")[-1] == " en"


def test_bytes_of_tokens_make_the_text(codec: TextCodec) -> None:
    ids = codec.encode("x" + TEXT)
    assert b"".join(codec.piece(token) for token in ids).decode().strip() == "x" + TEXT.strip()


def test_every_byte_of_a_byte_level_table_is_itself(tmp_path: Path) -> None:
    codec = byte_level(tmp_path / "tokenizer.json")
    for character in EVERY_BYTE:
        assert b"".join(codec.piece(token) for token in codec.encode(character)) == character.encode()


def test_a_stop_string_is_found_where_its_last_byte_comes(codec: TextCodec) -> None:
    ids = codec.encode("so 日本 it")
    stop = StopStrings(("日本".encode(), b"zz"), codec.piece)
    found = [end for end in range(1, len(ids) + 1) if stop.just_completed(ids[:end])]
    assert len(found) == 1 and codec.decode(ids[: found[0]]) == "so 日本"


def test_a_stop_string_inside_a_token_and_across_tokens(pipeline: Pipeline) -> None:
    codec = pipeline._text
    ids = codec.encode("a black diamond")
    for text in ("lac", "ck dia", "k d"):
        stop = StopStrings((text.encode(),), codec.piece)
        (end,) = [end for end in range(1, len(ids) + 1) if stop.just_completed(ids[:end])]
        assert text in codec.decode(ids[:end]) and text not in codec.decode(ids[: end - 1])


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_is_the_answer(pipeline: Pipeline, seed: int) -> None:
    """Also of tokens drawn at random, bytes that are no characters among them."""
    sample = samples()[0]
    settings = {"do_sample": True, "temperature": 30.0, "top_k": 0, "seed": seed, "max_new_tokens": 24}
    found = list(pipeline.stream(sample.image, sample.prompt, **settings))  # type: ignore[arg-type]
    (answer,) = pipeline.generate([sample.image], [sample.prompt], **settings)  # type: ignore[arg-type]
    assert "".join(found) == answer.answer and all(found) and len(found) > 3


def test_a_stream_ends_before_a_stop_string(pipeline: Pipeline) -> None:
    sample = samples()[0]  # "a black diamond"
    found = list(pipeline.stream(sample.image, sample.prompt, stop_strings=["diamond"]))
    assert "".join(found) == "a black"
    (answer,) = pipeline.generate([sample.image], [sample.prompt], stop_strings=["diamond"])
    assert answer.answer == "a black" and "diamond" in pipeline.detokenize(answer.token_ids)


def test_mistakes_are_told_before_anything_runs(pipeline: Pipeline) -> None:
    sample = samples()[0]
    with pytest.raises(UsageError, match="3 beams is not known before its end"):
        pipeline.stream(sample.image, sample.prompt, num_beams=3)
    with pytest.raises(UsageError, match="max_new_tokens 0"):
        pipeline.stream(sample.image, sample.prompt, max_new_tokens=0)


def test_the_decoder_is_read_from_the_tokenizer(codec: TextCodec) -> None:
    assert json.loads(codec._tokenizer.to_str())["decoder"]["type"] in {"ByteLevel", "Sequence"}
    assert codec._decoders & {"ByteLevel", "ByteFallback"}
