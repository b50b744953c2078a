"""catp-bench with a vision encoder that prunes, as a user calls it. No test asserts how long anything takes."""

from pathlib import Path

import pytest
from benchmark_reports import RATES
from PIL import Image
from typer.testing import CliRunner, Result

from catp.calibration.benchmark.contenders.subject import OURS, Case, make_timed_input
from catp.calibration.benchmark.results.report import BenchmarkReport, read_report
from catp.calibration.commands.bench import app
from catp.runtime import EncoderWish, Pipeline
from catp.runtime.bundle.folder import Bundle, open_bundle
from catp.runtime.providers import open_provider

RUNNER = CliRunner()
SHARES, RATIOS = (0.8, 0.5), (0.0, 0.5)
QUICK = ("--batch", "2", "--iterations", "6", "--warmup", "1", "--threads", "1")


def call(*arguments: object) -> Result:
    return RUNNER.invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def _known_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catp.calibration.commands.bench.measure_rates", lambda threads: RATES)


def expected(folder: Path, report: BenchmarkReport, case: Case) -> list[list[int]]:
    """The tokens of a pipeline that is asked the same, through no end of text."""
    bundle = open_bundle(folder)
    endless = bundle.manifest.text.model_copy(update={"eos_token_ids": ()})
    manifest = bundle.manifest.model_copy(update={"text": endless})
    pipeline = Pipeline(Bundle(bundle.path, manifest), open_provider("cpu", 1))
    setup = report.setup
    asked = make_timed_input(manifest, 384, 2, setup.prompt_tokens, setup.new_tokens, setup.seed)
    wish = EncoderWish(flops=case.encoder_flops)
    encoded = pipeline.encode(pipeline.preprocess(asked.images), encoder=wish)
    if wish.flops is not None:
        spec = manifest.encoder_pruning
        assert spec is not None and encoded["image_embeds"].shape[1] == wish.schedule(spec)[-1] + 1
    pruned = pipeline.prune(encoded, pipeline.num_kept(case.ratio))
    return pipeline.decode(pruned, [asked.prompt_ids] * 2, setup.new_tokens, report.bundle.positions).token_ids


@pytest.mark.heavy
def test_every_schedule_is_timed_with_every_ratio_beside_the_dense_encoder(
    twice_pruned_bundle: Path, demo_bundle: Path, tmp_path: Path
) -> None:
    output, plot = tmp_path / "report.json", tmp_path / "latency.png"
    result = call(
        "run", twice_pruned_bundle, "--dense", demo_bundle, "--against", f"transformers,{demo_bundle}",
        "--ratios", "0,0.5", "--encoder-flops", "0.5,0.8", *QUICK, "-o", output, "--plot", plot,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = read_report(output)
    ours = [Case(2, OURS, ratio, share) for share in SHARES for ratio in RATIOS]
    dense = [Case(2, "dense", ratio) for ratio in RATIOS]
    cases = [*ours, *dense, Case(2, "transformers", 0.0)]  # a bundle that is named twice is timed once
    assert [found.case for found in report.results] == cases
    for case in (*ours, *dense):
        found = report.result(case)
        folder = demo_bundle if case.subject == "dense" else twice_pruned_bundle
        assert found.token_ids == expected(folder, report, case) and found.repeatable
        assert {len(values) for values in found.samples_ms.values()} == {6}
    assert report.result(ours[0]).token_ids != report.result(ours[2]).token_ids  # it matters what was kept
    assert report.result(cases[-1]).agreeing_tokens == 10  # as many as of the dense encoder
    (schedules,) = report.setup.schedules.values()
    assert [(s.flops, s.rule) for s in schedules] == [(share, "tome") for share in SHARES]
    assert [len(s.kept_tokens) for s in schedules] == [4, 4] and schedules[0].gflops > schedules[1].gflops
    assert (report.bundle.encoder, report.bundles["dense"].encoder) == ("tome, schedule", "dense")
    pairs = {(s.case, s.against) for s in report.speedups}
    assert {(case, dense[0]) for case in ours} | {(case, Case(2, "dense", case.ratio)) for case in ours} <= pairs
    assert report.break_even is not None and len(report.break_even.payoffs) == 1
    printed = result.stderr
    titles = [
        "tome leaves 23 image tokens",
        "Medians of",
        "Encoder that prunes over",
        "Pruned over",
        "Times as fast as",
    ]
    assert sorted(titles, key=printed.index) == titles
    with Image.open(plot) as picture:
        assert picture.format == "PNG"
    assert call("compare", output, output).exit_code == 0


def test_without_shares_and_without_a_dense_encoder(pruned_bundle: Path, tmp_path: Path) -> None:
    """BLIP for question answering, which has no query tokens: the bundle's own schedule, then several."""
    result = call(pruned_bundle, *QUICK, "--json")
    assert result.exit_code == 0, result.output
    report = BenchmarkReport.model_validate_json(result.stdout)
    (found,), (schedule,) = report.results, report.setup.schedules[OURS]
    spec = open_bundle(pruned_bundle).manifest.encoder_pruning
    assert spec is not None and (schedule.flops, schedule.kept_tokens) == (None, spec.kept_tokens)
    assert found.case == Case(2, OURS, 0.0) and any("--dense" in note for note in report.notes)
    result = call(pruned_bundle, "--encoder-flops", "0.6,0.4", *QUICK, "--json")
    assert result.exit_code == 0, result.output
    report = BenchmarkReport.model_validate_json(result.stdout)
    assert [(s.case, s.against) for s in report.speedups] == [(Case(2, OURS, 0.0, 0.4), Case(2, OURS, 0.0, 0.6))]


@pytest.mark.heavy  # the decoder's graphs are profiled at each schedule
def test_operators_are_profiled_at_every_schedule(twice_pruned_bundle: Path) -> None:
    asked = ("--encoder-flops", "0.8,0.5", "--ratios", "0", "--kernels", *QUICK, "--json")
    result = call(twice_pruned_bundle, *asked)
    assert result.exit_code == 0, result.output
    report = BenchmarkReport.model_validate_json(result.stdout)
    assert [(found.subject, found.encoder_flops) for found in report.kernels] == [(OURS, 0.8), (OURS, 0.5)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("{pruned} --encoder-flops 1", "above 0 and below 1, separated by commas"),
        ("{pruned} --encoder-flops 0.8,0.01", "encoder flops 0.01: pruning in layers 0, 1, 2, 3 leaves at least"),
        ("{demo} --encoder-flops 0.5", "prunes; give a bundle exported with --encoder-flops"),
        ("{pruned} --dense {pruned}", "its vision encoder prunes (tome)"),
        ("{demo} --dense {demo}", "prunes nothing either"),
        ("{pruned} --dense {tmp}", "it has no catp.json"),
        ("{pruned} --dense nowhere", "nowhere"),
        ("{pruned} --encoder-pruning cls", "--encoder-pruning cls: it is for a model that --synthetic makes"),
        ("--synthetic tiny --encoder-pruning cls", "with --encoder-flops; leave it out, or give both"),
        ("--synthetic tiny --dense {demo}", "and --synthetic tiny, which makes its own"),
    ],
)
def test_bad_input_is_one_clear_line(
    twice_pruned_bundle: Path, demo_bundle: Path, tmp_path: Path, arguments: str, message: str
) -> None:
    given = [part.format(pruned=twice_pruned_bundle, demo=demo_bundle, tmp=tmp_path) for part in arguments.split()]
    result = call("run", *given)
    assert result.exit_code == 2, result.output
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: ") and message in line and not result.stdout
