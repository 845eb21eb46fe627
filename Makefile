# The two commands of the README are `make run` and `make test`; the others are for people who
# change the code. Everything is installed into .venv, from pyproject.toml alone.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXAMPLE := examples/house-price
HTTP_PORT ?= 8080
METRICS_PORT ?= 9000

.PHONY: run test check bench containers example proto clean

run: $(VENV)/.runtime
	@echo
	@echo "When the engine says Ready, paste one of these into another terminal:"
	@echo
	@echo "  curl -X POST localhost:$(HTTP_PORT)/infer -H 'Content-Type: application/vnd.apache.arrow.file' --data-binary @$(EXAMPLE)/houses.arrow"
	@echo
	@echo "  curl -X POST localhost:$(HTTP_PORT)/infer -H 'Content-Type: application/json; format=pandas-records' --data @$(EXAMPLE)/houses.df.json"
	@echo
	@PIPELINE_URL=oci-layout:$(EXAMPLE)/pipeline:v1 HTTP_PORT=$(HTTP_PORT) METRICS_PORT=$(METRICS_PORT) \
		exec $(BIN)/sagitta serve

# Three workers on two cores: tests wait for engines. A file's tests share engines and stay together;
# the files go out as they come, folders of long ones first, so that quick ones fill the end.
test: $(VENV)/.development
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.development
	@mkdir -p .benchmarks
	$(BIN)/pytest benchmarks --benchmark-quiet --benchmark-json=.benchmarks/figures.json
	$(BIN)/python benchmarks/report.py .benchmarks/figures.json

containers: # images, compose and chart on real runtimes; see the head of the script
	.ci/containers

example: $(VENV)/.development
	$(BIN)/python $(EXAMPLE)/make_example.py

proto: $(VENV)/.development
	cd proto && ../$(BIN)/python -m grpc_tools.protoc -I. --python_out=../engine/_proto \
		--pyi_out=../engine/_proto $$(find . -name '*.proto')

clean:
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[cpu]'
	@touch $@

$(VENV)/.development: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[cpu,dev]'
	@touch $@

$(VENV)/.containers: $(VENV)/.development
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[cpu,dev,containers]'
	@touch $@
