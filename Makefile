# What one types while working on the package. `make test` is what CI runs.
PYTHON ?= python

.PHONY: install test quick lint docs bench

install:
	$(PYTHON) -m pip install -e ".[test,docs]"

test:
	$(PYTHON) -m pytest -n auto

quick:
	$(PYTHON) -m pytest -n auto -m "not slow and not lint"

lint:
	$(PYTHON) -m flake8 tta_apm baselines tests benchmarks examples run.py setup.py
	$(PYTHON) -m mypy

docs:
	$(PYTHON) -m mkdocs build --strict

bench:
	OMP_NUM_THREADS=2 $(PYTHON) benchmarks/apm.py --preset slim --images 1 --steps 20 --authors-steps 1 --no-warm-up
