"""Exported graphs against the checkpoint: what must hold before a bundle is published."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from catp.export.emulation import emulated
from catp.export.expected import MAX_NEW_TOKENS, Expected
from catp.export.reference import Greedy, Votes
from catp.export.turns import taking_turns
from catp.runtime.bundle import Bundle
from catp.runtime.engines import open_provider
from catp.runtime.engines.base import Engine, to_host
from catp.runtime.generation.settings import GREEDY
from catp.runtime.language_models.decoder_only import bind_prefill
from catp.runtime.manifest import GRAPHS, ParityCheck, Precision, scores_of
from catp.runtime.pipeline import Pipeline
from catp.runtime.query_tokens import Pruned

RELATIVE_ERROR: dict[Precision, float] = {"fp32": 1e-4, "fp16": 3e-2, "bf16": 1e-1}
"""Largest absolute difference, relative to the largest absolute value of the output.

bf16 rounds eight times as coarsely as fp16; on the demo and on random weights its errors came to 0.03 at most.
"""

TOKEN_MISMATCH: dict[Precision, float] = {"fp32": 0.0, "fp16": 0.25, "bf16": 0.5}
"""Share of sample prompts whose greedy tokens may differ, beyond near ties of the logits.

On random weights, whose tokens mean nothing, one prompt of four differed in bf16 at most; none on the demo.
"""

KEPT_MISMATCH: dict[Precision, float] = {"fp32": 0.0, "fp16": 0.15, "bf16": 0.25}
"""Share of kept tokens that may differ end to end, beyond near ties: half precision changes what the vote sees."""

EMULATED = "bf16 emulated in float32"
"""Said of every check that ran a stand-in for a graph."""


def check_parity(bundle: Bundle, expected: Expected) -> list[ParityCheck]:
    """Compare a bundle, run by ONNX Runtime on the CPU, with what PyTorch says.

    A bf16 bundle can't be run there: it is emulated, and its checks say so.
    """
    precision = bundle.manifest.precision
    if precision != "bf16":
        return _checks(bundle, precision, expected)
    with emulated(bundle) as stand_in:
        return [_said_to_be_emulated(check) for check in _checks(stand_in, precision, expected)]


def _said_to_be_emulated(check: ParityCheck) -> ParityCheck:
    runs_graphs = check.subject in (*GRAPHS, "pipeline")
    return check.model_copy(update={"subject": f"{check.subject} ({EMULATED})"}) if runs_graphs else check


def _checks(bundle: Bundle, precision: Precision, expected: Expected) -> list[ParityCheck]:
    """Args: `precision`: whose limits hold."""
    provider = taking_turns(open_provider("cpu"), bundle)
    limit = RELATIVE_ERROR[precision]
    checks = [
        *_vision(provider.engine(bundle, "vision_encoder"), expected, limit),
        *_qformer(provider.engine(bundle, "qformer_voting"), bundle, expected, limit),
        _language_model(provider.engine(bundle, "language_model"), bundle, expected, limit),
    ]
    return [*checks, *_end_to_end(Pipeline(bundle, provider), precision, expected)]


def _check(subject: str, measure: str, value: float | np.floating, limit: float) -> ParityCheck:
    # NaN compares false, and so fails.
    return ParityCheck(subject=subject, measure=measure, value=float(value), limit=limit, passed=bool(value <= limit))


def relative_error(actual: np.ndarray, wanted: np.ndarray) -> float:
    """Largest absolute difference, relative to the largest absolute value wanted."""
    actual, wanted = actual.astype(np.float64), wanted.astype(np.float64)
    return float(np.abs(actual - wanted).max() / max(np.abs(wanted).max(), 1e-30))


def _vision(engine: Engine, expected: Expected, limit: float) -> Iterator[ParityCheck]:
    outputs = engine.bind({"pixel_values": expected.pixel_values}).run()
    wanted = {"image_embeds": expected.image_embeds, "image_weights": expected.image_weights}
    for name, tensor in outputs.items():
        error = relative_error(tensor.numpy(), wanted[name])
        yield _check("vision_encoder", f"{name}: relative error", error, limit)


def _qformer(engine: Engine, bundle: Bundle, expected: Expected, limit: float) -> Iterator[ParityCheck]:
    subject = "qformer_voting"
    spec = bundle.manifest.graphs[subject]
    given = {
        "image_embeds": expected.image_embeds.astype(spec.input("image_embeds").dtype),
        "image_weights": expected.image_weights,
        "num_kept": np.array([expected.num_kept]),
    }
    inputs = {tensor.name: given[tensor.name] for tensor in spec.inputs}
    outputs = {name: tensor.numpy() for name, tensor in engine.bind(inputs).run().items()}
    kept_indices, scores, votes = outputs["kept_indices"], outputs["token_scores"], expected.votes
    wanted = np.take_along_axis(expected.query_embeds, kept_indices[:, :, None], axis=1)
    yield _check(subject, "kept_embeds: relative error", relative_error(outputs["kept_embeds"], wanted), limit)
    for name, wanted_votes in (("token_scores", votes), *((scores_of(m), v) for m, v in expected.compared.items())):
        excess = np.abs(outputs[name] - wanted_votes.scores) - wanted_votes.slack
        yield _check(subject, f"{name}: points off beyond near ties", np.maximum(excess.max(), 0), 0)
    wrong = sum(unexplained(kept_indices, expected.kept_indices, votes) > 0)
    yield _check(subject, "kept sets that differ beyond near ties", wrong, 0)
    # The two checks above hold of any kept set where every score is within rounding of every other: say so.
    doubt = np.median(votes.slack) / max(np.median(votes.scores.std(1)), 1e-30) if votes.scores.any() else 0.0
    yield _check(subject, "near ties: median slack, of the scores' spread", doubt, 1).model_copy(
        update={"advisory": True}
    )
    top = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, : expected.num_kept], axis=1)
    yield _check(subject, "kept sets that are not the top of the graph's scores", (top != kept_indices).any(1).sum(), 0)


def unexplained(actual: np.ndarray, wanted: np.ndarray, votes: Votes) -> np.ndarray:
    """Per row, how many tokens were exchanged, where their scores are further apart than near ties can move them.

    Args:
        actual, wanted: kept indices [B, k].
    """
    counts = []
    for a, w, scores, slack in zip(actual, wanted, votes.scores, votes.slack):
        came, went = np.setdiff1d(a, w), np.setdiff1d(w, a)
        gaps = scores[went][:, None] - scores[came][None]
        counts.append(len(came) if (gaps > slack[went][:, None] + slack[came][None]).any() else 0)
    return np.array(counts)


def _language_model(engine: Engine, bundle: Bundle, expected: Expected, limit: float) -> ParityCheck:
    """Logits of a ragged prefill of all rows, and of a second one that also contains the first generated token."""
    graph = bundle.manifest.graphs["language_model"]
    greedy = expected.pruned["original"]
    errors = []
    for step in range(2):
        rows = [row for row, wanted in enumerate(greedy) if len(wanted.token_ids) > step]
        if not rows:
            break
        prefill = bind_prefill(
            engine,
            graph,
            expected.kept_embeds[rows].astype(graph.input("prefix_embeds").dtype),
            expected.kept_indices[rows],
            expected.query_embeds.shape[1],
            [expected.prompt_ids[row] + greedy[row].token_ids[:step] for row in rows],
            bundle.manifest.text.pad_token_id,
        )
        wanted = np.stack([greedy[row].logits[step] for row in rows])
        errors.append(relative_error(prefill.run()["logits"].numpy(), wanted))
    # np.max, not max: NaN must come through.
    return _check("language_model", "logits: relative error", np.max(errors), limit)


def _end_to_end(pipeline: Pipeline, precision: Precision, expected: Expected) -> Iterator[ParityCheck]:
    images = [sample.image for sample in expected.samples]
    prompts = [sample.prompt for sample in expected.samples]
    wrong = sum(pipeline.tokenize(prompt) != ids for prompt, ids in zip(prompts, expected.prompt_ids))
    yield _check("tokenizer", "prompts with other token ids", wrong, 0)

    std = np.array(pipeline.manifest.image.image_std)[:, None, None]
    difference = np.abs(pipeline.preprocess(images) - expected.pixel_values) * std
    yield _check("preprocessing", "pixel_values: largest difference, of 1", difference.max(), 1 / 255)

    limit = TOKEN_MISMATCH[precision]
    rows = [[row] for row in range(len(prompts))]
    for how, groups in (("singly", rows), ("as a ragged batch", [list(range(len(prompts)))])):
        wrong = 0
        for group in groups:
            answers = pipeline.generate(
                [images[row] for row in group],
                [prompts[row] for row in group],
                ratio=0,
                max_new_tokens=MAX_NEW_TOKENS,
                settings=GREEDY,
            )
            wrong += sum(
                not same_tokens(answer.token_ids, expected.unpruned[row], RELATIVE_ERROR[precision])
                for answer, row in zip(answers, group)
            )
        measure = f"unpruned, {how}: prompts with other tokens than generate()"
        yield _check("pipeline", measure, wrong / len(prompts), limit)

    pixels = pipeline.preprocess(images)
    kept_indices = to_host(pipeline.prune(pipeline.encode(pixels), expected.num_kept).kept_indices)
    share = unexplained(kept_indices, expected.kept_indices, expected.votes).mean() / expected.num_kept
    yield _check("pipeline", "share of other tokens kept, beyond near ties", share, KEPT_MISMATCH[precision])

    # The language model is given PyTorch's kept tokens, so that every row counts, whatever near ties did to the votes.
    dtype = pipeline.manifest.graphs["language_model"].input("prefix_embeds").dtype
    for mode, greedy in expected.pruned.items():
        for how, groups in (("singly", rows), ("as a ragged batch", [list(range(len(prompts)))])):
            wrong = 0
            for group in groups:
                pruned = Pruned(expected.kept_indices[group], expected.kept_embeds[group].astype(dtype))
                ids = [expected.prompt_ids[row] for row in group]
                generation = pipeline.decode(pruned, ids, MAX_NEW_TOKENS, mode)
                wrong += sum(
                    not same_tokens(actual, greedy[row], RELATIVE_ERROR[precision])
                    for actual, row in zip(generation.token_ids, group)
                )
            measure = f"pruned, {mode} positions, {how}: prompts with other tokens"
            yield _check("pipeline", measure, wrong / len(prompts), limit)


def same_tokens(actual: Sequence[int], wanted: Greedy, tolerance: float) -> bool:
    """Whether greedy tokens agree up to the first step at which the two best logits are a near tie."""
    for step, token in enumerate(wanted.token_ids):
        if step >= len(actual):
            return False
        if actual[step] != token:
            logits = wanted.logits[step]
            return bool(logits[token] - logits[actual[step]] <= 2 * tolerance * np.abs(logits).max())
    return len(actual) == len(wanted.token_ids)
