"""catp.json: what a bundle contains, validated when it is read and when it is written."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from catp.runtime.bundle.chains import (
    DECODE_GRAPH,
    PRUNE_TEXTS,
    SCORE_TEXTS,
    Chain,
    LanguageKind,
    find_chain,
    made_from,
)
from catp.runtime.bundle.encoder_pruning import EncoderPruningSpec, QuestionPruningSpec
from catp.runtime.bundle.generation_settings import GREEDY, GenerationSettings
from catp.runtime.bundle.image_spec import ImageSpec
from catp.runtime.bundle.interfaces import check_interfaces
from catp.runtime.bundle.placements import Placement
from catp.runtime.bundle.strict import Strict
from catp.runtime.errors import UsageError
from catp.runtime.limits import (
    COUNT,
    ENCODER_SIDE,
    LOGIT_SCALE,
    PATH_CHARACTERS,
    POSITIONS,
    QUERY_TOKENS,
    TEMPLATE_CHARACTERS,
)

SCHEMA_VERSION: Final = 1
MANIFEST_NAME = "catp.json"
INSTRUCTION_TOKENIZER_FILE = "qformer_tokenizer.json"

Positions = Literal["original", "compact"]
"""Whether kept tokens keep the positions they had before pruning or close ranks."""

Precision = Literal["fp32", "fp16", "bf16"]
"""Of a graph's floating-point weights and activations."""

Format = Literal["int8", "fp8", "int4"]
"""What the matrix products of a calibrated graph are computed from."""

Purpose = Literal["cpu", "tensorrt"]
"""What a calibrated graph is made for: ONNX Runtime on a CPU and TensorRT are fast with different operators."""

Method = Literal["catp", "coverage", "distinct", "l2-norm", "self-attention", "random", "none"]
"""How query tokens are voted for."""

QUERY_ATTENTION = "query_attention"
LAYER_POINTS = "layer_points"
"""Diagnostics of the Q-Former graph: mean cross-attention [B, N, I], and rank points by layer [B, L, N]."""


def scores_of(method: str) -> str:
    """The output with another method's scores, among the diagnostics."""
    return f"token_scores.{method}"


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or PurePosixPath(path).is_absolute() or ".." in parts or "\\" in path or ":" in path:
        raise ValueError(f"{path[:PATH_CHARACTERS]!r} is not a path inside the bundle")
    if len(path) > PATH_CHARACTERS or not path.isprintable():
        raise ValueError(f"{path[:PATH_CHARACTERS]!r} is no path of a file that catp-export writes")
    return path


PathInBundle = Annotated[str, AfterValidator(_inside)]

Count = Annotated[int, Field(ge=0, le=COUNT)]
"""Numbers of bytes, elements, operators, questions."""

Token = Annotated[int, Field(ge=0, lt=1 << 31)]
"""Its id."""


class FileSpec(Strict):
    """A file of the bundle and what it must contain."""

    path: PathInBundle
    size: Count = Field(description="bytes")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class TensorSpec(Strict):
    """An input or output of a graph; free dimensions are named."""

    name: str
    dtype: str = Field(description="as numpy names it")
    shape: tuple[Count | str, ...]


class Quantization(Strict):
    """How the constant matrices of a calibrated graph, and what they are multiplied with, were quantised."""

    format: Format
    purpose: Purpose
    activations: Literal["static", "dynamic", "float"] = Field(
        description="scaled by ranges seen in calibration, by what each call brings, or not quantised at all"
    )
    ranges: str | None = Field(default=None, description="method that chose the static ranges")
    block_size: int | None = Field(default=None, description="weights along a column that share a scale")
    others: dict[str, Format] = Field(default={}, description="layers that have another format")
    layers: Count = Field(description="matrix products that were quantised")
    kept: tuple[str, ...] = Field(default=(), description="what could have been quantised and stayed in floating point")
    bytes_before: Count = Field(description="of the matrices")
    bytes_after: Count = Field(description="of the quantised matrices, scales and zero points included")
    tables: Count = Field(default=0, description="tables of embeddings that are int8 by rows")
    table_bytes: Count = Field(default=0, description="of those tables, scales included")


class GraphSpec(Strict):
    """One exported ONNX graph."""

    file: FileSpec
    external_data: FileSpec | None = None
    precision: Precision
    float32_islands: tuple[str, ...] = Field(
        default=(), description="of a half-precision graph, what it computes in float32 all the same"
    )
    quantization: Quantization | None = None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: Count = Field(description="nodes of the graph")
    parameters: Count = Field(description="elements of the graph's weights")

    def input(self, name: str) -> TensorSpec:
        return next(t for t in self.inputs if t.name == name)

    def output(self, name: str) -> TensorSpec:
        return next(t for t in self.outputs if t.name == name)

    @property
    def bytes(self) -> int:
        """On disk."""
        return self.file.size + (self.external_data.size if self.external_data else 0)

    @property
    def precision_label(self) -> str:
        """For people: "fp16", or "int8 (fp16), for tensorrt"."""
        found = self.quantization
        return f"{found.format} ({self.precision}), for {found.purpose}" if found else self.precision


