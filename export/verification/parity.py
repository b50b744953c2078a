"""Exported graphs against the checkpoint: what must hold before a bundle is published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from catp.export.verification.continuations import Greedy
from catp.export.verification.emulated import emulated
from catp.export.verification.expected import (
    MAX_NEW_TOKENS,
    Expected,
    ExpectedAnswers,
    ExpectedImages,
    ExpectedJudgements,
    ExpectedMatches,
    ExpectedPairs,
    ExpectedVotes,
)
from catp.export.verification.judging import check_judgements
from catp.export.verification.matching import check_matches, check_pairs
from catp.export.verification.measures import check, relative_error
from catp.export.verification.reference import ReferenceVotes
from catp.export.verification.rehearsal import rehearse
from catp.export.verification.turns import Turns, take_turns
from catp.runtime.bundle.folder import Bundle
from catp.runtime.bundle.generation_settings import GREEDY
from catp.runtime.bundle.manifest import Manifest, ParityCheck, Precision, scores_of
from catp.runtime.errors import GraphError
from catp.runtime.image_sides.query_tokens import Encoded, Pruned
from catp.runtime.language_models.base import Batch
from catp.runtime.language_models.encoder_decoder import EncoderDecoder
from catp.runtime.pipeline import Pipeline
from catp.runtime.providers import open_provider
from catp.runtime.providers.base import Engine, Provider, to_host

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


def check_parity(bundle: Bundle, expected: ExpectedImages | Sequence[ExpectedImages]) -> list[ParityCheck]:
    """Compare a bundle, run by ONNX Runtime on the CPU, with what PyTorch says.

    Of several groups of samples, which are run one after the other, each check is the worst one. ONNX Runtime
    computes no bf16, and fp16 in float32, where nothing overflows: both are emulated, and their checks say so.

    Raises:
        ParityError: an operator's result is beyond the range of half precision.
    """
    if not isinstance(expected, ExpectedImages):
        worst: dict[tuple[str, str], ParityCheck] = {}
        for group in expected:
            for found in check_parity(bundle, group):
                key = found.subject, found.measure
                if key not in worst or _is_worse(found, worst[key]):
                    worst[key] = found
        return list(worst.values())
    precision = bundle.manifest.precision
    if precision == "fp32":
        return _checks(bundle, open_provider("cpu"), precision, expected)
    graphs = bundle.manifest.graphs
    checks = _checks(*emulated(bundle), precision, expected)  # the first result beyond the range ends them
    checks += [check(graph, f"results that {precision} can't hold", 0, 0) for graph in graphs]
    return [
        found.model_copy(update={"subject": f"{found.subject} ({precision} emulated in float32)"})
        if found.subject in (*graphs, "pipeline")
        else found
        for found in checks
    ]


def _is_worse(found: ParityCheck, other: ParityCheck) -> bool:
    """Whether it fails where the other passes, as limits may differ; of two alike, whether its value is larger."""
    if found.passed != other.passed:
        return other.passed
    return not found.value <= other.value  # what is no number is the worst


def _checks(bundle: Bundle, provider: Provider, precision: Precision, expected: ExpectedImages) -> list[ParityCheck]:
    """Args: `precision`: whose limits hold."""
    in_turns = take_turns(bundle)
    provider = Turns(provider) if in_turns else provider
    limit = RELATIVE_ERROR[precision]
    pipeline = Pipeline(bundle, provider)
    if in_turns:
        asked = _groups(bundle.manifest, len(expected.samples))
        rehearse(pipeline, expected, [group for _, groups in asked for group in groups])
    checks = list(_vision(pipeline, precision, expected, limit))
    if isinstance(expected, ExpectedVotes):
        checks += _qformer(provider.engine(bundle, "qformer_voting"), bundle, expected, limit)
    checks += _inputs(pipeline, expected)
    if isinstance(expected, ExpectedMatches):
        return [*checks, *check_matches(pipeline, expected, limit)]
    if isinstance(expected, ExpectedPairs):
        return [*checks, *check_pairs(pipeline, expected, limit)]
    if isinstance(expected, ExpectedJudgements):
        return [*checks, *check_judgements(pipeline, expected, limit)]
    try:
        if isinstance(expected, ExpectedAnswers):
            checks += _image_reader(pipeline, expected, limit)
            checks += _unpruned(pipeline, precision, expected, expected.greedy)
        else:
            assert isinstance(expected, Expected)
            checks += _language_model(pipeline, expected, limit)
            checks += _end_to_end(pipeline, precision, expected)
    except GraphError as error:  # what was measured before says where it comes from
        checks.append(check(error.graph, f"it can't be run ({error.reason}): times", 1, 0))
    return checks


def _vision(pipeline: Pipeline, precision: Precision, expected: ExpectedImages, limit: float) -> Iterator[ParityCheck]:
    """Image embeddings as the image side makes them, by as many graphs as it has."""
    stages = [stage.graph for stage in pipeline.manifest.chain.stages if "vision" in stage.labels]
    encoded = pipeline.encode(expected.pixel_values, expected.frame_prompts)
    if expected.pruned_images is not None:
        yield from _pruned_vision(stages[-1], encoded, precision, expected, limit)
        return
    for name, wanted in (("image_embeds", expected.image_embeds), ("image_weights", expected.image_weights)):
        if name in encoded:
            yield check(stages[-1], f"{name}: relative error", relative_error(to_host(encoded[name]), wanted), limit)


def _pruned_vision(
    subject: str, encoded: Encoded, precision: Precision, expected: ExpectedImages, limit: float
) -> Iterator[ParityCheck]:
    """Which image tokens each layer leaves, and what became of those that both sides kept."""
    wanted = expected.pruned_images
    assert wanted is not None
    found = {name: to_host(value) for name, value in encoded.items()}
    embeds, positions = found["image_embeds"].astype(np.float32), found["kept_positions"]
    # Pictures in doubt may keep other tokens in float32 too; where all of them are, they are held to what fp16 may do.
    sound = np.flatnonzero(~wanted.in_doubt)
    allowed = KEPT_MISMATCH[precision if len(sound) else "fp16"]
    rows = sound if len(sound) else np.arange(len(positions))
    if "kept_counts" in found:
        off = np.abs(found["kept_counts"] - np.array(wanted.counts)).sum() / sum(wanted.counts)
        yield check(subject, "kept_counts: difference, of all", off, allowed)
    layers = [name for name in found if name.startswith("positions.")]
    for name, ours, theirs in [
        *((name, found[name], wanted.left[place]) for place, name in enumerate(layers)),
        ("kept_positions", positions, wanted.positions),
    ]:
        others = sum(len(np.setdiff1d(ours[row], theirs[row])) for row in rows)
        yield check(subject, f"{name}: share of other patches, beyond near ties", others / theirs[rows].size, allowed)
    if "image_weights" in found:
        # Where both sides keep the same patches; elsewhere others were averaged.
        ours, theirs = found["image_weights"][:, 1:], expected.image_weights[:, 1:]
        miscounted = 0
        for picture in rows.tolist():
            place, wanted_place = np.argsort(positions[picture]), np.argsort(wanted.positions[picture])
            if np.array_equal(positions[picture][place], wanted.positions[picture][wanted_place]):
                miscounted += int((ours[picture][place] != theirs[picture][wanted_place]).sum())
        yield check(
            subject, "image_weights: tokens of other numbers of patches", miscounted / theirs[rows].size, allowed
        )
    # Tokens that both sides kept; with merged ones where nothing else was kept, and so merged, on either side.
    errors = []
    for row in range(len(positions)):
        if np.array_equal(np.sort(positions[row]), np.sort(wanted.positions[row])):
            ours = _in_order(embeds[row], positions[row])
            theirs = _in_order(expected.image_embeds[row], wanted.positions[row])
        else:
            common = np.intersect1d(positions[row][positions[row] >= 0], wanted.positions[row])
            ours = _of_patches(embeds[row], positions[row], common)
            theirs = _of_patches(expected.image_embeds[row], wanted.positions[row], common)
            if precision == "fp32" and wanted.in_doubt[row]:
                continue  # one exchanged token changes the others by more than rounding does
        if precision == "fp32":
            errors.append(relative_error(ours, theirs))
        else:  # where rounding averages a token into another one than in float32, these two differ, the rest does not
            errors.append(np.median(np.abs(ours - theirs).max(1)) / max(np.abs(theirs).max(), 1e-30))
    which = "relative error" if precision == "fp32" else "relative error, median of tokens"
    if errors:
        yield check(subject, f"image_embeds: {which}", np.max(errors), limit)
    else:
        yield check(subject, "image_embeds: pictures that could be compared, of none", 1, 0)


def _of_patches(embeds: np.ndarray, positions: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """CLS and the embeddings of these patches, [1 + n, Dv]."""
    place = {int(patch): 1 + number for number, patch in enumerate(positions) if patch >= 0}
    return embeds[[0, *(place[int(patch)] for patch in patches)]]


def _in_order(embeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Embeddings [I, Dv] in the order of the patches; merged ones first, after CLS."""
    return np.concatenate([embeds[:1], embeds[1:][np.lexsort((embeds[1:, 0], positions))]])


