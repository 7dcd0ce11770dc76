# The chores, one target each; CI and the README call the same ones. Each does its own set-up.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
OLDEST := .venv-oldest
TWO_CORES := -n 2 --dist loadfile --no-loadscope-reorder
THREE := -n 3 --dist loadfile --no-loadscope-reorder  # of the slow tests many wait: three at once keep two cores busy

# The wheels are for this Python on x86-64 Linux, for a machine that has these packages and what they need.
WHEELS_PYTHON ?= 3.12
WHEELS_PLATFORMS ?= manylinux1_x86_64 manylinux2010_x86_64 manylinux2014_x86_64 manylinux_2_27_x86_64 manylinux_2_28_x86_64
WHEELS_HAS ?= torch torchvision huggingface-hub pandas scipy scikit-learn matplotlib pytest
PARTS ?=
MINUTES ?= 9
GPU_OPTIONS ?=
GPU_PATH = $(CURDIR)/wheels/site:$(CURDIR):$(CURDIR)/benchmarks

.PHONY: demo test test-all test-quick test-oldest coverage check lint types install data wheels gpu clean

demo: install            ## train a small model on the digits, search for flops=50%, export; leaves runs/demo
	$(BIN)/python run_search.py launch

test: install            ## the tests; those of a file share what they prepare
	$(BIN)/python -m pytest $(THREE) -m "not long"

test-all: install        ## those that take a minute each too
	$(BIN)/python -m pytest $(THREE)

test-quick: install      ## the tests of functions and commands in this process; no searches in other processes
	$(BIN)/python -m pytest $(TWO_CORES) -m "not slow and not long"

test-oldest: $(OLDEST)/.ready  ## the quick tests with the oldest versions that pyproject.toml allows
	$(OLDEST)/bin/python -m pytest $(TWO_CORES) -m "not slow and not long"

coverage: install        ## all tests, and which lines of the packages they run: at least the share that pyproject.toml says
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(TWO_CORES)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

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

# Made anew from nothing: uv would keep newer versions that are there already.
$(OLDEST)/.ready: pyproject.toml $(READY)
	rm -rf $(OLDEST)
	$(BIN)/uv venv --quiet --python $(BIN)/python $(OLDEST)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(OLDEST)/bin/python --resolution lowest-direct -r pyproject.toml --extra dev
	touch $(OLDEST)/.ready

data:                    ## Fashion-MNIST in data/, from Debian's package dataset-fashion-mnist
	$(BIN)/python benchmarks/fashion_mnist.py

wheels: install          ## what a bare machine with PyTorch lacks, in wheels/1 and wheels/2
	PYTHONPATH=benchmarks $(BIN)/python -m gpu.wheels collect wheels --python $(WHEELS_PYTHON) --platforms $(WHEELS_PLATFORMS) --has $(WHEELS_HAS)

# With the machine's own Python, no environment and no network.
gpu:                     ## everything that needs a GPU, in parts: PARTS="tests train" MINUTES=9, see benchmarks/gpu
	-PYTHONPATH=$(GPU_PATH) $(PYTHON) -m gpu.wheels install wheels
	PYTHONPATH=$(GPU_PATH) $(PYTHON) -m gpu --minutes $(MINUTES) $(if $(PARTS),--part $(PARTS)) $(GPU_OPTIONS)

clean:                   ## everything that the other targets made, except runs/, data/ and wheels/
	rm -rf .venv $(OLDEST) .mypy_cache .pytest_cache .ruff_cache .coverage* *.egg-info
