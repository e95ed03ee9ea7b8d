# Everything runs in .venv, which `setup` makes once; its stamp depends on the files that name the packages.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
STAMP := $(VENV)/.installed

.PHONY: setup smoke test check fmt bench bench-model bench-curate bench-data bench-train chaos soak gpu debian clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	# torch first and alone: with it in place nothing else pulls another build.
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[dev,smoke]'
	touch $@

# What tests need beside Python packages: Slurm, to try the batch script on, shellcheck, and a browser for the pages.
debian:
	@PATH="$$PATH:/usr/sbin"; { command -v slurmctld && command -v shellcheck && command -v chromedriver; } >/dev/null || { \
		$(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
		--no-install-recommends slurm-wlm shellcheck chromium chromium-driver; }

smoke: setup
	$(BIN)/python launch/smoke.py launch/configs/smoke.toml

# Unit tests run side by side, one thread each; the others start processes of their own.
test: setup debian
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit -n 2 --dist loadfile
	$(BIN)/python -m pytest tests/distributed tests/faults tests/e2e

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m pytest tests/bench -s --timeout=1800

# Model, VAE, prompt encoder and loading against their peers; numbers in runs/bench/model.json.
bench-model: setup
	$(BIN)/python -m pytest tests/bench/test_mmdit.py tests/bench/test_vae.py tests/bench/test_prompt.py \
		tests/bench/test_load.py -s --timeout=1800

# The training loop against its bare parts, recompute and checkpoints; numbers in runs/bench/train.json.
bench-train: setup
	$(BIN)/python -m pytest tests/bench/test_train.py tests/bench/test_recompute.py tests/bench/test_checkpoint.py \
		tests/bench/test_planner.py -s --timeout=1800

# Delivery, coordinator, recovery and encoding against their peers and limits; numbers in runs/bench/data.json.
bench-data: setup
	$(BIN)/python -m pytest tests/bench/test_plan.py tests/bench/test_data.py tests/bench/test_delivery.py \
		tests/bench/test_encode.py tests/bench/test_transport_security.py -s --timeout=1800

# Operators against one library call and one decode a judgement, duplicates, synthesis; numbers in runs/bench/curate.json.
bench-curate: setup
	$(BIN)/python -m pytest tests/bench/test_curate.py tests/bench/test_curate_pictures.py \
		tests/bench/test_synthesize.py -s --timeout=1800

# Faults of every kind against the data plane: at most 15 minutes.
chaos: setup
	$(BIN)/python -m pytest tests/chaos -s --timeout=1200

# The fault tests at full length: hours. Results in runs/soak/report.json.
soak: setup
	$(BIN)/python -m pytest tests/soak -s --timeout=7200
	$(BIN)/python -m pytest -m long

gpu: setup
	$(BIN)/python -m pytest tests/gpu -s --timeout=1800

clean:
	rm -rf $(VENV) runs
