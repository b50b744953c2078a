"""How commands show that they are busy, where nobody watches a terminal."""

from __future__ import annotations

import time

import pytest

from catp.runtime.commands import console


def test_a_step_that_lasts_says_once_what_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "ANNOUNCED_AFTER", 0.05)
    with console.busy("export [vision]"):
        time.sleep(0.5)
    assert capsys.readouterr().err == "export [vision] ...\n"


def test_a_short_step_and_one_that_fails_at_once_say_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "ANNOUNCED_AFTER", 0.2)
    with console.busy("short"):
        pass
    with pytest.raises(ZeroDivisionError), console.busy("failing"):
        raise ZeroDivisionError
    time.sleep(0.4)
    assert capsys.readouterr().err == ""
