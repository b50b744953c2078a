"""The page: one small file that loads nothing else, and a script that asks, streams and draws."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from servers import IN_TIME, SAMPLES, Running, chat, data_url, running

from catp.runtime import Pipeline
from catp.runtime.server.http.page import POLICY

PAGE = Path(__file__).parents[3] / "runtime" / "server" / "http" / "page.html"
TEXT = PAGE.read_text()
WANTED = "a black diamond"


def test_it_is_sent_from_memory_with_a_policy_that_admits_only_itself(pipeline: Pipeline) -> None:
    with running(pipeline) as server:
        found = server.client.get("/", headers={"range": "bytes=0-9"})
        assert found.status_code == 200 and found.text == TEXT
        assert found.headers["content-type"] == "text/html; charset=utf-8"
        policy = dict(part.split(" ", 1) for part in found.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
        for tag in ("script", "style"):
            (inner,) = re.findall(rf"<{tag}>(.*?)</{tag}>", TEXT, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
            assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    with running(pipeline, page=False) as server:
        assert server.client.get("/").status_code == 404


def test_it_is_small_and_loads_nothing() -> None:
    assert len(TEXT) < 40_000 and "unsafe" not in POLICY
    assert not re.search(r"https?://|//[a-z]|innerHTML|eval\(|\son[a-z]+=|style=", TEXT)
    assert 'lang="en"' in TEXT and 'name="viewport"' in TEXT and "prefers-color-scheme: dark" in TEXT


def test_every_control_has_a_name() -> None:
    for tag, attributes in re.findall(r"<(input|select|textarea|canvas|img)\b([^>]*)>", TEXT):
        (name,) = re.findall(r' id="([^"]+)"', attributes)
        inside = re.search(rf"<label[^>]*>(?:(?!</label>).)*<{tag}[^>]* id=\"{name}\"", TEXT, re.DOTALL)
        named = f'for="{name}"' in TEXT or inside or "alt=" in attributes or tag == "canvas"
        assert named, name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_on_its_ground(scheme: str) -> None:
    """Contrast of at least 4.5, of controls and bars 3 (WCAG 2.2, 1.4.3 and 1.4.11)."""
    found = re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", TEXT)
    half = len(found) // 2
    colours = dict(found[:half] if scheme == "light" else found[half:])

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for text, ground, least in (
        ("ink", "paper", 4.5), ("ink", "ground", 4.5), ("faint", "paper", 4.5), ("faint", "ground", 4.5),
        ("bad", "paper", 4.5), ("on-accent", "accent", 4.5), ("accent", "paper", 4.5), ("muted", "paper", 3),
    ):  # fmt: skip
        dark, light = sorted((luminance(colours[text]), luminance(colours[ground])))
        assert (light + 0.05) / (dark + 0.05) >= least, (text, ground)


needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="Node, which runs the page's script, is not there")


def drive(server: Running, *steps: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the page shows after each step, and what it sent."""
    given = json.dumps({"page": str(PAGE), "address": server.address, "steps": steps})
    driver = Path(__file__).with_name("page_driver.mjs")
    ran = subprocess.run(["node", str(driver)], input=given, capture_output=True, text=True, timeout=IN_TIME)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    return found["shown"], found["sent"]


PICTURE = {"type": "image/png", "url": data_url()}
ASK: dict[str, Any] = {"fire": "form", "kind": "submit", "set": {"question": {"value": "what is in the bottom right?"}}}


@needs_node
def test_it_asks_streams_and_draws(diagnostics_bundle: Path) -> None:
    loaded = Pipeline.load(diagnostics_bundle)
    with running(loaded) as server:
        asked = {**ASK, "set": {**ASK["set"], "ratio": {"value": "0.75"}, "compare": {"checked": True}}}
        dropped = {"set": {"heat-kept": {"checked": False}, "heat-dropped": {"checked": True}}, "fire": "heat-dropped"}
        (start, pasted, answered, other), sent = drive(
            server, {}, {"paste": PICTURE}, asked, {**dropped, "kind": "change"}
        )
    assert start["model"]["children"] == 1 and start["models"]["hidden"] and not start["problem"]["text"]
    assert not pasted["shown"]["hidden"] and pasted["looks"]["hidden"]
    assert answered["answer"]["text"] == answered["full-answer"]["text"] == WANTED
    assert "8 image tokens, 12 of text, 4 new" in answered["figures"]["text"]
    assert "32 image tokens" in answered["full-figures"]["text"] and "picture known" in answered["full-figures"]["text"]
    assert answered["bars"]["children"] == 32 and answered["bars"]["kept"] == 8
    assert answered["bars"]["attributes"]["aria-label"] == "8 of 32 image tokens are kept"
    kept, dropped_pixels = answered["heat"]["pixels"], other["heat"]["pixels"]
    assert len(kept) == len(dropped_pixels) and kept != dropped_pixels and max(kept[3::4]) == 190
    assert not answered["looks"]["hidden"] and answered["stop"]["disabled"]
    assert answered["ask"]["attributes"] == {"aria-disabled": "false"}
    bodies = [request["body"] for request in sent if request["path"] == "v1/chat/completions"]
    assert [body["ratio"] for body in bodies] == [0.75, 0]


@needs_node
def test_what_is_wrong_is_said(pipeline: Pipeline) -> None:
    with running(pipeline) as server:
        shown, _ = drive(
            server,
            ASK,
            {"drop": {"type": "image/gif"}},
            {"drop": {**PICTURE, "url": "data:image/png;base64,aGk="}},
            ASK,
        )
        assert shown[0]["problem"]["text"] == "Choose a picture first." and shown[0]["focused"] == "file"
        assert shown[1]["problem"]["text"] == "Give a JPEG, a PNG or a WebP."
        assert "accepted: JPEG, PNG, WebP" in shown[3]["problem"]["text"]
        assert shown[3]["ask"]["attributes"] == {"aria-disabled": "false"}


@needs_node
def test_a_key_is_asked_for(pipeline: Pipeline) -> None:
    with running(pipeline, keys=("secret",)) as server:
        entered = {"set": {"key": {"value": "secret"}}, "fire": "key", "kind": "change", "wait": True}
        (refused, known, _, answered), _ = drive(server, {}, entered, {"paste": PICTURE}, ASK)
        assert "API key" in refused["problem"]["text"] and not refused["keyed"]["hidden"]
        assert known["model"]["children"] == 1 and not known["problem"]["text"]
        assert answered["answer"]["text"] == WANTED


def test_the_votes_come_with_an_answer_that_asks_for_them(pipeline: Pipeline) -> None:
    with running(pipeline) as server:
        explained = server.ask(**chat(explain=True)).json()["catp"]
        votes = pipeline.votes(pipeline.encode(pipeline.preprocess([SAMPLES[0].image])))
        assert explained["explanation"] == {"scores": pytest.approx(votes.scores[0].tolist(), abs=1e-5)}
        assert "explanation" not in server.ask().json()["catp"]
