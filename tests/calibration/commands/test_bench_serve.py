"""catp-bench serve as a user types it: a server of its own, others beside it, mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from servers import process
from typer.testing import CliRunner

from catp.calibration.benchmark.load.report import LoadReport, read_report
from catp.calibration.commands.bench import app
from catp.runtime.errors import UsageError

FEW = ("--requests", "1", "--rounds", "1", "--max-tokens", "4", "--image-size", "48")


def bench(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["serve", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def test_a_bundle_and_a_running_server(demo_bundle: Path, tmp_path: Path) -> None:
    output, plot = tmp_path / "load.json", tmp_path / "load.png"
    with process(str(demo_bundle)) as (_, url, _):
        code, printed, said = bench(
            demo_bundle, "--url", f"other={url}", "--clients", "2,1", "--pictures", "new", "--rates", 50, *FEW,
            "--serve-options", "--rows 2", "--body", '{"ratio": 0.5}', "-o", output, "--plot", plot, "--json",
        )  # fmt: skip
    assert code == 0, said
    report = read_report(output)
    assert report == LoadReport.model_validate_json(printed)
    assert [(one.name, one.options) for one in report.servers] == [("catp", "--rows 2"), ("other", None)]
    assert [(one.setting.server, one.setting.load) for one in report.results] == [
        (server, load) for server in ("catp", "other") for load in ("1", "2", "50/s")
    ]
    assert [one.requests for one in report.results] == [1, 2, 8] * 2
    assert all(one.tokens and not one.failures for one in report.results)
    assert {(one.why, one.of.load) for one in report.comparisons} >= {("clients", "2"), ("server", "50/s")}
    assert "to catp" in said and plot.read_bytes().startswith(b"\x89PNG")


def test_answers_have_as_many_tokens_as_asked_for(demo_bundle: Path) -> None:
    code, printed, said = bench(demo_bundle, "--clients", "1", "--pictures", "cached", *FEW, "--json")
    assert code == 0, said
    (one,) = json.loads(printed)["results"]
    assert one["tokens"] == 4 and json.loads(printed)["fields"] == {"min_new_tokens": 4}


def test_a_load_that_nothing_answers_fails(demo_bundle: Path, tmp_path: Path) -> None:
    """A request of too many tokens is refused each time: exit 1, and what was found."""
    code, _, said = bench(demo_bundle, "--body", '{"n": 2}', "--clients", "1", *FEW)
    assert code == 1 and "does not answer a question about a picture (400 invalid_value)" in said
    code, _, said = bench(demo_bundle, "--serve-options", "--rows 0", "--clients", "1", *FEW)
    assert code == 1 and "it ended with exit code 2" in said and "--rows" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no server: give a folder written by catp-export, or --url"),
        (("x", "--clients", "0"), "--clients '0': give whole numbers from 1 on"),
        (("x", "--rates", "0"), "--rates '0': give requests a second"),
        (("x", "--rates", "nan"), "--rates 'nan': give requests a second"),
        (("x", "--pictures", "old"), "--pictures 'old': unknown; accepted: cached, new"),
        (("x", "--body", "[]"), "--body []: give an object"),
        (("x", "--body", "{"), "--body {: no JSON"),
        (("--url", "a=http://h:1", "--url", "a=http://h:2"), "server 'a' is named twice"),
        (("--url", "nowhere"), "--url nowhere: give NAME=URL"),
        (("--url", "http://h:1", "--serve-options", "--rows 2"), "--serve-options --rows 2: they are for a bundle"),
        (("x", "--serve-options", "'"), "--serve-options ': No closing quotation"),
        (("x", "--api-key-file", "/nowhere"), "--api-key-file /nowhere: it can't be read"),
        (("x", "--plot", "a.pdf"), "--plot a.pdf: it is written as PNG"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    code, _, said = bench(*arguments)
    assert code == 2 and message in said


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    code, _, said = bench(tmp_path, *FEW)
    assert code == 1 and "it ended with exit code 2" in said and str(tmp_path) in said


def test_other_files_are_no_report(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text("{}")
    with pytest.raises(UsageError, match="no report of catp-bench serve"):
        read_report(file)
