# The words people and CI use; what each does is in scripts/ and docs/DEVELOPMENT.md.

.PHONY: help demo demo-check test test-long fmt lint doc deny garage bench pre-pr

help:
	@echo 'make demo       a bucket as a Docker volume, from nothing, on this machine'
	@echo 'make test       everything: lints, unit tests, real mounts, a real engine, a real S3 server'
	@echo 'make test-long  that, with 4000 random cases for each property and thousands of crashes'
	@echo 'make lint       formatting and clippy'
	@echo 'make fmt        formats the sources'
	@echo 'make doc        the API documentation; a warning is an error'
	@echo 'make deny       licences and advisories of the dependencies (needs cargo-deny)'
	@echo 'make bench      how it writes and reads, beside others, and restarts; writes docs/BENCH.md (25 minutes)'
	@echo 'make pre-pr     lint, doc, deny and test'
	@echo 'cargo test      the tests that need no root, no Docker and no network'

demo:
	@bash scripts/demo.sh

# Twice in a row, without questions: what one leaves behind, the other trips over.
demo-check:
	@YES=1 bash scripts/demo.sh
	@YES=1 bash scripts/demo.sh

test:
	@bash scripts/test.sh

test-long:
	@LONG=1 bash scripts/test.sh

fmt:
	cargo fmt

lint:
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo clippy --all-targets --all-features -- -D warnings

doc:
	RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --document-private-items --all-features

deny:
	cargo deny check

garage:
	@bash scripts/garage.sh

bench:
	@bash scripts/bench.sh

pre-pr: lint doc deny test
