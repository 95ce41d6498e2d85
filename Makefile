# make demo   install, then train and measure SeaPO on a real small model; ends in demo/report.md
# make test   install, then run every test; make test-fast, in under four minutes, what needs no host
.PHONY: demo test test-fast test-core test-chaos test-llamafactory test-pipelines test-openrlhf test-cross test-vllm test-eval \
	bench bench-gpu reproduce lint format docs docs-serve clean

CORE := .venvs/core/bin
LLAMAFACTORY := .venvs/llamafactory/bin
OPENRLHF := .venvs/openrlhf/bin
VLLM := .venvs/vllm/bin
EVAL := .venvs/eval/bin

# Tests run tiny models: one thread each is fastest.
export OMP_NUM_THREADS ?= 1

# All cores, and no spinning for them, so that a busy machine does not slow it down out of proportion.
demo: env-llamafactory
	OMP_NUM_THREADS=$(shell nproc) OMP_WAIT_POLICY=passive $(LLAMAFACTORY)/python examples/demo.py --output demo

# Two at a time, as most tests keep one core busy, the longest first, so that both cores are busy to the end, and all
# of them whatever fails. Each prints in one piece at its end.
test: lint
	$(MAKE) --jobs=2 --keep-going --output-sync=target \
		test-llamafactory test-openrlhf test-pipelines test-vllm test-core test-cross test-eval docs

OF_HOSTS := $(addprefix --ignore=tests/, hosts/llamafactory hosts/openrlhf hosts/cross engines evals)

# For daily work: no host, nothing slow.
test-fast: env-core
	$(CORE)/python -m pytest tests $(OF_HOSTS) -m "not slow and not chaos"

test-core: env-core
	$(CORE)/python -m pytest tests $(OF_HOSTS)

# 200 kills among small records, 50 among records of 2 MB, and every crash point; `test-core` has a shorter version.
test-chaos: env-core
	FINEPREF_CHAOS=full $(CORE)/python -m pytest tests/chaos

PIPELINES := $(addprefix tests/hosts/llamafactory/, test_apo_game.py test_reversegen_run.py)

test-llamafactory: env-llamafactory
	@scripts/make_browser.sh
	$(LLAMAFACTORY)/python -m pytest tests/hosts/llamafactory $(addprefix --ignore=, $(PIPELINES))

# Whole games of APO and ReverseGen on LLaMA-Factory, killed in each kind of step.
test-pipelines: env-llamafactory
	$(LLAMAFACTORY)/python -m pytest $(PIPELINES)

test-openrlhf: env-openrlhf
	$(OPENRLHF)/python -m pytest tests/hosts/openrlhf

# Both hosts, each in its environment, on the same records.
test-cross: env-llamafactory env-openrlhf
	$(OPENRLHF)/python -m pytest tests/hosts/cross

# The engine vllm and the workers of Ray, on the CPU.
test-vllm: env-vllm
	$(VLLM)/python -m pytest tests/engines

# `finepref eval` with lm-eval, offline: a minute.
test-eval: env-eval
	$(EVAL)/python -m pytest tests/evals

# Training against its peers, on an idle machine: results into benchmarks/results, tables into benchmarks/README.md.
# PAIRS is a file of LLaMA-Factory's dpo_en_demo; without it, the host's source archive is downloaded.
# One round takes under half an hour on two cores; ROUNDS=3 shows the spread.
BENCH := $(LLAMAFACTORY)/python benchmarks/training
RESULTS := benchmarks/results
ROUNDS ?= 1

bench: env-llamafactory env-openrlhf env-trl
	$(BENCH) --rounds $(ROUNDS) $(if $(PAIRS),--pairs $(PAIRS)) --json $(RESULTS)/training.json
	$(BENCH)/growth.py --json $(RESULTS)/growth.json
	$(BENCH)/meta_memory.py --json $(RESULTS)/memory.json
	$(BENCH)/page.py

# The same with larger sizes, on a GPU in bfloat16. It was never run.
bench-gpu: env-llamafactory env-openrlhf env-trl
	$(BENCH) --sizes cuda --rounds $(ROUNDS) $(if $(PAIRS),--pairs $(PAIRS)) --json $(RESULTS)/training-gpu.json
	$(BENCH)/growth.py --device cuda --json $(RESULTS)/growth-gpu.json
	$(BENCH)/page.py

# The documentation as a site in build/site: pages of docs/ and every README, links and anchors checked.
docs: env-docs
	NO_MKDOCS_2_WARNING=1 .venvs/docs/bin/python -m mkdocs build

# The same at http://127.0.0.1:8000, where the search works, which a browser refuses to pages of a file.
docs-serve: env-docs
	NO_MKDOCS_2_WARNING=1 .venvs/docs/bin/python -m mkdocs serve

# A paper's experiment: every seed of every arm, then its page in docs/reproduction. PAPER is tdpo, sepo or seapo; SEEDS
# is the number of seeds, by default as planned. What was done is not done again. An hour or less on one core.
reproduce: env-llamafactory
	$(LLAMAFACTORY)/python reproduce $(PAPER) $(if $(SEEDS),--seeds $(SEEDS))

lint: env-core
	$(CORE)/ruff check .
	$(CORE)/ruff format --check .
	$(CORE)/mypy

format: env-core
	$(CORE)/ruff check --fix .
	$(CORE)/ruff format .

# Make an environment from its lock file: env-core, env-llamafactory, env-openrlhf, env-vllm, env-eval, env-docs, and
# env-trl for `bench`.
env-%:
	@scripts/make_env.sh $*

# Wheel and sdist into dist/; tests/packaging has what they must hold. build/ could hold files of an older tree.
.PHONY: dist
dist: env-core
	rm -rf build dist
	$(CORE)/python -m build --no-isolation

clean:
	rm -rf .venvs .bench build dist demo plugins/*.egg-info