class ModelSpec(Strict):
    """Where the weights came from."""

    id: str
    revision: str | None = None
    adapter: str | None = Field(default=None, description="LoRA adapter that was merged into the weights")
    family: str
    language: LanguageKind = "decoder-only"
    frames: int | None = Field(
        default=None,
        ge=1,
        le=POSITIONS,
        description="of the videos that it was made for, any other number works; none: it takes images",
    )


class PruningSpec(Strict):
    """How query tokens are chosen."""

    method: Method
    options: dict[str, Any] = Field(default={})
    ratio: float = Field(ge=0, lt=1, description="default; `num_kept` is an input of the graph")
    keep_mass: float | None = Field(
        default=None, gt=0, le=1, description="default instead of the ratio: the share of the votes that is kept"
    )
    positions: Positions = "original"
    num_query_tokens: int = Field(ge=1, le=QUERY_TOKENS)


class TextSpec(Strict):
    """How a prompt becomes tokens and where generation ends."""

    prompt_template: str = Field(default="{prompt}", max_length=TEMPLATE_CHARACTERS)
    pad_token_id: Token
    eos_token_ids: tuple[Token, ...]
    max_positions: int | None = Field(
        ge=1, le=POSITIONS, description="position ids that the language model has; none if it has no ids"
    )
    max_instruction: int | None = Field(
        default=None, ge=1, le=POSITIONS, description="positions of a Q-Former that reads the prompt too"
    )
    decoder_start_token_id: Token | None = Field(default=None, description="what an encoder-decoder model begins with")
    max_new_tokens: int = Field(default=20, ge=1, le=POSITIONS, description="default")
    image_token_id: Token | None = Field(default=None, description="stands for a query token where ids are counted")

    @field_validator("prompt_template")
    @classmethod
    def _has_prompt(cls, template: str) -> str:
        if "{prompt}" not in template:
            raise ValueError("prompt_template must contain {prompt}")
        return template


class ParityCheck(Strict):
    """One comparison of the exported graphs with the checkpoint run by PyTorch."""

    model_config = ConfigDict(allow_inf_nan=True)  # a check that fails may find no number at all

    subject: str
    measure: str
    value: float
    limit: float
    passed: bool
    advisory: bool = Field(default=False, description="what it finds is worth knowing and stops nothing")


class AccuracyChange(Strict):
    """The cost of calibration at one pruning ratio, on questions that nothing was chosen on."""

    ratio: float
    before: float = Field(description="accuracy, of 1")
    after: float
    difference: float = Field(description="mean of the paired differences; negative: accuracy was lost")
    interval_95: tuple[float, float] = Field(description="of the difference")


