"""Files that nobody meant, some 500 of them, or as many as CATP_FUZZ_EXAMPLES says: each is read as it should be, or
refused by one of the errors that commands print in a line. No traceback, no write, no answer from nonsense."""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image

from catp.export.demo import samples
from catp.runtime import BundleError, CatpError, GenerationSettings, ImageError, Pipeline, UsageError
from catp.runtime.bundle.folder import Bundle, open_bundle
from catp.runtime.bundle.graph_shape import OPERATORS, refusal
from catp.runtime.bundle.manifest import TextSpec
from catp.runtime.inputs.images import load_image
from catp.runtime.inputs.text import TextCodec
from catp.runtime.providers.onnx_runtime import OrtEngine, OrtProvider, _check_tensors
from catp.runtime.system.printable import one_line

EXAMPLES = int(os.environ.get("CATP_FUZZ_EXAMPLES", "500"))
SAMPLE = samples()[0]


def share(part: float) -> Any:
    """Settings for a part of all examples; without the variable, always the same ones."""
    return settings(
        max_examples=max(1, round(EXAMPLES * part)),
        deadline=None,
        derandomize="CATP_FUZZ_EXAMPLES" not in os.environ,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2, 3, 31, 255, 383, 384, 2**31, 2**62, 2**63, 10**30, 10**400]),
    st.integers(),
    st.floats(),
    st.sampled_from([0.0, -0.0, 1e-320, 1e300, float("inf"), float("nan")]),
    st.text(max_size=8),
    st.sampled_from(["", "../x", "/etc/passwd", "tokenizer.json", "\x1b[2J", "\ud800", "x" * 5000, "{prompt}", "fp16"]),
)
values = st.one_of(
    scalars,
    st.lists(scalars, max_size=4),
    st.dictionaries(st.text(max_size=6), scalars, max_size=3),
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of all that a JSON document has."""
    if path:
        yield path
    for key in tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield from places(tree[key], (*path, key))


def changed(data: st.DataObject, tree: Any, weights: list[tuple[Any, ...]]) -> Any:
    """The document with a few of its parts exchanged, removed, doubled, or moved elsewhere."""
    result = copy.deepcopy(tree)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(weights))
        parent = result
        try:
            for key in path[:-1]:
                parent = parent[key]
            kind = data.draw(st.sampled_from(["value", "value", "value", "remove", "double", "other"]))
            if kind == "value":
                parent[path[-1]] = data.draw(values)
            elif kind == "remove":
                del parent[path[-1]]
            elif kind == "double" and isinstance(parent, list):
                parent.append(copy.deepcopy(parent[path[-1]]))
            else:
                parent[path[-1]] = copy.deepcopy(parent[data.draw(st.sampled_from(sorted(parent)))])
        except (KeyError, IndexError, TypeError):  # an earlier change has removed it
            continue
    return result


def listing(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.lstat().st_size for path in root.rglob("*")}


def check_message(error: CatpError) -> None:
    assert str(error) and not {unicodedata.category(c) for c in one_line(str(error))} & {"Cc", "Cs", "Zl", "Zp"}


class Loaded(OrtProvider):
    """The demo's graphs, loaded once: what a manifest says of them is compared with them all the same."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self._engines: dict[str, OrtEngine] = {}

    def engine(self, bundle: Bundle, graph: str) -> OrtEngine:
        key = bundle.manifest.graphs[graph].file.sha256
        if key not in self._engines:
            self._engines[key] = super().engine(bundle, graph)
        _check_tensors(self._engines[key].session, bundle, graph)
        return self._engines[key]


@pytest.fixture(scope="module")
def loaded(demo_bundle: Path) -> Loaded:
    return Loaded()


@pytest.fixture(scope="module")
def victim(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose files are the demo's, in a folder that is watched."""
    folder = tmp_path_factory.mktemp("fuzz") / "bundle"
    folder.mkdir()
    for path in demo_bundle.iterdir():
        shutil.copy(path, folder / path.name)  # no link: others read the demo meanwhile, and onnx_ir refuses those
    (folder / "catp.json").unlink()
    return folder


@given(data=st.data())
@share(0.4)
def test_manifests(data: st.DataObject, victim: Path, demo_bundle: Path, loaded: Loaded) -> None:
    manifest = json.loads((demo_bundle / "catp.json").read_text())
    # Numbers and names decide more than the many tensors of the graphs.
    weights = [p for p in places(manifest) for _ in range(1 if p[0] in ("graphs", "parity", "files") else 8)]
    content = changed(data, manifest, weights)
    (victim / "catp.json").write_text(json.dumps(content))
    before = listing(victim.parent)
    try:
        pipeline = Pipeline(open_bundle(victim, verify=False), loaded)
        found = pipeline.generate([SAMPLE.image], [SAMPLE.prompt], max_new_tokens=2)[0]
    except CatpError as error:
        check_message(error)
        return
    finally:
        assert listing(victim.parent) == before
    assert 1 <= len(found.token_ids) <= 2 and all(0 <= token < 384 for token in found.token_ids)
    kept = found.kept_indices
    assert kept == sorted(set(kept)) and len(kept) == found.num_kept and 0 <= kept[0] <= kept[-1] < 32


WEIGHTS = b"g.onnx_data"


def small_model() -> bytes:
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in "xy"]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3], [1, 2, 3])
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": WEIGHTS.decode(), "offset": "0", "length": "12"}.items():
        weight.external_data.add(key=key, value=value)
    nodes = [helper.make_node("Softmax", ["x"], ["z"], axis=0), helper.make_node("Mul", ["z", "w"], ["y"])]
    graph = helper.make_graph(nodes, "g", tensors[:1], tensors[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)]).SerializeToString()


