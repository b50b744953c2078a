"""The contract of a bundle, docs/bundle.md, names every tensor by which the runtime drives a graph, and every field."""

import re

import pytest
from documents import table, text_of
from pydantic import BaseModel

from catp.runtime.bundle.chains import LANGUAGE_STAGES
from catp.runtime.bundle.image_spec import ImageSpec
from catp.runtime.bundle.interfaces import INPUTS, OPTIONAL, OPTIONAL_OUTPUTS, OUTPUTS
from catp.runtime.bundle.manifest import GraphSpec, Manifest, ModelSpec, PruningSpec, TextSpec

PAGE = "docs/bundle.md"
GRAPHS = {
    graph.strip("`"): cells for names, *cells in table(PAGE, "graph | inputs | outputs") for graph in names.split(", ")
}
FIELDS = dict(table(PAGE, "field | content"))

DIAGNOSTICS = ("positions.", "merged_into.")


def named(cell: str) -> set[str]:
    return {name.removesuffix("*") for name in re.findall(r"`([a-z_]+(?:\.\*)?)`", cell)}


@pytest.mark.parametrize("graph", INPUTS)
def test_every_tensor_of_a_graph_is_in_its_row(graph: str) -> None:
    inputs, outputs = GRAPHS[graph]
    assert named(inputs) >= {*INPUTS[graph], *OPTIONAL.get(graph, {})}
    optional = set(OPTIONAL_OUTPUTS.get(graph, {})) - set(DIAGNOSTICS)
    of_pruning = {"kept_positions", "kept_counts"}
    assert named(outputs) >= {*OUTPUTS[graph], *optional} - of_pruning
    assert all(f"`{name}`" in text_of(PAGE) for name in optional)


def test_the_page_knows_no_other_graph() -> None:
    assert set(GRAPHS) == set(INPUTS)


@pytest.mark.parametrize("graph", INPUTS)
def test_shapes_have_as_many_dimensions_as_the_runtime_checks(graph: str) -> None:
    for cell, known in zip(GRAPHS[graph], (INPUTS[graph], OUTPUTS[graph])):
        # What stands between a tensor's name and its shape: a dtype at most, or other names of the same shape.
        for names, shape in re.findall(r"((?:`[a-z_.*]+`,? ?(?:and )?)+)(?:float32 |float )?\[([^\]]+)\]", cell):
            for name in named(names):
                if name in known:
                    assert shape.count(",") + 1 == len(known[name][1]), (graph, name)


def test_every_kind_of_language_model_has_its_chain() -> None:
    rows = {kind.strip("`"): re.findall(r"`([a-z_0-9]+)`", chain) for kind, chain in table(PAGE, "`language` | chain")}
    assert set(rows) == set(LANGUAGE_STAGES)
    for kind, stages in LANGUAGE_STAGES.items():
        assert {stage.graph for stage in stages} <= set(rows[kind])


def test_every_field_of_the_manifest_has_a_row() -> None:
    fields = {field.alias or name for name, field in Manifest.model_fields.items()}
    assert {name for names in FIELDS for name in re.findall(r"`([a-z_0-9]+)`", names)} == fields


@pytest.mark.parametrize(
    ("field", "record"),
    [("model", ModelSpec), ("pruning", PruningSpec), ("image", ImageSpec), ("text", TextSpec), ("graphs", GraphSpec)],
)
def test_what_a_field_holds_is_named_beside_it(field: str, record: type[BaseModel]) -> None:
    assert set(re.findall(r"`([a-z_0-9]+)`", FIELDS[f"`{field}`"])) >= set(record.model_fields)
