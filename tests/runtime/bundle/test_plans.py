"""A sidecar is what catp-build wrote, byte for byte, or it is refused."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from written_plans import language_model, span

from catp.runtime import BundleError
from catp.runtime.bundle.plans import read_sidecar, sidecar_file, write_sidecar


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_sidecar(tmp_path, language_model())
    return sidecar_file(tmp_path, "language_model")


def test_it_reads_back_as_written(path: Path) -> None:
    assert read_sidecar(path.parent, "language_model") == language_model()


def test_every_flipped_byte_is_refused(path: Path) -> None:
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        changed = bytearray(content)
        changed[position] ^= 1
        path.write_bytes(changed)
        with pytest.raises(BundleError, match=r"language_model\.json") as caught:
            read_sidecar(path.parent, "language_model")
        assert "\n" not in str(caught.value)


def test_an_edited_range_is_refused_by_its_seal(path: Path) -> None:
    fields = json.loads(path.read_text())
    fields["request"]["profiles"][0]["shapes"]["input_ids"]["max"] = [8, 64]
    path.write_text(json.dumps(fields, indent=1) + "\n")
    with pytest.raises(BundleError, match="its seal does not match"):
        read_sidecar(path.parent, "language_model")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", '{"schema_version": 2}'])
def test_what_is_no_sidecar_is_one_clear_line(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(BundleError, match="build again with catp-build --overwrite"):
        read_sidecar(path.parent, "language_model")


def test_another_graphs_sidecar_is_refused(path: Path) -> None:
    path.rename(sidecar_file(path.parent, "vision_encoder"))
    with pytest.raises(BundleError, match="describes another plan"):
        read_sidecar(path.parent, "vision_encoder")
    with pytest.raises(BundleError, match="not readable"):
        read_sidecar(path.parent, "language_model")


def test_ranges_are_in_order() -> None:
    assert span((1,), (2,), (4,)).holds((3,))
    assert not span((1,), (2,), (4,)).holds((5,))
    assert not span((1,), (2,), (4,)).holds((2, 2))
    for wrong in (((2,), (1,), (4,)), ((1,), (5,), (4,)), ((-1,), (1,), (4,)), ((1,), (1, 1), (4,))):
        with pytest.raises(ValidationError):
            span(*wrong)


def test_everything_that_decides_a_plan_changes_its_fingerprint() -> None:
    request = language_model().request
    changes = [
        {"target_version": "1.8"},
        {"compute_capabilities": ("8.9",)},
        {"onnx_sha256": "1" * 64},
        {"weights_sha256": "1" * 64},
        {"fixed": {"max_length": 256}},
        {"profiles": request.profiles[:1]},
        {"workspace_bytes": 1},
    ]
    prints = [request.model_copy(update=change).fingerprint() for change in changes]
    assert len({request.fingerprint(), *prints}) == len(changes) + 1
