# Everything is run from here: `make` lists what there is. Nothing but git, make and Python is needed beforehand; each
# target makes the environments that it needs, once, and again when their requirements change.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory
# Files are read and written as UTF-8, whatever the locale says.
export PYTHONUTF8 := 1
# Bytecode is kept, whatever the environment says: pytest's is dear, and tests start hundreds of processes.
unexport PYTHONDONTWRITEBYTECODE

# numpy 2.2 has no wheels for Python 3.14 and newer.
SUPPORTED := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(or $(shell for python in python3 python3.13 python3.12 python3.11; do \
  $$python -c '$(SUPPORTED)' 2>/dev/null && echo $$python && break; done),python3)
# The server's packages: for CUDA where an NVIDIA driver answers, else for the CPU. Both serve the same models.
SERVER_REQUIREMENTS ?= requirements/server-$(if $(shell nvidia-smi -L 2>/dev/null),gpu,cpu).txt

# An environment is complete when its stamp exists: an interrupted installation leaves none, and starts over.
TOOLS := .venv/.complete
BENCH := .venv/.complete-bench
SERVER := .venv-server/.complete-$(basename $(notdir $(SERVER_REQUIREMENTS)))
RAY_SERVER := $(subst .venv-server,.venv-ray,$(SERVER))
RAY := .venv-ray/.complete-score-pool
# Stands in for .venv's onnxruntime, which is for the CPU; CUDA's libraries come with torch.
ONNXRUNTIME_GPU := .cache/onnxruntime-gpu/.complete
AUDIT := .venv-audit/.complete
DOCS := .venv-docs/.complete
LABEL_STUDIO := .venv-label-studio/.complete
LABEL_STUDIO_ML := .venv-label-studio-ml/.complete

IN_TOOLS := .venv/bin/python -m
# Tests run on all cores, each with one thread of its own; those that start programs share what a file of them has started.
SIDE_BY_SIDE := OMP_NUM_THREADS=1 $(IN_TOOLS) pytest --numprocesses auto --dist
SOURCES := contract trainer server demo bench deploy tests

.PHONY: help demo docs pictures test test-system chaos hostile check check-code check-tests images sbom fix clean distclean environments browser debian-tools
.PHONY: bench-passes bench-server bench-rerank bench-round bench-duplicates bench-choosing bench-evidence bench-score-pool bench-actions bench-gpu

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  make demo takes IMAGES=folder (your own class folders), WEIGHTS=imagenet|none|file, BACKBONE=name, ONCE=1 (do not keep serving)"
	@echo "  PYTHON=python3.12 picks the interpreter that the environments are made with"

demo: ## Label Studio, trainer and server on this machine: what to label next among 650 drawings, three of eight classes rare
	@$(MAKE) --silent -j3 $(TOOLS) $(SERVER) $(LABEL_STUDIO)
	@$(IN_TOOLS) demo $(if $(IMAGES),--images "$(IMAGES)") $(if $(WEIGHTS),--weights "$(WEIGHTS)") $(if $(BACKBONE),--backbone "$(BACKBONE)") $(if $(ONCE),--once)

docs: $(DOCS) ## all documentation as a site with a search, to be read offline: .cache/site/index.html
	@NO_MKDOCS_2_WARNING=1 $(<D)/bin/mkdocs --quiet build --clean
	@echo "open .cache/site/index.html"

pictures: $(TOOLS) $(SERVER) $(LABEL_STUDIO) browser ## the pictures of README and docs, from a real Label Studio in a real browser (five minutes)
	@$(IN_TOOLS) demo.pictures

test: ## every test, those that start Label Studio, trainer and server included
	@$(MAKE) --silent -j5 environments browser
	@[ ! -e $(BENCH) ] || $(IN_TOOLS) pytest tests/bench/test_passes.py
	@$(SIDE_BY_SIDE) worksteal -m "not system"
	@$(SIDE_BY_SIDE) loadfile tests/system

test-system: ## what an operator relies on: load, faults, attackers, replicas, containers, scale-out (QUICK=1: without rarities)
	@$(MAKE) --silent -j3 environments $(if $(QUICK),,$(RAY) $(AUDIT)) debian-tools
	@$(SIDE_BY_SIDE) loadfile tests/production -m "not rare and not alone"
	@$(IN_TOOLS) pytest tests/production -m "$(if $(QUICK),alone and not rare,alone or rare)"

chaos: $(TOOLS) $(SERVER) debian-tools ## servers behind haproxy while everything breaks: 10,000 requests, none lost or wrong (six minutes)
	@$(IN_TOOLS) bench.chaos

hostile: $(TOOLS) $(SERVER) ## hostile images, addresses and requests, each with what must come of it (four minutes)
	@$(IN_TOOLS) bench.hostile

check: $(TOOLS) $(AUDIT) ## format, lint, types, known vulnerabilities and unit tests (a minute and a half)
	@$(MAKE) --silent --jobs=2 --output-sync=target check-code check-tests

check-code:
	$(IN_TOOLS) ruff format --check .
	$(IN_TOOLS) ruff check .
	$(IN_TOOLS) mypy
	@$(IN_TOOLS) deploy.audit

check-tests:
	$(SIDE_BY_SIDE) worksteal -q -m "not system and not slow"

