"""Attachments made and unmade in random order: configfs, sysfs and the API server agree whenever it is quiet.

A hypothesis state machine that runs on simulated servers and on virtual ones alike. What it does is fixed by a seed.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from fleet import NAMESPACE, Fleet, attachment, is_ready
from kubeflash.domain.names import export_identity
from lab.processes import wait_until
from support.scenarios import Servers

JSON = dict[str, Any]
NODES = ("gpu-a", "gpu-b")


class Attaching(RuleBasedStateMachine):
    """Attaches and detaches volumes of gpu-a at both servers. Class attributes are the world: see `run`."""

    fleet: Fleet
    servers: Servers
    volumes: dict[str, bool]
    """By name, whether it is shared."""
    most = 100
    patience = 120.0
    done: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        self._made = 0
        self._there: dict[str, tuple[str, str]] = {}

    @precondition(lambda self: self._made < self.most)
    @rule(number=st.integers(0, 1 << 16), node=st.sampled_from(NODES), read_only=st.booleans())
    def attach(self, number: int, node: str, read_only: bool) -> None:
        """One more, whether it can be had now or must wait for another."""
        volume = sorted(self.volumes)[number % len(self.volumes)]
        name = f"r{self._made}"
        self._made += 1
        made = attachment(name, volume, node)
        made["spec"]["readOnly"] = read_only and not self.volumes[volume]
        self.fleet.apply(made)
        self._there[name] = (volume, node)
        self.done["attached"] += 1

    @precondition(lambda self: self._there)
    @rule(number=st.integers(0, 1 << 16))
    def detach(self, number: int) -> None:
        """Any of them, at whatever it is at."""
        name = sorted(self._there)[number % len(self._there)]
        del self._there[name]
        self.fleet.kubectl("delete", "flashattachment", name, "-n", NAMESPACE, "--wait=false")
        self.done["detached"] += 1

    @precondition(lambda self: len(self._there) >= 6 or self._made == self.most)
    @rule()
    def look(self) -> None:
        """Waits until it is quiet, and compares."""
        wait_until("all three agree", self._agree, timeout=self.patience)
        self.done["looked"] += 1

    @invariant()
    def never_two_writers(self) -> None:
        """An exclusive volume is never exported twice."""
        found = Counter(item["spec"]["volume"] for item in self._listed() if is_ready(item))
        assert all(self.volumes[volume] or count == 1 for volume, count in found.items()), found

    def teardown(self) -> None:
        """Ends all; nothing may be left."""
        limit = f"--timeout={self.patience:g}s"
        self.fleet.kubectl("delete", "flashattachment", "--all", "-n", NAMESPACE, limit, timeout=self.patience + 10)
        self._there.clear()
        wait_until("nothing is left", self._agree, timeout=30)
        assert self.servers.exports("gpu-a") == self.servers.connections("gpu-b") == set()

    def _listed(self) -> list[JSON]:
        return json.loads(self.fleet.kubectl("get", "flashattachments", "-n", NAMESPACE, "-o", "json"))["items"]

    def _agree(self) -> bool:
        """Whether each attachment is what it should be by the rules alone, and kernel and API say the same."""
        listed = self._listed()
        if {item["metadata"]["name"] for item in listed} != set(self._there):
            return False
        owners = {item["metadata"]["name"] for item in listed if is_ready(item)}
        expected = set()
        for volume, shared in self.volumes.items():
            mine = [item for item in listed if item["spec"]["volume"] == volume]
            if shared:
                expected |= {min(self._of(mine, node)) for node in NODES if self._of(mine, node)}
            elif mine:
                chosen = [item["metadata"]["name"] for item in mine if item.get("status", {}).get("path")]
                if len(chosen) != 1:
                    return False
                expected |= set(chosen)
        if owners != expected:
            return False
        over_fabric = {
            export_identity(item["metadata"]["uid"]).nqn
            for item in listed
            if item["metadata"]["name"] in owners and item["spec"]["nodeName"] != "gpu-a"
        }
        return self.servers.exports("gpu-a") == self.servers.connections("gpu-b") == over_fabric

    @staticmethod
    def _of(items: list[JSON], node: str) -> list[str]:
        """Names of the attachments at a server that have the volume, or wait for no other one at this server."""
        here = [item for item in items if item["spec"]["nodeName"] == node]
        granted = [item["metadata"]["name"] for item in here if item.get("status", {}).get("path")]
        return granted or [item["metadata"]["name"] for item in here]


def run(
    fleet: Fleet, servers: Servers, volumes: dict[str, bool], *, number: int, most: int, patience: float
) -> Counter[str]:
    """One run of at most `most` attachments, given by its seed; how often each thing was done."""
    world: dict[str, Any] = {
        "fleet": fleet,
        "servers": servers,
        "volumes": volumes,
        "most": most,
        "patience": patience,
        "done": Counter(),
    }
    machine = seed(number)(type("Attaching", (Attaching,), world))
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=1,
            stateful_step_count=3 * most,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    return world["done"]
