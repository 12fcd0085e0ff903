# Everything runs in .venv, which is made on first use with the first Python of the range that is there.
VENV := .venv
STAMP := $(VENV)/.installed

.PHONY: demo test lint audit

demo: $(STAMP)
	$(VENV)/bin/l2l demo

test: $(STAMP)
	$(VENV)/bin/python -m pytest -n 2 -q

lint: $(STAMP)
	$(VENV)/bin/ruff check src tests examples
	$(VENV)/bin/mypy

# The pins against known advisories; by hand, as it asks pypi.org. Apart from the environment, whose pins it would change.
audit: $(STAMP)
	test -x $(VENV)/audit/bin/pip-audit || { $(VENV)/bin/python -m venv $(VENV)/audit && \
	  $(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit; }
	$(VENV)/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	for python in python3.11 python3.12 python3; do \
	  if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then \
	    test -x $(VENV)/bin/python || $$python -m venv $(VENV); \
	    echo 'l2l: installing into $(VENV): torch and much else, some minutes'; \
	    $(VENV)/bin/python -m pip install --disable-pip-version-check -e '.[test,lint]' -c constraints.txt; \
	    touch $(STAMP); echo 'l2l: installed; next: . $(VENV)/bin/activate'; exit 0; \
	  fi; \
	done; \
	echo 'l2l needs Python 3.11 or 3.12' >&2; exit 1
