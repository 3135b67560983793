# make setup | demo | demo-probabilistic | check | test | test-long | mutants | lint. PYTHON=... picks the interpreter (3.11 or newer) the environment is made from.
PYTHON ?=
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
SCENES := spn_jax/pretrained/open_scenes/scenes
CODE := spn_jax teacher_export configs scripts tests

.PHONY: setup demo demo-probabilistic check test test-long mutants lint
.DELETE_ON_ERROR:

setup: $(READY)

$(READY): pyproject.toml $(wildcard constraints/*.txt) scripts/setup.sh
	@PYTHON="$(PYTHON)" bash scripts/setup.sh $(VENV)
	@touch $@

demo: setup
	@echo "demo 1/5: holes in photos of scenes that the model was not trained on, filled by the model that comes with the package"
	@$(RUN) -m spn_jax.predict --image $(SCENES)/photos --mask $(SCENES)/masks --output runs/demo/filled
	@$(RUN) -m spn_jax.evaluate run --checkpoint shipped=pretrained:open_scenes --method opencv-telea --method opencv-ns \
		--photos $(SCENES)/photos --masks objects --image-size 256 --output runs/demo/scenes --grid 8 data.crop=center
	@echo "demo 2/5: photos to train on"
	@$(RUN) scripts/make_demo_photos.py --output runs/demo/photos --size 128
	@echo "demo 3/5: features of the teacher, EfficientNet-Lite0 trained on ImageNet"
	@$(RUN) -m teacher_export --config configs/demo.py
	@echo "demo 4/5: training, from the parameters of the model that comes with the package"
	@$(RUN) -m spn_jax.train --config configs/demo.py --workdir runs/demo/run --init pretrained:open_scenes
	@echo "demo 5/5: evaluation"
	@$(RUN) -m spn_jax.evaluate run --checkpoint shipped=pretrained:open_scenes --checkpoint trained=runs/demo/run --method mean \
		--method opencv-telea --method opencv-ns --config configs/demo.py --output runs/demo/evaluation --grid 6
	@echo "demo done: photos filled by the shipped model in runs/demo/scenes/grid.png and the folder runs/demo/filled;"
	@echo "the table of the short training is runs/demo/evaluation/results.md, its pictures grid.png and loss_curves-trained.png lie beside it"

demo-probabilistic: setup
	@echo "demo 1/4: photos"
	@$(RUN) scripts/make_demo_photos.py --output runs/demo/photos --size 128
	@echo "demo 2/4: features of the teacher, EfficientNet-Lite0 trained on ImageNet"
	@$(RUN) -m teacher_export --config configs/demo_probabilistic.py
	@echo "demo 3/4: training; VGG19 of the perceptual losses has random weights"
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
	@$(RUN) -m mypy --num-workers auto

# For the daily work, under a minute: the packages that import no other of ours, and what is said about the whole program.
LEAVES := tests/runtime tests/drawing tests/metrics tests/test_config.py tests/test_imports.py tests/test_docs.py

check: lint
	@echo "tests: pytest, leaves"
	@$(RUN) -m pytest -q -n 2 $(LEAVES)

test: lint
	@echo "tests: pytest"
	@$(RUN) -m pytest -n 3 --max-worker-restart 0 --dist loadfile --no-loadscope-reorder --durations 40  # three at a time, since they wait for browsers and disks too; a file is one process, which shares what its tests compile

test-long: setup
	@echo "tests: pytest -m long"
	@$(RUN) -m pytest -m long

SAMPLE ?= 9
SEED ?= 0
mutants: setup
	@echo "mutants: $(SAMPLE) changes of each module, drawn with SEED=$(SEED); about a quarter of an hour"
	@$(RUN) scripts/mutants.py --sample $(SAMPLE) --seed $(SEED)