def _qformer(engine: Engine, bundle: Bundle, expected: ExpectedVotes, limit: float) -> Iterator[ParityCheck]:
    subject = "qformer_voting"
    spec = bundle.manifest.graphs[subject]
    given = {
        "image_embeds": expected.image_embeds.astype(spec.input("image_embeds").dtype),
        "image_weights": expected.image_weights,
        "num_kept": np.array([expected.num_kept]),
        **expected.instructions,
    }
    inputs = {tensor.name: given[tensor.name] for tensor in spec.inputs}
    outputs = {name: tensor.numpy() for name, tensor in engine.bind(inputs).run().items()}
    kept_indices, scores, votes = outputs["kept_indices"], outputs["token_scores"], expected.votes
    wanted = np.take_along_axis(expected.query_embeds, kept_indices[:, :, None], axis=1)
    yield check(subject, "kept_embeds: relative error", relative_error(outputs["kept_embeds"], wanted), limit)
    for name, wanted_votes in (("token_scores", votes), *((scores_of(m), v) for m, v in expected.compared.items())):
        excess = np.abs(outputs[name] - wanted_votes.scores) - wanted_votes.slack
        yield check(subject, f"{name}: points off beyond near ties", np.maximum(excess.max(), 0), 0)
    wrong = sum(unexplained(kept_indices, expected.kept_indices, votes) > 0)
    yield check(subject, "kept sets that differ beyond near ties", wrong, 0)
    # The two checks above hold of any kept set where every score is within rounding of every other: say so.
    doubt = np.median(votes.slack) / max(np.median(votes.scores.std(1)), 1e-30) if votes.scores.any() else 0.0
    yield check(subject, "near ties: median slack, of the scores' spread", doubt, 1).model_copy(
        update={"advisory": True}
    )
    top = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, : expected.num_kept], axis=1)
    yield check(subject, "kept sets that are not the top of the graph's scores", (top != kept_indices).any(1).sum(), 0)


