"""What is wrong with links and pairs, each with what to do about it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kubeflash.topology.links import Edge, lane_gbps
from kubeflash.topology.tree import Step


@dataclass(frozen=True)
class Fault:
    """Something that costs bandwidth, or keeps peers from talking directly.

    Attributes:
        kind: one CamelCase word, for programs.
        address: the device or bridge that it is about; empty for the whole server.
        message: what is so, in one line.
        remedy: what to do about it, in one line.
        serious: an admin should act. Else it is as the server is built, or passes by itself.
    """

    kind: str
    address: str
    message: str
    remedy: str
    serious: bool = True


def short(address: str) -> str:
    """An address without the domain that nearly all devices are in."""
    return address.removeprefix("0000:")


def link_faults(edge: Edge, what: str, *, gpu: bool) -> Iterator[Fault]:
    """What is wrong with one link.

    Args:
        edge: the link.
        what: what is plugged in: "GPU", "SSD", "switch".
        gpu: whether that is a GPU, whose link sleeps while it idles.
    """
    lower = edge.lower
    speed, best_speed, width, best_width = edge.speed, edge.best_speed, edge.width, edge.best_width
    slow = _less(speed, best_speed)
    if slow and gpu:
        yield Fault(
            "LinkIdle",
            lower,
            f"its link is at {_gts(speed)} now, can do {_gts(best_speed)}: GPUs lower it while they idle",
            "look again while it works; if it stays so, reseat the GPU or its riser",
            serious=False,
        )
    elif slow:
        lost = _lost(lane_gbps(speed or 1), lane_gbps(best_speed or 1))
        yield Fault(
            "LinkSlow",
            lower,
            f"trained at {_gts(speed)}, can do {_gts(best_speed)}: {lost}",
            f"reseat the {what} or its riser, clean the contacts; check the slot's speed in the firmware's setup",
        )
    if width is not None and best_width is not None and width < best_width:
        yield Fault(
            "LinkNarrow",
            lower,
            f"trained at x{width}, can do x{best_width}: {_lost(width, best_width)}",
            f"reseat the {what} or its riser, clean the contacts; check the slot's bifurcation in the firmware's setup",
        )
    if _less(edge.port.max_speed, edge.end.max_speed):
        yield Fault(
            "SlotSlow",
            lower,
            f"its slot {short(edge.upper)} does {_gts(edge.port.max_speed)}, it could do {_gts(edge.end.max_speed)}",
            f"move the {what} to a faster slot, if there is one",
            serious=False,
        )
    if _less(edge.port.max_width, edge.end.max_width):
        yield Fault(
            "SlotNarrow",
            lower,
            f"its slot {short(edge.upper)} has x{edge.port.max_width}, it could use x{edge.end.max_width}",
            f"move the {what} to a wider slot, or change the slot's bifurcation in the firmware's setup",
        )


def acs_fault(step: Step) -> Fault:
    """A port on the way between two peers sends what they say to each other up to the root complex."""
    return Fault(
        "AcsRedirect",
        step.hop.address,
        "ACS redirects peer-to-peer traffic at this port to the root complex",
        "boot with pci=disable_acs_redir= and the ports' addresses, ; between them, or turn ACS off in the firmware's "
        "setup; keep it where virtual machines share the switch",
    )


def uplink_fault(edge: Edge, pairs: int, each: float) -> Fault:
    """More pairs than it carries cross one link."""
    return Fault(
        "SharedUplink",
        edge.upper,
        f"{pairs} pairs share this uplink: {each:.1f} GB/s each when all work",
        "put SSDs on the switches of their GPUs, or fewer pairs to work at once",
    )


def _gts(speed: float | None) -> str:
    return f"{speed:g} GT/s"


def _less(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and one < other


def _lost(now: float, best: float) -> str:
    """How much bandwidth a link loses that is below its maximum, in words."""
    share = 1 - now / best
    if abs(share - 0.5) < 0.02:
        return "half the bandwidth is lost"
    if abs(share - 0.75) < 0.02:
        return "three quarters of the bandwidth are lost"
    return f"{share:.0%} of the bandwidth is lost"
