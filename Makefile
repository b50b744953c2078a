# Each target makes .venv and installs what it needs on its first call.
VENV ?= .venv
PYTHON ?= python3
INSTALLED := $(VENV)/.installed
DEMO := build/demo-bundle
SOURCES := $(shell find export runtime -name '*.py') $(wildcard export/demo/checkpoint/*)
IMAGE := export/demo/images/scene-a.png
PROMPT := Question: what is in the bottom right? Answer:

.PHONY: demo test bench gpu-check lint format clean

# Export the embedded demo model (once), then answer a question about a sample image from the exported graphs.
demo: $(DEMO)/catp.json
	$(VENV)/bin/catp-run $(DEMO) --image $(IMAGE) --prompt "$(PROMPT)"

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile

# Time a model of middle size against transformers and OpenVINO, on a machine that does nothing else: 15 minutes.
bench: $(INSTALLED)
	$(VENV)/bin/python tests/benchmarks/mid_size.py

# Compare every provider that is installed with the CPU provider, on this machine's GPU.
gpu-check: $(INSTALLED)
	$(VENV)/bin/python tests/gpu/check.py

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	@# The folders are sub-packages of the namespace `catp`: show them to mypy as it would find them installed.
	@mkdir -p build/types/catp
	@for part in export runtime calibration; do ln -sfn ../../../$$part build/types/catp/$$part; done
	MYPYPATH=build/types $(VENV)/bin/mypy -p catp

format: $(INSTALLED)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(DEMO)/catp.json: $(INSTALLED) $(SOURCES)
	$(VENV)/bin/catp-export --ratio 0.5 -o $(DEMO) --overwrite

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable '.[export,cpu,dev]'
	@touch $@

clean:
	rm -rf build $(VENV)
