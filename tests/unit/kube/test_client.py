"""What goes wrong before a request is even sent is an error of this client, too."""

from __future__ import annotations

import pytest
from kubernetes.client.configuration import Configuration
from kubernetes.config import ConfigException

from kubeflash.kube.client import Client
from kubeflash.kube.errors import Unreachable


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), ConfigException("no token file")])
def test_a_token_that_cannot_be_read_for_a_moment_is_an_api_server_that_cannot_be_reached(error):
    """Whoever renews a Lease goes on then: a heartbeat that ended would make a living agent look dead."""

    def renew(_: Configuration) -> None:
        raise error

    configuration = Configuration(host="http://127.0.0.1:9")
    configuration.api_key["BearerToken"] = "old"
    configuration.refresh_api_key_hook = renew
    with pytest.raises(Unreachable, match=str(error.args[-1])):
        Client(configuration).call("GET", "/version")
