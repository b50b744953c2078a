"""A large file is hashed once, until somebody touches it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from catp.export.demo import samples
from catp.runtime import BundleError
from catp.runtime.bundle import receipts
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.bundle.receipts import SMALLEST, hash_of
from catp.runtime.commands.run import app as run_command


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CATP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(receipts, "SETTLED_NS", -1)  # a test does not wait for its files to grow old
    return tmp_path / "cache" / "receipts"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read to be hashed."""
    names: list[str] = []
    whole = receipts.sha256
    monkeypatch.setattr(receipts, "sha256", lambda path: (names.append(path.name), whole(path))[1])
    return names


def large(folder: Path, byte: bytes = b"a") -> Path:
    path = folder / "weights"
    path.write_bytes(byte * SMALLEST)
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_second_time_it_is_not_read(tmp_path: Path, read: list[str]) -> None:
    path = large(tmp_path)
    assert hash_of(path, False) == hash_of(path, False) == digest(path)
    assert read == ["weights"]
    assert hash_of(path, True) == digest(path) and read == ["weights"] * 2


def test_a_small_file_has_no_receipt(tmp_path: Path, cache: Path, read: list[str]) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"a" * (SMALLEST - 1))
    assert hash_of(path, False) == hash_of(path, False) == digest(path)
    assert len(read) == 2 and not cache.exists()


@pytest.mark.parametrize("change", ["content", "content and time", "replaced", "moved"])
def test_whatever_changes_it_is_noticed(tmp_path: Path, change: str) -> None:
    path = large(tmp_path)
    assert hash_of(path, False) == digest(path)
    before = path.stat()
    if change in ("content", "content and time"):
        with path.open("r+b") as file:
            file.write(b"b")
        if change == "content and time":  # as tools do that hide a change
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            assert path.stat().st_mtime_ns == before.st_mtime_ns
    elif change == "replaced":
        other = tmp_path / "other"
        other.write_bytes(b"c" * SMALLEST)
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        other.replace(path)
    else:
        path = path.rename(tmp_path / "moved")
        with path.open("r+b") as file:
            file.write(b"d")
    assert path.stat().st_size == before.st_size
    assert hash_of(path, False) == digest(path)


def test_a_file_that_was_changed_just_now_has_none(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "SETTLED_NS", 2_000_000_000)
    hash_of(large(tmp_path), False)
    assert not cache.exists()


def test_a_file_that_changes_while_it_is_read_has_none(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = large(tmp_path)

    def changed(read: Path) -> str:
        large(tmp_path, b"b")
        return "a hash of both"

    with monkeypatch.context() as patched:
        patched.setattr(receipts, "sha256", changed)
        hash_of(path, False)
    assert not cache.exists() and hash_of(path, False) == digest(path)


@pytest.mark.parametrize("content", ["", "[]", "{", "null", '{"file": 1}', '{"sha256": "a"}'])
def test_a_broken_receipt_is_none(tmp_path: Path, cache: Path, content: str) -> None:
    path = large(tmp_path)
    hash_of(path, False)
    (receipt,) = cache.iterdir()
    receipt.write_text(content)
    assert hash_of(path, False) == digest(path)
    assert json.loads(receipt.read_text())["sha256"] == digest(path)  # it is written again


def test_without_a_place_for_receipts_it_is_read_each_time(tmp_path: Path, read: list[str]) -> None:
    (tmp_path / "cache").write_text("no folder")
    path = large(tmp_path)
    assert hash_of(path, False) == hash_of(path, False) == digest(path)
    assert len(read) == 2


def test_a_user_without_a_home_has_no_receipts(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As containers run under an id that the system does not know."""

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("CATP_CACHE_DIR")
    monkeypatch.setattr(Path, "home", homeless)
    path = large(tmp_path)
    assert hash_of(path, False) == hash_of(path, False) == digest(path) and len(read) == 2


def test_a_bundle_that_rots_in_place_is_found_when_it_is_read_anew(
    demo_bundle: Path, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    large_ones = {path.name for path in bundle.iterdir() if path.stat().st_size >= SMALLEST}
    monkeypatch.setattr(receipts, "_identity", lambda path, found: [path.name])  # nothing tells of a change
    open_bundle(bundle)
    assert large_ones and large_ones <= set(read)
    read.clear()
    rotten = bundle / "language_model.onnx_data"
    content = rotten.read_bytes()
    rotten.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    open_bundle(bundle)
    assert not large_ones & set(read)
    with pytest.raises(BundleError, match=r"language_model\.onnx_data was altered"):
        open_bundle(bundle, rehash=True)
    assert large_ones <= set(read)


def test_rehash_reads_every_file_for_a_command(
    demo_bundle: Path, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [str(demo_bundle), "--image", str(samples()[0].image), "--prompt", samples()[0].prompt]
    for option, weights in ([], True), ([], False), (["--rehash"], True):
        read.clear()
        assert CliRunner().invoke(run_command, [*arguments, *option]).exit_code == 0
        assert ("language_model.onnx_data" in read) is weights
