import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from catp.runtime import CatpError, UsageError
from catp.runtime.bundle.publish import published


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with published(tmp_path / "out", overwrite=False) as folder:
        (folder / "catp.json").write_text("{}")
        assert not (tmp_path / "out").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CatpError), published(tmp_path / "out", overwrite=False) as folder:
        (folder / "half").write_text("x")
        raise CatpError("no")
    assert not any(tmp_path.iterdir())


def test_a_failure_keeps_the_old_bundle(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "catp.json").write_text("old")
    with pytest.raises(CatpError), published(out, overwrite=True):
        raise CatpError("no")
    assert (out / "catp.json").read_text() == "old"
    with published(out, overwrite=True) as folder:
        (folder / "catp.json").write_text("new")
    assert (out / "catp.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_is_not_a_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not empty"), published(tmp_path, overwrite=False):
        pass
    with pytest.raises(UsageError, match=r"it holds no catp\.json"), published(tmp_path, overwrite=True):
        pass
    with pytest.raises(UsageError, match="it is a file"), published(tmp_path / "thesis.txt", overwrite=True):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_empty_folder_is_filled_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "out"
    empty.mkdir()
    monkeypatch.chdir(empty)  # replaced, it would be gone under our feet
    with published(Path(), overwrite=False) as folder:
        (folder / "catp.json").write_text("{}")
        (folder / "x.onnx").write_text("")
    assert Path("catp.json").exists() and Path("x.onnx").exists()


def test_a_link_keeps_pointing_where_it_points(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir()
    (target / "catp.json").write_text("old")
    (tmp_path / "link").symlink_to(target)
    with published(tmp_path / "link", overwrite=True) as folder:
        (folder / "catp.json").write_text("new")
    assert (tmp_path / "link").is_symlink() and (target / "catp.json").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "link"]


def test_a_bundle_lost_between_two_renames_is_put_back(tmp_path: Path) -> None:
    old = tmp_path / ".out.replaced-999999999"
    old.mkdir()
    (old / "catp.json").write_text("old")
    with pytest.raises(UsageError, match="not empty"), published(tmp_path / "out", overwrite=False):
        pass
    assert (tmp_path / "out" / "catp.json").read_text() == "old"


def test_leftovers_of_our_own_number_are_a_dead_process_s(tmp_path: Path) -> None:
    (tmp_path / f".out.incomplete-{os.getpid()}").mkdir()  # containers number their processes alike
    with published(tmp_path / "out", overwrite=False) as folder:
        (folder / "catp.json").write_text("{}")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_leftovers_of_a_dead_process_are_removed(tmp_path: Path) -> None:
    dead = tmp_path / ".out.incomplete-999999999"
    dead.mkdir()
    with published(tmp_path / "out", overwrite=False) as folder:
        (folder / "catp.json").write_text("{}")
    assert not dead.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    code = (
        "import signal, sys, time; from pathlib import Path; from catp.runtime.bundle.publish import published\n"
        # Whatever a shell in the background left behind: there, Ctrl-C is ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with published(Path(sys.argv[1]), overwrite=False) as folder:\n"
        "    (folder / 'x.onnx_data').write_text('x'); print('begun', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(number)
        assert process.wait(20) != 0
    assert not any(tmp_path.iterdir())
