# make demo                    the whole chain, with a camera that is simulated
# make demo RTSP=rtsp://…      the same with a real one
# make test                    everything that needs no GPU
# make loom                    the models of the lock-free parts alone
# make build                   the plugin and the command: target/release/{libgstcuframes.so,cuframes}
# make install                 for this user; system-wide: sudo make install PREFIX=/usr
# make fuzz CASES=1000000      whatever a peer may say, a million times
# make soak SECONDS=3600       processes that are killed, stopped, restarted; SEED=… repeats, CAMERAS=8
# make memcheck                the tests of the core under valgrind
# make gpu-test                the tests that need an NVIDIA GPU
# make deb                     target/debian/cuframes_*.deb, for Debian and Ubuntu on amd64
# make try-deb                 the same package in a bare Debian, as root; SUITE=trixie for another one
# make bench                   compares with other systems, into out/bench; BENCH='--subscribers 1,8 cuframes shm'
# make bench-core              what the core does for a frame and a packet, in ns
# make lint                    what CI asks of the code and the scripts
# make docs                    writes the element documentation and the list of errors anew

RTSP ?=
TARGET := $(or $(CARGO_TARGET_DIR),target)
# Where GStreamer looks for a user's own plugins, or, with PREFIX, for the system's.
PLUGINS = $(if $(PREFIX),$(shell pkg-config --define-variable=prefix=$(PREFIX) --variable=pluginsdir gstreamer-1.0),$(or $(XDG_DATA_HOME),$(HOME)/.local/share)/gstreamer-1.0/plugins)
BIN = $(or $(PREFIX),$(HOME)/.local)/bin

CASES ?= 1000000
SECONDS ?= 600
CAMERAS ?= 1

SUITE ?= bookworm

BENCH ?= --subscribers 1,2,4,8

.PHONY: help demo test loom fuzz soak memcheck gpu-test bench bench-core build install deb try-deb lint docs packages
help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo: packages
	@pipelines/demo.sh $(if $(RTSP),'$(RTSP)')

test: packages
	G_DEBUG=fatal_warnings cargo test --locked --workspace --no-fail-fast
	@$(MAKE) --no-print-directory loom

# The lock-free parts under every interleaving. The flag applies to all of the build, so it has a directory of its own.
loom: packages
	RUSTFLAGS='--cfg loom' cargo test --locked -p cuframes --test loom --target-dir $(TARGET)/loom

# Cases that fail are written to crates/cuframes/tests/corpus, and tried first from then on.
fuzz: packages
	PROPTEST_CASES=$(CASES) cargo test --locked --profile fuzz -p cuframes --test properties --test hostile

soak: packages
	CUFRAMES_SECONDS=$(SECONDS) CUFRAMES_CAMERAS=$(CAMERAS) $(if $(SEED),CUFRAMES_SEED=$(SEED)) \
	    G_DEBUG=fatal_warnings cargo test --locked --test pipelines -- --nocapture faults::

# Valgrind does not know futex_waitv, so this also tries the way without.
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
	$(TARGET)/release/bench $(BENCH)

bench-core: packages
	cargo bench --locked -p cuframes --bench core

build: packages
	cargo build --release --locked -p gst-plugin-cuframes -p cuframes-cli

# Not built here when it is there: sudo has no cargo as a rule.
install: $(if $(and $(wildcard $(TARGET)/release/libgstcuframes.so),$(wildcard $(TARGET)/release/cuframes)),,build)
	install -D -m 755 $(TARGET)/release/libgstcuframes.so '$(DESTDIR)$(PLUGINS)/libgstcuframes.so'
	install -D -m 755 $(TARGET)/release/cuframes '$(DESTDIR)$(BIN)/cuframes'

deb: packages
	@command -v cargo-deb >/dev/null || { echo 'cargo-deb is missing: cargo install cargo-deb' >&2; exit 1; }
	cargo deb --locked --strip

try-deb:
	@packaging/try.sh $(SUITE)

lint: packages
	cargo fmt --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked --all-targets --features static,capi,doc -- -D warnings
	tests/check-scripts.sh
	@if command -v cargo-deny >/dev/null; then cargo deny --locked check bans licenses sources; \
	    else echo 'make lint: cargo-deny is not installed: licences and sources of the dependencies were left out'; fi

docs: packages
	CUFRAMES_WRITE=1 cargo test --locked -p gst-plugin-cuframes -p cuframes-bench --test docs --test tables up_to_date

packages:
	@tests/install-packages.sh
