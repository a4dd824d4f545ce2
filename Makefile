# Two commands matter to a newcomer: `make repro` and `make test`. Each sets up what it needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
unexport PYTHONDONTWRITEBYTECODE  # else every process would compile all that it imports

.PHONY: setup repro study test test-fast cover lint smoke metrics-diff ci demo-results ui docs bench lock clean

setup: $(BIN)/.locked  ## the virtual environment from requirements.lock

$(BIN)/.locked: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	-pip install --quiet --disable-pip-version-check --upgrade pip  # a newer one finds what to install in half of the time
	pip install --quiet --no-compile -r requirements.lock  # Python compiles what it imports, a fifth of all files
	pip install --quiet --no-deps --editable .
	touch $@

repro: setup  ## the whole default study; only what changed runs, and nothing of yours is in its way
	python -m subspacelab.pipeline.workspace check
	dvc repro

STUDY ?= smollm2
study: setup  ## an experiment of that name with the forgetting study of pipelines/studies/$(STUDY).yaml, in a copy of this folder
	dvc exp run --temp --name $(STUDY) -S study=$(STUDY) measure_forgetting

test: setup  ## everything, at most 15 minutes on 2 cores
	pytest -n 2 --dist loadfile --no-loadscope-reorder

test-fast: setup  ## what needs no DVC, no server and no training
	pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

cover: setup  ## `make test` with the share of src/ that its own processes run; what stages run in clones does not count
	pytest -n 2 --dist loadfile --no-loadscope-reorder --cov=subspacelab --cov-report=term:skip-covered

lint: setup  ## style, types, and which way imports point
	ruff check .
	ruff format --check .
	mypy
	lint-imports

ci: lint test smoke metrics-diff  ## what .github/workflows/ci.yml runs

smoke: setup  ## the smoke study in a temporary copy; its metrics within tolerances of tests/reference
	subspacelab sweep --force -S study=smoke
	subspacelab metrics check study=smoke

BASE ?= HEAD
metrics-diff: setup  ## committed figures against those of BASE (a commit), as Markdown
	dvc metrics diff --md $(BASE)

demo-results:  ## the details of reports/ that README and findings cite, into git; after `make repro` of the default study
	cd docs/results/demo && for file in $$(git ls-files); do cp ../../../reports/$$file $$file || exit 1; done

ui: setup  ## the MLflow UI on http://127.0.0.1:5000
	subspacelab ui

docs: setup  ## the site, into site/: every link is checked; open site/index.html
	NO_MKDOCS_2_WARNING=1 mkdocs build --quiet

bench: setup  ## every speed and memory claim, each proved by its own file; benchmarks/gpu.py wants a GPU
	for file in $(filter-out benchmarks/gpu%,$(wildcard benchmarks/*.py)); do python $$file || exit 1; done

# Without hashes: with them pip wants every dependency in the file, and torch's CUDA packages, which differ by platform,
# stay out of it; torch itself is another wheel on each index.
lock:  ## resolve the versions anew (needs uv); torch names its own CUDA packages exactly, so they stay out
	echo 'torch==2.13.0' | uv pip compile pyproject.toml - --universal --python-version 3.11 --all-extras \
		--no-annotate --no-header --no-emit-index-url | grep -vE '^(nvidia|cuda|triton)' > requirements.lock

clean: setup  ## what the pipeline computed here, each by DVC's word for it; what was changed, runs and DVC's cache stay
	python -m subspacelab.pipeline.workspace clean
