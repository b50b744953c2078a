"""Ranges are those of the real chain, gathered once, and the same after an interruption."""

import re
import resource
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from catp.calibration.data.dataset import VqaExample
from catp.calibration.precision.graphs.graph import FloatGraph
from catp.calibration.precision.graphs.layers import Layer
from catp.calibration.precision.ranges import ranges as module
from catp.calibration.precision.ranges.ranges import Gathered, Sampling, gather_ranges
from catp.runtime import CatpError, Pipeline
from catp.runtime.bundle.folder import open_bundle

Extremes = dict[str, tuple[float, float]]
Setup = Callable[..., Gathered]
METHODS = ("minmax", "entropy", "percentile")


def products(graph: FloatGraph) -> list[Layer]:
    return [layer for layer in graph.layers if not layer.is_table]


class Opened:
    """A graph whose layers' inputs are laid open by onnx alone; remembers their extremes, call by call."""

    def __init__(self, folder: Path, graph: str, layers: Sequence[Layer]) -> None:
        model = onnx.load(folder / f"{graph}.onnx")
        self.given = {value.name for value in model.graph.input}
        self.tensors = list(dict.fromkeys(layer.input for layer in layers))
        for name in self.tensors:
            if name not in self.given:
                model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        self.session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        self.calls: list[Extremes] = []

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [output.name for output in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(names, inputs)))
        read = {name: inputs[name] if name in self.given else outputs[name] for name in self.tensors}
        self.calls.append({name: (float(values.min()), float(values.max())) for name, values in read.items()})
        return outputs

    def extremes(self, calls: Sequence[Extremes] | None = None) -> Extremes:
        calls = self.calls if calls is None else calls
        return {
            name: (min(call[name][0] for call in calls), max(call[name][1] for call in calls)) for name in self.tensors
        }


def generate(language_model: Opened, pipeline: Pipeline, prompt: list[int], embeds: Any, positions: Any) -> list[int]:
    """Prefill and decode one prompt by the graph's own inputs: positions beside cache slots, a cache in place."""
    manifest = pipeline.manifest
    caches = [t for t in manifest.graphs["language_model"].inputs if t.name.startswith("past_")]
    cache = {t.name: np.zeros([1, t.shape[1], 96, t.shape[3]], np.float32) for t in caches}  # type: ignore[list-item]
    ids, position, slot = prompt, manifest.pruning.num_query_tokens, 0
    answer: list[int] = []
    while len(answer) < manifest.text.max_new_tokens and not {*answer} & {*manifest.text.eos_token_ids}:
        outputs = language_model(
            {
                "input_ids": np.array([ids]),
                "prefix_embeds": embeds,
                "prefix_positions": positions,
                "position_start": np.array([position]),
                "write_indices": np.array([slot]),
                "last_indices": np.array([embeds.shape[1] + len(ids) - 1]),
                **cache,
            }
        )
        cache = {name: outputs[name.replace("past_key_values", "present")] for name in cache}
        slot, position = slot + embeds.shape[1] + len(ids), position + len(ids)
        embeds, positions = embeds[:, :0], positions[:, :0]
        ids = [int(outputs["next_token"][0])]
        answer += ids
    return answer


@pytest.fixture(scope="module")
def graphs(demo_bundle: Path, float_graphs: Callable) -> dict[str, FloatGraph]:
    return dict(float_graphs(demo_bundle))


