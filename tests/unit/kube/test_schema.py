"""CRDs of the cluster beside those of this version."""

from __future__ import annotations

import copy

import pytest

from kubeflash.api.crds import crd
from kubeflash.api.v1alpha1 import KINDS, FlashNode, FlashVolume
from kubeflash.kube import schema
from kubeflash.kube.errors import Forbidden, NotFound
from kubeflash.kube.schema import CrdsMissing, CrdsOlder, lacking

CRDS = {schema.crd_name(kind): crd(kind) for kind in KINDS}


class Cluster:
    """An API server with these CRDs; it names those of `named`, if it knows the group already."""

    def __init__(self, crds, named=tuple(kind.info.plural for kind in KINDS), groups=("apps", "kubeflash.io")):
        self.crds, self.named, self.groups = crds, named, groups

    def call(self, method, path):
        if path == "/apis":
            return {"groups": [{"name": name} for name in self.groups]}
        assert (method, path) == ("GET", "/apis/kubeflash.io/v1alpha1")
        if self.named is None:
            raise NotFound(path)
        return {"resources": [{"name": name} for name in (*self.named, "flashpools/status")]}

    def get(self, info, name):
        assert (info.group, info.plural) == ("apiextensions.k8s.io", "customresourcedefinitions")
        if name not in self.crds:
            raise NotFound(name)
        return self.crds[name]


@pytest.fixture
def crds():
    return copy.deepcopy(CRDS)


def properties(crds, kind, *path):
    node = crds[schema.crd_name(kind)]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for name in path:
        node = node["items"] if name == "[]" else node["properties"][name]
    return node["properties"]


def test_this_version_s_own_are_fine(crds):
    schema.check(Cluster(crds))


def test_more_of_a_later_version_is_fine(crds):
    properties(crds, FlashNode, "status")["futureField"] = {"type": "string"}
    crds["flashnodes.kubeflash.io"]["spec"]["versions"].append({"name": "v9", "served": True})
    schema.check(Cluster(crds))


def test_missing_ones_are_named_with_the_commands(crds):
    del crds["flashpools.kubeflash.io"], crds["flashvolumes.kubeflash.io"]
    with pytest.raises(CrdsMissing) as failed:
        schema.check(Cluster(crds))
    assert str(failed.value) == (
        "these CRDs are not in this cluster: flashpools.kubeflash.io, flashvolumes.kubeflash.io; apply this version's "
        "CRDs: helm upgrade --install kubeflash-crds charts/kubeflash-crds, or kubectl apply --server-side -f crds/"
    )


def test_older_ones_are_named_with_what_they_lack_by_path(crds):
    del properties(crds, FlashNode, "status")["linux"]
    del properties(crds, FlashNode, "status", "ssds", "[]")["health"]
    del properties(crds, FlashVolume, "status")["grantedBy"]
    with pytest.raises(CrdsOlder) as failed:
        schema.check(Cluster(crds))
    words = str(failed.value)
    assert "flashnodes.kubeflash.io lacks status.linux, status.ssds.health; flashvolumes.kubeflash.io lacks " in words
    assert "flashvolumes.kubeflash.io lacks status.grantedBy; apply this version's CRDs: helm upgrade" in words


def test_of_many_some_are_named(crds):
    properties(crds, FlashVolume, "status").clear()
    with pytest.raises(CrdsOlder, match=r"lacks (status\.\w+, ){3}status\.\w+ and [0-9]+ more; apply"):
        schema.check(Cluster(crds))


@pytest.mark.parametrize(
    ("named", "groups", "absent"),
    [
        (("flashnodes", "flashpools", "flashvolumes"), ("kubeflash.io",), "flashattachments"),
        (None, ("kubeflash.io",), "flashattachments, flashnodes, flashpools, flashvolumes"),
        (("flashnodes",), ("apps",), "flashattachments, flashnodes, flashpools, flashvolumes"),
    ],
    ids=["kind", "version", "group"],
)
def test_kinds_that_the_api_server_does_not_name_yet_are_waited_for(crds, named, groups, absent):
    """kopf asks for them once, when it starts: one that is missing then it would never watch."""
    with pytest.raises(
        CrdsMissing, match=f"^waiting for the API server to serve these kinds of kubeflash.io: {absent}$"
    ):
        schema.check(Cluster(crds, named, groups))


def test_inside_maps_too(crds):
    body = crds["flashvolumes.kubeflash.io"]
    status = body["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    wanted = status["wanted"].get("additionalProperties") or status["wanted"]["items"]
    name = min(wanted["properties"])
    del wanted["properties"][name]
    assert lacking(FlashVolume, body) == [f"status.wanted.{name}"]


def test_a_version_that_is_not_served_and_a_field_that_cannot_be_selected_by(crds):
    body = crds["flashvolumes.kubeflash.io"]
    del body["spec"]["versions"][0]["selectableFields"]
    assert lacking(FlashVolume, body) == [f"selectable field {path}" for path in FlashVolume.info.selectable]
    body["spec"]["versions"][0]["served"] = False
    assert lacking(FlashVolume, body) == ["version v1alpha1"]


def test_who_may_not_look_is_told_so():
    class Closed:
        def get(self, info, name):
            raise Forbidden("no")

    with pytest.raises(Forbidden):
        schema.check(Closed())
