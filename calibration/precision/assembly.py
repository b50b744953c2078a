"""A bundle's folder with some of its graphs quantised."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import onnx

from catp.calibration.precision.formats.base import initializer_bytes
from catp.calibration.precision.graphs.graph import FloatGraph
from catp.calibration.precision.ranges.statistics import RangeMethod
from catp.calibration.precision.recipe import Recipe, recipe_of
from catp.calibration.precision.rewrites import fit_to_cpu
from catp.export.writing.external_data import save_model
from catp.runtime.bundle.chains import DECODE_GRAPH, made_from
from catp.runtime.bundle.folder import Bundle, file_spec, write_manifest
from catp.runtime.bundle.manifest import GraphSpec, Manifest, Quantization

Fragments = dict[str, onnx.GraphProto]
"""Quantised layers by name."""


def assemble(
    source: Bundle,
    folder: Path,
    graphs: Mapping[str, FloatGraph],
    recipes: Mapping[str, Recipe],
    fragments: Mapping[str, Fragments],
    ranges: RangeMethod,
) -> Manifest:
    """Write graphs with their fragments in place, and copies of everything else, into an empty folder.

    Copies, because ONNX's own tools refuse weights that have a second name.

    Returns the manifest, which is written too: neither the export's parity nor placements are in it, which were
    other graphs', nor a calibration's result.
    """
    manifest = source.manifest
    specs = dict(manifest.graphs)
    for name, graph in graphs.items():
        if fragments[name]:
            spec = manifest.graphs[made_from(name)]
            specs[name] = _write(graph, spec, recipes, fragments[name], ranges, folder)
    new = manifest.model_copy(update={"graphs": specs, "parity": (), "calibration": None, "placements": ()})
    for file in new.all_files():
        if not (folder / file.path).exists():
            shutil.copyfile(source.file(file), folder / file.path)
    write_manifest(folder, new)
    return new


def _one_token_a_row(spec: GraphSpec) -> bool:
    """Whether a graph is a decoder that never reads more."""
    return any(tensor.name == "input_ids" and tensor.shape[1:] == (1,) for tensor in spec.inputs)


def _write(
    graph: FloatGraph,
    spec: GraphSpec,
    recipes: Mapping[str, Recipe],
    fragments: Fragments,
    ranges: RangeMethod,
    folder: Path,
) -> GraphSpec:
    recipe = recipes[graph.name]
    model = graph.exchanged(fragments)
    if recipe.purpose == "cpu":
        fit_to_cpu(model, decodes=graph.name == DECODE_GRAPH, one_token=_one_token_a_row(spec))
    path = folder / f"{graph.name}.onnx"
    data = save_model(model, path)
    onnx.checker.check_model(path)
    products, tables = (
        [layer for layer in graph.layers if layer.name in fragments and layer.is_table == is_table]
        for is_table in (False, True)
    )
    return spec.model_copy(
        update={
            "file": file_spec(folder, path),
            "external_data": file_spec(folder, data) if data.exists() else None,
            "operators": sum(1 for _ in model.graph),
            "quantization": Quantization(
                format=recipe.format,
                purpose=recipe.purpose,
                activations=recipe.activations,
                ranges=ranges if recipe.needs_ranges else None,
                block_size=recipe.block_size,
                others={
                    layer.name: found
                    for layer in products
                    if (found := recipe_of(recipes, graph.name, layer).format) != recipe.format
                },
                layers=len(products),
                kept=tuple(
                    layer.name
                    for layer in graph.layers
                    if layer.name not in fragments and (recipe.takes(layer) or not layer.is_table)
                ),
                bytes_before=sum(layer.nbytes for layer in products),
                bytes_after=sum(initializer_bytes(fragments[layer.name]) for layer in products),
                tables=len(tables),
                table_bytes=sum(initializer_bytes(fragments[layer.name]) for layer in tables),
            ),
        }
    )
