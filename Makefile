# Everything that a developer does here. `make` alone lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help demo run drill faults test test-contracts test-api test-console test-examples test-upgrade bench-relay bench-takeover bench-executor bench-consumer bench-api lint sql stop clean setup

# A fresh shell does not know yet where rustup has put cargo, and that of a user not where Debian puts servers.
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin
CARGO ?= cargo
TESTBED := $(or $(CARGO_TARGET_DIR),target)/debug/testbed

# What `make demo` does unless it is told otherwise.
PAYMENTS ?= 2000
RATE ?= 200
KILLS ?= 3
SEED ?= 1
# What the PSPs do to payments: plain, or hostile (three executors, both PSPs, every scenario, webhooks full of tricks).
SCENARIO ?= plain
# What is built for it; after `make test` BUILD="--all-targets $(FAILPOINTS)" builds nothing twice.
BUILD ?= --bins

# Which PostgreSQL the real parts have: 18, or 15, the oldest that the outbox works on.
PG ?= 18
export PAYMENT_OUTBOX_POSTGRES := $(PG)

# What `make faults` does. Relay, executor and payment service have their failpoints in tests alone.
FAMILY ?= relay
EPISODES ?= 200
FAILPOINTS := --features outbox-relay/failpoints,executor/failpoints,payment-service/failpoints

# What `make test-contracts` installs, pinned. Adyen's document is not ours to give away: it is named, or that half is skipped.
STRIPE_MOCK := stripe-mock@v0.203.0
PRISM := prism-cli@5.16.0
ADYEN_OPENAPI ?=

# What `make test-api` installs, pinned, and how much it asks of each operation.
SCHEMATHESIS := schemathesis@4.32.5
EXAMPLES ?= 50

# What `make test-console` installs, pinned; a folder keeps two pictures of what the browser saw.
AXE := axe-core@4.10.3
SCREENSHOTS ?=

# Which version `make test-upgrade` comes from: a commit or a tag.
FROM ?=

# What `make bench-relay` does unless it is told otherwise; PEER=debezium compares with a rival.
EVENTS ?= 1000000
RATES ?= 100,1000,3000
SECONDS ?= 20
SAVES ?= 100000
PEER ?=

# What `make bench-takeover` does unless it is told otherwise: so many leaders are killed beside so many events that wait.
PENDING ?= 10000000
TAKEOVERS ?= 5

# What `make bench-executor` does unless it is told otherwise, SECONDS included.
ORDERS ?= 20000
ORDER_RATES ?= 100,300

# What `make bench-consumer` does unless it is told otherwise, SECONDS included.
RESULTS ?= 500000
SUSTAINED ?= 60

# What `make bench-api` does unless it is told otherwise.
POSTS_RATE ?= 500
POSTS_SECONDS ?= 60

# Whether Prometheus runs natively beside `make run`. The package's own service is not used, and may be disabled.
OBSERVABILITY ?=
# The one part that `make drill` kills, as docs/runbook.md names it; all of them if it is empty.
PART ?=

# What `make sql` asks: passed on through the environment, so that no shell reads the query.
DB ?= payments
Q ?= SELECT state, count(*) FROM payments.payment_orders GROUP BY state
export DB Q

help: ## List what can be made
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 23

demo: setup ## Send payments through everything, kill processes, prove that nothing was lost (SCENARIO= PAYMENTS= RATE= KILLS= SEED=)
	@$(CARGO) build --workspace $(BUILD)
	exec $(TESTBED) demo --scenario $(SCENARIO) --payments $(PAYMENTS) --rate $(RATE) --kills $(KILLS) --seed $(SEED)

run: setup ## Start everything, print every address, and stay until Ctrl-C (OBSERVABILITY=1: Prometheus, too)
	@$(CARGO) build --workspace --bins
	exec $(TESTBED) run $(if $(OBSERVABILITY),--observability)

drill: OBSERVABILITY := yes
drill: setup ## Kill each part in turn, and see that the alerts of docs/runbook.md fire, and end (PART="executor": one alone)
	@$(CARGO) build --workspace --bins
	exec $(TESTBED) drill $(if $(PART),--only "$(PART)")

faults: setup ## Hurt a part in EPISODES ways, prove each time that nothing was lost (FAMILY= EPISODES= SEED=)
	@$(CARGO) build --workspace --bins $(FAILPOINTS)
	exec $(TESTBED) faults --family $(FAMILY) --episodes $(EPISODES) --seed $(SEED) $(ARGS)

