"""A sidecar for tests of what is decided on the host: the language model of a small bundle, as catp-build writes it."""

from catp.runtime.bundle.manifest import FileSpec, TensorSpec
from catp.runtime.bundle.plans import PlanRequest, PlanSpec, Profile, ShapeRange

N, WIDTH, HEADS, SLOTS = 32, 128, 4, 128


def span(low: tuple[int, ...], best: tuple[int, ...], high: tuple[int, ...]) -> ShapeRange:
    return ShapeRange(min=low, opt=best, max=high)


def language_model() -> PlanSpec:
    """Batch up to 4, prompts up to 64, one layer."""
    cache = span((1, HEADS, SLOTS, 32), (1, HEADS, SLOTS, 32), (4, HEADS, SLOTS, 32))

    def profile(name: str, seq: tuple[int, int, int], kept: tuple[int, int, int]) -> Profile:
        rows = span((1,), (1,), (4,))
        shapes = {
            "input_ids": span((1, seq[0]), (1, seq[1]), (4, seq[2])),
            "prefix_embeds": span((1, kept[0], WIDTH), (1, kept[1], WIDTH), (4, kept[2], WIDTH)),
            "prefix_positions": span((1, kept[0]), (1, kept[1]), (4, kept[2])),
            "write_indices": rows,
            "past_key_values.0.key": cache,
        }
        return Profile(name=name, shapes=shapes)

    def tensor(name: str, dtype: str, *shape: int | str) -> TensorSpec:
        return TensorSpec(name=name, dtype=dtype, shape=shape)

    request = PlanRequest(
        graph="language_model",
        target="tensorrt-rtx",
        target_version="1.7.1",
        compute_capabilities=("8.6",),
        onnx_sha256="0" * 64,
        weights_sha256=None,
        fixed={"max_length": SLOTS},
        profiles=(profile("prefill", (1, 16, 64), (1, 16, N)), profile("decode", (1, 1, 1), (0, 0, 0))),
        workspace_bytes=None,
    )
    return PlanSpec(
        request=request,
        plan=FileSpec(path="language_model.engine", size=1, sha256="0" * 64),
        inputs=(
            tensor("input_ids", "int64", "batch", "seq"),
            tensor("prefix_embeds", "float32", "batch", "num_kept", WIDTH),
            tensor("prefix_positions", "int64", "batch", "num_kept"),
            tensor("write_indices", "int64", "batch"),
            tensor("past_key_values.0.key", "float32", "batch", HEADS, SLOTS, 32),
        ),
        outputs=(
            tensor("logits", "float32", "batch", 384),
            tensor("present.0.key", "float32", "batch", HEADS, SLOTS, 32),
        ),
        aliases={"present.0.key": "past_key_values.0.key"},
        left_out=(),
        layers={"KV_CACHE_UPDATE": 1},
        built_at="2026-11-21T00:00:00.000+00:00",
        build_seconds=1.0,
        built_by={},
    )


def qformer(num_kept: int | None = None) -> PlanSpec:
    """Batch up to 4; `num_kept` baked in, or None: a shape tensor."""
    base = language_model()
    images = span((1, 37, WIDTH), (1, 37, WIDTH), (4, 37, WIDTH))
    values = {} if num_kept else {"num_kept": span((1,), (16,), (N,))}
    inputs = [TensorSpec(name="image_embeds", dtype="float32", shape=("batch", 37, WIDTH))]
    if num_kept is None:
        inputs.append(TensorSpec(name="num_kept", dtype="int64", shape=(1,)))
    request = base.request.model_copy(
        update={
            "graph": "qformer_voting",
            "fixed": {"num_kept": num_kept} if num_kept else {},
            "profiles": (Profile(name="images", shapes={"image_embeds": images}, values=values),),
        }
    )
    outputs = (TensorSpec(name="kept_embeds", dtype="float32", shape=("batch", num_kept or "num_kept", WIDTH)),)
    return base.model_copy(
        update={"request": request, "inputs": tuple(inputs), "outputs": outputs, "aliases": {}, "layers": {}}
    )
