# The two commands of the README, and what they need. Python 3.11 or newer, nothing else prepared.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: demo test coverage slow lowest lint benchmarks exports pictures clean

demo: $(VENV)/.installed
	$(BIN)/convlens train mnist --epochs 5 --lr 0.1 --batch-size 512 --norm batch

# Each worker computes with one thread; a file's tests stay together, with what they share.
test: $(VENV)/.installed-test lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile

coverage: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile --cov --cov-report=term-missing

slow: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile -m slow

# Whether the lowest versions that pyproject.toml allows work, in an environment with just those.
LOWEST := .venv-lowest
lowest:
	$(PYTHON) -m venv --clear $(LOWEST)
	sed -nE '/^test = /,/^\]/d; s/.*"([a-z-]+)>=([0-9.]+).*".*/\1==\2/p' pyproject.toml > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/pip install --quiet --constraint $(LOWEST)/lowest.txt --editable '.[export,lightning,metrics,tensorboard,timm,torchvision]' hypothesis playwright pytest
	OMP_NUM_THREADS=1 $(LOWEST)/bin/pytest -p no:cacheprovider -W ignore tests/cli/test_cli.py tests/data/test_data_files.py \
		tests/inference/test_inference_export.py tests/train/test_train_metrics.py \
		tests/runs/test_runs_checkpoints.py tests/geometry/test_geometry_pictures.py tests/watching/test_watching_compiled.py \
		tests/integrations/test_integrations_tensorboard.py tests/integrations/test_integrations_lightning.py::test_a_recorded_fit_is_read_from_disk \
		tests/web/test_web_server.py tests/web/test_web_curves.py tests/web/test_web_report.py

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

benchmarks: $(VENV)/.installed
	$(BIN)/python benchmarks/loop.py
	$(BIN)/python benchmarks/watch.py
	$(BIN)/python benchmarks/story.py
	$(BIN)/python benchmarks/view.py

# ONNX Runtime and the reloaded folder against predict, for a dozen networks.
exports: $(VENV)/.installed-test
	$(BIN)/python benchmarks/export.py

pictures: $(VENV)/.installed-test
	$(BIN)/python docs/pictures.py

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.exit("convlens needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; say: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) build dist
