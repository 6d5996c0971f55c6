# `make` lists the targets. They need only git, make and Python: each target creates the environments it uses, and creates
# them again when their requirements change.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory
# Read and write files as UTF-8 in any locale.
export PYTHONUTF8 := 1
# Keep bytecode: tests start hundreds of processes, and pytest's is slow to compile.
unexport PYTHONDONTWRITEBYTECODE

# numpy 2.2 has no wheels for Python 3.14 and newer.
SUPPORTED := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(or $(shell for python in python3 python3.13 python3.12 python3.11; do \
  $$python -c '$(SUPPORTED)' 2>/dev/null && echo $$python && break; done),python3)
# The server's packages: for CUDA if there is an NVIDIA driver, otherwise for the CPU. Both serve the same models.
SERVER_REQUIREMENTS ?= requirements/server-$(if $(shell nvidia-smi -L 2>/dev/null),gpu,cpu).txt

# An environment is complete if its stamp exists. An interrupted installation leaves none and starts over.
TOOLS := .venv/.complete
BENCH := .venv/.complete-bench
SERVER := .venv-server/.complete-$(basename $(notdir $(SERVER_REQUIREMENTS)))
RAY_SERVER := $(subst .venv-server,.venv-ray,$(SERVER))
RAY := .venv-ray/.complete-score-pool
# Replaces .venv's CPU build of onnxruntime; torch brings the CUDA libraries.
ONNXRUNTIME_GPU := .cache/onnxruntime-gpu/.complete
AUDIT := .venv-audit/.complete
DOCS := .venv-docs/.complete
LABEL_STUDIO := .venv-label-studio/.complete
LABEL_STUDIO_ML := .venv-label-studio-ml/.complete

RUN := .venv/bin/python -m
# Tests run on all cores, one thread each. `loadfile` keeps the tests of a file together, so that they share its fixtures.
PARALLEL_TESTS := OMP_NUM_THREADS=1 $(RUN) pytest --numprocesses auto --dist
SOURCES := contract trainer server demo bench deploy tests

.PHONY: help demo docs pictures test test-system chaos hostile check check-code check-tests images sbom fix clean distclean environments browser debian-tools
.PHONY: bench-passes bench-server bench-rerank bench-round bench-duplicates bench-choosing bench-evidence bench-score-pool bench-actions bench-gpu

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  Options of make demo: IMAGES=folder (one folder per class), WEIGHTS=imagenet|none|file, BACKBONE=name, ONCE=1 (exit after the report)"
	@echo "  PYTHON=python3.12 selects the interpreter of new environments"

demo: ## start Label Studio, trainer and server on this machine, and rank 650 drawings of eight classes
	@$(MAKE) --silent -j3 $(TOOLS) $(SERVER) $(LABEL_STUDIO)
	@$(RUN) demo $(if $(IMAGES),--images "$(IMAGES)") $(if $(WEIGHTS),--weights "$(WEIGHTS)") $(if $(BACKBONE),--backbone "$(BACKBONE)") $(if $(ONCE),--once)

docs: $(DOCS) ## build the documentation as a searchable site for offline reading: .cache/site/index.html
	@NO_MKDOCS_2_WARNING=1 $(<D)/bin/mkdocs --quiet build --clean
	@echo "open .cache/site/index.html"

pictures: $(TOOLS) $(SERVER) $(LABEL_STUDIO) browser ## take the screenshots of README and docs in a real browser and Label Studio (5 minutes)
	@$(RUN) demo.pictures

test: ## run all tests but those of test-system, including those that start Label Studio, trainer and server
	@$(MAKE) --silent -j5 environments browser
	@[ ! -e $(BENCH) ] || $(RUN) pytest tests/bench/passes/test_main.py
	@$(PARALLEL_TESTS) worksteal -m "not system"
	@$(PARALLEL_TESTS) loadfile tests/system

