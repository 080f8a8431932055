# make demo                    runs the whole chain with a simulated camera
# make demo RTSP=rtsp://…      runs it with a real camera
# make test                    runs all tests that need no GPU, and the loom models
# make loom                    runs the models of the lock-free code alone
# make build                   builds target/release/libgstcuframes.so and target/release/cuframes
# make install                 installs them for this user; for all users: sudo make install PREFIX=/usr
# make fuzz CASES=1000000      tests so many random messages, streams and packets
# make soak SECONDS=3600       kills, stops and restarts processes; SEED=… repeats a schedule, CAMERAS=8
# make siege SECONDS=600       compares a publisher and its subscribers alone and among hostile subscribers
# make mutants FILE=…          changes code of the library, and checks that a test notices; SHARD=0/8 for a part
# make memcheck                runs tests of the library under valgrind
# make gpu-test                runs the tests that need an NVIDIA GPU
# make deb                     builds target/debian/cuframes_*.deb for Debian and Ubuntu on amd64
# make try-deb                 installs that package in a bare Debian, as root; SUITE=trixie for another
# make bench                   compares with other systems, into out/bench; BENCH='--subscribers 1,8 cuframes shm'
# make bench-core              measures the library for one frame and one packet, in ns
# make lint                    checks code, scripts, documentation and packages, as CI does
# make docs                    writes the element page, the list of errors and the benchmark tables

RTSP ?=
TARGET := $(or $(CARGO_TARGET_DIR),target)
# The user's own plugins, or with PREFIX those of the system.
PLUGINS = $(if $(PREFIX),$(shell pkg-config --define-variable=prefix=$(PREFIX) --variable=pluginsdir gstreamer-1.0),$(or $(XDG_DATA_HOME),$(HOME)/.local/share)/gstreamer-1.0/plugins)
BIN = $(or $(PREFIX),$(HOME)/.local)/bin

CASES ?= 1000000
SECONDS ?= 600
CAMERAS ?= 1

SUITE ?= bookworm

BENCH ?= --subscribers 1,2,4,8
OUT ?= out/bench

# Packages that a release consists of. All targets build them with the same features: see Cargo.toml.
RELEASE = --release --locked -p gst-plugin-cuframes -p cuframes-cli

.PHONY: help demo test loom fuzz soak siege mutants memcheck gpu-test bench bench-core build install deb try-deb lint docs packages
help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo: packages
	@pipelines/demo.sh $(if $(RTSP),'$(RTSP)')

test: packages
	G_DEBUG=fatal_warnings cargo test --locked --workspace --no-fail-fast
	@$(MAKE) --no-print-directory loom

# The lock-free code under every interleaving. The flag applies to the whole build, which needs a folder of its own.
loom: packages
	RUSTFLAGS='--cfg loom' cargo test --locked -p cuframes --test loom --target-dir $(TARGET)/loom

# Cases that fail are written to crates/cuframes/tests/corpus, and tried first from then on.
fuzz: packages
	PROPTEST_CASES=$(CASES) cargo test --locked --profile fuzz -p cuframes --test properties --test hostile

soak: packages
	CUFRAMES_SECONDS=$(SECONDS) CUFRAMES_CAMERAS=$(CAMERAS) $(if $(SEED),CUFRAMES_SEED=$(SEED)) \
	    G_DEBUG=fatal_warnings cargo test --locked --test pipelines -- --nocapture faults::

# Optimized, because the honest processes have to keep up beside the hostile ones. Each of the four phases takes SECONDS.
siege: packages
	CUFRAMES_SECONDS=$(SECONDS) cargo test --locked --profile fuzz -p cuframes --test siege -- --nocapture

# Settings and exceptions are in .cargo/mutants.toml, results in $(TARGET)/mutants.out.
mutants: packages
	@for tool in cargo-mutants cargo-nextest; do \
	    command -v $$tool >/dev/null || { echo "$$tool is missing: cargo install --locked $$tool" >&2; exit 1; }; done
	cargo mutants -p cuframes --output $(TARGET) $(if $(FILE),--file '$(FILE)') $(if $(SHARD),--shard $(SHARD))

# Valgrind has no futex_waitv, so that this also tests the code without it.
memcheck: packages
	program=$$(cargo test --locked -p cuframes --test conformance --no-run 2>&1 | sed -n 's/.*(\(.*conformance-[0-9a-f]*\))/\1/p') && \
	    CUFRAMES_TIMEOUT_FACTOR=20 valgrind -q --error-exitcode=9 --leak-check=full \
	    --errors-for-leak-kinds=definite --show-leak-kinds=definite \
	    "$$program" --test-threads=1 host:: packets::

gpu-test: packages
	cargo build --locked --examples
	cargo run --locked --release -p gpu-selftest
	cargo test --locked -p gst-plugin-cuframes --lib -- --ignored --test-threads=1
	cargo test --locked -p gst-plugin-cuframes -p cuframes --test gpu --test conformance -- --ignored --test-threads=1

bench: packages
	cargo build --release --locked -p cuframes-bench -p gst-plugin-cuframes --lib --bins --example camera
	cargo build --release --locked -p cuframes-plot
	$(TARGET)/release/bench --out $(OUT) $(BENCH)
	$(TARGET)/release/plot $(OUT)/results.json

bench-core: packages
	cargo bench --locked -p cuframes --bench core

build: packages
	cargo build $(RELEASE)

# Builds only what is missing: under sudo there is often no cargo.
install: $(if $(and $(wildcard $(TARGET)/release/libgstcuframes.so),$(wildcard $(TARGET)/release/cuframes)),,build)
	install -D -m 755 $(TARGET)/release/libgstcuframes.so '$(DESTDIR)$(PLUGINS)/libgstcuframes.so'
	install -D -m 755 $(TARGET)/release/cuframes '$(DESTDIR)$(BIN)/cuframes'

# The command is of another package than the plugin, which cargo-deb would not build.
deb: build
	@command -v cargo-deb >/dev/null || { echo 'cargo-deb is missing: cargo install cargo-deb' >&2; exit 1; }
	cargo deb --locked --strip --no-build -p gst-plugin-cuframes

try-deb:
	@packaging/try.sh $(SUITE)

lint: packages
	cargo fmt --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked --all-targets --features static,capi,doc -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps
	@tests/check-packages.sh
	tests/check-scripts.sh
	@if command -v cargo-deny >/dev/null; then cargo deny --locked check bans licenses sources; \
	    else echo 'make lint: cargo-deny is not installed, so that licences and sources of dependencies are not checked'; fi

docs: packages
	CUFRAMES_WRITE=1 cargo test --locked -p gst-plugin-cuframes -p cuframes-bench --test docs --test tables up_to_date

packages:
	@tests/install-packages.sh
