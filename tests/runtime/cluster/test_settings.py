"""Settings of a cluster are those of `catp-serve`, and what would leave a machine without keys is refused."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest
import yaml
from documents import blocks
from pydantic import ValidationError

from catp.runtime.cluster import ClusterSettings, app
from catp.runtime.commands.serve import serve
from catp.runtime.errors import UsageError
from catp.runtime.server.settings import KEY_VARIABLE, ServerSettings


def test_every_option_of_the_command_is_a_setting_with_its_default() -> None:
    """But for what the cluster's own configuration says (addresses, ports, several bundles, memory, the log), and for
    hashes of files that nobody touched."""
    options = {name: parameter.default for name, parameter in inspect.signature(serve).parameters.items()}
    for name in set(options) - {"bundle", "model", "host", "port", "max_memory", "verbose", "rehash"}:
        default = ClusterSettings.model_fields[name].default
        assert default == options[name] or not (default or options[name]), name


def test_settings_reach_the_server(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a\nb\n")
    given = ClusterSettings(
        bundle="/x/blip", rows=3, queue=5, cache=7, api_key_file=str(keys), allow_media_domain=("Example.org",),
        otlp_traces_endpoint="http://127.0.0.1:4318/v1/traces",
    )  # fmt: skip
    server = given.read()
    assert (server.rows, server.waiting, server.cache_bytes) == (3, 5, 7 << 20)
    assert (
        server.traces == "http://127.0.0.1:4318/v1/traces"
        and server.keys == ("a", "b")
        and server.media_domains == ("example.org",)
    )
    assert given.waiting == server.waiting and given.model == "blip"
    assert ClusterSettings(bundle="b").read() == ServerSettings()


def test_the_file_of_the_page_is_read() -> None:
    (written,) = blocks("docs/cluster.md", "yaml")
    (application,) = yaml.safe_load(written)["applications"]
    module, _, attribute = application["import_path"].partition(":")
    assert getattr(importlib.import_module(module), attribute) is app
    assert ClusterSettings.model_validate(application["args"]).model == "blip2-bundle"


def test_texts_of_a_command_line_are_read() -> None:
    given = ClusterSettings.model_validate({"bundle": "b", "rows": "4", "page": "false", "cpus": "1.5"})
    assert (given.rows, given.page, given.cpus) == (4, False, 1.5)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"row": 3}, "row"),
        ({"rows": 0}, "rows"),
        ({"replicas": 0}, "replicas"),
        ({"provider": "abacus"}, "accepted: cpu"),
        ({"prompt_template": "no place"}, "prompt_template"),
        ({"name": "a/b"}, "name"),
    ],
)
def test_what_is_no_setting_is_named(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ClusterSettings.model_validate({"bundle": "b", **wrong})


def test_a_key_that_one_machine_has_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    with pytest.raises(UsageError, match="api_key_file") as raised:
        ClusterSettings(bundle="b").check()
    assert "secret" not in str(raised.value)
    with pytest.raises(UsageError, match="can't be read"):
        ClusterSettings(bundle="b", api_key_file=str(tmp_path / "none")).read()
    monkeypatch.delenv(KEY_VARIABLE)
    ClusterSettings(bundle="b").check()
    with pytest.raises(UsageError):
        ClusterSettings(bundle="b", allow_media_domain=("https://x/",)).check()


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    monkeypatch.setitem(__import__("sys").modules, "ray.serve", None)
    with pytest.raises(UsageError, match=r"pip install '\.\[cluster\]'"):
        app(ClusterSettings(bundle="b"))
