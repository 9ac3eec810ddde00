# `make help` lists the targets. Everything is installed into .venv, from uv.lock, by hash.

SHELL := /bin/sh
.DELETE_ON_ERROR:

# The first Python 3.11 or 3.12 that can make virtual environments.
PYTHON ?= $(shell for python in python3.12 python3.11 python3; do \
	if $$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; \
	then echo $$python; break; fi; done)

# --inexact: `make serve` after `make test` must not uninstall what the tests need. --compile-bytecode: where Python may
# not write its bytecode (PYTHONDONTWRITEBYTECODE, a read-only folder) each start would compile torch anew, for seconds.
SYNC = .venv/bin/uv sync --quiet --frozen --inexact --compile-bytecode --python .venv/bin/python

.PHONY: help
help: ## Show this help.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: serve
serve: .venv/serving ## Install what serving needs and serve the bundled model on http://127.0.0.1:8080.
	@exec .venv/bin/deit serve

# Files of tests run side by side, each whole and in one process: two processes for each core, because half of the files
# mostly wait, and at most four; each with one thread of torch, because threads that share a core wait for each other.
# Bytecode is kept: hundreds of processes start, and each would compile our code again.
PROCESSES ?= $(shell getconf _NPROCESSORS_ONLN | awk '{ print ($$1 < 2) ? 2 : 4 }')
.PHONY: test
test: .venv/development ## Install everything and run the tests, in several processes.
	@OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= .venv/bin/pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder $(PYTEST)

.PHONY: soak
soak: .venv/development ## Run the long tests too: over an hour of load, faults and kills on an idle machine.
	@.venv/bin/pytest -m soak --timeout 3600 $(PYTEST)

.PHONY: compose-test
compose-test: .venv/development ## Build the images and try docker-compose.yml on the Docker engine of this machine.
	@.venv/bin/pytest -m engine --timeout 1800 $(PYTEST)

.PHONY: lint
lint: .venv/development ## Check style and types.
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

.PHONY: format
format: .venv/development ## Format the code and apply the safe fixes.
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

.PHONY: lines
lines: ## Count the lines of Python by folder.
	@git ls-files '*.py' | xargs awk '{ split(FILENAME, part, "/"); lines[part[1]]++; all[part[1] == "tests" ? "tests" : "outside tests"]++ } \
		END { for (folder in lines) if (folder != "tests") printf "%6d %s\n", lines[folder], folder; \
		for (group in all) printf "%6d %s\n", all[group], group }' | sort -k 2

.PHONY: setup
setup: .venv/development ## Install everything for development, with the pre-commit hooks.
	@if git rev-parse --git-dir >/dev/null 2>&1; then .venv/bin/pre-commit install; fi

# A photograph that an installed package brings. Change it, and set DATA, to measure with pictures of your own.
IMAGES ?= $$(ls .venv/lib/python3*/site-packages/matplotlib/mpl-data/sample_data/grace_hopper.jpg)
MODEL ?= deit_cifar10
MODEL_REPOSITORY ?= model_repository
RESULTS ?= runs/benchmark
MEASURE = .venv/bin/deit benchmark

.PHONY: benchmark
benchmark: .venv/development .perf-analyzer/ready ## Run a small version of every measurement, in at most 15 minutes, and write the report.
	$(MEASURE) throughput --serve $(MODEL_REPOSITORY) --model $(MODEL) --requests 100 --pytorch deit_tiny_distilled_patch16_224 --results $(RESULTS)
	$(MEASURE) http --serve $(MODEL_REPOSITORY) --model $(MODEL) --images $(IMAGES) --seconds 4 --rounds 2 --results $(RESULTS)
	$(if $(DATA),$(MEASURE) accuracy --serve $(MODEL_REPOSITORY) --model $(MODEL) --data $(DATA) --count 1000 --results $(RESULTS) --page $(RESULTS)/wrong_answers.html)
	$(MEASURE) peers --model-repository $(MODEL_REPOSITORY) --model $(MODEL) --images $(IMAGES) --concurrency 32 --rounds 1 --seconds 5 --no-tune --results $(RESULTS)
	$(MEASURE) report --results $(RESULTS) --output $(RESULTS)

