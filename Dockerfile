# syntax=docker/dockerfile:1
# One image for all processes: `kubeflash-controller` and `kubeflash-agent`. scripts/build-image builds it.
# Stage 1 installs the locked dependencies and KubeFlash itself (not editable) and compiles them: a read-only root could
# not, and start-up would take two to four times as long and twice the memory.
FROM debian:trixie-slim AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-venv \
 && apt-get clean \
 && rm -rf /var/lib/apt/lists/*
COPY requirements/runtime.txt requirements/build.txt /src/requirements/
# kubernetes.aio repeats the whole client for asyncio: 40 MB that nothing here imports.
RUN python3 -m venv /opt/build \
 && python3 -m venv --without-pip /opt/kubeflash \
 && /opt/build/bin/pip install --no-cache-dir --no-compile --require-hashes --no-deps -r /src/requirements/build.txt \
 && /opt/build/bin/pip --python /opt/kubeflash/bin/python install --no-cache-dir --no-compile --only-binary :all: \
      --require-hashes --no-deps -r /src/requirements/runtime.txt \
 && rm -r /opt/kubeflash/lib/python3*/site-packages/kubernetes/aio
COPY pyproject.toml README.md LICENSE /src/
COPY operator /src/operator
# Nothing is compiled before compileall, which leaves alone what it takes for current: -f is for the same reason.
RUN cd /src \
 && /opt/build/bin/hatchling build -t wheel -d /dist \
 && /opt/build/bin/pip --python /opt/kubeflash/bin/python install --no-compile --no-deps --no-index /dist/*.whl \
 && /opt/kubeflash/bin/python -m compileall -q -f --invalidation-mode unchecked-hash /opt/kubeflash/lib

FROM debian:trixie-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 fdisk util-linux nvme-cli pci.ids iproute2 ca-certificates \
 && apt-get clean \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m compileall -q -f --invalidation-mode unchecked-hash /usr/lib/python3*/
COPY --from=build /opt/kubeflash /opt/kubeflash
ENV PATH=/opt/kubeflash/bin:$PATH PYTHONUNBUFFERED=1
# An image whose programs cannot start is not built.
RUN kubeflash-controller --version && kubeflash-agent --version
# The agent is the privileged part and must be root; the controller is run as any user by its manifest.
CMD ["kubeflash-controller"]