test-system: ## run the slow tests: load, faults, attacks, replicas, containers, scale-out (QUICK=1: without the slowest)
	@$(MAKE) --silent -j3 environments $(if $(QUICK),,$(RAY) $(AUDIT)) debian-tools
	@$(PARALLEL_TESTS) loadfile tests/production -m "not rare and not alone"
	@$(RUN) pytest tests/production -m "$(if $(QUICK),alone and not rare,alone or rare)"

chaos: $(TOOLS) $(SERVER) debian-tools ## inject faults into servers behind haproxy under load; no request may be lost or wrong (6 minutes)
	@$(RUN) bench.chaos

hostile: $(TOOLS) $(SERVER) ## attack a server with malicious images, addresses and requests (4 minutes)
	@$(RUN) bench.hostile

check: $(TOOLS) $(AUDIT) ## check format, lint, types and known vulnerabilities, and run the unit tests (90 seconds)
	@$(MAKE) --silent --jobs=2 --output-sync=target check-code check-tests

check-code:
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	@$(RUN) deploy.audit

check-tests:
	$(PARALLEL_TESTS) worksteal -q -m "not system and not slow"

images: ## build the server's image (TRAINER=1: the trainer's too), with Docker, or as root with Debian's podman
	@docker info >/dev/null 2>&1 || $(MAKE) --silent debian-tools DEBIAN_TOOLS="podman:podman runc:runc debootstrap:debootstrap"
	@$(PYTHON) -m deploy.images $(if $(TRAINER),--trainer) $(if $(VARIANT),--variant $(VARIANT)) $(if $(EXTRAS),--extras "$(EXTRAS)")

sbom: $(TOOLS) $(SERVER) $(AUDIT) ## write bills of materials (CycloneDX) of both images to .cache/sbom
	@$(RUN) deploy.images.sbom

bench-passes: $(TOOLS) $(BENCH) ## cost and quality of 20 passes, compared with baal, OpenVINO and single passes (17 minutes, first run 20)
	@$(RUN) bench.passes

bench-server: $(TOOLS) $(BENCH) ## cost of serving over scoring, and of a version swap (18 minutes, first run 23)
	@$(RUN) bench.server

bench-rerank: $(TOOLS) $(BENCH) ## cost of scoring a pool again after the head was retrained (6 minutes, first run 9)
	@$(RUN) bench.rerank

bench-round: $(TOOLS) $(SERVER) $(LABEL_STUDIO) ## time from the last label to the new order of 10,000 tasks (5 minutes, first run 20)
	@$(RUN) bench.round

bench-duplicates: $(TOOLS) ## distinct images among the first 100 of a pool with nine near-copies of each (4 minutes, first run 7)
	@$(RUN) bench.duplicates

bench-choosing: $(TOOLS) ## time to order 100,000 scored images (1 minute)
	@$(RUN) bench.choosing

bench-evidence: $(TOOLS) ## labels saved by each strategy (1 hour; QUICK=1: 10 minutes; SAVE=1: keep the results)
	@$(RUN) bench.evidence $(if $(QUICK),--quick) $(if $(SAVE),--save)

bench-score-pool: $(TOOLS) $(RAY) ## cost of scoring 10^8 images, extrapolated from a few hundred (10 minutes, first run 15)
	@$(RUN) bench.score_pool

bench-actions: $(TOOLS) ## human actions to label a whole pool, with bulk confirmation (30 minutes; QUICK=1: 1 minute; SAVE=1: keep)
	@$(RUN) bench.actions $(if $(QUICK),--quick) $(if $(SAVE),--save)

bench-gpu: $(TOOLS) $(ONNXRUNTIME_GPU) ## check features, accuracy and speed on an NVIDIA GPU, without network (8 minutes)
	@PYTHONPATH=$(CURDIR)/$(dir $(ONNXRUNTIME_GPU)) $(RUN) bench.gpu

