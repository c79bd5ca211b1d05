# Two commands: `make demo` turns a prompt into an MP4 on the CPU, `make test` runs every test.
# Both make their own virtual environment, kept in the cache folder and reused while
# tools/requirements.txt is unchanged.
PYTHON ?= python3
AIPROD_CACHE ?= $(HOME)/.cache/aiprod
export AIPROD_CACHE

VENV := $(AIPROD_CACHE)/venv-$(shell sha256sum tools/requirements.txt | cut -c1-12)
RUN := $(VENV)/bin/python
PROMPT ?= A steam train crosses a stone viaduct at dawn, whistle echoing through the valley

.PHONY: demo test lint clean-cache

demo: $(VENV)/.complete
	$(RUN) tools/demo.py --prompt "$(PROMPT)"

test: $(VENV)/.complete
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	-$(RUN) tools/chromium.py
	$(RUN) -m pytest -q

$(VENV)/.complete:
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r tools/requirements.txt
	touch $@

clean-cache:
	rm -rf $(AIPROD_CACHE)
