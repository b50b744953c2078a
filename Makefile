# Each target makes the environment that it needs on its first call, with the versions that constraints/ names.
VENV ?= .venv
OLDEST ?= build/oldest
PYTHON ?= python3
PINNED_VERSIONS ?= constraints/pinned.txt
OLDEST_VERSIONS ?= constraints/oldest.txt
INSTALLED := $(VENV)/.installed
DEMO := build/demo-bundle
SOURCES := $(shell find export runtime -name '*.py') $(wildcard export/demo/checkpoint/*)
IMAGE := export/demo/images/scene-a.png
PROMPT := Question: what is in the bottom right? Answer:
ANSWER := a black diamond

.PHONY: demo test test-heavy test-all oldest upgrade bench gpu-check lint format clean

# Export the embedded demo model (once), then answer a question about a sample image from the exported graphs.
demo: $(DEMO)/catp.json
	$(VENV)/bin/catp-run $(DEMO) --image $(IMAGE) --prompt "$(PROMPT)"

# What a change must pass: within 8 minutes on two cores.
test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --max-worker-restart 0 -m "not heavy"

# What takes long and seldom breaks; CI runs it too.
test-heavy: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --max-worker-restart 0 -m heavy

test-all: test test-heavy

# The lowest versions that pyproject.toml admits: export, answers, accuracy and engines of the demo, and the runtime's tests.
oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/catp-export --ratio 0.5 -o build/oldest-bundle --overwrite
	$(OLDEST)/bin/catp-run build/oldest-bundle --image $(IMAGE) --prompt "$(PROMPT)" | grep -x "$(ANSWER)"
	$(OLDEST)/bin/catp-eval build/oldest-bundle --limit 40 --ratios 0,0.5
	$(OLDEST)/bin/catp-build build/oldest-bundle --target tensorrt-rtx --compute-capability 8.6
	$(OLDEST)/bin/python -m pytest -n 2 --dist loadfile --max-worker-restart 0 -m "not heavy" tests/runtime

# Resolve the newest versions, run all tests with them, and pin them if all pass: 25 minutes.
upgrade:
	$(PYTHON) constraints/upgrade.py

# Time a model of middle size against transformers and OpenVINO, on a machine that does nothing else: half an hour.
bench: $(INSTALLED)
	$(VENV)/bin/python tests/benchmarks/mid_size.py

# Compare every provider that is installed with the CPU provider, on this machine's GPU.
gpu-check: $(INSTALLED)
	$(VENV)/bin/python tests/gpu/check.py

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(INSTALLED)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(DEMO)/catp.json: $(INSTALLED) $(SOURCES)
	@echo "Exporting the embedded demo model to $(DEMO): half a minute"
	$(VENV)/bin/catp-export --ratio 0.5 -o $(DEMO) --overwrite

$(INSTALLED): pyproject.toml $(PINNED_VERSIONS)
	@echo "Installing the pinned versions into $(VENV): two minutes or more, as the network is"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --constraint $(PINNED_VERSIONS) --editable '.[export,cpu,dev]'
	@touch $@

$(OLDEST)/.installed: pyproject.toml $(OLDEST_VERSIONS)
	@echo "Installing the lowest versions into $(OLDEST): two minutes or more, as the network is"
	@$(PYTHON) -m venv $(OLDEST)
	@$(OLDEST)/bin/python -m pip install --quiet --constraint $(OLDEST_VERSIONS) --editable '.[export,cpu,test]'
	@touch $@

clean:
	rm -rf build $(VENV)
