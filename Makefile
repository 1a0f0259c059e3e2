# setup installs what is missing; every other goal calls it first. Run as root on Debian.
PYTHON := .venv/bin/python
APT := iproute2 nftables python3-bpfcc python3-nftables python3-venv python3-wheel

COMPILERS := gcc python3-dev
SOURCES := setup.py pyproject.toml $(shell find appliance -name '*.py' -o -name '*.c')
install = missing=$$(for p in $(1); do dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || echo $$p; done); \
	if [ -n "$$missing" ]; then apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $$missing; fi

.PHONY: setup compiled check test test-deploy test-deploy-trixie test-deploy-vm demo bench docs dist deb clean

setup: .venv/.ready

.venv/.ready: pyproject.toml Makefile
	@$(call install,$(APT))
	/usr/bin/python3 -m venv --system-site-packages .venv
	$(PYTHON) -m pip install -q --disable-pip-version-check --use-pep517 -e '.[lab]'
	@touch $@

# Another build, its hot path translated to machine code; the checkout itself stays plain Python.
compiled: .compiled/.ready

.compiled/.ready: .venv/.ready $(SOURCES)
	@$(call install,$(COMPILERS))
	rm -rf .compiled
	$(PYTHON) -m deploy.dist --alone
	$(PYTHON) -m pip install -q --disable-pip-version-check --no-deps --no-index --find-links dist --target .compiled smtp-gateway-appliance
	@touch $@

check: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/pytest -q -m 'not lab and not deploy and not virtual' -n 4

test: check compiled
	GATEWAY_PATH=$(CURDIR)/.compiled PYTHONPATH=$(CURDIR)/.compiled .venv/bin/pytest -q -n 4 --import-mode=append tests/proxy/session tests/proxy/checks tests/proxy/test_garbage.py tests/test_imports.py
	GATEWAY_PATH=$(CURDIR)/.compiled .venv/bin/pytest -q -m lab -n 3 --dist loadfile
	$(PYTHON) -m tests.options

# With STORE=docs/install.md the times go there.
store = $(if $(STORE),--store-times=$(STORE))

test-deploy: setup
	@$(call install,binutils debootstrap $(COMPILERS))
	.venv/bin/pytest -q -m deploy -n 2 --dist loadfile tests/deploy $(store)

# The same life on Debian 13, whose Python is another.
test-deploy-trixie: setup
	@$(call install,debootstrap $(COMPILERS))
	APPLIANCE_SUITE=trixie .venv/bin/pytest -q -m deploy tests/deploy/test_life.py $(store) --times-table trixie

# On Debian's own kernel, with no help of the processor: slow, and not a part of test.
test-deploy-vm: setup
	@$(call install,debootstrap $(COMPILERS))
	.venv/bin/pytest -q -m virtual tests/deploy $(store) --times-table virtual

docs: setup
	$(PYTHON) -m appliance.supervisor.manual
	$(PYTHON) -m deploy.variables
	$(PYTHON) -m tests.options

dist: setup
	@$(call install,$(COMPILERS))
	$(PYTHON) -m deploy.dist

deb: setup
	@$(call install,binutils $(COMPILERS))
	$(PYTHON) -m deploy.deb

demo: setup
	@$(PYTHON) -m lab.demo

bench: compiled
	@GATEWAY_PATH=$(CURDIR)/.compiled $(PYTHON) -m bench --store docs/benchmarks.md

clean:
	rm -rf .venv .lab dist .compiled build *.egg-info
