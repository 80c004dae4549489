# Thin lines over cargo. `make demo` and `make test` are all a newcomer needs.
CARGO ?= cargo
# Where setup.sh puts what it has to build.
TOOLS = $(CURDIR)/target/tools:$(PATH)

.PHONY: demo test test-demo conformance bench bench-net bench-store soak fuzz fmt lint build dist

# Lints and code in one go: cargo hands each of our crates to clippy's compiler, which makes the program as well.
LINTED = RUSTC_WORKSPACE_WRAPPER=clippy-driver CLIPPY_ARGS=-Dwarnings CARGO_INCREMENTAL=0

demo: ## a cluster on this machine with the shop in it
	@printf '\033[1m==> Fetching what the build needs\033[0m\n'
	@( $(CARGO) fetch --locked --quiet --target x86_64-unknown-linux-gnu && \
	   $(CARGO) fetch --locked --quiet --manifest-path controller/sources/read/Cargo.toml ) & fetch=$$!; \
	configs/setup.sh demo && wait $$fetch
	@printf '\033[1m==> Building the program: some minutes the first time\033[0m\n'
	@configs/demo/images.sh fetch target/shop >/dev/null 2>&1 & fetch=$$!; \
	$(CARGO) build --locked -p causeway-cli -p shop-api || { kill $$fetch; exit 1; }; wait $$fetch || true
	@configs/demo/run.sh target/debug/causeway

test: ## everything, from formatting to end-to-end on real components
	@configs/setup.sh test
	$(CARGO) fmt --all --check
	$(LINTED) $(CARGO) build --workspace --all-targets --locked
	PATH=$(TOOLS) $(LINTED) $(CARGO) test --workspace --all-targets --locked
	@PATH=$(TOOLS) tests/conformance/run.sh target/debug/causeway core

test-demo: ## `make demo` in a fresh Debian with Rust and nothing else, and how long it takes
	tests/demo_chroot.sh

conformance: ## the Gateway API's own suite against a cluster, whole or one test (TEST=name); needs Go
	@configs/setup.sh test
	$(CARGO) build --release --locked -p causeway-cli
	@PATH=$(TOOLS) tests/conformance/run.sh target/release/causeway $(or $(TEST),all)

bench: ## figures side by side with peers
	@configs/setup.sh bench
	$(CARGO) build --release --locked -p causeway-cli -p causeway-tests -p causeway-bench-net
	PATH=$(TOOLS) target/release/bench
	target/release/bench-net

bench-net: ## only kube-proxy and DNS, next to the real kube-proxy, CoreDNS, unbound and Knot
	@configs/setup.sh bench
	$(CARGO) build --release --locked -p causeway-bench-net
	target/release/bench-net

bench-store: ## only the store, next to the engine before it, etcd, and other rooms for its values (ARGS="--rounds 3 writes")
	@configs/setup.sh demo
	tests/bench-store/prepare.sh
	$(CARGO) build --release --locked --manifest-path tests/bench-store/Cargo.toml --target-dir target
	target/release/bench-store $(ARGS)

soak: ## thousands of power cuts under the store on a disk that lies, at a seed of its own each time (SEED=number, CUTS=number)
	CAUSEWAY_CUTS=$(or $(CUTS),6000) CAUSEWAY_FLIPS=1000 CAUSEWAY_SEED=$(or $(SEED),$(shell date +%s)) \
	$(CARGO) test --release --locked -p causeway-test-disk

fuzz: ## parsers of hostile input, for as long as you like (FUZZ_SECONDS a target, FUZZ_SEED)
	FUZZ_SECONDS=$(or $(FUZZ_SECONDS),600) $(CARGO) test --release --locked -p causeway-schema --test it -- fuzz

fmt:
	$(CARGO) fmt --all

lint:
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

build:
	$(CARGO) build --release --locked -p causeway-cli

dist: ## what packages hold
	$(CARGO) build --profile dist --locked -p causeway-cli
