# SPDX-License-Identifier: LGPL-2.1-or-later
# Each target makes what it needs. As root on a Debian-like machine, what is missing comes from the package manager.

PREFIX ?= /usr
DESTDIR ?=
# The Python that runs the tools and tests; the installed service runs with the Python of DESTDIR's system.
PYTHON ?= python3
FUZZ_SECONDS ?= 3600
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: help test lint derive freeze clients clients-go clients-rust bench fuzz soak truth
.PHONY: demo demo-shell demo-down install uninstall deb wheel clean

help:
	@echo 'make demo        boot a host in namespaces with the bridge installed, and show what it does'
	@echo 'make demo-shell  a prompt inside that host;  make demo-down  end it'
	@echo 'make test        everything that can be tested on this machine'
	@echo 'make soak        ten minutes of everything at once, 10,000 shells among it: memory, files and latency stay flat'
	@echo '                 and ten minutes of machines that come and go while clients watch: no change is lost'
	@echo 'make truth       10,000 machines come and go on each version of systemd: no answer is stale'
	@echo 'make bench       what a call, a start and the idle service cost, beside the native ways'
	@echo 'make fuzz        look for inputs that break the service, FUZZ_SECONDS=$(FUZZ_SECONDS); findings are in build/fuzz'
	@echo 'make install     DESTDIR=$(DESTDIR) PREFIX=$(PREFIX);  make uninstall  takes it out again'
	@echo 'make deb         a package for Debian 13 and newer, in build;  make wheel  a Python wheel'
	@echo 'make derive      io.machine1.varlink, bridge/contract.json, io.machine1(7) from schema/machine1.openapi.yaml'
	@echo 'make freeze      keep the interface as a release, which later ones are held against'
	@echo 'make clients     what is generated in contrib/go and contrib/rust, from io.machine1.varlink'

$(VENV)/ready: pyproject.toml
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || (apt-get update -q && apt-get install -y -q python3-venv)
	$(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

# The tests of the service alone need a message bus.
/usr/bin/dbus-daemon:
	apt-get update -q && apt-get install -y -q dbus-daemon

# Hosts of the lab are wired to one another.
/usr/sbin/ip:
	apt-get update -q && apt-get install -y -q iproute2

# They read the manual pages as two different programs for that do.
/usr/bin/groff /usr/bin/mandoc:
	apt-get update -q && apt-get install -y -q groff-base mandoc

# A file system with quotas, for limits of images.
/usr/sbin/mkfs.btrfs:
	apt-get update -q && apt-get install -y -q btrfs-progs

test: lint /usr/bin/dbus-daemon /usr/sbin/ip /usr/sbin/mkfs.btrfs /usr/bin/groff /usr/bin/mandoc build/bench-client
	$(RUN) -m pytest

lint: $(VENV)/ready
	$(RUN) schema/derive.py --check
	$(RUN) schema/manual.py --check
	$(RUN) schema/released.py
	$(RUN) -m ruff check .
	$(RUN) -m mypy

derive: $(VENV)/ready
	$(RUN) schema/derive.py
	$(RUN) schema/manual.py

freeze: $(VENV)/ready
	$(RUN) schema/released.py --release

# What is generated in contrib/ for other languages.
clients: clients-go clients-rust

clients-go:
	cd contrib/go && go generate ./...

clients-rust: $(VENV)/ready
	$(RUN) contrib/rust/generate.py

bench: $(VENV)/ready build/bench-client
	$(RUN) -m tests.benchmarks.measure $(SUITES)

/usr/bin/cc:
	apt-get update -q && apt-get install -y -q gcc libc6-dev

build/bench-client: tests/benchmarks/client.c | /usr/bin/cc
	@mkdir -p build
	/usr/bin/cc -std=gnu11 -O2 -Wall -Wextra -Werror -static -o $@ $<

fuzz: $(VENV)/ready
	$(RUN) -m tests.fuzz.fuzz_service --seconds '$(FUZZ_SECONDS)'

soak: $(VENV)/ready
	$(RUN) -m tests.load.soak --minutes 10
	$(RUN) -m tests.load.watch --minutes 10

truth: $(VENV)/ready
	$(RUN) -m tests.load.truth

demo: $(VENV)/ready
	@$(RUN) -m tests.lab.demo up

demo-shell: $(VENV)/ready
	@$(RUN) -m tests.lab.demo shell

demo-down: $(VENV)/ready
	@$(RUN) -m tests.lab.demo down

install: $(VENV)/ready
	$(RUN) contrib/install.py install --destdir '$(DESTDIR)' --prefix '$(PREFIX)'

uninstall: $(VENV)/ready
	$(RUN) contrib/install.py uninstall --destdir '$(DESTDIR)' --prefix '$(PREFIX)'

deb: $(VENV)/ready
	@$(RUN) -m tests.lab.packages deb

wheel: $(VENV)/ready
	@$(RUN) -m tests.lab.packages wheel

clean:
	rm -rf $(VENV) build contrib/rust/target *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