fix: $(TOOLS) ## format, apply the linter's fixes, and update the tables of docs/settings.md
	$(RUN) ruff format .
	$(RUN) ruff check --fix .
	$(RUN) deploy.settings_page

clean: ## remove caches and the demo's data, but not environments and published models
	rm -rf .demo .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(wildcard $(SOURCES)) -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## also remove the environments
	rm -rf .venv .venv-server .venv-ray .venv-label-studio .venv-label-studio-ml .venv-audit .venv-docs

environments: $(TOOLS) $(SERVER) $(LABEL_STUDIO) $(LABEL_STUDIO_ML) $(DOCS) ## create all Python environments

# For `make test-system`. A test is skipped if its program is missing.
DEBIAN_TOOLS = haproxy:haproxy promtool:prometheus debootstrap:debootstrap minisign:minisign $(PODMAN) $(if $(QUICK),,$(CEPH))
# Ceph, as an S3 store that is not a mock.
CEPH = ceph-mon:ceph-mon ceph-osd:ceph-osd ceph:ceph-common radosgw:radosgw
# Runs compose.yaml on machines without a Docker daemon.
PODMAN = $(shell docker info >/dev/null 2>&1 || echo podman:podman runc:runc iptables:iptables \
  /usr/lib/podman/netavark:netavark /usr/lib/podman/aardvark-dns:aardvark-dns)
debian-tools:
	@missing=$$(for pair in $(DEBIAN_TOOLS); do \
	  PATH="$$PATH:/usr/sbin" command -v "$${pair%%:*}" >/dev/null || echo "$${pair##*:}"; done); \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "$$missing: installing with apt-get (once)" | tr '\n' ' '; echo; \
	  { apt-get update && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install --yes --no-install-recommends $$missing; } \
	    >/dev/null || echo "apt-get could not install all of $$missing"; \
	else echo "missing, and only root can install them:" $$missing; fi

# For tests of web pages, which are skipped without a browser.
browser:
	@for name in chromium chromium-browser google-chrome; do ! command -v $$name >/dev/null || exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "chromium: installing with apt-get (once)"; \
	  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends chromium; } \
	    >/dev/null || echo "chromium: apt-get could not install it"; \
	else echo "chromium: missing, and only root can install it: apt install chromium"; fi

$(TOOLS): requirements/dev.txt requirements/trainer.txt requirements/server-cpu.txt requirements/server.txt
	$(install)

$(BENCH): requirements/bench.txt $(TOOLS)
	@echo "$(@D): installing $<, for benchmarks only"
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

$(ONNXRUNTIME_GPU): requirements/server-gpu.txt $(TOOLS)
	@echo "$(@D): installing onnxruntime-gpu, for benchmarks only"
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(@D) \
	  "$$(sed -n 's/^\(onnxruntime-gpu\)\[.*\]/\1/p' $<)"
	@touch $@

$(SERVER): $(SERVER_REQUIREMENTS) requirements/server.txt
	$(install)

$(RAY_SERVER): $(SERVER_REQUIREMENTS) requirements/server.txt
	$(install)

$(RAY): requirements/score-pool.txt $(RAY_SERVER)
	@echo "$(@D): installing $<"
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

$(AUDIT): requirements/audit.txt
	$(install)

$(DOCS): requirements/docs.txt
	$(install)

$(LABEL_STUDIO): requirements/label-studio.txt
	$(install)

$(LABEL_STUDIO_ML): requirements/label-studio-ml.txt
	$(install)

# Creates the environment that contains the stamp $@ from the first prerequisite.
define install
	@$(PYTHON) -c '$(SUPPORTED)' 2>/dev/null || { \
	  echo "Labelnext needs Python 3.11, 3.12 or 3.13 with its venv module; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Select another one with make PYTHON=/path/to/python3; on Debian and Ubuntu, apt install python3-venv adds venv." >&2; \
	  exit 1; }
	@echo "$(@D): installing $< (once; this can take some minutes)"
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@
	@echo "$(@D): complete"
endef
