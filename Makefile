# setup installs what is missing; every other goal calls it first. Run as root on Debian.
PYTHON := .venv/bin/python
APT := debootstrap iproute2 nftables python3-bpfcc python3-nftables python3-venv python3-wheel

.PHONY: setup check test test-deploy demo bench docs clean

setup: .venv/.ready

.venv/.ready: pyproject.toml Makefile
	@missing=$$(for p in $(APT); do dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || echo $$p; done); \
	if [ -n "$$missing" ]; then apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $$missing; fi
	/usr/bin/python3 -m venv --system-site-packages .venv
	$(PYTHON) -m pip install -q --disable-pip-version-check --use-pep517 -e '.[lab]'
	@touch $@

check: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/pytest -q -m 'not lab and not deploy' -n 4

test: check
	.venv/bin/pytest -q -m lab
	$(PYTHON) -m tests.options
	$(MAKE) test-deploy

test-deploy: setup
	.venv/bin/pytest -q -m deploy tests/deploy

docs: setup
	$(PYTHON) -m appliance.supervisor.manual
	$(PYTHON) -m tests.options

demo: setup
	@$(PYTHON) -m lab.demo

bench: setup
	@$(PYTHON) -m bench --store docs/benchmarks.md

clean:
	rm -rf .venv .lab *.egg-info