def unexplained(actual: np.ndarray, wanted: np.ndarray, votes: ReferenceVotes) -> np.ndarray:
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


def _language_model(pipeline: Pipeline, expected: Expected, limit: float) -> Iterator[ParityCheck]:
    """Logits of a ragged prefill of all rows, and of a decode step after it, through the runtime's own driver."""
    greedy = expected.pruned["original"]
    batch = Batch(
        expected.sample_kept_embeds.astype(_embeds_dtype(pipeline.manifest)),
        expected.sample_kept,
        expected.sample_embeds.shape[1],
        expected.prompt_ids,
    )
    yield from _reading(pipeline, batch, greedy, limit)


def _image_reader(pipeline: Pipeline, expected: ExpectedAnswers, limit: float) -> Iterator[ParityCheck]:
    """The same, of a model that reads image tokens."""
    dtype = pipeline.manifest.tensor("image_embeds").dtype
    tokens = np.tile(np.arange(expected.image_embeds.shape[1]), (len(expected.image_embeds), 1))
    batch = Batch(expected.image_embeds.astype(dtype), tokens, tokens.shape[1], expected.prompt_ids)
    yield from _reading(pipeline, batch, expected.greedy, limit)


def _reading(pipeline: Pipeline, batch: Batch, greedy: Sequence[Greedy], limit: float) -> Iterator[ParityCheck]:
    model = pipeline.language_model
    if isinstance(model, EncoderDecoder):
        yield _text_encoder(model, batch, greedy, limit)
    decoding = model.begin(batch, new_tokens=2, output="logits")
    errors = [relative_error(decoding.prefill(), np.stack([wanted.logits[0] for wanted in greedy]))]
    rows = [row for row, wanted in enumerate(greedy) if len(wanted.token_ids) > 1]
    if rows:
        logits = decoding.step(np.array([wanted.token_ids[0] for wanted in greedy]))[rows]
        errors.append(relative_error(logits, np.stack([greedy[row].logits[1] for row in rows])))
    # np.max, not max: NaN must come through.
    yield check(pipeline.manifest.chain.graphs[-1], "logits: relative error", np.max(errors), limit)


def _embeds_dtype(manifest: Manifest) -> str:
    """The type of kept tokens on their way to the language model."""
    return manifest.graphs["qformer_voting"].output("kept_embeds").dtype


def _text_encoder(model: EncoderDecoder, batch: Batch, greedy: Sequence[Greedy], limit: float) -> ParityCheck:
    """The keys and values that decoder layers read of kept tokens and prompt, of each row as far as it goes."""
    outputs, lengths = model.encode(batch)
    errors = []
    read = [spec for spec in model.encoder_graph.outputs if spec.name in outputs]  # not their lengths
    for index, spec in enumerate(read):
        actual = to_host(outputs[spec.name])
        for row, (length, wanted) in enumerate(zip(lengths, greedy)):
            assert wanted.encoded is not None
            if length != wanted.encoded[index].shape[1]:
                # Another number of tokens was left of the prompt, which rounding to half precision may do.
                errors += [np.inf] if limit <= RELATIVE_ERROR["fp32"] else []
                continue
            errors.append(relative_error(actual[row, :, :length], wanted.encoded[index]))
    worst = np.max(errors, initial=0.0) if errors else np.inf
    return check(model.encoder_name, "cross-attention keys and values: relative error", worst, limit)


