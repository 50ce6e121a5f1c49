# `make demo` and `make test` set up everything they need in .venv; nothing else is touched.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# TRAINING=0 leaves torch out: the training tests then skip and say so.
TRAINING ?= 1
# A file of tests is one worker's, so what its tests share is made once (tests/conftest.py: the order).
WORKERS := -n auto --dist loadfile --no-loadscope-reorder
TEST_REQUIREMENTS := $(if $(filter 1,$(TRAINING)),requirements-training.txt,requirements-dev.txt)

.PHONY: help setup demo test test-fast test-newest check format mutants soak bench gpu-check test-aarch64 docs clean distclean
help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 11

# A stamp a requirements file: set-up runs again only when the file changes.
$(VENV)/stamp-%: % setup.py
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 10) <= sys.version_info[:2] <= (3, 13) else "depth_node needs Python 3.10 to 3.13, and $(PYTHON) is %d.%d: run make PYTHON=python3.12" % sys.version_info[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# Without --use-pep517 older pips put depth_tools beside the node's executable (setup.cfg), not into bin.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517 -r $<
	@touch $@
$(VENV)/stamp-requirements-dev.txt: requirements.txt
$(VENV)/stamp-requirements-training.txt: requirements.txt requirements-dev.txt

setup: $(VENV)/stamp-requirements.txt  ## make .venv with the node, its tools and ROS 2 Jazzy
demo: $(VENV)/stamp-requirements.txt  ## live demo: camera and LiDAR in, metric depth out, over ROS 2
	$(BIN)/depth_tools demo $(ARGS)
test: $(VENV)/stamp-$(TEST_REQUIREMENTS)  ## all tests (ARGS="-k name" to choose)
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)
test-fast: $(VENV)/stamp-requirements-dev.txt  ## a minute on two cores: no live ROS, no training, nothing slow
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow and not gpu" --ignore tests/ros --ignore tests/training $(ARGS)
test-newest:  ## the fast tier and a demo on the newest of everything that PyPI has, in .venv-newest
	$(PYTHON) -m venv --clear .venv-newest
	sed -E '/^(-|#|setuptools|colcon)/d; s/==[^;]*//' requirements.txt requirements-dev.txt > .venv-newest/newest.txt
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --use-pep517 -r .venv-newest/newest.txt -e .
	.venv-newest/bin/python -m pip list --disable-pip-version-check
	.venv-newest/bin/python -m pytest -n auto -m "not slow and not gpu" --ignore tests/ros --ignore tests/training $(ARGS)
	.venv-newest/bin/depth_tools demo --out .venv-newest/demo
check: $(VENV)/stamp-$(TEST_REQUIREMENTS)  ## ruff and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
format: $(VENV)/stamp-requirements-dev.txt  ## ruff's format and its safe fixes
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
mutants: $(VENV)/stamp-requirements-dev.txt  ## which constants of the method no test notices (20 minutes)
	$(BIN)/python -m tests.mutants $(ARGS)
soak: $(VENV)/stamp-requirements-dev.txt  ## the live node for an hour under faults (ARGS="--minutes 3")
	$(BIN)/python -m tests.soak $(ARGS)
bench: $(VENV)/stamp-requirements.txt  ## the benchmarks of docs/benchmarks.md (not the accuracy ones, which need data)
	$(BIN)/depth_tools bench speed $(ARGS)
	$(BIN)/depth_tools bench field
gpu-check: $(VENV)/stamp-$(TEST_REQUIREMENTS) $(VENV)/stamp-requirements-gpu.txt  ## on a CUDA machine, 8 minutes: kernels, engines, times, memory
	$(BIN)/python -m depth_node.benchmarks.gpu $(ARGS)
	REQUIRE_GPU=1 $(BIN)/python -m pytest -m gpu tests/engine
test-aarch64: $(VENV)/stamp-requirements-dev.txt  ## tests of the core as on a Jetson, under qemu (an hour; skipped where it cannot be had)
	$(BIN)/python -m tests.aarch64 $(ARGS)
docs: $(VENV)/stamp-requirements.txt  ## regenerate docs/parameters.md from the code
	$(BIN)/depth_tools parameters > docs/parameters.md
clean:  ## remove what the targets above made, but not .venv
	rm -rf build install log demo_output demo_output_[0-9]* runs .pytest_cache .mypy_cache .ruff_cache
distclean: clean  ## and .venv, .venv-newest
	rm -rf $(VENV) .venv-newest
