"""The tokenizer of a BLIP: BERT's, with two more tokens.

Answers begin with [DEC], questions with [ENC].
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from catp.export.checkpoints.reading import reading
from catp.runtime.errors import UsageError

DECODE = "[DEC]"
ENCODE = "[ENC]"
_BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
_ACCEPTED = "accepted: bert-base-uncased's, with or without BLIP's [DEC] and [ENC] as its last ones"


def load_tokenizer(source: str, rows: int, positions: int) -> Any:
    """A tokenizer for embeddings of so many tokens. BERT's own gets [DEC] and [ENC], as in the official code.

    Args:
        source: a local folder or a Hub id.
        positions: the longest text.

    Raises:
        UsageError: it is none of BERT's kind, or has another number of tokens.
    """
    with reading(f"--tokenizer {source}: it can't be loaded", "check the name and the network", UsageError):
        tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    known = tokenizer.get_vocab()
    if missing := [token for token in _BERT.values() if token not in known]:
        raise UsageError(f"--tokenizer {source}: it has no {', '.join(missing)}; {_ACCEPTED}")
    given = len(tokenizer)
    for token in (DECODE, ENCODE):
        if token not in known:
            tokenizer.add_tokens([token], special_tokens=True)
    if len(tokenizer) != rows or tokenizer.convert_tokens_to_ids([DECODE, ENCODE]) != [rows - 2, rows - 1]:
        raise UsageError(
            f"--tokenizer {source}: it has {given} tokens, and the checkpoint embeddings for {rows}, the last two "
            f"being {DECODE} and {ENCODE}; {_ACCEPTED}"
        )
    for name, token in {**_BERT, "bos_token": DECODE}.items():
        setattr(tokenizer, name, token)
    tokenizer.model_max_length = positions
    tokenizer.padding_side = "right"
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: Path, first: str) -> None:
    """Write a tokenizer that puts the token `first` before each text and [SEP] after it.

    Raises:
        UsageError: one without tokenizer.json can't be made to.
    """
    tokenizer.cls_token = first
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    advice = "give one that has a tokenizer.json"
    with reading("--tokenizer: its tokenizer.json can't be adapted", advice, UsageError):
        content = json.loads(path.read_text())
        content["post_processor"] = _template(tokenizer, first, tokenizer.sep_token)
        path.write_text(json.dumps(content, ensure_ascii=False, indent=2))
        ids = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)("a").input_ids
        if [ids[0], ids[-1]] != tokenizer.convert_tokens_to_ids([first, tokenizer.sep_token]):
            raise ValueError(f"texts do not begin with {first} and end with {tokenizer.sep_token}")


def _template(tokenizer: Any, first: str, last: str) -> dict[str, Any]:
    """The form of a text, in the words of the library tokenizers."""

    def special(token: str, part: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": part}}

    def text(name: str, part: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": part}}

    one = [special(first, 0), text("A", 0), special(last, 0)]
    return {
        "type": "TemplateProcessing",
        "single": one,
        "pair": [*one, text("B", 1), special(last, 1)],
        "special_tokens": {
            token: {"id": token, "ids": [tokenizer.convert_tokens_to_ids(token)], "tokens": [token]}
            for token in (first, last)
        },
    }
