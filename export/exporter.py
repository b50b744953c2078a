"""A checkpoint to a bundle: load, trace, write, verify, publish."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import onnx
import onnxruntime
import onnxscript
import torch
import transformers

from catp.export.checkpoints.generation_settings import describe_unfollowed, read_settings
from catp.export.checkpoints.loading import Checkpoint, load_checkpoint
from catp.export.checkpoints.madtp import WEIGHTS as MADTP_WEIGHTS
from catp.export.checkpoints.madtp import read_madtp
from catp.export.checkpoints.residency import one_part_in_memory
from catp.export.checkpoints.taught import read_taught
from catp.export.checkpoints.weightless import without_weights
from catp.export.demo import CHECKPOINT, MODEL_ID, fine, nlvr, vqa
from catp.export.demo import samples as demo_samples
from catp.export.encoder_pruning import RULES
from catp.export.families import Family
from catp.export.image_encoders.plan import EncoderOptions, TextEncoderSizes, plan_pruning, plan_text_pruning
from catp.export.image_encoders.pruned import PrunedEncoder
from catp.export.language_models.pruned_question_answering import PrunedQuestionAnswering
from catp.export.language_models.pruned_texts import PRUNED
from catp.export.verification.emulation import WIDER
from catp.export.verification.expected import Sample, compute_expected
from catp.export.verification.parity import check_parity
from catp.export.verification.reference import Reference, eos_token_ids
from catp.export.voting import VotingMethod, make_method
from catp.export.writing.writer import write_graph
from catp.runtime.bundle.encoder_pruning import EncoderPruningSpec, QuestionPruningSpec
from catp.runtime.bundle.engine_sets import ENGINES, reusable_sets
from catp.runtime.bundle.folder import Bundle, file_spec, write_manifest
from catp.runtime.bundle.image_spec import ImageSpec
from catp.runtime.bundle.manifest import (
    INSTRUCTION_TOKENIZER_FILE,
    GraphSpec,
    Manifest,
    Method,
    ModelSpec,
    Positions,
    Precision,
    PruningSpec,
    TextSpec,
)
from catp.runtime.bundle.publish import link_or_copy, published
from catp.runtime.errors import CatpError, GraphError, ParityError, UsageError
from catp.runtime.inputs.images import load_image
from catp.runtime.providers import open_provider
from catp.runtime.pruning import check_mass, check_ratio
from catp.runtime.system.progress import Progress, silent

LIBRARIES = (torch, transformers, onnx, onnxscript, onnxruntime)
COMPARED = ("catp", "coverage", "distinct", "l2-norm", "self-attention")
"""Methods, with their default options, whose scores are diagnostics."""

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Of the weights of vision encoder, projection and language model."""

BESIDE_WEIGHTS = 64_000_000
"""Bytes of disk for graphs, tokenizer and configuration."""

DEFAULT_NEW_TOKENS = 20  # what Hugging Face's generate() falls back to