test: OBSERVABILITY := yes
test: setup ## Start the real parts once and run the whole suite (PG=15 on the oldest PostgreSQL, ARGS="-p outbox" for less)
	@$(CARGO) build --workspace --all-targets $(FAILPOINTS)
	# A stack that was running already stays: someone else is using it.
	$(TESTBED) status >/dev/null 2>&1 || trap '$(TESTBED) down' EXIT
	$(TESTBED) up
	$(CARGO) test $(or $(ARGS),--workspace $(FAILPOINTS))

test-contracts: setup ## Hold what is sent to PSPs against stripe-mock and Adyen's OpenAPI document (ADYEN_OPENAPI=/path/CheckoutService-v71.json)
	@tools=$(or $(PAYMENT_OUTBOX_HOME),$(CARGO_TARGET_DIR),target)/tools
	if ! command -v go >/dev/null; then
		echo "test-contracts: go is missing, which builds stripe-mock: install it from https://go.dev/dl, then try again" >&2
		exit 1
	fi
	if [ ! -x "$$tools/$(STRIPE_MOCK)/stripe-mock" ]; then
		GOBIN=$$(realpath -m "$$tools/$(STRIPE_MOCK)") go install github.com/stripe/$(STRIPE_MOCK) >&2
	fi
	if [ -n "$(ADYEN_OPENAPI)" ]; then
		if [ ! -f "$(ADYEN_OPENAPI)" ]; then
			echo "test-contracts: there is no file $(ADYEN_OPENAPI): CheckoutService-v71.json is in https://github.com/Adyen/adyen-openapi" >&2
			exit 1
		fi
		if ! command -v npm >/dev/null; then
			echo "test-contracts: npm is missing, which installs Prism: install Node.js 20 or newer, then try again" >&2
			exit 1
		fi
		if [ ! -x "$$tools/$(PRISM)/node_modules/.bin/prism" ]; then
			npm install --silent --no-fund --no-audit --ignore-scripts --prefix "$$tools/$(PRISM)" @stoplight/$(PRISM) >&2
		fi
	else
		echo "test-contracts: SKIPPED: Adyen's requests are not checked, as ADYEN_OPENAPI names no document" >&2
	fi
	# As `make test` builds everything, so that nothing is built a second time.
	STRIPE_MOCK=$$(realpath "$$tools/$(STRIPE_MOCK)/stripe-mock") PRISM=$$(realpath -m "$$tools/$(PRISM)/node_modules/.bin/prism") \
		ADYEN_OPENAPI=$(if $(ADYEN_OPENAPI),$$(realpath "$(ADYEN_OPENAPI)")) $(CARGO) test --workspace $(FAILPOINTS) --test contracts -- --nocapture

test-api: setup ## Hold every answer of the running API against its OpenAPI document, with schemathesis (EXAMPLES= SEED=)
	@$(CARGO) build --workspace --all-targets $(FAILPOINTS)
	tools=$(or $(PAYMENT_OUTBOX_HOME),$(CARGO_TARGET_DIR),target)/tools
	venv=$$(realpath -m "$$tools/$(SCHEMATHESIS)")
	if [ ! -x "$$venv/bin/schemathesis" ]; then
		if ! python3 -m venv "$$venv" >&2; then
			rm -rf "$$venv"
			echo "test-api: python3 cannot make a virtual environment: install python3-venv, then try again" >&2
			exit 1
		fi
		"$$venv/bin/pip" install --quiet --disable-pip-version-check "$(subst @,==,$(SCHEMATHESIS))" >&2
	fi
	exec $(TESTBED) test-api --schemathesis "$$venv/bin/schemathesis" --examples $(EXAMPLES) --seed $(SEED)

test-console: BROWSER := yes
test-console: setup ## Drive the console in a real browser, on the real parts (SCREENSHOTS=folder keeps pictures)
	@tools=$(or $(PAYMENT_OUTBOX_HOME),$(CARGO_TARGET_DIR),target)/tools
	axe="$$tools/$(AXE)/node_modules/axe-core/axe.min.js"
	if [ ! -f "$$axe" ] && command -v npm >/dev/null; then
		npm install --silent --no-fund --no-audit --ignore-scripts --prefix "$$tools/$(AXE)" $(AXE) >&2
	fi
	if [ ! -f "$$axe" ]; then
		echo "test-console: SKIPPED: accessibility is not checked by axe-core, as npm is missing, which installs it" >&2
		axe=
	fi
	# As `make test` builds everything, so that nothing is built a second time.
	$(CARGO) build --workspace --all-targets $(FAILPOINTS)
	$(TESTBED) status >/dev/null 2>&1 || trap '$(TESTBED) down' EXIT
	$(TESTBED) up
	CHROMEDRIVER=$$(command -v chromedriver) CHROMIUM=$$(command -v chromium) AXE=$${axe:+$$(realpath "$$axe")} \
		SCREENSHOTS=$(if $(SCREENSHOTS),$$(realpath -m "$(SCREENSHOTS)")) $(CARGO) test --workspace $(FAILPOINTS) --test console -- --nocapture