GPU_CHECK ?=
.PHONY: gpu-check
gpu-check: .gpu/ready ## Check a machine with an NVIDIA GPU, from its driver to predictions over HTTP; GPU_CHECK="--images FOLDER --checkpoint RUN" for all steps.
	@.gpu/bin/deit benchmark gpu-check --results benchmark/results $(GPU_CHECK)

.PHONY: perf-analyzer
perf-analyzer: .perf-analyzer/ready ## Set up NVIDIA's perf_analyzer in a separate environment (Debian and Ubuntu).

.PHONY: audit
audit: .venv/uv .audit/ready ## Write the bill of materials (CycloneDX) of all that is locked, and check it for known vulnerabilities.
	@mkdir -p runs/audit
	@.venv/bin/uv export --quiet --frozen --all-extras --no-emit-project --preview-features sbom-export --format cyclonedx1.5 --output-file runs/audit/sbom.cdx.json >/dev/null
	@.venv/bin/uv export --quiet --frozen --all-extras --no-emit-project --output-file runs/audit/requirements.txt >/dev/null
	@.audit/bin/pip-audit --strict --disable-pip --require-hashes --requirement runs/audit/requirements.txt
	@.audit/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements/uv.txt

.PHONY: chromium
chromium: ## Install the browser for the tests of the page (Debian and Ubuntu, needs root).
	apt-get update -qq
	apt-get install -qq --no-install-recommends chromium fonts-dejavu-core

.PHONY: screenshots
screenshots: .venv/development ## Update docs/images/{page,page-phone,benchmark}.png; with MODEL_REPOSITORY=FOLDER, page-explain.png.
	@.venv/bin/python -m tests.screenshots $(MODEL_REPOSITORY)

.PHONY: system
system: ## Install the Debian packages that a bare machine lacks (needs root).
	apt-get update -qq
	apt-get install -qq --no-install-recommends python3 python3-venv libpython3-stdlib "libpython$$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')"

.PHONY: clean
clean: ## Remove the environments and everything that tools cached.
	rm -rf .venv .gpu .audit .perf-analyzer .peers .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/uv: requirements/uv.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or 3.12 with venv was found. Install one (Debian: make system), or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || { echo "$(PYTHON) is not Python 3.11 or 3.12, which the embedded Triton needs"; exit 1; }
	@echo "Making .venv with $(PYTHON), which takes a few seconds"
	@$(PYTHON) -m venv --clear .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: --requirement requirements/uv.txt
	@touch $@

.venv/serving: .venv/uv uv.lock pyproject.toml
	@echo "Installing what serving needs: half a gigabyte on the disk, seconds on a fast line"
	@$(SYNC) --no-default-groups --extra serving --extra client
	@touch $@

.venv/development: .venv/uv uv.lock pyproject.toml
	@echo "Installing every stage and the development tools, about 7 GB with torch: some minutes"
	@$(SYNC)
	@touch $@ .venv/serving

# A separate environment, because onnxruntime-gpu and onnxruntime are the same module.
.gpu/ready: .venv/uv uv.lock pyproject.toml
	@echo "Installing what a GPU needs into .gpu, about 10 GB: some minutes"
	@UV_PROJECT_ENVIRONMENT=.gpu .venv/bin/uv sync --quiet --frozen --compile-bytecode --no-default-groups --extra gpu --extra benchmark --extra client --python .venv/bin/python
	@touch $@

.audit/ready: requirements/audit.txt
	@echo "Making .audit"
	@rm -rf .audit && $(PYTHON) -m venv .audit
	@.audit/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: --requirement requirements/audit.txt
	@touch $@

# perf_analyzer is in the platform wheel of tritonclient 2.50.0; newer wheels hold none or need glibc 2.38. It links to
# Debian's libb64 and to CUDA's runtime, even on machines without a GPU.
.perf-analyzer/ready: requirements/perf-analyzer.txt
	@echo "Making .perf-analyzer"
	@rm -rf .perf-analyzer && $(PYTHON) -m venv .perf-analyzer
	@.perf-analyzer/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: --no-deps --requirement requirements/perf-analyzer.txt
	@cd .perf-analyzer && apt-get download -qq libb64-0d && dpkg-deb --extract libb64-0d_*.deb libb64
	@touch $@
