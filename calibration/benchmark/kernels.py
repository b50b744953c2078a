"""Where time goes inside the graphs, operator by operator, as ONNX Runtime's own profiler sees it.

Runs of their own, which no other figure of a report comes from: noting the time costs every operator about a
microsecond. What is computed is what is timed elsewhere, the same question with the same sessions' options.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from catp.calibration.benchmark.contenders.bundle_subject import BundleSubject
from catp.calibration.benchmark.contenders.subject import Case, TimedInput
from catp.calibration.benchmark.kernel_times import KINDS, KernelTimes, Kind, kind_of
from catp.calibration.benchmark.schedules import Schedule
from catp.calibration.benchmark.timing.summary import percentile
from catp.runtime.bundle.chains import DECODE_GRAPH, graphs_of
from catp.runtime.bundle.folder import Bundle
from catp.runtime.bundle.manifest import Positions, Purpose
from catp.runtime.providers.onnx_runtime import OrtEngine, OrtProvider

ANSWERS = 15
"""Asked while the profiler runs, after a few that are not looked at."""
UNSEEN = 3


def profile_kernels(
    bundle: Bundle,
    threads: int,
    positions: Positions,
    timed_input: TimedInput,
    cases: Sequence[Case],
    schedules: Sequence[Schedule] = (),
) -> Iterator[KernelTimes]:
    """Times of the operators of a bundle that writes answers, one image at a time; loaded anew for each setting.

    Args:
        cases: of one subject and one image.
        schedules: those of its encoder that cases ask for.
    """
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            provider = _ProfilingProvider(threads, Path(folder))
            subject = BundleSubject(bundle, provider, positions, case.subject, schedules)
            samples = [subject.run(timed_input, case) for _ in range(UNSEEN + ANSWERS)]
            runs = {graph: _runs(provider.finish(graph)) for graph in provider.opened}
        whole = [sample.milliseconds["total"] for sample in samples[UNSEEN:]]
        yield _summarize(case, runs, timed_input.new_tokens, percentile(whole, 50))


class _ProfilingProvider(OrtProvider):
    """The provider that is timed, whose sessions write a trace each."""

    def __init__(self, threads: int, folder: Path) -> None:
        super().__init__("cpu", threads)
        self._folder = folder
        self.opened: dict[str, OrtEngine] = {}

    def engine(self, bundle: Bundle, graph: str) -> OrtEngine:
        self.opened[graph] = super().engine(bundle, graph)
        return self.opened[graph]

    def _options(self, purpose: Purpose | None) -> Any:
        options = super()._options(purpose)
        options.enable_profiling = True
        options.profile_file_prefix = str(self._folder / f"trace-{len(self.opened)}")
        return options

    def finish(self, graph: str) -> list[dict[str, Any]]:
        """The events of a graph's session."""
        events: list[dict[str, Any]] = json.loads(Path(self.opened[graph].session.end_profiling()).read_text())
        return events


def _runs(events: Sequence[Mapping[str, Any]]) -> list[Counter[str]]:
    """Microseconds by operator, of each run of a session in turn."""
    runs = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "model_run")
    kernels = sorted(
        (e["ts"], e["args"]["op_name"], e["dur"])
        for e in events
        if e["cat"] == "Node" and e["name"].endswith("_kernel_time")
    )
    found, position = [], 0
    for _, end in runs:
        times: Counter[str] = Counter()
        while position < len(kernels) and kernels[position][0] <= end:
            times[kernels[position][1]] += kernels[position][2]
            position += 1
        found.append(times)
    return found


def _summarize(case: Case, runs: Mapping[str, list[Counter[str]]], new_tokens: int, answer_ms: float) -> KernelTimes:
    images = {"vision": "vision_encoder", "qformer": "qformer_voting"}
    stages: dict[str, list[Counter[str]]] = {stage: runs[graph] for stage, graph in images.items() if graph in runs}
    (decoder,) = (graph for graph in graphs_of("decode") if graph in runs)
    language = runs[decoder]
    if DECODE_GRAPH in runs:
        stages["prefill"], steps = language, runs[DECODE_GRAPH]
    else:  # one session takes both: of every answer's runs, the first is prefill
        stages["prefill"] = language[::new_tokens]
        steps = [run for index, run in enumerate(language) if index % new_tokens]
    for encoder in (graph for graph in graphs_of("prefill") if graph in runs and graph != decoder):
        stages["prefill"] = [before + first for before, first in zip(runs[encoder], stages["prefill"], strict=True)]
    each = new_tokens - 1
    if each:
        stages["decode"] = [sum(steps[i : i + each], Counter()) for i in range(0, len(steps), each)]
    operators = {stage: _medians(answers[UNSEEN:]) for stage, answers in stages.items()}
    kinds = {}
    for stage, found in operators.items():
        times: dict[Kind, float] = defaultdict(float)
        for operator, milliseconds in found.items():
            times[kind_of(operator)] += milliseconds
        kinds[stage] = {kind: times[kind] for kind in KINDS}
    return KernelTimes(
        subject=case.subject,
        ratio=case.ratio,
        encoder_flops=case.encoder_flops,
        stages=kinds,
        answer_ms=answer_ms,
        operators=operators,
    )


def _medians(answers: Sequence[Counter[str]]) -> dict[str, float]:
    """Milliseconds by operator, the longest first."""
    names = {name for answer in answers for name in answer}
    found = {name: percentile([answer[name] for answer in answers], 50) / 1e3 for name in names}
    return dict(sorted(found.items(), key=lambda item: -item[1]))