test-examples: setup ## Run the examples of other people's services, in Rust and in Python, on the real parts
	@tools=$(or $(PAYMENT_OUTBOX_HOME),$(CARGO_TARGET_DIR),target)/tools
	venv=$$(realpath -m "$$tools/examples-$$(sha256sum examples/shipments/requirements.txt | cut -c 1-12)")
	if [ ! -x "$$venv/bin/python" ] || [ ! -f "$$venv/complete" ]; then
		if ! python3 -m venv "$$venv" >&2; then
			rm -rf "$$venv"
			echo "test-examples: python3 cannot make a virtual environment: install python3-venv, then try again" >&2
			exit 1
		fi
		"$$venv/bin/pip" install --quiet --disable-pip-version-check -r examples/shipments/requirements.txt >&2
		touch "$$venv/complete"
	fi
	# As `make test` builds everything, so that nothing is built a second time.
	$(CARGO) build --workspace --all-targets $(FAILPOINTS)
	$(TESTBED) status >/dev/null 2>&1 || trap '$(TESTBED) down' EXIT
	$(TESTBED) up
	export BIN=$$(realpath "$$(dirname $(TESTBED))") PYTHON="$$venv/bin/python"
	examples/orders/check.sh
	examples/shipments/check.sh
	examples/adopt.sh

test-upgrade: setup ## Hand leadership between a relay of another version and this one, both ways (FROM=commit or tag)
	@if [ -z "$(FROM)" ]; then echo "test-upgrade: FROM names the version to come from, such as FROM=v0.1.0" >&2; exit 1; fi
	commit=$$(git rev-parse --verify --short=12 "$(FROM)^{commit}")
	old=$$(realpath -m "$(or $(PAYMENT_OUTBOX_HOME),$(CARGO_TARGET_DIR),target)/tools/relay-$$commit")
	if [ ! -x "$$old/debug/outbox-relay" ]; then
		sources=$$(mktemp -d)
		trap 'rm -rf "$$sources"' EXIT
		git archive "$$commit" | tar -x -C "$$sources"
		echo "test-upgrade: building the relay of $$commit" >&2
		CARGO_TARGET_DIR="$$old" $(CARGO) build --locked --manifest-path "$$sources/Cargo.toml" -p outbox-relay
		rm -rf "$$sources"
		trap - EXIT
	fi
	$(CARGO) build --workspace --all-targets $(FAILPOINTS)
	$(TESTBED) status >/dev/null 2>&1 || trap '$(TESTBED) down' EXIT
	$(TESTBED) up
	OLD_RELAY="$$old/debug/outbox-relay" $(CARGO) test --workspace $(FAILPOINTS) --test it -- upgrade:: --nocapture

bench-relay: setup ## Measure the relay: draining, latency, cost (EVENTS= RATES= SECONDS= SAVES= PEER=debezium)
	@$(CARGO) build --release --workspace --bins
	exec $(or $(CARGO_TARGET_DIR),target)/release/testbed bench-relay --events $(EVENTS) --rates $(RATES) --seconds $(SECONDS) \
		--saves $(SAVES) $(if $(PEER),--peer $(PEER))

bench-takeover: setup ## Measure how long nobody publishes after a leader's SIGKILL (PENDING= TAKEOVERS=)
	@$(CARGO) build --release --workspace --bins
	exec $(or $(CARGO_TARGET_DIR),target)/release/testbed bench-takeover --pending $(PENDING) --kills $(TAKEOVERS)

bench-executor: setup ## Measure the executor: results per second, request to result, cost (ORDERS= ORDER_RATES= SECONDS=)
	@$(CARGO) build --release --workspace --bins
	exec $(or $(CARGO_TARGET_DIR),target)/release/testbed bench-executor --orders $(ORDERS) --rates $(ORDER_RATES) --seconds $(SECONDS)

