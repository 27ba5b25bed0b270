# Two commands do all the set-up on a machine with Python 3.11 or newer:
#   make train   virtual environment, install, LeNet-5 on MNIST, results shown
#   make serve   a page on which to try the newest run
#   make test    the same environment with what developers need, then the tests

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

NEWEST_RUN = $$(dirname "$$(ls -td runs/*/metrics.json | head -1)")

.PHONY: train serve test slow lint docs bench records clean

train: $(VENV)/installed
	$(BIN)/heptad train lenet5

serve: $(VENV)/installed
	$(BIN)/heptad serve "$(NEWEST_RUN)"

# Two processes of one thread each: two cores are used better so than by two threads in one process.
# Python keeps what it compiles, else each of the many processes that tests start compiles it again.
TESTS = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n 2

test: $(VENV)/installed-dev
	$(TESTS)

slow: $(VENV)/installed-dev
	$(TESTS) -m slow --dist worksteal

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed-dev
	$(BIN)/python docs/generate.py

# Twenty-odd minutes, on a machine that does nothing else; writes into docs/benchmarks.md.
bench: $(VENV)/installed-bench
	$(BIN)/python benchmarks/against_peers.py --require-all --write
	$(BIN)/python benchmarks/growth.py --write

# About an hour, on a machine that does nothing else; writes into docs/records.md.
records: $(VENV)/installed
	$(BIN)/python benchmarks/records.py --write

clean:
	rm -rf $(VENV)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[web,onnx]'
	touch $@

$(VENV)/installed-dev: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/installed

$(VENV)/installed-bench: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[bench,web,onnx]'
	touch $@ $(VENV)/installed
