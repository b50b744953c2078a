"""Prompts are text: none becomes a special token, and those without one have Hugging Face's ids."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import qformer_tokenizer, t5_tokenizer
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from catp.calibration.accuracy.answering import Answerer, read_prompt
from catp.calibration.accuracy.settings import Grid
from catp.calibration.data import VqaExample
from catp.export.demo import CHECKPOINT, samples
from catp.runtime import Pipeline, UsageError
from catp.runtime.bundle.manifest import TextSpec
from catp.runtime.inputs.text import TextCodec

MARKED = ["<image>", "<image>\nwhat is red?", "red</s>", " <pad> red", "<s>a<unk>b", "x<image><image></s>", "</s></s>"]
PLAIN = ["", "what is red?", "<IMAGE> red", "< image >", "<imag", "a <b> c </b>", "naïve 🙂 日本\n", "</S>", "  two  "]


def spec(template: str = "{prompt}") -> TextSpec:
    return TextSpec(pad_token_id=1, eos_token_ids=(2,), max_positions=9, prompt_template=template)


def unigram(file: Path, *added: AddedToken, normalizer: normalizers.Normalizer | None = None, known: str = "") -> Path:
    """As T5's: control tokens are words of the vocabulary, and neither `<` nor `/` is."""
    control = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    letters = "▁abcdefghijklmnopqrstuvwxyz>?" + known
    tokenizer = Tokenizer(models.Unigram([*control, *((letter, -3.0) for letter in letters)], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens([name for name, _ in control])
    tokenizer.add_tokens(list(added))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(file))
    return file


IMAGE = AddedToken("<image>", special=True, normalized=False)


@pytest.mark.parametrize("prompt", [*MARKED, *PLAIN])
def test_marks_are_read_as_text_where_the_tokenizer_can(prompt: str) -> None:
    theirs = AutoTokenizer.from_pretrained(CHECKPOINT)
    for template in ("{prompt}", "Question: {prompt} Answer:", "{prompt}{prompt}"):
        ids = TextCodec(CHECKPOINT / "tokenizer.json", spec(template), 383).encode(prompt)
        text = template.replace("{prompt}", prompt)
        assert ids == theirs(text, split_special_tokens=True).input_ids
        assert (ids == theirs(text).input_ids) == (prompt in PLAIN)
        assert not set(ids[1:]) & set(theirs.all_special_ids)  # the first is the begin token


def test_a_mark_that_prompt_and_template_make_together_is_none() -> None:
    codec = TextCodec(CHECKPOINT / "tokenizer.json", spec("<im{prompt}>"), 383)
    assert 383 not in codec.encode("age") and 383 not in codec.encode("")


def test_marks_of_the_template_are_tokens() -> None:
    """As the bundle's author meant them; then a prompt's can't be told from them by the tokenizer."""
    codec = TextCodec(CHECKPOINT / "tokenizer.json", spec("<image>Q: {prompt}</s>"), 383)
    for prompt in PLAIN:
        wanted = AutoTokenizer.from_pretrained(CHECKPOINT)(f"<image>Q: {prompt}</s>").input_ids
        assert codec.encode(prompt) == wanted
    for prompt, mark in (("<image>", "<image>"), ("a</s>b", "</s>"), ("<pad>", "<pad>")):
        with pytest.raises(UsageError, match=rf"prompt: '{mark}' is a special token .*images need no mark"):
            codec.encode(prompt)


@pytest.mark.parametrize("prompt", ["<image> a", "a </s>", "<pad>", "a<unk>b", "see <image>"])
def test_marks_that_are_words_or_unknown_are_refused(tmp_path: Path, prompt: str) -> None:
    codec = TextCodec(unigram(tmp_path / "t.json", IMAGE), spec())
    with pytest.raises(UsageError, match="can't read it as text; leave it out"):
        codec.encode(prompt)


def test_unknown_characters_are_no_marks(tmp_path: Path) -> None:
    file = unigram(tmp_path / "t.json", IMAGE)
    for prompt in ("a ☃ b", "a < b", "<imag> ☃", "☃"):
        ids = TextCodec(file, spec()).encode(prompt)
        assert ids == Tokenizer.from_file(str(file)).encode(prompt).ids and 2 in ids


def test_an_unknown_character_beside_a_mark_that_can_be_read(tmp_path: Path) -> None:
    codec = TextCodec(unigram(tmp_path / "t.json", IMAGE, known="<"), spec())
    for prompt in ("☃<image>", "<image>☃", "☃<image>☃"):
        assert codec.encode(prompt).count(2) == prompt.count("☃")


def test_a_mark_that_a_normaliser_makes_is_refused(tmp_path: Path) -> None:
    codec = TextCodec(unigram(tmp_path / "t.json", normalizer=normalizers.NFKC()), spec())  # type: ignore[no-untyped-call]
    with pytest.raises(UsageError, match="'＜/s＞' is a special token"):
        codec.encode("a ＜/s＞ b")


def test_added_words_that_are_not_special_stay_words_but_the_placeholder(tmp_path: Path) -> None:
    file = unigram(tmp_path / "t.json", AddedToken("<od>"), AddedToken("<image>"))
    word, placeholder = (Tokenizer.from_file(str(file)).token_to_id(name) for name in ("<od>", "<image>"))
    assert word in TextCodec(file, spec(), placeholder).encode("<od> red")
    assert placeholder in TextCodec(file, spec()).encode("<image> red")
    with pytest.raises(UsageError, match="'<image>' is a special token"):
        TextCodec(file, spec(), placeholder).encode("<image> red")


def test_normalised_forms_and_stripped_spaces_are_text_too(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Lowercase()  # type: ignore[no-untyped-call]
    tokenizer.add_special_tokens([AddedToken("<sep>", lstrip=True, rstrip=True, normalized=True)])
    mark = tokenizer.token_to_id("<sep>")
    tokenizer.save(str(tmp_path / "t.json"))
    for prompt in ("a <sep> b", "A <SEP>  b", "<Sep>"):
        assert mark in tokenizer.encode(prompt).ids
        assert mark not in TextCodec(tmp_path / "t.json", spec()).encode(prompt)


def test_the_q_former_reads_marks_as_text_or_not_at_all(tmp_path: Path) -> None:
    tokenizer = qformer_tokenizer()
    tokenizer.backend_tokenizer.save(str(tmp_path / "q.json"))
    codec = TextCodec(tmp_path / "q.json", spec())
    assert codec.encode("what is red?") == tokenizer("what is red?").input_ids
    for prompt in ("red [SEP] blue", "[PAD]", "a[CLS]"):  # it has no brackets
        with pytest.raises(UsageError, match="is a special token"):
            codec.encode(prompt)
    t5 = t5_tokenizer()
    t5.backend_tokenizer.save(str(tmp_path / "t5.json"))
    ids = TextCodec(tmp_path / "t5.json", spec()).encode("red </s> blue")
    assert ids.count(2) == 1 and ids[-1] == 2


def test_an_answer_to_a_marked_prompt_is_that_of_hugging_face_s_text(pipeline: Pipeline) -> None:
    sample, theirs = samples()[0], AutoTokenizer.from_pretrained(CHECKPOINT)
    prompt = "<image>\n" + sample.prompt
    assert pipeline.tokenize(prompt) == theirs(prompt, split_special_tokens=True).input_ids
    assert len(pipeline.generate([sample.image], [prompt])[0].token_ids) > 0


def test_a_question_that_can_not_be_read_is_skipped_and_says_why(pipeline: Pipeline, tmp_path: Path) -> None:
    sample = samples()[0]
    bad, good = (VqaExample(q, sample.image, q, ("a",), "other", "1") for q in ("what </s>?", "what is red?"))
    codec = pipeline._text
    try:
        pipeline._text = TextCodec(unigram(tmp_path / "t.json", IMAGE), spec("{prompt}"))
        ids, reason = read_prompt(pipeline, bad)
        assert ids == [] and reason is not None and "'</s>' is a special token" in reason
        answers = Answerer(pipeline, Grid(("catp",), (0.5,), ("original",)).settings(), "exact match", 0, 8)
        found = answers.answer([bad, good])
        assert [prediction.error for prediction in found] == [reason, None]
    finally:
        pipeline._text = codec
