# make demo   the whole line on this machine, from nothing
# make check  lint, types and unit tests, in a few minutes: before a commit
# make test   the same, then real engines, real clusters, and one kill of each kind
# make synthesis SEEDS=…   200 seeds of a BEIR folder to examples, and a report of them
# make default-model PONY=…   smollm2-135m-rerank anew, from its texts: two hours on two cores
# make faults every kill test: ten of each kind, with vLLM too; a table of the work begun again
# make cluster-test   jobs over several hosts: Ray nodes in network namespaces of this machine, as root
# make docs   the documentation as a site, in site/
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
MODELS := smollm2-135m-instruct smollm2-135m-rerank all-minilm-l6-v2
EXTRA  := $(shell command -v nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)

# Seeds for `make synthesis`, and benchmarks that nothing written may repeat.
SEEDS         ?= ../shared/data/msmarco_seed_instructir
DECONTAMINATE ?= ../shared/data/scifact, ../shared/data/cranfield, ../shared/data/bright_pony_tutorial

# For `make default-model`: the Pony tutorial as a BEIR folder, and benchmarks that no longer passage may repeat.
PONY          ?= ../shared/data/bright_pony_tutorial
KEPT_ASIDE    ?= ../shared/data/scifact, ../shared/data/cranfield, ../shared/data/msmarco_dl19_pool
DEFAULT       := models/smollm2-135m-rerank

# Processes of the unit tests.
JOBS          ?= 2

.PHONY: setup model demo synthesis default-model check test faults cluster-test lint docs reference clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "limrank needs Python 3.11 or later; make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[$(EXTRA),dev]'
	# vLLM's CPU build asks for three packages that it does not need for text. Where their
	# builds do not load against the CPU build of torch, transformers cannot import a model.
	$(BIN)/python -c 'import torchvision' 2>/dev/null || \
		$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

model: setup
	for name in $(MODELS); do $(BIN)/limrank models fetch $$name || exit 1; done

demo: model
	$(BIN)/limrank cluster run -- $(BIN)/limrank pipeline jobs/recipes/demo.yaml --overwrite --address {address}

synthesis: model
	$(BIN)/limrank synthesize jobs/recipes/synthesize-200.yaml --address local \
		-s synthesis.seeds=$(SEEDS) -s 'synthesis.decontaminate=[$(DECONTAMINATE)]'

default-model: model
	$(BIN)/python $(DEFAULT)/make_data.py runs/default-model/data $(PONY)
	$(BIN)/limrank synthesize $(DEFAULT)/lists.yaml --address local
	$(BIN)/limrank train $(DEFAULT)/train.yaml --address local
	$(BIN)/limrank synthesize $(DEFAULT)/lists-long.yaml --address local \
		-s 'synthesis.decontaminate=[benchmark://pydocs, $(KEPT_ASIDE)]'
	$(BIN)/limrank train $(DEFAULT)/train-long.yaml --address local
	$(BIN)/python $(DEFAULT)/ship.py runs/default-model/train/adapter runs/default-model/train-long/adapter

check: model lint
	$(BIN)/python -m pytest tests/unit -n $(JOBS)

# What fails fast comes first. Two engines of vLLM and a training do not fit beside two more in 24 GiB: one test at a time.
test: check
	$(BIN)/python -m pytest -m "not faults" --durations 40 tests/integration tests/faults

faults: model
	$(BIN)/python -m pytest tests/faults

# Needs root and iproute2; no part of `make test`.
cluster-test: model
	$(BIN)/python -m pytest tests/cluster

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# CI does not build the site: tests/unit/project/test_docs.py checks links, commands and keys in seconds.
docs: .venv-docs/.ready
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

# Only what the site needs: the `docs` extra of pyproject.toml by itself, without limrank and torch.
.venv-docs/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' \
		| .venv-docs/bin/python -m pip install --quiet -r /dev/stdin
	touch $@

reference: setup
	$(BIN)/python -m limrank.config.reference

clean:
	rm -rf runs build dist site .pytest_cache .ruff_cache .mypy_cache
