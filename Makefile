# Thin lines over cargo. `make demo` and `make test` are all a newcomer needs.
CARGO ?= cargo

.PHONY: demo test conformance bench bench-net fmt lint build

demo: ## a cluster on this machine with the shop in it
	@configs/setup.sh demo
	$(CARGO) build --release --locked -p causeway-cli
	@configs/demo/run.sh target/release/causeway

test: ## everything, from formatting to end-to-end on real components
	@configs/setup.sh test
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) build --workspace --bins --locked
	$(CARGO) test --workspace --locked
	@tests/conformance/run.sh target/debug/causeway core

conformance: ## the Gateway API's own suite against a cluster, whole or one test (TEST=name); needs Go
	@configs/setup.sh test
	$(CARGO) build --release --locked -p causeway-cli
	@tests/conformance/run.sh target/release/causeway $(or $(TEST),all)

bench: ## figures side by side with peers
	@configs/setup.sh bench
	$(CARGO) build --release --locked -p causeway-cli -p causeway-tests -p causeway-bench-net
	target/release/bench
	target/release/bench-net

bench-net: ## only kube-proxy and DNS, next to the real kube-proxy, CoreDNS, unbound and Knot
	@configs/setup.sh bench
	$(CARGO) build --release --locked -p causeway-bench-net
	target/release/bench-net

fmt:
	$(CARGO) fmt --all

lint:
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

build:
	$(CARGO) build --release --locked -p causeway-cli
