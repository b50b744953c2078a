"""The page in a real Chromium: asked by keyboard alone, its colours, its pictures, and a screen of 360 pixels.

With CATP_PAGE_PICTURES=docs/images the pictures of the documents are taken anew.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from servers import SAMPLES, process, wait_for

pytestmark = pytest.mark.heavy

QUESTION = "what is in the bottom right?"
WANTED = "a black diamond"
PICTURE_BYTES = 200_000
INSTALL_SECONDS = 240

RECORD = """
window.states = [];
new MutationObserver((found) => found.forEach((change) => change.addedNodes.forEach((node) => states.push(node.data))))
  .observe(document.getElementById("answer"), { childList: true });
"""
"""Each text that the answer has been."""

PIXELS = """
const canvas = document.getElementById("heat"), box = canvas.getBoundingClientRect();
const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
return [canvas.hidden || box.width < 50 || box.height < 50 ? 0 : canvas.width, canvas.height, Array.from(data)];
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[WebDriver]:
    try:
        done = subprocess.run(
            [Path(__file__).with_name("install_chromium.sh")], capture_output=True, timeout=INSTALL_SECONDS
        )
        installed = done.returncode == 0
    except subprocess.TimeoutExpired:
        installed = False
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not installed or chromium is None or driver is None:
        pytest.skip("Chromium and chromedriver are not there, and can't be installed here")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    alone = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses root
    for argument in ("--headless=new", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars", *alone):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options, Service(driver))
    yield found
    found.quit()


@pytest.fixture(scope="module")
def address(diagnostics_bundle: Path) -> Iterator[str]:
    with process(str(diagnostics_bundle)) as (_, found, lines):
        wait_for(lambda: any(line["event"] == "model_ready" for line in lines), "it is not ready")
        yield found


def show(browser: WebDriver, width: int, height: int, scheme: str = "light") -> None:
    """A screen of that many CSS pixels, for somebody who prefers the scheme."""
    browser.execute_cdp_cmd(  # type: ignore[attr-defined]
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1.5, "mobile": False},
    )
    preferred = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", preferred)  # type: ignore[attr-defined]


def press(browser: WebDriver, *keys: str) -> None:
    """Keys for whatever has the focus."""
    webdriver.ActionChains(browser).send_keys(*keys).perform()


def focused(browser: WebDriver) -> str:
    return str(browser.execute_script("return document.activeElement.id"))


def text(browser: WebDriver, name: str) -> str:
    return str(browser.find_element("id", name).text)


def pixels(browser: WebDriver) -> tuple[int, int, list[int]]:
    width, height, found = browser.execute_script(PIXELS)
    return width, height, found


def ask_by_keyboard(browser: WebDriver, address: str) -> None:
    """From a fresh page to an answer; the file alone is handed over, as its dialog is the system's."""
    browser.get(address)
    wait_for(lambda: text(browser, "removed"), "the page has no models")
    press(browser, Keys.TAB)
    assert focused(browser) == "file"
    browser.find_element("id", "file").send_keys(str(SAMPLES[0].image))
    browser.execute_script(RECORD)
    press(browser, Keys.TAB)
    assert focused(browser) == "question"
    press(browser, QUESTION, Keys.ENTER)
    wait_for(lambda: text(browser, "kept-text") or text(browser, "problem"), "there is no answer")


