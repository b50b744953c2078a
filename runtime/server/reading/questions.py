"""Questions as the model reads them: a conversation made a prompt, a body's settings made wishes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from catp.runtime.bundle.generation_settings import GenerationSettings, Overrides
from catp.runtime.bundle.manifest import Manifest
from catp.runtime.limits import SERVED_PROMPT_CHARACTERS
from catp.runtime.questions import Wishes
from catp.runtime.server.failures import Failure
from catp.runtime.server.reading.bodies import ChatBody, Choice, ImagePart, Message, TextPart
from catp.runtime.server.reading.pictures import decode_base64, read_url


@dataclass(frozen=True)
class Asked:
    """A question as it was sent, apart from how tokens are chosen.

    Args:
        pictures: encoded; several are the frames of a video.
        field: of the body, that has the pictures.
    """

    prompt: str
    pictures: Sequence[bytes]
    field: str


def read_chat(body: ChatBody, manifest: Manifest, template: str | None, domains: Collection[str] = ()) -> Asked:
    """The prompt of a conversation, and its picture.

    A BLIP-2 model reads what vLLM's template for it (`template_blip2.jinja`) makes of a conversation, "Question: ...
    Answer:"; without any text, the picture asks for a caption. An InstructBLIP model reads one text as it is, as BLIP
    does.

    Args:
        template: in place of that, with {text}; for one text.
        domains: hosts that pictures are fetched from.

    Raises:
        Failure: there is no picture, or too many; or turns that the model can't read.
    """
    pictures, texts = [], []
    for place, message in enumerate(body.messages):
        text, found = _read(message, f"messages.{place}", domains)
        texts.append(text)
        if found and message.role == "assistant":
            raise Failure(400, "a picture in an assistant's message; give it in a user's", "invalid_value", "messages")
        pictures += found
    if sum(map(len, texts)) > SERVED_PROMPT_CHARACTERS:
        message_ = f"messages: more than {SERVED_PROMPT_CHARACTERS:,} characters together; give shorter ones"
        raise Failure(400, message_, "context_length_exceeded", "messages")
    if body.messages[-1].role != "user":
        raise Failure(400, "the last message is an assistant's; give a user's", "invalid_value", "messages")
    _check_count(len(pictures), manifest, "messages")
    if template is None and not manifest.reads_instruction and manifest.vote is not None:
        return Asked(_blip2(body.messages, texts), pictures, "messages")
    spoken = [text for text in texts if text]
    if len(body.messages) > 1 and len(spoken) > 1:
        raise Failure(
            400, f"{len(spoken)} messages: this model reads one text; give one message", "invalid_value", "messages"
        )
    text = spoken[0] if spoken else ""
    return Asked(template.replace("{text}", text) if template else text, pictures, "messages")


def read_pictures(
    given: str | Sequence[str], manifest: Manifest, field: str, domains: Collection[str] = ()
) -> list[bytes]:
    """Pictures that are URLs, or base64.

    Raises:
        Failure: one is neither, or there are too many.
    """
    urls = [given] if isinstance(given, str) else list(given)
    _check_count(len(urls), manifest, field)
    return [read_url(url, field, domains) if ":" in url[:64] else decode_base64(url, field) for url in urls]


def _read(message: Message, where: str, domains: Collection[str]) -> tuple[str, list[bytes]]:
    if isinstance(message.content, str):
        return message.content.strip(), []
    texts = [part.text for part in message.content if isinstance(part, TextPart)]
    pictures = [
        read_url(part.image_url.url, f"{where}.content.{place}.image_url.url", domains)
        for place, part in enumerate(message.content)
        if isinstance(part, ImagePart)
    ]
    return "\n".join(texts).strip(), pictures


def _check_count(pictures: int, manifest: Manifest, field: str) -> None:
    if not pictures:
        raise Failure(400, "no picture: every question is about one; give an image_url part", "missing_image", field)
    if pictures > 1 and manifest.model.frames is None:
        raise Failure(400, f"{pictures} pictures: this model sees one; give one", "too_many_images", field)


def _blip2(messages: Sequence[Message], texts: Sequence[str]) -> str:
    if not any(texts):
        return ""
    parts = []
    for message, text in zip(messages, texts):
        parts.append(f"Question: {text} " if message.role == "user" else f"Answer: {text} ")
    return "".join(parts) + "Answer:"


def read_wishes(
    body: Choice, stop: str | Sequence[str] | None, max_new_tokens: int | None, default: GenerationSettings
) -> Wishes:
    """A body's settings; those that it leaves out are the bundle's, but for beams.

    Tokens are drawn where a temperature above 0, or a top_p below 1, is asked for; at temperature 0 they are not.

    Raises:
        UsageError: a setting is out of range, or of no use with the others.
        Failure: it asks for beams.
    """
    if body.num_beams not in (None, 1):
        raise Failure(
            400, f"num_beams {body.num_beams}: answers here have one beam; give 1", "unsupported_value", "num_beams"
        )
    overrides: Overrides = {
        "do_sample": body.do_sample,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "seed": body.seed,
        "repetition_penalty": body.repetition_penalty,
        "no_repeat_ngram_size": body.no_repeat_ngram_size,
        "min_new_tokens": body.min_new_tokens,
        "length_penalty": body.length_penalty,
        "early_stopping": body.early_stopping,
        "stop_strings": None if stop is None else ((stop,) if isinstance(stop, str) else tuple(stop)),
    }
    if overrides["do_sample"] is None:
        if body.temperature == 0:
            overrides["do_sample"] = False
        elif body.temperature is not None or (body.top_p is not None and body.top_p < 1):
            overrides["do_sample"] = True
    greedy = not (default.do_sample if overrides["do_sample"] is None else overrides["do_sample"])
    if greedy:
        # OpenAI's clients send these with every request; without drawing they say nothing.
        overrides["seed"] = None
        overrides["temperature"] = None if body.temperature in (0, 1) else body.temperature
        overrides["top_p"] = None if body.top_p == 1 or body.temperature == 0 else body.top_p
    settings = default.override(num_beams=1).asked_for(**overrides)
    return Wishes(settings, body.ratio, body.keep_mass, body.positions, max_new_tokens)
