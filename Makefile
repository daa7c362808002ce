# make sample   sets up .venv and makes a picture with the model in the box
# make test     sets up .venv with the test and parity packages and runs the tests
# make lint     ruff and mypy
#
# TORCH keeps a build of torch of your choice, for instance one without CUDA:
#     make TORCH="torch==2.13.0" sample
# It is installed first and held while everything else is installed. PYTHON names the interpreter the .venv is made with.

PYTHON ?= python3
TORCH ?=
VENV ?= .venv
PROMPT ?= a red apple on a blue background
ARGS ?=

PY := $(VENV)/bin/python
CONSTRAINTS := $(VENV)/constraints.txt
INSTALL := $(PY) -m pip install --disable-pip-version-check --constraint $(CONSTRAINTS)

.PHONY: sample test lint setup clean

sample: $(VENV)/.ready
	$(PY) -m ldm.sample -p "$(PROMPT)" $(ARGS)

test: $(VENV)/.ready-test
	$(PY) -m pytest -n auto --maxprocesses 8 --dist loadfile $(ARGS)

lint: $(VENV)/.ready-test
	$(PY) -m ruff check .
	$(PY) -m mypy

setup: $(VENV)/.ready-test

# The stamps are older than pyproject.toml when it has changed: then, and only then, the packages are installed again.
$(VENV)/.ready: pyproject.toml $(CONSTRAINTS)
	$(INSTALL) --editable .
	touch $@

# k-diffusion declares 17 packages for training, none of which its samplers need. open_clip_torch brings torchvision, which ldm never
# imports but transformers does where it lies: one that was built for another torch goes.
$(VENV)/.ready-test: pyproject.toml $(CONSTRAINTS)
	$(INSTALL) --editable ".[dev,parity]"
	$(INSTALL) --no-deps k-diffusion
	$(PY) -c "import torchvision" 2>/dev/null || $(PY) -m pip uninstall --yes torchvision
	touch $(VENV)/.ready $@

$(CONSTRAINTS):
	$(PYTHON) -m venv $(VENV)
	printf '%s\n' $(foreach pin,$(TORCH),'$(pin)') > $@.new
	$(if $(TORCH),$(PY) -m pip install --disable-pip-version-check $(foreach pin,$(TORCH),'$(pin)'))
	mv $@.new $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
