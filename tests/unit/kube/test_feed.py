"""The index of objects: late answers do not bring back what went, and what comes back is taken."""

from __future__ import annotations

import asyncio

from kubeflash.api.v1alpha1 import FlashPool, FlashVolume
from kubeflash.kube.errors import Forbidden
from kubeflash.kube.feed import Feed, Watch
from support.objects import pool, volume


class Listing:
    """A client that lists what it is given."""

    configuration = None

    def __init__(self, *bodies):
        self.bodies = list(bodies)
        self.version = 100

    def list_at(self, info, field_selector=None):
        return [body for body in self.bodies if body["kind"] == info.kind], self.version


def body(resource, version: int, **meta) -> dict:
    metadata = {**resource.metadata.to_json(), "resourceVersion": str(version), **meta}
    return {"kind": resource.info.kind, "metadata": metadata, "spec": resource.spec.to_json()}


def feed_of(*bodies) -> Feed:
    made = Feed(Listing(*bodies), [Watch(FlashVolume), Watch(FlashPool)])
    asyncio.run(made.resync())
    return made


def tell(feed: Feed, kind, event: str | None, content: dict) -> None:
    asyncio.run(feed._handler(kind)(event={"type": event, "object": content}))


V = volume("v", 1)


def test_an_older_version_does_not_replace_a_newer_one():
    feed = feed_of(body(V, 5))
    feed.put(FlashVolume, body(V, 4, labels={"old": "yes"}))
    assert feed.of(FlashVolume)["serving/v"].metadata.labels == {}
    feed.put(FlashVolume, body(V, 6, labels={"new": "yes"}))
    assert feed.of(FlashVolume)["serving/v"].metadata.labels == {"new": "yes"}


def test_an_answer_that_comes_after_the_deletion_brings_nothing_back():
    feed = feed_of(body(V, 5))
    tell(feed, FlashVolume, "DELETED", body(V, 9))
    feed.put(FlashVolume, body(V, 8))
    assert feed.of(FlashVolume) == {}


def test_what_stops_matching_the_selector_and_matches_again_is_taken_again():
    feed = feed_of(body(V, 5))
    tell(feed, FlashVolume, "DELETED", body(V, 9))
    tell(feed, FlashVolume, "ADDED", body(V, 12))
    assert set(feed.of(FlashVolume)) == {"serving/v"}


def test_the_answer_to_the_removal_of_the_last_finalizer_is_the_end():
    feed = feed_of(body(V, 5))
    feed.put(FlashVolume, body(V, 6, finalizers=[], deletionTimestamp="2026-01-01T00:00:00Z"))
    assert feed.of(FlashVolume) == {}


def test_a_list_drops_what_vanished_unseen():
    feed = feed_of(body(V, 5), body(pool("p", 2, "S"), 3))
    feed._client.bodies = [item for item in feed._client.bodies if item["kind"] == "FlashPool"]
    asyncio.run(feed.resync())
    assert feed.of(FlashVolume) == {}
    assert set(feed.of(FlashPool)) == {"p"}


def test_a_new_object_of_the_same_name_replaces_the_old_one_and_not_the_other_way_round():
    feed = feed_of(body(V, 50))
    feed.put(FlashVolume, body(volume("v", 2), 57))
    feed.put(FlashVolume, body(V, 51))
    assert feed.of(FlashVolume)["serving/v"].metadata.uid != V.metadata.uid


def test_an_object_that_does_not_fit_is_left_alone_and_the_others_are_taken(caplog):
    broken = {"kind": "FlashVolume", "metadata": {"name": "bad"}, "spec": {"size": "many"}}
    feed = feed_of(broken, body(V, 5))
    assert set(feed.of(FlashVolume)) == {"serving/v"}
    assert "bad does not fit its schema" in caplog.text
    assert feed.unreadable == {"FlashVolume /bad"}, "it is not absent: nothing may be concluded"


def test_each_answer_of_the_api_server_is_a_sign_of_life_and_a_write_that_is_not_allowed_is_remembered():
    feed, answers = feed_of(body(V, 5)), []
    feed.answered = lambda: answers.append(feed.forbidden)
    asyncio.run(feed.resync())
    assert len(answers) == 2, "one a kind"

    class Refused:
        resource = V

        def send(self, client):
            raise Forbidden("user lacks the rule")

    class Taken:
        resource = V

        def send(self, client):
            return body(V, 6)

    assert asyncio.run(feed.send(Taken()))
    assert (len(answers), feed.forbidden) == (3, "")
    assert not asyncio.run(feed.send(Refused()))
    assert (len(answers), feed.forbidden) == (4, "user lacks the rule")


def test_what_a_watch_told_while_a_list_was_under_way_stays():
    feed = feed_of()
    feed.put(FlashVolume, body(V, 150))
    asyncio.run(feed.resync())
    assert set(feed.of(FlashVolume)) == {"serving/v"}
    feed._client.version = 200
    asyncio.run(feed.resync())
    assert feed.of(FlashVolume) == {}
