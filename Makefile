# Everything from a bare clone: Python 3.10-3.13 and make are enough.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo docs test check lint types format neighbours clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

docs: $(VENV)/.docs
	$(BIN)/python -m docs.building

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.dev lint types test

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# One stamp a set of extras; each installs anew when pyproject.toml has changed.
$(VENV)/.demo $(VENV)/.docs $(VENV)/.test $(VENV)/.dev: $(VENV)/.%: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	@touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Other people's software with our models; large, so in an environment of its own.
neighbours: .venv-neighbours/.installed
	.venv-neighbours/bin/python -W ignore -m tests.neighbours

.venv-neighbours/.installed: pyproject.toml tests/neighbours/requirements.txt
	$(PYTHON) -m venv .venv-neighbours
	.venv-neighbours/bin/python -m pip install --quiet --editable ".[examples,onnx]"
	sed '/^#/d' tests/neighbours/requirements.txt | while read -r package; do \
		.venv-neighbours/bin/python -m pip install --quiet "$$package" || echo "$$package is left out"; done
	@touch $@

clean:
	rm -rf $(VENV) .venv-neighbours build dist .pytest_cache .mypy_cache .ruff_cache
