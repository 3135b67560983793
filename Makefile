# make setup | demo | demo-probabilistic | test | test-long | mutants | lint. PYTHON=... picks the interpreter (3.11 or newer) the environment is made from.
PYTHON ?=
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
CODE := spn_jax teacher_export configs scripts tests

.PHONY: setup demo demo-probabilistic test test-long mutants lint
.DELETE_ON_ERROR:

setup: $(READY)

$(READY): pyproject.toml $(wildcard constraints/*.txt) scripts/setup.sh
	@PYTHON="$(PYTHON)" bash scripts/setup.sh $(VENV)
	@touch $@

demo: setup
	@echo "demo 1/4: photos"
	@$(RUN) scripts/make_demo_photos.py --output runs/demo/photos --size 128
	@echo "demo 2/4: features of a teacher with random weights (the paper's \"SPN w/ rand\": the trained one has to be downloaded)"
	@$(RUN) -m teacher_export --config configs/demo.py --weights random
	@echo "demo 3/4: training"
	@$(RUN) -m spn_jax.train --config configs/demo.py --workdir runs/demo/run
	@echo "demo 4/4: evaluation"
	@$(RUN) -m spn_jax.evaluate run --checkpoint runs/demo/run --method mean --method opencv-telea \
		--output runs/demo/evaluation --grid 6
	@echo "The teacher knew nothing, there were minutes of training on a few photos: this shows that the program works, not what SPN can do."
	@echo "demo done: table runs/demo/evaluation/results.md, pictures runs/demo/evaluation/grid.png and loss_curves.png"

demo-probabilistic: setup
	@echo "demo 1/4: photos"
	@$(RUN) scripts/make_demo_photos.py --output runs/demo/photos --size 128
	@echo "demo 2/4: features of a teacher with random weights"
	@$(RUN) -m teacher_export --config configs/demo_probabilistic.py --weights random
	@echo "demo 3/4: training; VGG19 of the perceptual losses has random weights too"
	@$(RUN) -m spn_jax.train --config configs/demo_probabilistic.py --workdir runs/demo/probabilistic
	@echo "demo 4/4: evaluation, five completions of each hole"
	@$(RUN) -m spn_jax.evaluate run --checkpoint runs/demo/probabilistic --method mean --output runs/demo/probabilistic_evaluation --grid 6
	@echo "demo done: table runs/demo/probabilistic_evaluation/results.md, pictures grid.png and loss_curves.png beside it"

lint: setup
	@echo "lint 1/3: ruff format"
	@$(RUN) -m ruff format --check $(CODE)
	@echo "lint 2/3: ruff check"
	@$(RUN) -m ruff check $(CODE)
	@echo "lint 3/3: mypy"
	@$(RUN) -m mypy

test: lint
	@echo "tests: pytest"
	@$(RUN) -m pytest -n 2 --max-worker-restart 0 --dist loadfile --no-loadscope-reorder  # two at a time; a file is one process, which shares what its tests compile

test-long: setup
	@echo "tests: pytest -m long"
	@$(RUN) -m pytest -m long

SAMPLE ?= 9
SEED ?= 0
mutants: setup
	@echo "mutants: $(SAMPLE) changes of each module, drawn with SEED=$(SEED); about a quarter of an hour"
	@$(RUN) scripts/mutants.py --sample $(SAMPLE) --seed $(SEED)