bench-consumer: setup ## Measure the consumer and the whole circle: results applied per second, lag, highest rate (RESULTS= SECONDS= SUSTAINED=)
	@$(CARGO) build --release --workspace --bins
	exec $(or $(CARGO_TARGET_DIR),target)/release/testbed bench-consumer --events $(RESULTS) --seconds $(SECONDS) --sustained $(SUSTAINED)

bench-api: setup ## Measure the API: how long clients wait for a payment to be taken (POSTS_RATE= POSTS_SECONDS=)
	@$(CARGO) build --release --workspace --bins
	exec $(or $(CARGO_TARGET_DIR),target)/release/testbed bench-api --rate $(POSTS_RATE) --seconds $(POSTS_SECONDS)

lint: setup ## Check format, lints, documentation and dependencies
	@$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps
	if $(CARGO) deny --version >/dev/null 2>&1; then
		$(CARGO) deny --all-features check bans licenses sources
	else
		echo "skipped: cargo deny is not installed (cargo install --locked cargo-deny)"
	fi

sql: ## Run a query: make sql DB=payments|executor Q="SELECT 1"
	@if [ ! -x $(TESTBED) ]; then echo "nothing is built yet: start with make run" >&2; exit 1; fi
	exec $(TESTBED) sql --db "$$DB" -- "$$Q"

stop: ## Stop what runs: the real parts, and whatever was left behind
	@if [ ! -x $(TESTBED) ]; then echo "nothing is built, so nothing of this folder runs"; exit 0; fi
	exec $(TESTBED) down

clean: ## Stop, then remove what was built, downloaded and stored
	@if [ -x $(TESTBED) ]; then $(TESTBED) clean; fi
	$(CARGO) clean

# Finds what is missing and installs it; quick and silent when nothing is.
setup:
	@packages=()
	if ! command -v $(CARGO) >/dev/null; then
		echo "setup: Rust is missing: install it from https://rustup.rs, then try again" >&2
		exit 1
	fi
	java="$${JAVA_HOME:+$$JAVA_HOME/bin/}java"
	version=$$("$$java" -version 2>&1 | sed -nE 's/.*version "([0-9]+).*/\1/p' | head -n 1 || true)
	java_is_missing=; if [ "$${version:-0}" -lt 17 ]; then java_is_missing=yes; fi
	pairs=(); if [ -n "$(BROWSER)" ]; then pairs=(chromium:chromium chromedriver:chromium-driver); fi
	if [ -n "$(OBSERVABILITY)" ]; then pairs+=(prometheus:prometheus promtool:prometheus); fi
	for pair in "$${pairs[@]}" mvn:maven gcc:gcc g++:g++ make:make pkg-config:pkg-config xz:xz-utils psql:postgresql-client python3:python3 pgbouncer:pgbouncer; do
		command -v "$${pair%%:*}" >/dev/null || packages+=("$${pair##*:}")
	done
	# The headers may lie elsewhere, under a compiler of its own: so the compiler is asked, not the file system.
	for pair in openssl/ssl.h:libssl-dev zlib.h:zlib1g-dev; do
		echo "#include <$${pair%%:*}>" | gcc -E - >/dev/null 2>&1 || packages+=("$${pair##*:}")
	done
	if [ -z "$$java_is_missing" ] && [ $${#packages[@]} -eq 0 ]; then exit 0; fi
	wanted="$${packages[*]}$${java_is_missing:+ openjdk-17-jre-headless (or newer)}"
	give_up() { echo "setup: $$1. Install by hand, then try again: $$wanted" >&2; exit 1; }
	command -v apt-get >/dev/null || give_up "these packages are missing, and there is no apt-get"
	root=(); if [ "$$(id -u)" -ne 0 ]; then
		command -v sudo >/dev/null || give_up "these packages are missing, and there is no sudo to install them with"
		root=(sudo)
	fi
	echo "setup: missing, and now installed with apt-get: $$wanted" >&2
	"$${root[@]}" apt-get -qq -o DPkg::Lock::Timeout=120 update >&2 || give_up "apt-get could not fetch its lists (no network, or no rights)"
	if [ -n "$$java_is_missing" ]; then
		# Each release has its own: 17 on Debian 12, 21 on Debian 13.
		for jre in openjdk-17-jre-headless openjdk-21-jre-headless openjdk-25-jre-headless default-jre-headless; do
			if apt-cache show "$$jre" >/dev/null 2>&1; then packages+=("$$jre"); break; fi
		done
	fi
	"$${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 install -y --no-install-recommends "$${packages[@]}" >&2 \
		|| give_up "apt-get could not install them"
