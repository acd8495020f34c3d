# `make demo` and `make test` do all the set-up on a machine with Python 3.11, pip and a C compiler.

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-all check bench bundle wheel clean

$(STAMP): pyproject.toml setup.py constraints.txt tools/dev-requirements.txt $(wildcard edgeseg/scoring/native/*.[ch])
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[opencv,openvino,build]' --requirement tools/dev-requirements.txt
	touch $@

demo: $(STAMP)
	$(BIN)/python tools/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tools/check_c.py

bench: $(STAMP)
	$(BIN)/python tools/bench_peers.py

# The ready INT8 bundle that the wheel carries.
bundle: $(STAMP)
	$(BIN)/edgeseg export midenet --int8 -o edgeseg/bundles/ready

wheel: $(STAMP)
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf build dist out *.egg-info edgeseg/scoring/native/*.so .mypy_cache .ruff_cache .pytest_cache
