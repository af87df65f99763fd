# One image for all processes: `kubeflash-controller`, `kubeflash-agent`, `kubectl-flash`. scripts/build-image builds it.
# What changes least comes first: Debian's packages, the locked dependencies, KubeFlash. docs/image.md has the sizes.

# systemd-standalone-sysusers stands in for systemd (17 MB), which nvme-cli's uuid-runtime would bring. There are no
# ca-certificates: an API server's authority comes with the pod. nvme-cli's host NQN would be the same on all servers. All
# Python is compiled: a read-only root could not, and a start would take two to four times as long.
FROM debian:trixie-slim AS debian
RUN apt-get update \
 && apt-get upgrade -y \
 && apt-get install -y --no-install-recommends \
      python3 fdisk util-linux kmod nvme-cli systemd-standalone-sysusers pci.ids \
 && apt-get clean \
 && rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/debconf/*-old /var/cache/ldconfig/aux-cache \
      /usr/lib/python3*/test /usr/lib/python3*/pydoc_data /etc/nvme/hostid /etc/nvme/hostnqn \
 && python3 -m compileall -q -f -j 0 --invalidation-mode unchecked-hash /usr/lib/python3*/

# pip's report says which wheel came of the hashes that the lock allows. What no process loads is taken out again.
FROM debian AS dependencies
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-venv binutils \
 && rm -rf /var/lib/apt/lists/*
COPY requirements/runtime.txt requirements/build.txt /src/requirements/
COPY scripts/trim-packages /src/scripts/
RUN python3 -m venv /opt/build \
 && python3 -m venv --without-pip /opt/kubeflash \
 && /opt/build/bin/pip install --no-cache-dir --no-compile --require-hashes --no-deps -r /src/requirements/build.txt \
 && /opt/build/bin/pip --python /opt/kubeflash/bin/python install --no-cache-dir --no-compile --only-binary :all: \
      --require-hashes --no-deps --report /opt/build/report.json -r /src/requirements/runtime.txt \
 && /opt/kubeflash/bin/python -B /src/scripts/trim-packages \
 && /opt/kubeflash/bin/python -m compileall -q -f -j 0 --invalidation-mode unchecked-hash /opt/kubeflash/lib

FROM debian AS sbom
COPY --from=dependencies /opt/build/report.json /src/
COPY pyproject.toml scripts/sbom /src/
RUN mkdir -p /sbom/usr/share/sbom \
 && python3 /src/sbom /src/report.json /src/pyproject.toml >/sbom/usr/share/sbom/kubeflash.cdx.json

# Not editable, and into a folder of its own, so that it is a layer of its own. What lacks something is not built.
FROM dependencies AS kubeflash
COPY pyproject.toml README.md LICENSE /src/
COPY scripts/check-image /src/scripts/
COPY operator /src/operator
RUN cd /src \
 && /opt/build/bin/hatchling build -t wheel -d /dist \
 && /opt/build/bin/pip --python /opt/kubeflash/bin/python install --no-compile --no-deps --no-index --root /kubeflash \
      /dist/*.whl \
 && (cd /kubeflash/opt/kubeflash/lib/python3*/site-packages/kubeflash-*.dist-info \
      && rm RECORD INSTALLER REQUESTED WHEEL direct_url.json) \
 && /opt/kubeflash/bin/python -m compileall -q -f -s /kubeflash --invalidation-mode unchecked-hash /kubeflash \
 && cp -a /kubeflash/. / \
 && /opt/kubeflash/bin/python -B /src/scripts/check-image

FROM debian
COPY --from=dependencies /opt/kubeflash /opt/kubeflash
COPY --from=sbom /sbom /
COPY --from=kubeflash /kubeflash /
# LOGNAME: kopf asks who it is, and fails for a user id that has no name here, which is any that a cluster gives it.
ENV PATH=/opt/kubeflash/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 LOGNAME=kubeflash
# An image whose programs cannot start is not built.
RUN kubeflash-controller --version && kubeflash-agent --version && kubectl-flash --version
# The agent is the privileged part and must be root; the controller is run as any user by its manifest.
CMD ["kubeflash-controller"]
