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

LOGIT_SCALE: Final = 1e6
"""Factor of a contrastive model's similarities before a softmax; CLIP's training stops at 100."""

ENCODER_PATCHES: Final = 1 << 20
"""Patches of an image, in a vision encoder that prunes; ENCODER_LAYERS and ENCODER_WIDTH are its other sizes."""

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

CACHE_ROUNDING: Final = 32
"""Slots of a KV cache come in multiples of this: attention costs what the cache is long."""

PROGRAM_BYTES: Final = 100_000_000
"""Memory of a process beside weights and cache, in estimates (--max-memory): Python, numpy, ONNX Runtime."""

# Of a server: what a client may make it do. Those with an option are its default.

SERVED_ROWS: Final = 8
"""Answers that grow at a time (--rows)."""

MOST_SERVED_ROWS: Final = 1024
"""That --rows may ask for; their memory is compared with the machine's as well."""

SERVED_LENGTH: Final = 256
"""Tokens of a row: image, prompt and answer (--max-length); attention costs what a row is long."""

QUEUED_PER_ROW: Final = 4
"""Requests that wait, for each row (--queue)."""

BODY_BYTES: Final = 20 << 20
"""Of a request."""

WAITING_BYTES: Final = 256 << 20
"""Of all requests that were read and are not under way yet."""

IMAGE_BYTES: Final = 10 << 20
"""Of a picture as it is sent, compressed."""

IMAGE_PIXELS: Final = 25_000_000
"""Of a picture that a client sends; read from its header before a pixel is decoded."""

IMAGE_FORMATS: Final = ("JPEG", "PNG", "WEBP")
"""That a server decodes: few decoders, few mistakes in them."""

FRAMES: Final = 64
"""Of a video that a client sends."""

DECODERS: Final = 2
"""Requests whose JSON and pictures are decoded at a time."""

FETCHES: Final = 16
"""Requests whose pictures are fetched at a time, where a server fetches any."""

FETCH_SECONDS: Final = 10.0
"""That a picture takes to be fetched, after its host's address is known."""

SERVED_PROMPT_CHARACTERS: Final = 4096
"""Of all texts of a request together."""

SERVED_TURNS: Final = 64
"""Messages of a conversation."""

SERVED_EMBEDDINGS: Final = 64
"""Texts and pictures of one request for embeddings."""

SERVED_STOP_STRINGS: Final = 16
"""Of a request."""

CACHE_BYTES: Final = 64 << 20
"""Of pictures that were seen before (--cache)."""

QUEUE_SECONDS: Final = 30.0
"""That a request waits for a row (--queue-timeout)."""

REQUEST_SECONDS: Final = 120.0
"""From a request's last byte to its answer's (--request-timeout)."""

READ_SECONDS: Final = 30.0
"""In which a client has to send a request's headers, and again its body."""

DRAIN_SECONDS: Final = 30.0
"""That answers under way get to end in, once the server is told to stop (--drain-timeout)."""

STALL_SECONDS: Final = 60.0
"""Without a sign of life from a model's thread, after which the server is no longer ready."""

CONNECTIONS: Final = 1024
"""At a time; others are closed at once."""

HEADER_BYTES: Final = 64 << 10
"""Of a request's headers."""

REQUEST_ID_CHARACTERS: Final = 128
"""Of an x-request-id that a client sends."""
