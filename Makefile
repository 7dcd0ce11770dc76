# The chores, one target each; CI and the README call the same ones. Each does its own set-up.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-quick check lint types install data clean

demo: install            ## train a small model on the digits, search for flops=50%, export; leaves runs/demo
	$(BIN)/python run_search.py launch

test: install            ## all tests; three at once keep two cores busy, as many wait; the tests of a file share what they prepare
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-quick: install      ## those that take no process, no server and no whole search
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow'

check: lint types test   ## what CI runs

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

install: $(READY)        ## the environment in .venv, versions pinned in constraints.txt

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.11"'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev]'
	touch $(READY)

data:                    ## Fashion-MNIST in data/, from Debian's package dataset-fashion-mnist
	$(BIN)/python benchmarks/fashion_mnist.py

clean:                   ## everything that the other targets made, except runs/ and data/
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache *.egg-info