def _inputs(pipeline: Pipeline, expected: ExpectedImages) -> Iterator[ParityCheck]:
    """The graphs' inputs, made of pictures and prompts."""
    images = [frame for sample in expected.samples for frame in sample.frames]
    wrong = sum(pipeline.tokenize(s.prompt) != ids for s, ids in zip(expected.samples, expected.prompt_ids))
    yield check("tokenizer", "prompts with other token ids", wrong, 0)
    if expected.instructions:
        wrong = _other_instructions(pipeline.instruct(expected.frame_prompts), expected.instructions)
        yield check("tokenizer", "prompts with other token ids for the Q-Former", wrong, 0)

    std = np.array(pipeline.manifest.image.image_std)[:, None, None]
    difference = np.abs(pipeline.preprocess(images) - expected.pixel_values) * std
    yield check("preprocessing", "pixel_values: largest difference, of 1", difference.max(), 1 / 255)


def _groups(manifest: Manifest, rows: int) -> list[tuple[str, list[list[int]]]]:
    """How questions are asked: each by itself, and all together, unless pictures of a batch decide for each other."""
    alone = ("one by one", [[row] for row in range(rows)])
    pruning = manifest.encoder_pruning
    coupled = pruning is not None and pruning.form == "dynamic"
    return [alone] if coupled else [alone, ("as a ragged batch", [list(range(rows))])]


def _unpruned(
    pipeline: Pipeline, precision: Precision, expected: ExpectedImages, greedy: Sequence[Greedy]
) -> Iterator[ParityCheck]:
    """Answers of the whole chain that leaves nothing out."""
    images = [sample.image for sample in expected.samples]
    prompts = [sample.prompt for sample in expected.samples]
    for how, groups in _groups(pipeline.manifest, len(prompts)):
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
                not same_tokens(answer.token_ids, greedy[row], RELATIVE_ERROR[precision])
                for answer, row in zip(answers, group)
            )
        measure = f"unpruned, {how}: prompts with other tokens than generate()"
        yield check("pipeline", measure, wrong / len(prompts), TOKEN_MISMATCH[precision])


def _end_to_end(pipeline: Pipeline, precision: Precision, expected: Expected) -> Iterator[ParityCheck]:
    yield from _unpruned(pipeline, precision, expected, expected.unpruned)
    pixels = pipeline.preprocess([frame for sample in expected.samples for frame in sample.frames])
    encoded = pipeline.encode(pixels, expected.frame_prompts)
    kept_indices = to_host(pipeline.prune(encoded, expected.num_kept).kept_indices)
    share = unexplained(kept_indices, expected.kept_indices, expected.votes).mean() / expected.num_kept
    yield check("pipeline", "share of other tokens kept, beyond near ties", share, KEPT_MISMATCH[precision])

    # The language model is given PyTorch's kept tokens, so that every row counts, whatever near ties did to the votes.
    embeds = expected.sample_kept_embeds.astype(_embeds_dtype(pipeline.manifest))
    for mode, greedy in expected.pruned.items():
        for how, groups in _groups(pipeline.manifest, len(expected.samples)):
            wrong = 0
            for group in groups:
                pruned = Pruned(expected.sample_kept[group], embeds[group], expected.frames)
                ids = [expected.prompt_ids[row] for row in group]
                generation = pipeline.decode(pruned, ids, MAX_NEW_TOKENS, mode)
                wrong += sum(
                    not same_tokens(actual, greedy[row], RELATIVE_ERROR[precision])
                    for actual, row in zip(generation.token_ids, group)
                )
            measure = f"pruned, {mode} positions, {how}: prompts with other tokens"
            yield check("pipeline", measure, wrong / len(expected.samples), TOKEN_MISMATCH[precision])


def _other_instructions(actual: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> int:
    """How many rows differ in their tokens, whatever stands for pads."""
    real = wanted["instruction_mask"].astype(bool)
    if actual["instruction_mask"].shape != real.shape:
        return len(real)
    same = (actual["instruction_ids"] == wanted["instruction_ids"]) | ~real
    return int((~same | (actual["instruction_mask"] != wanted["instruction_mask"])).any(1).sum())


def same_tokens(actual: Sequence[int], wanted: Greedy, tolerance: float) -> bool:
    """Whether greedy tokens agree up to the first step at which the two best logits are a near tie."""
    for step, token in enumerate(wanted.token_ids):
        if step >= len(actual):
            return False
        if actual[step] != token:
            logits = wanted.logits[step]
            return bool(logits[token] - logits[actual[step]] <= 2 * tolerance * np.abs(logits).max())
    return len(actual) == len(wanted.token_ids)