@pytest.fixture
def gather(demo_bundle: Path, graphs: dict[str, FloatGraph], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    """`gather(questions, method, advance, graph)`, in a cache of its own."""
    monkeypatch.setenv("CATP_CACHE_DIR", str(tmp_path / "cache"))
    bundle = open_bundle(demo_bundle, verify=False)

    def call(
        questions: Sequence[VqaExample], method: Any = "minmax", advance: Any = lambda _: None, graph: str | None = None
    ) -> Gathered:
        layers = {name: products(found) for name, found in graphs.items() if graph in (None, name)}
        return gather_ranges(bundle, graphs, layers, Sampling(questions, "mine", "0" * 64, 0, method), advance)

    return call


def files(tmp_path: Path) -> list[str]:
    return sorted(path.suffix for path in (tmp_path / "cache" / "ranges").iterdir())


class Interrupted(Exception):
    pass


def stop_after(count: int) -> Callable[[int], None]:
    def advance(more: int) -> None:
        nonlocal count
        count -= more
        if count < 0:
            raise Interrupted

    return advance


def test_ranges_are_those_of_pruned_and_unpruned_prefixes(
    demo_bundle: Path, graphs: dict[str, FloatGraph], gather: Setup, pipeline: Pipeline, questions: Callable
) -> None:
    asked = questions(6)
    found = gather(asked).ranges
    opened = {name: Opened(demo_bundle, name, products(graph)) for name, graph in graphs.items()}
    calls_of: dict[int, list[Extremes]] = defaultdict(list)
    for index, question in enumerate(asked):
        kept = 32 if index % 2 == 0 else 16
        pixels = pipeline.preprocess([question.image])
        embeds = opened["vision_encoder"]({"pixel_values": pixels})["image_embeds"]
        pruned = opened["qformer_voting"]({"image_embeds": embeds, "num_kept": np.array([kept])})
        before = len(opened["language_model"].calls)
        ids = generate(
            opened["language_model"], pipeline, pipeline.tokenize(question.prompt),
            pruned["kept_embeds"], pruned["kept_indices"],
        )  # fmt: skip
        calls_of[kept] += opened["language_model"].calls[before:]
        assert ids == pipeline.generate([question.image], [question.prompt], 1 - kept / 32)[0].token_ids
    for name, reference in opened.items():
        assert set(found[name]) == set(reference.tensors)
        for tensor, extremes in reference.extremes().items():
            seen = found[name][tensor]
            assert (seen.low, seen.high) == pytest.approx(extremes, rel=1e-3, abs=1e-4), (name, tensor)
    # Neither prefix alone has the range of both, or this test would say nothing.
    whole = opened["language_model"].extremes()
    for calls in calls_of.values():
        assert any(abs(np.subtract(opened["language_model"].extremes(calls)[t], whole[t])).max() > 1e-2 for t in whole)


def test_the_second_call_asks_nothing(gather: Setup, questions: Callable, tmp_path: Path) -> None:
    asked = questions(6)
    first = gather(asked, graph="vision_encoder")
    unreadable = [replace(question, image=tmp_path / "missing.png") for question in asked]
    advanced: list[int] = []
    assert gather(unreadable, advance=advanced.append, graph="vision_encoder") == first
    assert advanced == [6] and files(tmp_path) == [".json"]


def test_what_decides_ranges_is_not_mixed_up(gather: Setup, questions: Callable, tmp_path: Path) -> None:
    asked = questions(5)
    found = [
        gather(asked, graph="vision_encoder"),
        gather(asked[:4], graph="vision_encoder"),
        gather(questions(5, seed=6), graph="vision_encoder"),
        gather(asked, "percentile", graph="vision_encoder"),
        gather(asked, graph="language_model"),
    ]
    assert files(tmp_path) == [".json"] * 5
    assert all(one != other for one, other in combinations(found, 2)) and list(found[4].ranges) == ["language_model"]


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_run_goes_on_to_the_same_ranges(
    method: str, gather: Setup, questions: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAVE_EVERY", 4)
    asked = questions(16)
    with pytest.raises(Interrupted):
        gather(asked, method, stop_after(10), graph="language_model")
    assert files(tmp_path) == [".npz"]
    with pytest.raises(Interrupted):  # eight were saved: asked again from the ninth on
        gather(asked, method, stop_after(12), graph="language_model")
    # Those that were done are not looked at again.
    rest = [replace(question, image=tmp_path / "missing.png") for question in asked[:12]] + asked[12:]
    advanced: list[int] = []
    found = gather(rest, method, advanced.append, graph="language_model")
    assert advanced == [12, 1, 1, 1, 1] and files(tmp_path) == [".json"]
    monkeypatch.setenv("CATP_CACHE_DIR", str(tmp_path / "elsewhere"))
    assert found == gather(asked, method, graph="language_model")


def test_a_question_that_can_not_be_asked_does_not_shift_where_an_interrupted_run_goes_on(
    gather: Setup, questions: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAVE_EVERY", 4)
    asked = questions(12)
    asked[1] = replace(asked[1], image=tmp_path / "missing.png")
    with pytest.raises(Interrupted):
        gather(asked, "percentile", stop_after(5), graph="language_model")
    found = gather(asked, "percentile", graph="language_model")
    assert found.samples == 11
    monkeypatch.setenv("CATP_CACHE_DIR", str(tmp_path / "elsewhere"))
    assert found == gather(asked, "percentile", graph="language_model")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(
            lambda content: content[:-20],
            id="truncated",
        ),
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda _: b"nonsense", id="something else"),
    ],
)
def test_a_damaged_intermediate_result_is_gathered_again(
    damage: Callable[[bytes], bytes],
    gather: Setup,
    questions: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SAVE_EVERY", 2)
    asked = questions(4)
    with pytest.raises(Interrupted):
        gather(asked, advance=stop_after(3), graph="vision_encoder")
    (path,) = (tmp_path / "cache" / "ranges").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    advanced: list[int] = []
    found = gather(asked, advance=advanced.append, graph="vision_encoder")
    assert sum(advanced) == 4 and advanced[:2] == [0, 1]
    monkeypatch.setenv("CATP_CACHE_DIR", str(tmp_path / "elsewhere"))
    assert found == gather(asked, graph="vision_encoder")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-10],
        lambda _: "[]",
        lambda _: "null",
        lambda _: '{"vision": {}}',
        lambda text: re.sub(r": \[[^,]*,", ": [NaN,", text, count=1),
        lambda text: re.sub(r"[-.0-9e]+\]", "-Infinity]", text, count=1),
    ],
)
def test_a_damaged_result_is_gathered_again(
    damage: Callable[[str], str], gather: Setup, questions: Callable, tmp_path: Path
) -> None:
    asked = questions(4)
    first = gather(asked, graph="vision_encoder")
    (path,) = (tmp_path / "cache" / "ranges").iterdir()
    path.write_text(damage(path.read_text()))
    advanced: list[int] = []
    assert gather(asked, advance=advanced.append, graph="vision_encoder") == first and sum(advanced) == 4


def test_no_question_that_could_be_asked_is_an_error(gather: Setup, questions: Callable, tmp_path: Path) -> None:
    unreadable = [replace(question, image=tmp_path / "missing.png") for question in questions(4)]
    with pytest.raises(CatpError):
        gather(unreadable, graph="vision_encoder")
    assert files(tmp_path) == []


def test_a_cache_that_can_not_be_written_is_named(
    gather: Setup, questions: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CATP_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(CatpError, match=r"file/ranges: can't be written .*CATP_CACHE_DIR"):
        gather(questions(1), graph="vision_encoder")


@pytest.mark.parametrize("save_every", [1, 32])
def test_a_cache_that_fills_up_is_named_and_keeps_no_part(
    save_every: int, gather: Setup, questions: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAVE_EVERY", save_every)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(_: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))

    try:
        with pytest.raises(CatpError, match=r"cache/ranges: can't be written .*CATP_CACHE_DIR"):
            gather(questions(2), advance=full, graph="vision_encoder")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path) == []
