# Two commands for a newcomer: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKSPACE ?= demo-workspace
RESULTS ?= bench-full

.PHONY: setup demo test check docs bench results clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "grasp-workbench needs Python 3.11 or newer; name one with PYTHON=…"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "No venv module: apt-get install python3-venv"; exit 1; }
	$(BIN)/pip install --disable-pip-version-check -q --progress-bar off \
		-c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/grasp demo --workspace $(WORKSPACE)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/deptry .
	$(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The docs site on http://127.0.0.1:8000, built again at each change.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

# A file to a process, since its tests share what they build; models this small want one thread.
test: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

bench: setup
	$(BIN)/grasp bench speed
	$(BIN)/grasp bench removal --quick

results: setup
	$(BIN)/grasp bench removal --full --root $(RESULTS)
	$(BIN)/grasp bench report --root $(RESULTS) --out docs/method/results.md

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis \
		.grimp_cache .import_linter_cache site
