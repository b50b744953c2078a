"""A process lives among others: threads, forks, signals, full disks, and no memory that grows."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from catp.export.demo import samples
from catp.runtime import Pipeline, UsageError
from catp.runtime.language_models.kv_cache import Cache
from catp.runtime.providers import open_provider
from catp.runtime.system.memory import total_memory

SAMPLES = samples()


def ask(pipeline: Pipeline, number: int) -> list[int]:
    sample = SAMPLES[number % len(SAMPLES)]
    return pipeline.generate([sample.image], [sample.prompt], ratio=number % 3 / 4)[0].token_ids


def test_threads_share_a_pipeline(pipeline: Pipeline) -> None:
    alone = [ask(pipeline, number) for number in range(12)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda number: ask(pipeline, number % 12), range(48))) == alone * 4


def test_streams_take_turns(pipeline: Pipeline) -> None:
    whole = ["".join(pipeline.stream(sample.image, sample.prompt)) for sample in SAMPLES]
    streams = [pipeline.stream(sample.image, sample.prompt) for sample in SAMPLES]
    texts = [""] * len(streams)
    running = set(range(len(streams)))
    while running:
        for number in sorted(running):
            piece = next(streams[number], None)
            if piece is None:
                running.remove(number)
            else:
                texts[number] += piece
    assert texts == whole


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_pipeline_answers_after_a_fork(demo_bundle: Path) -> None:
    """With one thread an operator: threads do not live on in a child."""
    code = (
        "import os, sys; from catp.runtime import Pipeline; from catp.export.demo import samples\n"
        "s = samples()[0]; p = Pipeline.load(sys.argv[1], threads=1)\n"
        "ask = lambda: p.generate([s.image], [s.prompt])[0].answer\n"
        "first = ask(); child = os.fork()\n"
        "if child == 0: os._exit(0 if ask() == first else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or ask() != first)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(demo_bundle)], check=True, timeout=60)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_memory_does_not_grow(pipeline: Pipeline) -> None:
    image = Image.open(SAMPLES[0].image).convert("RGB")

    def some(calls: int) -> None:
        for _ in range(calls):
            pipeline.generate([image], [SAMPLES[0].prompt], max_new_tokens=2)
        gc.collect()

    some(80)
    before = resident()
    some(160)
    # What each call would leave behind, a cache (0.3 MB) or an image, is more than 30 kB.
    assert resident() - before < 160 * 30_000


def test_no_setting_of_the_process_changes(pipeline: Pipeline, tmp_path: Path) -> None:
    before = (list(warnings.filters), signal.getsignal(signal.SIGTERM), threading.active_count(), Path.cwd())
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: ask(pipeline, number), range(8)))
    after = (list(warnings.filters), signal.getsignal(signal.SIGTERM), threading.active_count(), Path.cwd())
    assert after == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("delay", [0.1, 0.6, 1.5])
def test_a_signal_ends_it_at_any_moment(
    demo_bundle: Path, tmp_path: Path, number: signal.Signals, delay: float
) -> None:
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from catp.runtime.commands.run import app; app()"
    )
    images = [part for _ in range(40) for part in ("--image", str(SAMPLES[0].image), "--prompt", "a")]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(demo_bundle), *images],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    time.sleep(delay)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert "is not installed" not in said
    assert not any(tmp_path.iterdir())


def test_more_threads_than_cores_could_run_are_refused() -> None:
    most = 32 * (os.cpu_count() or 1)
    open_provider("cpu", threads=most)
    for threads in (most + 1, 10**6, 10**30, -1):
        with pytest.raises(UsageError, match=f"threads {threads}: this machine has .* cores; give at most {most}"):
            open_provider("cpu", threads=threads)


@pytest.mark.skipif(total_memory() is None, reason="nothing tells how much memory there is")
def test_a_cache_that_no_machine_holds_is_refused_before_it_is_allocated(pipeline: Pipeline) -> None:
    graph, engine = pipeline.manifest.graphs["language_model"], pipeline.language_model.engine  # type: ignore[attr-defined]
    memory = total_memory()
    assert memory is not None and memory > 1 << 28
    layer = 4 * 32 * 4 * 2  # bytes of a slot: heads, width, float32, keys and values
    layers = sum(tensor.name.startswith("past_key_values.") for tensor in graph.inputs) // 2
    slots = memory // (layer * layers)
    with pytest.raises(UsageError, match="give fewer prompts or beams"):
        Cache(engine, graph, 1, slots + 64)
    with pytest.raises(UsageError, match="give fewer prompts or beams"):
        Cache(engine, graph, slots // 32, 64)


@pytest.mark.parametrize("tokens", [0, -1, 1 << 25, 10**30])
def test_answers_have_a_length_that_a_model_could_have(pipeline: Pipeline, tokens: int) -> None:
    with pytest.raises(UsageError, match=f"max_new_tokens {tokens}: at least 1, and at most 16,777,216"):
        pipeline.generate([SAMPLES[0].image], ["a"], max_new_tokens=tokens)
