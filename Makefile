# make demo [FIRMWARE=path]   the whole story on the virtual board
# make test                   all tests; make test-all adds every power cut and every mutation
# make test-more              tests on the oldest Python and another MicroPython, and the site
#                             with COVERAGE=yes they say what of mpota they have run
# make lint                   ruff, formatting, types, who imports whom
# make bench                  measurements against peers
# make docs                   the documentation site, in site/
# make release                wheel, source archive and compiled package, in dist/, each tried
# Each does all its own set-up in .venv.

VENV := .venv
PYTHON ?= python3
READY := $(VENV)/.ready
RUN := $(VENV)/bin
PYTEST := $(RUN)/python -m $(if $(COVERAGE),slipcover -m )pytest -n auto --dist worksteal

.PHONY: demo test test-all test-more lint bench firmware fetched docs release clean

demo: firmware
	$(RUN)/mpota demo $(FIRMWARE)

test: fetched
	$(PYTEST)

test-all: fetched
	$(PYTEST) --all-cuts

test-more: fetched
	.ci/more

lint: $(READY)
	$(RUN)/ruff check
	$(RUN)/ruff format --check
	$(RUN)/mypy
	$(RUN)/lint-imports --no-cache

# A stock MicroPython, and the script of first-installation pages, fetched as data into the user's
# cache; without network a line says so.
firmware: $(READY)
	@$(RUN)/python .ci/firmware

# What else tests take from the package indexes, as data into the same cache.
fetched: firmware
	@$(RUN)/python .ci/esp-web-tools
	@$(RUN)/python -m tests.support.mqtt_clients

bench: $(READY)
	# Peers that are built from C: without a compiler they are left out.
	-$(RUN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(RUN)/python -m bench

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --strict

$(VENV)/.docs: $(READY)
	$(RUN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

release: $(READY)
	$(RUN)/pip install --quiet --disable-pip-version-check --editable '.[release]'
	$(RUN)/python .ci/release.py

$(READY): pyproject.toml .ci/venv
	PYTHON=$(PYTHON) .ci/venv $(VENV)
	$(RUN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist site
