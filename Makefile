# `make demo` and `make test` set up a fresh machine by themselves: Python 3.11 or newer and a network are enough.
# TORCH chooses the build of PyTorch, e.g. `make demo TORCH="torch --index-url https://download.pytorch.org/whl/cpu"`.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
CORE := $(VENV)/.core
READY := $(VENV)/.ready

.PHONY: demo test test-slow lint format clean site pictures web-pictures tables faults fuzz determinism

demo: $(CORE)
	$(VENV)/bin/pureebm demo

test: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 -m "not slow and not gpu"

test-slow: $(READY)
	$(VENV)/bin/python -m pytest -m "slow and not gpu"

lint: $(READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: $(READY)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

# The site of docs/, in build/site: any web server shows it, and a browser without one all but its search.
site: $(READY)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

# The pictures of docs/how-it-works.md.
pictures: $(READY)
	$(VENV)/bin/python docs/pictures.py

# The pictures of docs/web.md; needs Chromium (apt-get install chromium).
web-pictures: $(READY)
	$(VENV)/bin/python docs/web_pictures.py

# The tables of README and docs, from the cards in results/.
tables: $(READY)
	$(VENV)/bin/python docs/tables.py

# The cards behind docs/trust.md, in results/trust; N sets the length.
faults: $(READY)
	$(VENV)/bin/python -m tests.trust.faults --kills $(or $(N),100)

fuzz: $(READY)
	$(VENV)/bin/python -m tests.trust.fuzz --examples $(or $(N),2000)

determinism: $(READY)
	$(VENV)/bin/python -m tests.trust.determinism

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis demo-output

$(CORE): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet $(TORCH)
	$(VENV)/bin/pip install --quiet -e .
	touch $@

$(READY): $(CORE)
	$(VENV)/bin/pip install --quiet -e '.[dev]'
	touch $@
