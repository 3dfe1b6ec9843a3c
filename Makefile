# Each target is a short script or a cargo command; `make help` lists them.
SHELL := /bin/bash
CARGO ?= cargo

.DEFAULT_GOAL := help
.PHONY: help demo test test-kernel test-container test-matrix soak unit lint deny docs bench fuzz build install-deps fmt clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 16

demo: ## Install what is missing, build, and carry a volume through its whole life
	scripts/install-deps demo
	scripts/demo

test: ## Install what is missing, and run every check and test, real kernel included
	scripts/install-deps test
	scripts/test

test-kernel: ## The node's tests in a guest whose kernel has NFS, RBD and disks to be plugged
	scripts/install-deps test
	scripts/test-kernel

test-container: ## The node's tests in containers of runc and containerd that are stopped, killed and replaced
	scripts/install-deps test
	scripts/test-container

test-matrix: ## The tests of rbd, nfs and the guest on the servers and kernels of other Debian suites (1 GB each, once)
	scripts/install-deps matrix
	scripts/test-matrix

soak: ## Pods on all backends while servers and drivers are killed (SOAK_SECONDS, default 1800; SOAK_SEED; SOAK_BACKENDS)
	scripts/install-deps test
	scripts/test-kernel soak

unit: ## The tests that need neither root nor a server, in seconds once built
	$(CARGO) test --locked -p csi-proto -p provisioners --lib --tests
	$(CARGO) test --locked -p volumectl --lib
	$(CARGO) test --locked -p e2e --test model --test fuzz_inputs -- --skip ceph_cluster --skip nfs_server --skip openstack

lint: ## Formatting and clippy, warnings refused
	scripts/lint

docs: ## The API documentation, warnings refused
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps

deny: ## Licences, duplicate versions and sources of the dependencies
	scripts/deny

bench: ## Benchmarks, each with its baseline in the same run (root)
	$(CARGO) build --locked --release -p csi-driver
	$(CARGO) bench --locked -p benches

fuzz: ## Fuzz each target for a minute (cargo-fuzz and a nightly toolchain)
	scripts/fuzz

build: ## The two programs, optimised
	$(CARGO) build --locked --release -p csi-driver -p volumectl

install-deps: ## Install the programs that the tests use
	scripts/install-deps test

fmt: ## Format the code
	$(CARGO) fmt --all

clean: ## Remove what was built
	$(CARGO) clean