def test_it_is_used_by_keyboard_alone(browser: WebDriver, address: str) -> None:
    show(browser, 1000, 760)
    ask_by_keyboard(browser, address)
    assert text(browser, "answer") == WANTED and not text(browser, "problem")
    states = browser.execute_script("return states")
    assert states[-1] == WANTED and len(states) >= 3
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(states))
    assert text(browser, "kept-text").startswith("16 of 32 image tokens are kept")

    press(browser, Keys.TAB)
    assert focused(browser) == "ratio"
    press(browser, *[Keys.ARROW_RIGHT] * 5)
    assert text(browser, "removed") == "75 %"
    press(browser, Keys.TAB)
    assert focused(browser) == "compare"
    press(browser, Keys.SPACE, Keys.TAB)
    assert focused(browser) == "ask"
    press(browser, Keys.ENTER)
    wait_for(lambda: text(browser, "full-figures") or text(browser, "problem"), "there is no second answer")
    wait_for(lambda: not browser.find_element("id", "stop").is_enabled(), "it does not end")
    assert text(browser, "full-answer") == WANTED and text(browser, "kept-text").startswith("8 of 32")
    assert "picture known" in text(browser, "full-figures")
    assert focused(browser) == "ask"  # a button that were disabled meanwhile had lost the focus

    kept = pixels(browser)
    press(browser, Keys.TAB)
    assert focused(browser) == "heat-kept"
    press(browser, Keys.ARROW_RIGHT)
    assert focused(browser) == "heat-dropped"
    dropped = pixels(browser)
    press(browser, Keys.ARROW_RIGHT)
    assert focused(browser) == "heat-none" and pixels(browser)[0] == 0
    for width, height, found in (kept, dropped):
        assert (width, height) == (6, 6) and max(found[3::4]) == 190 and len(set(found[3::4])) > 10
    assert kept != dropped


def test_the_policy_admits_all_that_the_page_does(browser: WebDriver, address: str) -> None:
    ask_by_keyboard(browser, address)
    problems: list[Any] = browser.get_log("browser")  # type: ignore[attr-defined]
    assert [problem for problem in problems if problem["level"] == "SEVERE"] == []


def test_stop_hands_the_focus_on(browser: WebDriver, address: str) -> None:
    ask_by_keyboard(browser, address)
    # A server that never answers, which this one can't be made to be: the request alone is held back.
    browser.execute_script(
        "window.fetch = (path, options) => new Promise((_, refuse) => options.signal.addEventListener('abort', "
        "() => refuse(new DOMException('', 'AbortError'))));"
    )
    press(browser, Keys.ENTER)
    wait_for(lambda: browser.find_element("id", "stop").is_enabled(), "it does not ask")
    press(browser, *[Keys.TAB] * 4)
    assert focused(browser) == "stop"
    press(browser, Keys.ENTER)
    wait_for(lambda: text(browser, "problem") == "Stopped.", "it does not stop")
    assert focused(browser) == "ask"


def test_its_pictures(browser: WebDriver, address: str, tmp_path: Path) -> None:
    """Light, dark and narrow: no sideways scrolling, and grounds of the scheme that is preferred."""
    folder = Path(os.environ.get("CATP_PAGE_PICTURES", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    show(browser, 1000, 800)
    ask_by_keyboard(browser, address)
    for name, width, scheme in (
        ("page-light", 1000, "light"),
        ("page-dark", 1000, "dark"),
        ("page-narrow", 360, "light"),
    ):
        show(browser, width, 800, scheme)
        wide, high = browser.execute_script(
            "const page = document.documentElement; return [page.scrollWidth, page.scrollHeight]"
        )
        assert wide == width
        outside = browser.execute_script(
            "return [...document.querySelectorAll('main *')].filter((element) => element.getClientRects().length && "
            "element.getBoundingClientRect().right > innerWidth + 1).map((element) => element.id || element.tagName)"
        )
        assert outside == []
        show(browser, width, high, scheme)
        path = folder / f"{name}.png"
        browser.save_screenshot(str(path))
        with Image.open(path) as shown:
            small = shown.convert("RGB").quantize(128, dither=Image.Dither.NONE)
            assert (sum(shown.convert("RGB").getpixel((3, 3))) > 600) == (scheme == "light")  # type: ignore[arg-type]
        small.save(path, optimize=True)
        assert path.stat().st_size < PICTURE_BYTES


def test_a_narrow_screen_survives_a_long_answer(browser: WebDriver, address: str) -> None:
    show(browser, 360, 740)
    ask_by_keyboard(browser, address)
    browser.execute_script(
        "for (const id of ['answer', 'figures', 'problem']) document.getElementById(id).textContent = 'x'.repeat(400)"
    )
    assert browser.execute_script("return document.documentElement.scrollWidth") == 360
