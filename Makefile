# make demo [FIRMWARE=path]   the whole story on the virtual board
# make test                   all tests; make test-all adds every power cut
# make lint                   ruff, formatting, types, who imports whom
# make bench                  measurements against peers
# Each does all its own set-up in .venv.

VENV := .venv
READY := $(VENV)/.ready
RUN := $(VENV)/bin

.PHONY: demo test test-all lint bench clean

demo: $(READY)
	$(RUN)/mpota demo $(FIRMWARE)

test: $(READY)
	$(RUN)/pytest -n auto

test-all: $(READY)
	$(RUN)/pytest -n auto --all-cuts

lint: $(READY)
	$(RUN)/ruff check
	$(RUN)/ruff format --check
	$(RUN)/mypy
	$(RUN)/lint-imports --no-cache

bench: $(READY)
	# Peers that are built from C: without a compiler they are left out.
	-$(RUN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(RUN)/python -m bench

$(READY): pyproject.toml .ci/venv
	.ci/venv $(VENV)
	$(RUN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist
