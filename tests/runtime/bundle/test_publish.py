import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from catp.runtime import CatpError, UsageError
from catp.runtime.bundle import publish
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


def put(folder: Path, name: str = "theirs.txt") -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("theirs")


@pytest.fixture(params=["one step", "two renames"])
def renames(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what Linux has, and as on a file system that can't."""
    if request.param == "two renames":
        monkeypatch.setattr("catp.runtime.system.renames._renameat2", lambda *_: False)


@pytest.mark.usefixtures("renames")
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_somebody_puts_there_meanwhile_stays(tmp_path: Path, overwrite: bool) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match=r"meanwhile|did not write it"), published(out, overwrite) as folder:
        (folder / "catp.json").write_text("{}")
        put(out)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in out.iterdir()] == ["theirs.txt"]


@pytest.mark.usefixtures("renames")
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_that_somebody_writes_meanwhile_stays(tmp_path: Path, overwrite: bool) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError), published(out, overwrite) as folder:
        (folder / "catp.json").write_text("{}")
        out.write_text("theirs")
    assert out.read_text() == "theirs" and [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("renames")
def test_of_two_exports_to_one_place_the_second_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="meanwhile"), published(out, overwrite=False) as slow:
        (slow / "catp.json").write_text("slow")
        with published(out, overwrite=False) as fast:
            assert slow.exists() and slow != fast
            (fast / "catp.json").write_text("fast")
    assert (out / "catp.json").read_text() == "fast"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("renames")
def test_a_bundle_that_became_something_else_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    put(out, "catp.json")
    with pytest.raises(UsageError, match="did not write it"), published(out, overwrite=True) as folder:
        (folder / "catp.json").write_text("new")
        (out / "catp.json").rename(out / "thesis.txt")
    assert (out / "thesis.txt").read_text() == "theirs" and [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("renames")
def test_an_empty_folder_that_fills_meanwhile_keeps_what_it_got(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of being filled."""
    out = tmp_path / "out"
    out.mkdir()
    move = publish._move_in

    def slowly(source: Path, target: Path) -> None:
        if target.name == "b":
            target.write_text("theirs")
        move(source, target)

    monkeypatch.setattr(publish, "_move_in", slowly)
    with pytest.raises(UsageError, match="meanwhile"), published(out, overwrite=False) as folder:
        for name in ("a", "b", "catp.json"):
            (folder / name).write_text("ours")
    assert [(p.name, p.read_text()) for p in out.iterdir()] == [("b", "theirs")]


@pytest.mark.usefixtures("renames")
def test_an_old_bundle_is_replaced(tmp_path: Path) -> None:
    put(tmp_path / "out", "catp.json")
    with published(tmp_path / "out", overwrite=True) as folder:
        (folder / "catp.json").write_text("new")
    assert (tmp_path / "out" / "catp.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


HOLD = (
    "import signal, sys, time; from pathlib import Path; from catp.runtime.bundle.publish import published\n"
    # Whatever a shell in the background, or nohup, left behind: there, Ctrl-C and the end of a terminal are ignored.
    "signal.signal(signal.SIGINT, signal.default_int_handler); signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
    "with published(Path(sys.argv[1]), overwrite=False) as folder:\n"
    "    (folder / 'x.onnx_data').write_text('x'); print('begun', flush=True); time.sleep(60)"
)


@pytest.mark.parametrize("namespace", [[], ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]])
def test_what_another_process_works_in_is_left_alone(tmp_path: Path, namespace: list[str]) -> None:
    """Also where it has the number 1, in a container of its own."""
    if namespace and subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody make PID namespaces")
    command = [*namespace, sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        (theirs,) = tmp_path.iterdir()
        with published(tmp_path / "out", overwrite=False) as folder:
            (folder / "catp.json").write_text("{}")
        assert (theirs / "x.onnx_data").exists()
        process.kill()
        process.wait(20)
    deadline = time.monotonic() + 20
    while theirs.exists() and time.monotonic() < deadline:  # the namespace ends a little later
        with published(tmp_path / "out", overwrite=True) as folder:
            (folder / "catp.json").write_text("{}")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_folders_of_other_names_are_nobody_s_leftovers(tmp_path: Path) -> None:
    put(tmp_path / ".out.incomplete-work")
    put(tmp_path / ".out.replaced-by-me")
    with published(tmp_path / "out", overwrite=False) as folder:
        (folder / "catp.json").write_text("{}")
    assert len(list(tmp_path.iterdir())) == 3


def test_the_output_is_not_blamed_for_what_is_full_elsewhere(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "file"
    with pytest.raises(CatpError, match=f"^{elsewhere}: No space left"), published(tmp_path / "a" / "out", False):
        raise OSError(errno.ENOSPC, "No space left on device", str(elsewhere))
    with (
        pytest.raises(CatpError, match=r"^output .*out: writing failed"),
        published(tmp_path / "a" / "out", False) as f,
    ):
        raise OSError(errno.ENOSPC, "No space left on device", str(f / "x"))
    with pytest.raises(CatpError, match="TMPDIR"), published(tmp_path / "a" / "out", False):
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")


def test_a_name_that_is_no_text_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not valid UTF-8"), published(tmp_path / os.fsdecode(b"o\xff"), False):
        pytest.fail("began")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(number)
        assert process.wait(20) != 0
    assert not any(tmp_path.iterdir())
