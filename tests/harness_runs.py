"""Runs of lmms-eval, one after another in one process: `python harness_runs.py TASKS RUNS.json FOUND.json`.

Executed by an environment that has the harness; the tests read what it wrote.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager


def evaluate(tasks: Path, run: dict[str, Any]) -> dict[str, Any]:
    """The scores of a run, and what each document was answered; or the error that ended it."""
    manager = TaskManager(include_path=str(tasks), include_defaults=False, model_name=run["model"])
    try:
        found = simple_evaluate(
            model=run["model"],
            model_args=run["model_args"],
            tasks=[run["task"]],
            batch_size=run.get("batch_size", 8),
            device=run.get("device"),
            gen_kwargs=run.get("gen_kwargs"),
            limit=run.get("limit"),
            use_cache=run.get("use_cache"),
            task_manager=manager,
            bootstrap_iters=0,
        )
    except Exception as error:  # what a user reads, of whatever kind
        return {"error": str(error), "kind": type(error).__name__}
    samples = sorted(found["samples"][run["task"]], key=lambda sample: int(sample["doc_id"]))
    return {
        "results": {name: value for name, value in found["results"][run["task"]].items() if name != "alias"},
        "answers": [sample["resps"] for sample in samples],
        "tokens": [sample["token_counts"] for sample in samples],
    }


if __name__ == "__main__":
    tasks, runs, found = map(Path, sys.argv[1:])
    asked = json.loads(runs.read_text())
    found.write_text(json.dumps({name: evaluate(tasks, run) for name, run in asked.items()}, default=str))
