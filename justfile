# Everything that people and CI run.

# List the recipes
default:
    @just --list

# The demo: a real daemon on real data
demo:
    cargo run --release -p evidenceos -- demo

# All tests
test:
    cargo test --workspace --locked

# Random calls, faults and crashes against a model, so many seeds of them
sim SEEDS="10000":
    EVIDENCEOS_SIM_SEEDS={{SEEDS}} cargo test --release --locked -p evidenceos-driver --test driver simulation

# Rounds of load, death at a random moment, restart, and a look at everything (docs/testing.md)
crash N="200" *ARGS:
    cargo run --locked -p evidenceos-crash -- rounds {{N}} {{ARGS}}

# Power cuts, and a daemon on what each could have left
power N="500" *ARGS:
    cargo run --locked -p evidenceos-crash -- power {{N}} {{ARGS}}

# The listed mutants of the rules, each of which a test must catch (docs/testing.md)
mutants *ARGS:
    tests/mutants/run.py {{ARGS}}

# A long campaign by its name: sim, crash, power, mutants, fuzz or attacks, as large as tests/long.sh says
long NAME *ARGS:
    tests/long.sh {{NAME}} {{ARGS}}

# What must hold before a commit
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# The benchmark against this machine's limits
bench *ARGS:
    cargo build --release --locked -p evidenceos
    cargo run --release --locked -p evidenceos-bench -- {{ARGS}}

# What the shipped program is made of, as CycloneDX (needs `cargo install cargo-cyclonedx`)
sbom FILE="evidenceos.cdx.json":
    deploy/sbom.sh {{FILE}}

# The Debian package (needs `cargo install cargo-deb`)
deb:
    cargo build -p evidenceos --locked --profile dist --features kms-aws,kms-gcp,kms-azure
    deploy/debian/pages.sh target/dist/evidenceos
    cargo deb -p evidenceos --locked --no-build --profile dist

# A development server on loopback
serve *ARGS:
    cargo run --release -p evidenceos-daemon -- {{ARGS}}

# Every fuzz target, so many seconds each (docs/testing.md; needs a C++ compiler)
fuzz SECONDS="60":
    tests/fuzz.sh {{SECONDS}}
