# KubeFlash: the commands of daily work. `make help` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
LAB := PYTHONPATH=e2e $(PY) -m lab
STAMP := $(VENV)/.installed
# What a caller's kubectl is set up for must never reach the lab.
unexport KUBECONFIG
export PYTHONUNBUFFERED=1

.PHONY: help
help: ## list these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(STAMP): requirements/dev.txt pyproject.toml scripts/bootstrap
	@scripts/bootstrap $(VENV)
	@touch $@

.PHONY: venv
venv: $(STAMP) ## the Python environment, from the lock file

.PHONY: system
system: ## system packages that the lab and the tests need (QEMU, mmdebstrap, lspci, ...)
	@scripts/system-packages

.PHONY: lab-build
lab-build: venv system ## build and cache what the lab runs: control plane, root image, kernel
	@$(LAB) build --servers

.PHONY: demo
demo: venv system ## the main job on two virtual GPU servers; DEMO_KEEP=1 leaves it up
	@PYTHONPATH=e2e:operator $(PY) -m demo

.PHONY: test
test: sweep system check unit api image-test machine ## everything but `make cluster-test` and `make heavy`
	@scripts/leftovers

.PHONY: sweep
sweep: venv ## remove what labs left that were killed; fails if a lab is up
	@$(LAB) sweep

.PHONY: check
check: venv ## lint, types, layers, generated files
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(PY) -m kubeflash.api.crds crds --chart charts/kubeflash-crds/templates --check

.PHONY: unit
unit: venv ## pure functions, properties, contracts on fakes
	$(VENV)/bin/pytest -n auto tests/unit tests/contract

.PHONY: api
api: venv ## a real etcd and kube-apiserver
	@$(LAB) build
	@$(LAB) build helm >/dev/null
	$(VENV)/bin/pytest -n 2 --dist loadfile tests/api

.PHONY: image-test
image-test: venv ## what is in the image and runs from it, as a container would; builds it if need be
	@$(LAB) build
	$(VENV)/bin/pytest tests/image

.PHONY: machine
machine: lab-build ## two virtual servers: real kernels, NVMe, NVMe/TCP
	$(VENV)/bin/pytest -n 2 --dist loadfile -m "not heavy" tests/machine

.PHONY: heavy
heavy: lab-build ## crashes, faults, fences, strangers, contracts on virtual servers; LONG=1: all of each
	KUBEFLASH_LONG=$(LONG) $(VENV)/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15 \
	  -m "heavy$(if $(LONG),, and not long)" tests/machine

.PHONY: cluster-test
cluster-test: venv system ## installed by Helm on real kubelets, upgraded, moved, drained, lost; OLDER=1, LONG=1
	@$(LAB) build --kubelets $(if $(OLDER),--older)
	KUBEFLASH_OLDER=$(OLDER) $(VENV)/bin/pytest --durations=15 $(if $(LONG),,-m "not long") tests/cluster

.PHONY: bench
bench: lab-build ## idle CPU and memory, apply-to-Ready, fio ratios; writes bench/results.json
	PYTHONPATH=e2e:bench $(PY) -m run_bench

.PHONY: bench-pairing
bench-pairing: venv ## how long it takes to pair GPUs with SSDs; needs no server
	PYTHONPATH=bench $(PY) -m run_pairing

.PHONY: bench-fabric
bench-fabric: lab-build ## a volume over the fabric beside an export made by hand, and KubeFlash's CPU during fio
	PYTHONPATH=e2e:bench $(PY) -m run_fabric

.PHONY: bench-cluster
bench-cluster: venv system ## installed by Helm on kubelets: time to the first volume, CPU and memory of both processes
	PYTHONPATH=e2e:bench:operator $(PY) -m run_cluster

.PHONY: bench-volumes
bench-volumes: venv ## what a thousand volumes cost the controller; simulated disks
	@$(LAB) build
	PYTHONPATH=e2e:bench:tests $(PY) -m run_volumes

.PHONY: image
image: ## the container image: by docker or podman, else by buildah into build/image.tar; IMAGE=name:tag, FRESH=1
	@FRESH=$(FRESH) scripts/build-image $(IMAGE)

.PHONY: crds
crds: venv ## regenerate crds/ and the chart of the kinds from the models
	$(PY) -m kubeflash.api.crds crds --chart charts/kubeflash-crds/templates

.PHONY: manifest
manifest: venv ## regenerate deploy/kubeflash.yaml from the chart
	PYTHONPATH=e2e $(PY) -m manifest

.PHONY: docs
docs: venv ## regenerate tables and pictures in docs/: from the fixtures, and from the chart's values
	PYTHONPATH=tests:e2e $(PY) -m support.comparison
	PYTHONPATH=tests $(PY) -m support.chart_values

.PHONY: lock
lock: venv ## lock the dependencies anew
	scripts/lock $(VENV)

.PHONY: format
format: venv ## format and fix
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

.PHONY: lab-up
lab-up: lab-build ## start the lab: control plane and two GPU servers
	@$(LAB) up --servers gpu-a,gpu-b

.PHONY: cluster
cluster: venv system ## a cluster to install into: control plane, two GPU servers with kubelets and the image; OLDER=1
	@$(LAB) up --kubelets $(if $(OLDER),--older) --servers gpu-a,gpu-b
	@echo "next: make lab-shell, and in it Install as README.md has it, but: no agent.nodeSelector, and to helm install kubeflash"
	@echo "  --set image.repository=docker.io/library/kubeflash --set 'agent.gpus={1234:0380}'    # the nodes have the image"
	@echo "make lab-down ends it."

.PHONY: lab-shell
lab-shell: venv ## a shell with kubectl for the lab; SERVER=gpu-a for one on a server
	@$(LAB) shell $(SERVER)

.PHONY: lab-down
lab-down: venv ## end the lab, also after a crash
	@$(LAB) down

.PHONY: clean
clean: ## remove what was built in the repository (caches outside stay)
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