def export_bundle(
    model: str,
    output: Path,
    *,
    revision: str | None = None,
    adapter: str | None = None,
    ratio: float | None = None,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    keep_mass: float | None = None,
    positions: Positions = "original",
    precision: Precision = "fp32",
    diagnostics: bool = False,
    encoder: EncoderOptions | None = None,
    overwrite: bool = False,
    step: Progress = silent,
    warn: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Export a checkpoint and publish the bundle once it has been verified.

    Args:
        model: a local checkpoint folder or a Hub id.
        output: the bundle's folder; must not exist, be empty, or be a bundle that `overwrite` replaces.
        revision: branch, tag or commit of a Hub id.
        adapter: a LoRA adapter, a local folder or a Hub id, that is merged into the checkpoint.
        ratio: the bundle's default pruning ratio, every other ratio works too; None: 0.5, or 0 where nothing votes.
        method: one of METHODS; None: catp, where there are query tokens to vote for.
        options: of the method; its defaults stand for those left out.
        keep_mass: the bundle's default share of the votes to keep, instead of the ratio.
        positions: the bundle's default positions of kept tokens.
        precision: of vision encoder and language model; Q-Former and votes stay float32.
        diagnostics: the Q-Former graph also outputs the other methods' scores and the attention of every query, for
            catp-eval, catp-explain and catp-calibrate.
        encoder: pruning of image tokens inside the vision encoder; None: none.
        overwrite: replace an existing bundle.
        step: progress display.
        warn: called with what the user should know about the checkpoint.

    Raises:
        UsageError: an argument or the checkpoint can't be used.
        ParityError: the graphs do not reproduce the checkpoint; nothing was published.
        CatpError: the weights are broken, or the output can't be written.
    """
    check_mass(keep_mass)
    encoder = encoder or EncoderOptions()
    encoder.check()
    asked = _asked_of_votes(ratio, keep_mass, method, options, positions)
    method = method or "catp"
    ratio = check_ratio((0.0 if method == "none" else 0.5) if ratio is None else ratio)
    voting = make_method(method, options)
    compared = [make_method(name) for name in COMPARED] if diagnostics else None
    if method == "none" and (ratio > 0 or keep_mass is not None):
        given = f"ratio {ratio}" if keep_mass is None else f"keep mass {keep_mass}"
        raise UsageError(f"{given}: --method none keeps every token; leave it out, or give --method catp")
    if method == "random" and keep_mass is not None:
        raise UsageError(f"keep mass {keep_mass}: random tokens have no votes to keep a share of; give a --ratio")
    open_provider("cpu")  # the verification needs it: fail now rather than after the export
    with published(output, overwrite) as folder:
        with step(f"load {model}"):
            checkpoint = load_checkpoint(model, revision, None, adapter)
        pruning = text_pruning = None
        if _image_weights(voting) == "patches" and not encoder.any:
            raise UsageError(
                "--image-weights patches: every token of this encoder is one patch; leave it out, or give "
                "--encoder-flops"
            )
        if encoder.any:
            pruning, text_pruning = _prune_encoders(checkpoint, encoder, voting, diagnostics)
        family = checkpoint.family
        if keep_mass is not None and not family.generates_text:
            raise UsageError(f"keep mass {keep_mass}: texts are scored after equally many tokens each; give a --ratio")
        if asked and not family.votes:
            raise UsageError(f"{asked}: {family.name} has no query tokens to leave out; leave the option out")
        if diagnostics and not family.votes and pruning is None:
            warn(f"diagnostics: {family.name} has no votes, so there are none")
        if family.votes:
            voting.cross_layers(family.cross_layers(checkpoint.model))  # refuses layers that do not exist
        dtype = DTYPES[precision]
        _check_disk(checkpoint, folder, dtype)
        image, text, generation = _image_spec(checkpoint), _text_spec(checkpoint), read_settings(checkpoint)
        if unfollowed := family.generates_text and describe_unfollowed(checkpoint):
            warn(unfollowed)
        _write_files(checkpoint, folder)
        with step("run the samples in PyTorch"), one_part_in_memory(checkpoint.model):
            samples = _samples(family)
            # Where pictures of a batch decide how many tokens each other keeps, each is one of its own.
            coupled = pruning is not None and pruning.form == "dynamic"
            groups = [[sample] for sample in samples] if coupled else [samples]
            reference = Reference(checkpoint)
            expected = [compute_expected(reference, group, voting, ratio, dtype, compared or ()) for group in groups]
            del reference
        graphs = _write_graphs(checkpoint, voting, compared, precision, folder, step)
        manifest = Manifest(
            model=ModelSpec(
                id=_name(model),
                revision=checkpoint.revision,
                adapter=None if adapter is None else _name(adapter),
                family=family.name,
                language=family.language.kind,
                frames=family.frames,
            ),
            pruning=PruningSpec(
                method=cast(Method, voting.name),
                options=asdict(voting),  # type: ignore[call-overload]
                ratio=ratio,
                keep_mass=keep_mass,
                positions=positions,
                num_query_tokens=checkpoint.model.config.num_query_tokens,
            )
            if family.votes
            else None,
            encoder_pruning=pruning,
            question_pruning=text_pruning if family.generates_text else None,
            text_pruning=None if family.generates_text else text_pruning,
            logit_scale=family.logit_scale(checkpoint.model),
            precision=precision,
            image=image,
            text=text,
            generation=generation,
            graphs=graphs,
            files=tuple(file_spec(folder, path) for path in sorted(folder.glob("*.json"))),
            versions=_versions(),
            parity=(),
        )
        # PyTorch's weights are not needed any more, and ONNX Runtime is about to load them again.
        del checkpoint
        gc.collect()
        with step("verify the graphs in ONNX Runtime"):
            try:
                checks = check_parity(Bundle(folder, manifest), expected)
            except GraphError as error:
                raise ParityError(f"an exported graph can't be run, nothing was published: {error}") from error
        failed = [check for check in checks if not check.passed and not check.advisory]
        if failed:
            raise ParityError(
                "the exported graphs do not reproduce the checkpoint, nothing was published: "
                + "; ".join(f"{c.subject}: {c.measure} is {c.value:.3g}, limit {c.limit:.3g}" for c in failed)
            )
        manifest = manifest.model_copy(update={"parity": tuple(checks)})
        for engines in reusable_sets(Bundle(folder, manifest), output):
            # An export over an old one: plans of graphs that stayed the same need not be built again.
            shutil.copytree(engines, folder / ENGINES / engines.name, copy_function=link_or_copy)
        write_manifest(folder, manifest)
    return Bundle(output, manifest)


def _prune_encoders(
    checkpoint: Checkpoint, options: EncoderOptions, voting: VotingMethod, diagnostics: bool
) -> tuple[EncoderPruningSpec, QuestionPruningSpec | None]:
    """The pruning inside a checkpoint's encoders, which its family exports from here on."""
    family, config = checkpoint.family, checkpoint.model.config
    kind = family.language.kind
    reads_questions = kind == "question-answering"
    if options.text_flops is not None and not reads_questions and kind not in PRUNED:
        raise UsageError(f"--text-encoder-flops: {family.name} has no text encoder that prunes; leave it out")
    madtp = read_madtp(checkpoint.id, config.vision_config.hidden_size, checkpoint.revision)
    layers, width = config.vision_config.num_hidden_layers, config.vision_config.hidden_size
    taught = read_taught(options.scorer or checkpoint.id, layers, width, checkpoint.revision)
    if options.scorer is not None and taught is None:
        raise UsageError(
            f"--encoder-scorer {options.scorer}: no taught.safetensors there; give the folder that catp-calibrate "
            "scorer wrote to"
        )
    record = None if taught is None else taught.record
    where = f"model {checkpoint.id}: {MADTP_WEIGHTS}"
    # A CLIP without maps was not trained by MADTP's code, whatever dictionary lies beside it.
    trained = bool(madtp.query_maps) or kind != "contrastive"
    guidance = madtp.guidance(where, "vision_model", layers, width) if trained else None
    spec = plan_pruning(options, config, guidance is not None, madtp.temperature, record, kind == "contrastive")
    scorers = None if taught is None else taught.scorers
    if (weights := _image_weights(voting)) == "attention":
        raise UsageError(
            "--image-weights attention: an encoder that prunes does not tell what its last layer attends to; accepted: "
            "patches, or leave it out"
        )
    if weights == "patches" and spec.merge != "nearest":
        raise UsageError(
            f"--image-weights patches: the merge {spec.merge!r} counts none; leave it out, or give --encoder-merge "
            "nearest"
        )
    encoder = PrunedEncoder(family.image_encoder.side, spec, guidance, scorers, diagnostics)
    family = family.with_encoder(encoder)
    question = None
    if reads_questions or kind in PRUNED:
        text = config.text_config
        for_text = None
        if trained and RULES[spec.rule].reads_guidance:
            for_text = madtp.guidance(where, "text_model", text.num_hidden_layers, text.hidden_size)
        # CLIP's reads no image, BLIP's for NLVR2 two, each by a query and a projection of its own.
        reads = {"contrastive": 0, "two-images": 4}.get(kind, 2)
        sizes = TextEncoderSizes(text.num_hidden_layers, 2 if kind == "contrastive" else 1, reads)
        question = plan_text_pruning(options, spec, sizes, for_text is not None, reads_questions)
        if question is not None:
            family = family.with_language(
                PrunedQuestionAnswering(question, for_text) if reads_questions else PRUNED[kind](question, for_text)
            )
    checkpoint.family = family
    return spec, question


def _image_weights(voting: VotingMethod) -> str | None:
    """The option that says how an image token's vote is weighed; None: the method has none."""
    return getattr(voting, "image_weights", None)


def _asked_of_votes(
    ratio: float | None,
    keep_mass: float | None,
    method: str | None,
    options: Mapping[str, Any] | None,
    positions: Positions,
) -> str | None:
    """The first argument that asks something of a vote, in words."""
    asked = {
        f"ratio {ratio}": bool(ratio),
        f"keep mass {keep_mass}": keep_mass is not None,
        f"method {method}": method not in (None, "none"),
        ", ".join(options or ()): bool(options),
        f"positions {positions}": positions != "original",
    }
    return next((words for words, given in asked.items() if given), None)


def _versions() -> dict[str, str]:
    # By module: ONNX Runtime's distribution has another name where it brings CUDA.
    return {"catp-exporter": version("catp-exporter"), **{lib.__name__: str(lib.__version__) for lib in LIBRARIES}}


def _name(model: str) -> str:
    embedded = {
        CHECKPOINT: MODEL_ID,
        fine.CHECKPOINT: fine.MODEL_ID,
        nlvr.CHECKPOINT: nlvr.MODEL_ID,
        vqa.CHECKPOINT: vqa.MODEL_ID,
        vqa.DENSE: f"{vqa.MODEL_ID}-dense",
    }
    for folder, name in embedded.items():
        if Path(model).resolve() == folder.resolve():
            return name
    # A bundle travels: of a local folder only its name is of use elsewhere.
    return Path(model).resolve().name if Path(model).is_dir() else model


def _samples(family: Family) -> Sequence[Sample]:
    """Pictures with questions; for a model of videos or of pairs, each is followed by the next ones."""
    frames = family.frames or family.images_per_text
    demo = demo_samples()
    pictures = [load_image(sample.image) for sample in demo]
    if frames == 1:
        return [Sample(picture, sample.prompt) for picture, sample in zip(pictures, demo)]
    videos = [[pictures[(row + frame) % len(pictures)] for frame in range(frames)] for row in range(len(pictures))]
    return [Sample(video, sample.prompt) for video, sample in zip(videos, demo)]


def _check_disk(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype) -> None:
    """All that is written is the bundle: its weights, and graphs and tokenizer beside them."""
    with without_weights(checkpoint.model, lambda: checkpoint.family.set_dtype(checkpoint.model, dtype)):
        needed = BESIDE_WEIGHTS + sum(p.numel() * p.itemsize for p in checkpoint.model.parameters())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CatpError(
            f"output: the bundle needs {needed / 1e9:,.3f} GB in {folder.parent}, and {free / 1e9:,.3f} GB are free; "
            "free some, or give another folder with --output"
        )


def _write_graphs(
    checkpoint: Checkpoint,
    voting: VotingMethod,
    compared: Sequence[VotingMethod] | None,
    precision: Precision,
    folder: Path,
    step: Progress,
) -> dict[str, GraphSpec]:
    written: dict[str, GraphSpec] = {}
    model, family = checkpoint.model, checkpoint.family
    with without_weights(model, lambda: family.set_dtype(model, DTYPES[precision])) as stored:
        for graph in family.graphs(model, voting, compared):
            with step(f"export {graph.name}"):
                own = "fp32" if graph.keeps_float32 else precision
                written[graph.name] = write_graph(graph, folder, own, stored)
            if stored.not_held:
                raise ParityError(
                    f"{graph.name}: {', '.join(stored.not_held)}: weights beyond the largest number in {precision}; "
                    f"nothing was published. Give --precision {WIDER[precision]}"
                )
    return written


def _write_files(checkpoint: Checkpoint, folder: Path) -> None:
    """Configuration, tokenizer and image processor, under the names that the Hub gives them."""
    checkpoint.model.config.save_pretrained(folder)
    checkpoint.generation_config.save_pretrained(folder)
    checkpoint.tokenizer.save_pretrained(folder)
    checkpoint.image_processor.save_pretrained(folder)
    if checkpoint.instruction_tokenizer is not None:
        checkpoint.instruction_tokenizer.backend_tokenizer.save(str(folder / INSTRUCTION_TOKENIZER_FILE))
    if not (folder / "tokenizer.json").is_file():
        raise UsageError("model: its tokenizer has no tokenizer.json form, which the runtime reads")


def _image_spec(checkpoint: Checkpoint) -> ImageSpec:
    spec = ImageSpec.from_preprocessor_config(checkpoint.image_processor.to_dict())
    size = checkpoint.model.config.vision_config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    if (spec.height, spec.width) != (height, width):
        raise UsageError(
            f"model {checkpoint.id}: preprocessor_config.json makes {spec.height} x {spec.width} pixels, "
            f"its vision encoder takes {height} x {width}"
        )
    return spec


def _text_spec(checkpoint: Checkpoint) -> TextSpec:
    generation = checkpoint.generation_config
    eos = eos_token_ids(checkpoint)
    pad = generation.pad_token_id if checkpoint.family.generates_text else checkpoint.tokenizer.pad_token_id
    return TextSpec(
        pad_token_id=pad if pad is not None else eos[0] if eos else 0,
        eos_token_ids=eos,
        max_positions=checkpoint.family.max_positions(checkpoint.model),
        max_instruction=checkpoint.model.config.qformer_config.max_position_embeddings
        if checkpoint.family.reads_instruction
        else None,
        decoder_start_token_id=generation.decoder_start_token_id,
        max_new_tokens=generation.max_new_tokens or DEFAULT_NEW_TOKENS,
        image_token_id=checkpoint.placeholder_id,
    )
