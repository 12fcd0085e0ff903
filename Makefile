# Everything runs in .venv, which is made on first use with the first Python of the range that is there.
VENV := .venv
STAMP := $(VENV)/.installed

.PHONY: demo test lint

demo: $(STAMP)
	$(VENV)/bin/l2l demo

test: $(STAMP)
	$(VENV)/bin/python -m pytest -n 2 -q

lint: $(STAMP)
	$(VENV)/bin/ruff check src tests
	$(VENV)/bin/mypy

$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	for python in python3.11 python3.12 python3; do \
	  if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then \
	    test -x $(VENV)/bin/python || $$python -m venv $(VENV); \
	    $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test,lint]' -c constraints.txt; \
	    touch $(STAMP); exit 0; \
	  fi; \
	done; \
	echo 'l2l needs Python 3.11 or 3.12' >&2; exit 1
