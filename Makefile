# One virtual environment, filled in stages; a stamp file remembers what each stage installed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINED := $(BIN)/pip install --quiet --constraint constraints.txt --editable
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
WORKERS ?= 2

.PHONY: demo test lint format docs bench bench-gpu wheel clean

demo: $(VENV)/.core
	$(BIN)/popflow demo

test: lint
	$(ONE_THREAD) $(BIN)/pytest -n $(WORKERS) --dist worksteal

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.particles
	mkdir -p benchmarks/results
	status=0; for file in $$($(BIN)/python benchmarks/harness.py); do \
	  $(ONE_THREAD) $(BIN)/python $$file --json benchmarks/results/$$(basename $$file .py).json || status=1; \
	done; $(BIN)/python benchmarks/collect.py benchmarks/results/*.json; exit $$status

bench-gpu: $(VENV)/.core
	mkdir -p benchmarks/results
	$(BIN)/python benchmarks/gpu.py --json benchmarks/results/gpu.json

wheel: $(VENV)/.core
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist site runs .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/pip
	$(CONSTRAINED) .
	touch $@

$(VENV)/.dev $(VENV)/.docs $(VENV)/.bench: $(VENV)/.%: $(VENV)/.core
	$(CONSTRAINED) ".[$*]"
	touch $@

# It asks for numpy < 2, which no other peer does; its resampling, all that is called here, runs with numpy 2.
$(VENV)/.particles: $(VENV)/.bench
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps particles
	touch $@