images: ## build the server's image, and with TRAINER=1 the trainer's, for real; without Docker by Debian's podman, as root
	@docker info >/dev/null 2>&1 || $(MAKE) --silent debian-tools DEBIAN_TOOLS="podman:podman runc:runc debootstrap:debootstrap"
	@$(PYTHON) -m deploy.images $(if $(TRAINER),--trainer) $(if $(VARIANT),--variant $(VARIANT)) $(if $(EXTRAS),--extras "$(EXTRAS)")

sbom: $(TOOLS) $(SERVER) $(AUDIT) ## bills of materials (CycloneDX) of both images, into .cache/sbom
	@$(IN_TOOLS) deploy.images.sbom

bench-passes: $(TOOLS) $(BENCH) ## what twenty passes cost and are worth, against baal, OpenVINO and single passes (17 minutes, once 3 to train)
	@$(IN_TOOLS) bench.passes

bench-server: $(TOOLS) $(BENCH) ## what serving costs over scoring, and a swap of versions (18 minutes, once 5 to train)
	@$(IN_TOOLS) bench.server

bench-rerank: $(TOOLS) $(BENCH) ## what scoring a pool again costs after the head was retrained (6 minutes, once 3 to train)
	@$(IN_TOOLS) bench.rerank

bench-round: $(TOOLS) $(SERVER) $(LABEL_STUDIO) ## how soon the new order of 10,000 known tasks stands after the last label (5 minutes, once 15 more for their features)
	@$(IN_TOOLS) bench.round

bench-duplicates: $(TOOLS) ## how many different images the first hundred are where each has nine near-copies (4 minutes, once 3 to train)
	@$(IN_TOOLS) bench.duplicates

bench-choosing: $(TOOLS) ## what it takes to choose among 100,000 scored images (a minute)
	@$(IN_TOOLS) bench.choosing

bench-evidence: $(TOOLS) ## which strategy saves how many labels, and against whom (QUICK=1: under ten minutes; else an hour)
	@$(IN_TOOLS) bench.evidence $(if $(QUICK),--quick) $(if $(SAVE),--save)

bench-score-pool: $(TOOLS) $(RAY) ## what scoring a pool of 10^8 images would cost, by what a few hundred do (10 minutes, once 5 to train)
	@$(IN_TOOLS) bench.score_pool

bench-actions: $(TOOLS) ## how many human actions all labels of a pool take, bulk confirmation included (QUICK=1: a minute; else half an hour)
	@$(IN_TOOLS) bench.actions $(if $(QUICK),--quick) $(if $(SAVE),--save)

bench-gpu: $(TOOLS) $(ONNXRUNTIME_GPU) ## on an NVIDIA GPU: what runs on it, how exactly and how fast, without network (eight minutes)
	@PYTHONPATH=$(CURDIR)/$(dir $(ONNXRUNTIME_GPU)) $(IN_TOOLS) bench.gpu

fix: $(TOOLS) ## format, mend what the linter can mend, and write the tables of docs/settings.md
	$(IN_TOOLS) ruff format .
	$(IN_TOOLS) ruff check --fix .
	$(IN_TOOLS) deploy.settings_page

clean: ## remove caches and the demo's data; environments and published models stay
	rm -rf .demo .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(wildcard $(SOURCES)) -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## clean, and remove the environments too
	rm -rf .venv .venv-server .venv-ray .venv-label-studio .venv-label-studio-ml .venv-audit .venv-docs

environments: $(TOOLS) $(SERVER) $(LABEL_STUDIO) $(LABEL_STUDIO_ML) $(DOCS) ## set up all Python environments, and do nothing else

# For `make test-system`; a test whose program is not there skips, saying so.
DEBIAN_TOOLS = haproxy:haproxy promtool:prometheus debootstrap:debootstrap minisign:minisign $(PODMAN) $(if $(QUICK),,$(CEPH))
# An S3 that is not a mock.
CEPH = ceph-mon:ceph-mon ceph-osd:ceph-osd ceph:ceph-common radosgw:radosgw
# Brings compose.yaml up where no Docker daemon does.
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
	else echo "not found, and only root can install them:" $$missing; fi

# For the tests that look at pages; where there is none and none can be installed they skip, saying so.
browser:
	@for name in chromium chromium-browser google-chrome; do ! command -v $$name >/dev/null || exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "chromium: installing with apt-get (once)"; \
	  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends chromium; } \
	    >/dev/null || echo "chromium: apt-get could not install it"; \
	else echo "chromium: not found, and only root can install it; apt install chromium brings it"; fi

$(TOOLS): requirements/dev.txt requirements/trainer.txt requirements/server-cpu.txt requirements/server.txt
	$(install)

$(BENCH): requirements/bench.txt $(TOOLS)
	@echo "$(@D): installing $<, for benches only"
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

$(ONNXRUNTIME_GPU): requirements/server-gpu.txt $(TOOLS)
	@echo "$(@D): installing onnxruntime-gpu, for benches only"
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

# Makes the environment around the stamp $@ from the first prerequisite.
define install
	@$(PYTHON) -c '$(SUPPORTED)' 2>/dev/null || { \
	  echo "Labelnext needs Python 3.11, 3.12 or 3.13 with its venv module; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another with make PYTHON=/path/to/python3; on Debian and Ubuntu, apt install python3-venv adds venv." >&2; \
	  exit 1; }
	@echo "$(@D): installing $< (once; this can take some minutes)"
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@
	@echo "$(@D): complete"
endef
