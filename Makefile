# make demo   install, then train and measure SeaPO on a real small model; ends in demo/report.md
# make test   install, then run every test
.PHONY: demo test test-core test-llamafactory lint format docs clean

CORE := .venvs/core/bin
LLAMAFACTORY := .venvs/llamafactory/bin

# Tests run tiny models: one thread each is fastest.
export OMP_NUM_THREADS ?= 1

# All cores, and no spinning for them, so that a busy machine does not slow it down out of proportion.
demo: env-llamafactory
	OMP_NUM_THREADS=$(shell nproc) OMP_WAIT_POLICY=passive $(LLAMAFACTORY)/python examples/demo.py --output demo

test: lint test-core test-llamafactory

test-core: env-core
	$(CORE)/python -m pytest tests --ignore=tests/hosts

test-llamafactory: env-llamafactory
	@scripts/make_browser.sh
	$(LLAMAFACTORY)/python -m pytest tests/hosts/llamafactory

lint: env-core
	$(CORE)/ruff check .
	$(CORE)/ruff format --check .
	$(CORE)/mypy

format: env-core
	$(CORE)/ruff check --fix .
	$(CORE)/ruff format .

# Make an environment from its lock file: env-core, env-llamafactory.
env-%:
	@scripts/make_env.sh $*

clean:
	rm -rf .venvs build dist demo plugins/*.egg-info
