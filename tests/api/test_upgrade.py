"""Objects of an earlier version stay readable and writable when the CRDs of this one are applied over its own."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.objects import CRDS
from kubeflash.api.v1alpha1 import FlashNode
from kubeflash.kube.client import Client
from kubeflash.kube.errors import Invalid, KubeError

pytestmark = [pytest.mark.api, pytest.mark.usefixtures("clean")]

AGENT = "kubeflash-agent"
OLD_KERNEL = {"type": "object", "properties": {"release": {"type": "string"}, "nvmetTcp": {"type": "boolean"}}}


def eventually(work: Callable[[], Any], reached: Callable[[Any], object]) -> Any:
    """The answer, once it is as wished: storage is initialized anew for some time after a CRD changed."""
    deadline = time.monotonic() + 30
    while True:
        try:
            if reached(found := work()):
                return found
        except Invalid:
            raise
        except KubeError:
            if time.monotonic() > deadline:
                raise
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_flashnode_with_the_booleans_of_an_earlier_agent(client: Client, make, kubectl):
    file = Path(CRDS) / "kubeflash.io_flashnodes.yaml"
    old = copy.deepcopy(yaml.safe_load(file.read_text()))
    status = old["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    del status["linux"]
    status["kernel"] = OLD_KERNEL
    node = make(FlashNode, {}, "of-an-earlier-agent")
    try:
        kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=json.dumps(old).encode())
        told = {"kernel": {"release": "6.12", "nvmetTcp": True}}
        written = eventually(lambda: client.apply_status(node, told, AGENT), lambda it: "kernel" in it["status"])
        assert written["status"]["kernel"]["nvmetTcp"] is True
    finally:
        kubectl("apply", "--server-side", "--force-conflicts", "-f", file)
    now = {"linux": {"release": "6.12", "nvmetTcp": {"available": True, "how": "it is loaded"}}}
    written = eventually(lambda: client.apply_status(node, now, AGENT), lambda it: "linux" in it["status"])
    read = FlashNode.from_json(written).status.linux
    assert read is not None
    assert read.nvmet_tcp.available
    assert "kernel" not in client.get(FlashNode.info, "of-an-earlier-agent")["status"]