MODEL = small_model()
PIECES = [
    b"\x22\x04Loop", b"\x32\x00", b"\x5a\x00", b"\x2a\x02\x32\x00", b"\x3a\x00", b"\xca\x01\x00", b"\x7a\x00",
    b"location", b"..", b"\x0a\x08location\x12\x01f", b"\x6a\x0d\x0a\x08location\x12\x01f", b"\x6a", b"\xff", b"\x00",
    b"\x0b", b"\xff\xff\xff\xff\x0f", MODEL, MODEL[:40],
]  # fmt: skip


def dangerous(model: onnx.ModelProto) -> bool:
    """By the library that the reader does without."""
    attributes = [attribute for node in model.graph.node for attribute in node.attribute]
    return (
        bool(model.functions or model.graph.sparse_initializer)
        or any(node.op_type not in OPERATORS.get(node.domain, ()) for node in model.graph.node)
        or any(a.HasField("g") or a.graphs or a.HasField("t") or a.tensors or a.ref_attr_name for a in attributes)
        or any(
            entry.key == "location" and entry.value.encode() != WEIGHTS
            for tensor in model.graph.initializer
            for entry in tensor.external_data
        )
    )


@given(data=st.data())
@share(0.25)
def test_graphs(data: st.DataObject) -> None:
    content = bytearray(MODEL)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content)))
        kind = data.draw(st.sampled_from(["byte", "insert", "cut", "double"]))
        if kind == "byte" and place < len(content):
            content[place] = data.draw(st.integers(0, 255))
        elif kind == "insert":
            content[place:place] = data.draw(st.one_of(st.sampled_from(PIECES), st.binary(max_size=12)))
        elif kind == "cut":
            del content[place : place + data.draw(st.integers(1, 20))]
        else:
            content[place:place] = content[place : place + data.draw(st.integers(1, 60))]
    reason = refusal(bytes(content), WEIGHTS)
    try:
        model = onnx.ModelProto.FromString(bytes(content))
    except (DecodeError, UnicodeDecodeError):
        return
    if reason is None:
        assert not dangerous(model)


def picture_bytes() -> list[bytes]:
    picture = Image.open(SAMPLE.image).convert("RGB").resize((24, 18))
    found = []
    for form, mode in (("PNG", "RGB"), ("PNG", "I;16"), ("JPEG", "RGB"), ("GIF", "P"), ("BMP", "RGB"), ("TIFF", "RGB"),
                       ("WEBP", "RGB"), ("PPM", "RGB")):  # fmt: skip
        buffer = io.BytesIO()
        picture.convert("L").convert("I;16").save(buffer, form) if mode == "I;16" else picture.convert(mode).save(
            buffer, form
        )
        found.append(buffer.getvalue())
    return found


PICTURES = picture_bytes()


@given(data=st.data())
@share(0.15)
@pytest.mark.filterwarnings("ignore")
def test_pictures(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    content = bytearray(data.draw(st.sampled_from(PICTURES)))
    for _ in range(data.draw(st.integers(0, 6))):
        place = data.draw(st.one_of(st.integers(0, min(64, len(content) - 1)), st.integers(0, len(content) - 1)))
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))]
    path = tmp_path_factory.getbasetemp() / "fuzz-picture"
    path.write_bytes(content)
    try:
        picture = load_image(path)
    except ImageError as error:
        check_message(error)
        return
    assert picture.mode == "RGB" and np.asarray(picture).dtype == np.uint8


@given(data=st.data())
@share(0.1)
def test_tokenizers(data: st.DataObject, demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer = json.loads((demo_bundle / "tokenizer.json").read_text())
    weights = [p for p in places(tokenizer) if p[:2] not in (("model", "vocab"), ("model", "merges")) or len(p) == 2]
    path = tmp_path_factory.getbasetemp() / "fuzz-tokenizer.json"
    path.write_text(json.dumps(changed(data, tokenizer, weights)))
    spec = TextSpec(pad_token_id=0, eos_token_ids=(1,), max_positions=64)
    try:
        codec = TextCodec(path, spec)
        ids = codec.encode(data.draw(st.text(max_size=30)))
        assert all(isinstance(token, int) and token >= 0 for token in ids)
        assert isinstance(codec.decode(ids), str)
    except (BundleError, UsageError) as error:
        check_message(error)


@given(data=st.data())
@share(0.1)
def test_settings(data: st.DataObject) -> None:
    names = st.sampled_from([*GenerationSettings.model_fields, "max_new_tokens", "no_such"])
    changes = data.draw(st.dictionaries(names, values, max_size=4))
    try:
        found = GenerationSettings().override(**changes)
    except UsageError as error:
        check_message(error)
        return
    assert GenerationSettings.model_validate_json(found.model_dump_json()) == found
    assert found.num_beams <= 1000 and np.isfinite([found.temperature, found.repetition_penalty]).all()
