"""The bounds on what a bundle, or whoever asks, may make this program do.

A bundle is an untrusted file. What is larger than these bounds is refused by name before anything is loaded or
allocated. Where the machine decides, its cores (`THREADS_PER_CORE`) and its free memory do (`catp.runtime.system`).

Not bounded: the time that a tokenizer's regular expressions take. The library that matches them gives up after ten
million steps of a match, and that is an error; a bundle that nobody trusts is best opened in a process of its own.
"""

from __future__ import annotations

from typing import Final

MANIFEST_BYTES: Final = 16 << 20
"""Of catp.json; those of known models have some 20 kB."""

GRAPH_BYTES: Final = 256 << 20
"""Of an ONNX file without its weights; a model of 40 layers has less than 2 MB."""

TOKENIZER_BYTES: Final = 256 << 20
"""Of tokenizer.json; those of 250,000 tokens have 20 MB."""

EXPANSION: Final = 10_000
"""Characters that a tokenizer's normalizer, or its decoder, may make of one."""

ENCODER_SIDE: Final = 4096
"""Pixels of the vision encoder's input, in width or height."""

ENCODER_PATCHES: Final = 1 << 20
"""Of an image that a vision encoder prunes in; ENCODER_LAYERS and ENCODER_WIDTH are the sizes of such an encoder."""

ENCODER_LAYERS: Final = 1000
ENCODER_WIDTH: Final = 1 << 20

QUERY_TOKENS: Final = 4096
"""Of an image."""

POSITIONS: Final = 1 << 24
"""Of a language model, and so tokens of an answer, frames of a video, n-grams."""

PROMPT_CHARACTERS: Final = 1_000_000
"""Of a prompt, before the tokenizer makes more of them."""

BEAMS: Final = 1000
"""Of a search; the memory of their caches is compared with the machine's as well."""

STOP_STRINGS: Final = 1000
"""That end an answer."""

TEMPLATE_CHARACTERS: Final = 100_000
"""Of a prompt template, and of all stop strings together."""

COUNT: Final = 1 << 62
"""The most bytes, elements or operators: the largest number that is safe in an int64."""

PATH_CHARACTERS: Final = 1024
"""Of a file's path inside the bundle."""

THREADS_PER_CORE: Final = 32
"""More threads than cores help nobody, a million of them end the process."""
