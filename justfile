# One-line recipes: without `just`, paste what stands behind the name.

# Build the unikernel and run it
hello:
    cargo run --release -- run guest-kernel/apps#hello -- world

# Everything that README calls a test
test:
    cargo test --release

# Solo5's own tests, which somebody has built into a directory
solo5 directory:
    HVT_SUITE={{directory}} cargo test --release --test hvt suite

# As CI runs it
ci:
    bash .ci/run

# Ratios, taken in one run
bench:
    cargo bench --bench single --bench cell --bench policy --bench block --bench stream --bench upgrade --bench handover --bench clone --bench hvt

# Formatting of everything
fmt:
    cargo fmt --all

# Lints of everything for the host
lint:
    cargo clippy --release --all-targets -- -D warnings

# Lints of the unikernels
lint-guests:
    cargo clippy --profile guest -p wharf-apps -- -D warnings

# The documentation, with its links checked
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps

# The loader against random files, for a minute
fuzz:
    RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir tests/fuzz image -- -max_total_time=60
