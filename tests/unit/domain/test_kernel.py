"""What a kernel lacks, in words."""

from __future__ import annotations

import pytest

from kubeflash.api.v1alpha1 import Ability, Kernel
from kubeflash.domain.kernel import kernel_problems

CAN = Ability(available=True, how="seen")
WHOLE = Kernel(release="6.8.0-40-generic", nvmet=CAN, nvmet_tcp=CAN, nvme_tcp=CAN, authentication=CAN)


def lacking(**abilities: str) -> Kernel:
    return WHOLE.model_copy(update={name: Ability(available=False, how=how) for name, how in abilities.items()})


def test_a_kernel_that_lacks_nothing_but_rdma_and_tls():
    assert kernel_problems(WHOLE) == []
    assert kernel_problems(Kernel()) == []


@pytest.mark.parametrize("release", ["6.7.9-x", "5.15.0-1", "4.18.0-553.el8"])
def test_a_kernel_that_is_too_old(release: str):
    (problem,) = kernel_problems(WHOLE.model_copy(update={"release": release}))
    assert problem.startswith(f"Linux {release} is older than 6.8")
    assert "install a newer kernel" in problem


@pytest.mark.parametrize("release", ["6.8.0", "6.12.63+deb13-amd64", "7.0.1"])
def test_a_kernel_that_is_not(release: str):
    assert kernel_problems(WHOLE.model_copy(update={"release": release})) == []


def test_what_is_missing_is_said_once_with_its_reason():
    (problem,) = kernel_problems(lacking(nvmet="no nvmet", nvmet_tcp="no nvmet"))
    assert problem == "its kernel cannot export volumes to other servers: no nvmet"
    (problem,) = kernel_problems(lacking(nvme_tcp="no nvme-tcp"))
    assert problem == "its kernel cannot use volumes of other servers: no nvme-tcp"
    (problem,) = kernel_problems(lacking(authentication="CONFIG_NVME_TARGET_AUTH is not set in /boot/config"))
    assert "CONFIG_NVME_TARGET_AUTH is not set in /boot/config; use a kernel with" in problem
    assert "security.authentication: None" in problem
