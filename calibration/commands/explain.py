"""catp-explain: a picture of what pruning keeps of one image, and what that does to the answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from catp.calibration.explanation.explanation import Explanation, explain_frames
from catp.calibration.explanation.patches import EncoderTrace, PatchExplanation, explain_patches
from catp.calibration.supported import check_voted
from catp.runtime.bundle.manifest import Positions
from catp.runtime.commands.console import busy, console, make_app, print_json_line, print_line
from catp.runtime.errors import UsageError
from catp.runtime.files import write_file
from catp.runtime.image_sides.pruned_encoder import EncoderWish
from catp.runtime.pipeline import Pipeline
from catp.runtime.providers import PROVIDERS
from catp.runtime.system.optional_imports import reason_of


def explain_bundle(
    bundle: Annotated[Path, typer.Argument(help="Folder written by catp-export --diagnostics.")],
    image: Annotated[Path, typer.Option("--image", help="Image file, or folder of frames for a model of videos.")],
    prompt: Annotated[str, typer.Option("--prompt", help="Text for the image; an empty one asks for a caption.")],
    ratio: Annotated[
        float | None, typer.Option(help="Fraction of query tokens removed, 0 <= ratio < 1. Default: the bundle's.")
    ] = None,
    keep_mass: Annotated[
        float | None, typer.Option(help="Instead of a ratio: keep the fewest tokens with this share of the votes.")
    ] = None,
    positions: Annotated[
        Positions | None, typer.Option(help="Positions of kept tokens. Default: the bundle's.")
    ] = None,
    encoder_flops: Annotated[
        float | None,
        typer.Option(help="Of a vision encoder that prunes: share of its work that remains. Default: the bundle's."),
    ] = None,
    encoder_temperature: Annotated[
        float | None, typer.Option(help="Of one in the dynamic form; 0 prunes nothing. Default: the bundle's.")
    ] = None,
    provider: Annotated[str, typer.Option(help=f"What executes the graphs: {', '.join(PROVIDERS)}.")] = "cpu",
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG file to write.")] = Path("catp-explain.png"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="Answers, kept indices and scores as one JSON line on standard output.")
    ] = False,
) -> None:
    """Draw which query tokens are kept, where kept and dropped ones look, and both answers, or scores of a text.

    Of a bundle whose vision encoder prunes: which patches each layer keeps, and where the others went; where query
    tokens are pruned as well, also which of those that are left they read.

    The bundle must have diagnostics:

    catp-export --diagnostics -o bundle

    catp-explain bundle --image a.png --prompt "Question: what is in the center? Answer:" -o explained.png
    """
    target = _free(output, overwrite)
    try:
        from catp.calibration.explanation.patches_picture import describe_left, draw_patches
        from catp.calibration.explanation.picture import count_tokens, draw
    except ImportError as error:
        reason = reason_of(error, error.name)
        raise UsageError(f"catp-explain needs {error.name}, which {reason}; pip install '.[eval]'") from None
    with busy("load the bundle"):
        pipeline = Pipeline.load(bundle, provider)
    wish = EncoderWish(flops=encoder_flops, temperature=encoder_temperature)
    manifest = pipeline.manifest
    wish.inputs(manifest.encoder_pruning, manifest.model.family)  # refuses before any work
    if manifest.encoder_pruning is not None and manifest.vote is None:
        if ratio is not None or keep_mass is not None or positions is not None:
            raise UsageError(
                f"bundle {bundle}: it is drawn what its vision encoder keeps; leave out --ratio, --keep-mass and "
                "--positions, and give --encoder-flops"
            )
        with busy("answer"):
            seen = explain_patches(pipeline, image, prompt, wish)
        with busy("draw"):
            write_file(target, lambda file: draw_patches(seen, file), overwrite)
        if json_output:
            print_json_line(json.dumps({**patches_to_json(seen), "image": str(image), "picture": str(output)}))
        else:
            print_line(f"{seen.trace.share:.0%} of the vision encoder's work: {seen.answer}")
        console.print(f"Wrote {escape(str(output))}", soft_wrap=True)
        return
    check_voted(pipeline.bundle, "catp-explain")
    with busy("answer with all query tokens and with those kept"):
        frames = explain_frames(pipeline, image, prompt, ratio, keep_mass, positions, wish)
    with busy("draw"):
        write_file(target, lambda file: draw(frames, file), overwrite)
    explanation = frames[0]
    if json_output:
        found = to_json(explanation) if manifest.model.frames is None else video_to_json(frames)
        print_json_line(json.dumps({**found, "image": str(image), "picture": str(output)}))
    else:
        left = [describe_left(frame.encoder) for frame in frames if frame.encoder is not None]
        alike = len(set(left)) == 1
        for place, text in enumerate(left[:1] if alike else left):
            whose = "of each frame, " if alike else f"of frame {place + 1}, "
            print_line(f"{whose if len(frames) > 1 else ''}{text}")
        total, kept = count_tokens(frames)
        of_frames = f" of {len(frames)} frames" if len(frames) > 1 else ""
        print_line(f"all {total} query tokens{of_frames}: {explanation.full_answer}")
        print_line(f"{kept} of {total} ({explanation.kept_by}): {explanation.answer}")
    console.print(f"Wrote {escape(str(output))}", soft_wrap=True)


def _free(output: Path, overwrite: bool) -> Path:
    """Where to write the picture: a link keeps pointing where it points.

    Raises:
        UsageError: not there.
    """
    if output.suffix.lower() != ".png":
        raise UsageError(f"output {output}: only PNG is written; give a name that ends in .png")
    try:
        target = output.resolve()
        if target.is_dir():
            raise UsageError(f"output {output}: it is a folder; give a file")
        if target.exists() and not overwrite:
            raise UsageError(f"output {output}: the file exists; give another name, or --overwrite to replace it")
        if not target.parent.is_dir():
            raise UsageError(f"output {output}: there is no folder {target.parent}; make it first")
    except OSError as error:
        raise UsageError(f"output {str(output)[:200]}: can't write there ({error.strerror})") from None
    return target


def to_json(explanation: Explanation) -> dict[str, Any]:
    """The content of the picture, as numbers and text."""
    manifest = explanation.manifest
    return {
        "schema_version": 1,
        "model": manifest.model.id,
        "method": manifest.pruning.method,
        "options": manifest.pruning.options,
        "prompt": explanation.prompt,
        "ratio": explanation.ratio,
        "keep_mass": explanation.keep_mass,
        "positions": explanation.positions,
        "answer": explanation.answer,
        "full_answer": explanation.full_answer,
        "agree": explanation.agree,
        "num_kept": len(explanation.kept),
        "kept_indices": explanation.kept.tolist(),
        "token_scores": explanation.scores.tolist(),
        **read_to_json(explanation),
    }


def read_to_json(explanation: Explanation) -> dict[str, Any]:
    """The patches that an encoder which prunes left, and what kept tokens read of them; of another encoder nothing."""
    encoder = explanation.encoder
    if encoder is None:
        return {}
    return {
        "encoder": encoder_to_json(encoder),
        "unseen_patches": encoder.unseen.tolist(),
        "kept_attention_to_patches": explanation.heat(explanation.kept).ravel().tolist(),
        "kept_attention_to_cls": explanation.cls_share(explanation.kept),
    }


def video_to_json(frames: Sequence[Explanation]) -> dict[str, Any]:
    """The content of the picture of a video: kept indices as catp-run has them, scores, numbers kept and what the
    encoder left by frame."""
    queries = len(frames[0].scores)
    kept = [frame.frame * queries + index for frame in frames for index in frame.kept.tolist()]
    read = [read_to_json(frame) for frame in frames]
    return {
        **to_json(frames[0]),
        **{name: [of_frame[name] for of_frame in read] for name in read[0]},
        "frames": len(frames),
        "num_kept": len(kept),
        "kept_indices": kept,
        "token_scores": [frame.scores.tolist() for frame in frames],
        "num_kept_of_frames": [len(frame.kept) for frame in frames],
    }


def patches_to_json(explanation: PatchExplanation) -> dict[str, Any]:
    """The content of the picture of an encoder that prunes, as numbers and text."""
    return {
        "schema_version": 1,
        "model": explanation.manifest.model.id,
        "prompt": explanation.prompt,
        "answer": explanation.answer,
        **encoder_to_json(explanation.trace),
    }


def encoder_to_json(trace: EncoderTrace) -> dict[str, Any]:
    """The rule of an encoder that prunes, and what each layer keeps by it, as numbers and text."""
    spec = trace.spec
    return {
        "rule": spec.rule,
        "merge": spec.merge,
        "form": spec.form,
        "share_of_work": trace.share,
        "layers": [
            {
                "layer": layer.layer,
                "kept_patches": layer.kept.tolist(),
                "merged_tokens": layer.merged,
                "merged_into": layer.receiver,
            }
            for layer in trace.layers
        ],
    }


app = make_app(explain_bundle)
