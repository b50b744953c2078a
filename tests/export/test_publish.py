from pathlib import Path

import pytest

from catp.export.publish import published
from catp.runtime import CatpError, UsageError


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
    with pytest.raises(UsageError, match="not a bundle"), published(tmp_path, overwrite=True):
        pass
    with pytest.raises(UsageError, match="it is a file"), published(tmp_path / "thesis.txt", overwrite=True):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_leftovers_of_a_dead_process_are_removed(tmp_path: Path) -> None:
    dead = tmp_path / ".out.incomplete-999999999"
    dead.mkdir()
    with published(tmp_path / "out", overwrite=False) as folder:
        (folder / "catp.json").write_text("{}")
    assert not dead.exists()
