"""What a vote costs inside the Q-Former graph: `python tests/benchmarks/voting_head.py [--threads 1]`.

A Q-Former of BLIP-2's real size (12 layers of 768, 32 queries, 257 image tokens of 1408; random weights) is exported
once without a vote, once with each method, and once with each of the forms of rank points that were rejected; all run
in one interleaved loop in ONNX Runtime on the CPU. Quote the ratios: absolute times depend on the machine and on who
else uses it.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime as ort
import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from catp.export.graphs.qformer_voting import QFormerVoting, graph
from catp.export.voting import RankPoints, make_method
from catp.export.voting.base import Evidence
from catp.export.writing.writer import write_graph

QUERIES, IMAGE_TOKENS, VISION_WIDTH, LANGUAGE_WIDTH = 32, 257, 1408, 2560


def maps_of(evidence: Evidence) -> list[torch.Tensor]:
    return [layer for layer in evidence.cross_attention if layer is not None]


class DoubleArgsort(RankPoints):
    """The textbook form: sort, then sort the order."""

    name = "double argsort"

    def scores(self, evidence: Evidence) -> torch.Tensor:
        maps = maps_of(evidence)
        ranks = [m.argsort(2, descending=True).argsort(2) for m in maps]
        return torch.stack([(m.shape[2] - r).float().sum((1, 3)) for m, r in zip(maps, ranks)]).sum(0)


class AllPairs(RankPoints):
    """Every query against every other, in one comparison a layer; equal probabilities give no point."""

    name = "all pairs"

    def scores(self, evidence: Evidence) -> torch.Tensor:
        maps = maps_of(evidence)
        return torch.stack([1 + (m[:, :, :, None] > m[:, :, None]).float().sum((1, 3, 4)) for m in maps]).sum(0)


class PairsBelow(RankPoints):
    """Each query against those before it: every pair once, one comparison a query."""

    name = "pairs j < q"

    def scores(self, evidence: Evidence) -> torch.Tensor:
        total = 0
        for layer in maps_of(evidence):
            batch, heads, queries, tokens = layer.shape
            rows = layer.transpose(1, 2).reshape(batch, queries, heads * tokens)
            wins = [(rows[:, q : q + 1] > rows[:, :q]).float().sum(2) for q in range(1, queries)]
            beats = torch.stack([torch.nn.functional.pad(w, (0, queries - w.shape[1])) for w in wins], 1)
            beats = torch.nn.functional.pad(beats, (0, 0, 1, 0))
            below = torch.ones(queries, queries).tril(-1)
            points = beats.sum(2) + (below * (heads * tokens - beats)).sum(1) + heads * tokens
            total = total + points
        return torch.as_tensor(total)


def main(
    threads: Annotated[int, typer.Option(help="CPU threads within an operator.")] = 1,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds.")] = 20,
) -> None:
    """Time the Q-Former graph with each form of the vote."""
    torch.manual_seed(0)
    config = Blip2QFormerConfig(encoder_hidden_size=VISION_WIDTH, initializer_range=0.06)
    qformer = Blip2QFormerModel(config).eval()
    queries = torch.randn(1, QUERIES, config.hidden_size)
    projection = torch.nn.Linear(config.hidden_size, LANGUAGE_WIDTH)
    image_embeds = np.random.default_rng(0).normal(size=(1, IMAGE_TOKENS, VISION_WIDTH)).astype(np.float32)
    feeds = {"image_embeds": image_embeds, "num_kept": np.array([16])}
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    sessions: dict[str, ort.InferenceSession] = {}
    methods = [make_method(name) for name in ("none", "catp", "coverage", "distinct", "l2-norm", "self-attention")]
    rejected = [PairsBelow(), AllPairs(), DoubleArgsort()]
    for method in [*methods, *rejected]:
        with tempfile.TemporaryDirectory() as folder:
            module = QFormerVoting(queries, qformer, projection, method)
            write_graph(graph(module, IMAGE_TOKENS, VISION_WIDTH, torch.float32), Path(folder), "fp32")
            sessions[method.name] = ort.InferenceSession(Path(folder, "qformer_voting.onnx"), options)
    scores = {name: session.run(["token_scores"], feeds)[0] for name, session in sessions.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, session in sessions.items():
            started = time.perf_counter()
            session.run(None, feeds)
            seconds[name].append(time.perf_counter() - started)
    table = Table(title=f"Q-Former graph, ONNX Runtime {ort.__version__}, {threads} thread(s), {rounds} rounds")
    for column in ("vote", "median ms", "ratio to no vote (median of pairs)", "scores equal to catp"):
        table.add_column(column, justify="left" if column == "vote" else "right")
    for name, times in seconds.items():
        ratio = np.median(np.array(times) / np.array(seconds["none"]))
        # Up to a constant (some forms count points from 0) and the few ties.
        same = str(bool(np.ptp(scores[name] - scores["catp"]) <= 2)) if name in {m.name for m in rejected} else "-"
        table.add_row(name, f"{np.median(times) * 1e3:.1f}", f"{ratio:.3f}", same)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
