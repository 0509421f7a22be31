# Two commands set themselves up from a bare clone: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
LPM := $(BIN)/lpm

.PHONY: demo test parity lint lock clean

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

test: .venv/ready
	$(BIN)/python -m pytest

# The same weights through the public PyTorch modules; installs torch, diffusers and transformers.
parity: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[parity]"
	$(BIN)/python -m pytest tests/weights/test_public_parity.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

demo: .venv/ready
	BIN=$(BIN) bash launch/demo.sh

# Exact versions of everything a test or the demo needs; names no download address.
lock:
	uv pip compile pyproject.toml --universal --extra data --extra dev --python-version 3.11 --no-header \
	  --no-annotate --no-emit-index-url --output-file requirements.lock

clean:
	rm -rf demo .venv