class CalibrationSpec(Strict):
    """Where a calibrated bundle came from, and what it cost."""

    source_sha256: dict[str, str] = Field(description="ONNX files of the bundle that it was made from, by graph")
    data: str
    samples: Count = Field(description="questions whose activations chose the ranges; 0 where no range was needed")
    seed: int
    metric: str
    questions: Count = Field(description="other questions, on which both bundles were compared")
    accuracy: tuple[AccuracyChange, ...]
    kept_overlap: float = Field(
        description="mean share of kept tokens that both bundles keep, at the default ratio; 1 where nothing votes"
    )
    patch_overlap: float | None = Field(
        default=None, description="likewise of the patches that leave an encoder that prunes; None: it prunes nothing"
    )

    @property
    def drops_query_tokens(self) -> bool:
        """Whether answers after fewer query tokens were compared."""
        return any(change.ratio > 0 for change in self.accuracy)

    @model_serializer(mode="wrap")
    def _without_absent(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As the manifest has it: a record without is one that older programs read."""
        fields: dict[str, Any] = serialize(self)
        if self.patch_overlap is None:
            fields.pop("patch_overlap", None)
        return fields


class Manifest(Strict):
    """The whole of catp.json."""

    model_config = ConfigDict(serialize_by_alias=True)

    schema_version: Literal[1] = SCHEMA_VERSION
    model: ModelSpec
    vote: PruningSpec | None = Field(default=None, alias="pruning", description="of query tokens")
    encoder_pruning: EncoderPruningSpec | None = Field(default=None, description="of image tokens, in the encoder")
    question_pruning: QuestionPruningSpec | None = Field(default=None, description="of tokens, in the question encoder")
    text_pruning: QuestionPruningSpec | None = Field(
        default=None, description="of tokens, in a text encoder that scores texts: a fraction, inside its graphs"
    )
    logit_scale: float | None = Field(
        default=None, gt=0, le=LOGIT_SCALE, description="of a contrastive model: what zero-shot classes multiply by"
    )
    precision: Precision
    image: ImageSpec
    text: TextSpec
    generation: GenerationSettings = Field(default=GREEDY, description="default")
    graphs: dict[str, GraphSpec]
    files: tuple[FileSpec, ...] = Field(description="tokenizer and configuration, as the Hub names them")
    versions: dict[str, str] = Field(description="libraries that wrote the bundle")
    parity: tuple[ParityCheck, ...]
    calibration: CalibrationSpec | None = None
    placements: tuple[Placement, ...] = Field(default=(), description="providers of the graphs, by machine")

    @model_validator(mode="after")
    def _complete(self) -> Manifest:
        chain = find_chain(self.graphs, self.model.language)
        known = {*chain.graphs, *([DECODE_GRAPH] if self.model.language == "decoder-only" else [])}
        if unknown := sorted(set(self.graphs) - known):
            raise ValueError(f"graphs: {unknown[0][:100]!r} is none of a {self.model.language} model's")
        if decode := self.graphs.get(DECODE_GRAPH):
            prefill = self.graphs.get(made_from(DECODE_GRAPH))
            if prefill is None or (decode.inputs, decode.outputs) != (prefill.inputs, prefill.outputs):
                raise ValueError(f"graphs: {DECODE_GRAPH} has other inputs and outputs than the graph it stands for")
        needed = {"tokenizer.json"} | ({INSTRUCTION_TOKENIZER_FILE} if self.reads_instruction else set())
        absent = needed - {spec.path for spec in self.files}
        if absent:
            raise ValueError(f"files: {', '.join(sorted(absent))} missing")
        check_interfaces(self.graphs)
        if self.question_pruning is not None and "question_encoder" not in self.graphs:
            raise ValueError("question_pruning: there, and the bundle has no question encoder")
        if self.text_pruning is not None and (
            self.model.language not in PRUNE_TEXTS or self.text_pruning.form != "schedule"
        ):
            raise ValueError(f"text_pruning: a fraction; of {', '.join(PRUNE_TEXTS)} models alone")
        for stage in chain.stages:
            stage.check(self)
        placed = {name for placement in self.placements for name in placement.graphs}
        if unknown := sorted(placed - set(self.graphs)):
            raise ValueError(f"placements: {unknown[0][:100]!r} is no graph of the bundle")
        if max(self.image.height, self.image.width, self.image.shortest_edge or 0) > ENCODER_SIDE:
            raise ValueError(f"image: {self.image.width} x {self.image.height} pixels, at most {ENCODER_SIDE} a side")
        outputs = {tensor.name: tensor.shape for graph in self.graphs.values() for tensor in graph.outputs}
        vocabulary = outputs["logits"][1] if "logits" in outputs else None
        for name in ("pad_token_id", "decoder_start_token_id"):
            token = getattr(self.text, name)
            if isinstance(vocabulary, int) and token is not None and token >= vocabulary:
                raise ValueError(f"text.{name}: {token}, and the language model knows {vocabulary} tokens")
        return self

    @model_serializer(mode="wrap")
    def _without_absent(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A bundle without such pruning or placements is one that older programs read, which know no such field."""
        fields: dict[str, Any] = serialize(self)
        for name in ("encoder_pruning", "question_pruning", "text_pruning", "logit_scale", "placements"):
            if getattr(self, name) in (None, ()):
                fields.pop(name, None)
        return fields

    @property
    def chain(self) -> Chain:
        """The graphs in the order in which they run."""
        return find_chain(self.graphs, self.model.language)

    @property
    def pruning(self) -> PruningSpec:
        """How query tokens are chosen.

        Raises:
            UsageError: this bundle has none to choose from.
        """
        if self.vote is None:
            raise UsageError(f"bundle of {self.model.id} ({self.model.family}): it votes for no query tokens")
        return self.vote

    @property
    def tokens(self) -> int:
        """Tokens that describe an image before any is left out: query tokens, or image tokens where none vote."""
        if self.vote is not None:
            return self.vote.num_query_tokens
        if self.encoder_pruning is not None:
            return self.encoder_pruning.sizes.patches + 1
        return int(self.tensor("image_embeds").shape[1])

    def tensor(self, name: str) -> TensorSpec:
        """The input or output of that name, of the first graph that has one.

        Raises:
            ValueError: no graph has it.
        """
        for graph in self.graphs.values():
            for tensor in (*graph.inputs, *graph.outputs):
                if tensor.name == name:
                    return tensor
        raise ValueError(f"graphs: none has a tensor {name}")

    @property
    def writes_text(self) -> bool:
        """Whether it answers in words; otherwise it scores given ones."""
        return self.model.language not in SCORE_TEXTS

    @property
    def pictures(self) -> int:
        """Pictures of one request: both that a statement is about, or the frames of a video."""
        return 2 if self.model.language == "two-images" else self.model.frames or 1

    @property
    def reads_instruction(self) -> bool:
        """Whether the Q-Former reads the prompt too, so that votes depend on it."""
        return any(tensor.name == "instruction_ids" for graph in self.graphs.values() for tensor in graph.inputs)

    @property
    def precision_label(self) -> str:
        """For people: "fp16", or with what was quantised: "fp32; vision_encoder int8, language_model int4"."""
        quantised = ", ".join(
            f"{name} {graph.quantization.format}" for name, graph in self.graphs.items() if graph.quantization
        )
        return f"{self.precision}; {quantised}" if quantised else self.precision

    def all_files(self) -> list[FileSpec]:
        graphs = self.graphs.values()
        return [*(g.file for g in graphs), *(g.external_data for g in graphs if g.external_data), *self.files]
