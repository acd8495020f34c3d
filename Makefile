# `make demo` and `make test` do all the set-up on a machine with Python 3.11, pip and a C compiler.
# PYTHON=python3.12 and VENV=folder choose others.

PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
KERNELS := $(VENV)/.kernels

# TensorRT-RTX builds engines and NVRTC 12.9 compiles for Xavier, both without a GPU; `make test RTX=no`
# does without them. In an environment of their own, for they are half a gigabyte.
RTX ?= yes
RTX_VENV := .venv-rtx
RTX_PACKAGES := tensorrt-rtx-cu12==1.7.1.116 nvidia-cuda-nvrtc-cu12==12.9.86 numpy

# Test processes at a time; a file's tests stay together, for they share what is dear to set up.
JOBS ?= 2

DATA := $(or $(EDGESEG_TEST_DATA),../shared/data)

.PHONY: demo test check format bench figures zoo compression ranges tables wheel clean

$(INSTALLED): pyproject.toml setup.py constraints.txt tools/dev-requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[opencv,openvino,train]' --requirement tools/dev-requirements.txt
	touch $@ $(KERNELS)

# The install above compiles kernels and C library; this does it again when only sources changed.
SOURCES := $(wildcard edgeseg/scoring/native/*.[ch] edgeseg/clib/*.[ch] edgeseg/clib/*.map edgeseg/include/*.h)
$(KERNELS): $(SOURCES) | $(INSTALLED)
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

demo: $(KERNELS)
	$(BIN)/python tools/demo.py

# Where the download fails, on another processor for example, the tests that want it skip.
$(RTX_VENV)/.installed: Makefile
	test -x $(RTX_VENV)/bin/python || $(PYTHON) -m venv $(RTX_VENV)
	$(RTX_VENV)/bin/python -m pip install --quiet --retries 1 --timeout 30 $(RTX_PACKAGES)
	touch $@

test: $(KERNELS)
	[ $(RTX) = no ] || $(MAKE) $(RTX_VENV)/.installed || echo "no TensorRT-RTX; its tests will skip"
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

check: $(KERNELS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tools/check_c.py

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Figures for the tables of README.md; both want a quiet machine and the data folder.
bench: $(KERNELS)
	$(BIN)/python tools/bench_peers.py --weights $(DATA)/weights --json tools/results/bench_peers.json

figures: $(KERNELS)
	$(BIN)/python tools/reproduce_figures.py --data $(DATA) -o tools/results/figures_float32.json

# Our weights beside the published ones.
zoo: $(KERNELS)
	$(BIN)/python tools/measure_zoo.py --data $(DATA)

# Every network in every compressed form; hours, of which what is done is kept in logs/compression.
compression: $(KERNELS)
	$(BIN)/python tools/compression_table.py --data $(DATA) \
	    --rows float32 pruned int8 pruned-int8 fx distilled timed \
	    --finetune-steps 400 erfnet=1000 --distill-steps 600 \
	    --verdicts --json tools/results/compression.json \
	    --markdown tools/results/compression.md --picture tools/results/compression.png

# What belongs to the shipped weights: ranges for INT8, and the ready bundle that the wheel carries.
ranges: $(KERNELS)
	for network in enet erfnet bisenet midenet; do \
	    $(BIN)/python tools/make_shipped_ranges.py $$network \
	        --source "Cityscapes train, the 10 full-resolution frames" \
	        --frames $(DATA)/cityscapes/leftImg8bit/train || exit; \
	done
	$(BIN)/python -m edgeseg export midenet --int8 -o edgeseg/bundles/ready
	$(BIN)/python -m edgeseg profile midenet --backend onnxruntime --threads 1 \
	    --save-baseline tools/ci/baseline.json

# The tables of README.md, from the figures in tools/results.
tables: $(INSTALLED)
	$(BIN)/python tools/make_readme.py

# From an empty build folder, so that no file of an earlier build slips in.
wheel: $(INSTALLED)
	rm -rf build
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(BIN)/python tools/make_sbom.py dist/edgeseg-*.whl

clean:
	rm -rf build dist out *.egg-info edgeseg/scoring/native/*.so edgeseg/lib/*.so.* .mypy_cache .ruff_cache .pytest_cache
