# make install    the virtual environment .venv with everything that both trees need, and this package
# make demo    one clip on each bundled miniature: full, the paper's plan, ours (out/demo)
# make test    the test suite: what has time limits first, then the rest in two processes of one thread
# make lint    ruff and mypy
# make test-wheel    the wheel on its own, in an environment with the core's packages alone (needs a package index)
# make test-browser    the tests of the report and of the page in headless Chromium, installed from Debian's packages where missing
# All set everything up on a fresh machine (virtual environment .venv) and reuse it afterwards.
# Without a GPU, TORCH_INDEX=<package index of torch's CPU builds> saves the CUDA libraries.

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: install demo test test-wheel test-browser lint clean

install: $(INSTALLED)

demo: $(INSTALLED)
	$(VENV)/bin/python examples/demo.py --out out/demo

test: $(INSTALLED)
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(VENV)/bin/python -m pytest -m alone
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not alone"

test-wheel: $(INSTALLED)
	$(VENV)/bin/python tests/wheel/check_wheel.py

test-browser: $(INSTALLED)
	command -v chromium || (apt-get update && apt-get install -y chromium fonts-dejavu-core)
	$(VENV)/bin/python -m pytest tests/commands/test_report_browser.py tests/commands/test_app_browser.py

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(INSTALLED): requirements.txt requirements-dev.txt pyproject.toml
	@echo "installing into $(VENV): a few minutes, once"
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(PIP) --index-url $(TORCH_INDEX) "$$(grep ^torch== requirements.txt)")
	$(PIP) -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) out .pytest_cache .ruff_cache
