# syntax=docker/dockerfile:1
# One image for all processes: `kubeflash-controller` and `kubeflash-agent`.
# Stage 1 installs the locked dependencies and KubeFlash itself (not editable) and compiles them: a read-only root could
# not, and start-up would take two to four times as long and twice the memory.
FROM debian:trixie-slim AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-pip python3-venv \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/kubeflash
COPY requirements/runtime.txt requirements/build.txt /src/requirements/
RUN /opt/kubeflash/bin/pip install --no-cache-dir --require-hashes --no-deps -r /src/requirements/runtime.txt \
 && python3 -m venv /opt/build \
 && /opt/build/bin/pip install --no-cache-dir --require-hashes --no-deps -r /src/requirements/build.txt
COPY pyproject.toml README.md LICENSE /src/
COPY operator /src/operator
RUN cd /src && /opt/build/bin/hatchling build -t wheel /dist
RUN /opt/kubeflash/bin/pip install --no-cache-dir --no-deps --no-index /dist/*.whl \
 && /opt/kubeflash/bin/pip uninstall -y pip \
 && /opt/kubeflash/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/kubeflash/lib

FROM debian:trixie-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 fdisk util-linux iproute2 kmod nvme-cli ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m compileall -q --invalidation-mode unchecked-hash /usr/lib/python3*/
COPY --from=build /opt/kubeflash /opt/kubeflash
ENV PATH=/opt/kubeflash/bin:$PATH PYTHONUNBUFFERED=1
# The agent is the privileged part and must be root; the controller is run as any user by its manifest.
CMD ["kubeflash-controller"]
