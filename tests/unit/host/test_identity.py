from __future__ import annotations

import pytest

from kubeflash.host.identity import NoIdentity, system_uuid
from support.sysfs_builder import MadeUpServer

DMI = "sys/class/dmi/id/product_uuid"
MACHINE = "3d1219c7c4c5404aaa1f6d2a48adfda4"


def test_the_dmi_system_uuid(server: MadeUpServer):
    server.write("etc/machine-id", f"{MACHINE}\n")
    assert system_uuid(server.root) == "4c4c4544-0042-3510-8054-b4c04f4d3732"


@pytest.mark.parametrize(
    "bogus",
    [
        "00000000-0000-0000-0000-000000000000",
        "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
        "03000200-0400-0500-0006-000700080009",
        "Not Settable",
        "",
    ],
)
def test_what_many_servers_share_is_no_identity(server: MadeUpServer, bogus: str):
    server.write(DMI, f"{bogus}\n")
    with pytest.raises(NoIdentity, match="systemd-machine-id-setup"):
        system_uuid(server.root)
    server.write("etc/machine-id", f"{MACHINE}\n")
    assert system_uuid(server.root) == "3d1219c7-c4c5-404a-aa1f-6d2a48adfda4"


def test_a_machine_id_that_is_not_set_up(server: MadeUpServer):
    server.write(DMI, "Not Settable\n")
    server.write("etc/machine-id", "uninitialized\n")
    with pytest.raises(NoIdentity):
        system_uuid(server.root)


def test_a_supermicro_uuid_made_of_a_mac_address_is_genuine(server: MadeUpServer):
    server.write(DMI, "00000000-0000-0000-0000-AC1F6B012345\n")
    assert system_uuid(server.root) == "00000000-0000-0000-0000-ac1f6b012345"
