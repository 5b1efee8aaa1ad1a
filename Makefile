# make demo    the whole product on a generated organisation, on this machine   (KEEP=1 leaves the cluster up)
# make test    all tests                                                        (ARGS=… goes to pytest)
# make lint    ruff and mypy
# make bench   the benchmarks, with their tables of ratios       (BENCHMARKS="shard grid", ARGS=… go to them)
#
# Needs Python 3.11 to 3.13 and make; PYTHON=… names another interpreter. What is installed goes to .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
BENCHMARKS := shard train_loop grid endpoint pull
# Nothing is fetched while the product or its tests run: no telemetry, no model hub.
export RAY_USAGE_STATS_ENABLED := 0
export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1

.PHONY: demo test lint bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/base.stamp
	$(BIN)/crmray demo $(if $(KEEP),--keep)

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/dev.stamp
	set -e; for name in $(BENCHMARKS); do $(BIN)/python -m tests.benchmarks.$$name $(ARGS); done

# torch first and by itself: with it there, nothing else asks for another build of it.
$(VENV)/base.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "got Python %d.%d, expected 3.11 to 3.13; say make PYTHON=python3.11" % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) --constraint constraints.txt --editable '.[sandbox]'
	touch $@

$(VENV)/dev.stamp: $(VENV)/base.stamp
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
