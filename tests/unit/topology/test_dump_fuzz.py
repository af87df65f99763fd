"""Whatever a file holds, reading it gives a listing or one line that says what is wrong."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kubeflash.topology.distance import distance
from kubeflash.topology.dump import read_dump
from kubeflash.topology.errors import BadDump
from unit.topology.test_hwloc import clustered
from unit.topology.test_lspci import MACHINES, SWITCHED, named, with_paths, without_root

SOUND = [clustered(version) for version in (1, 2, 3)] + [
    text.encode() for text in (SWITCHED, named(), with_paths(), without_root(), *MACHINES.values())
]


def check(content: bytes) -> None:
    try:
        listing = read_dump(content)
    except BadDump as error:
        message = str(error)
        assert message
        assert message.isprintable()
        assert len(message) < 300
        return
    server = listing.server()
    for device in server.tree:
        assert (device.path is None) or device.root_complex
        distance(device, server.tree.devices[0])


@given(st.binary(max_size=400))
def test_bytes(content: bytes):
    check(content)


@given(
    st.sampled_from([b"<topology>", b'<topology version="2.0"><object type="Machine">', b"00:01.0 a: b\n\t"]),
    st.binary(),
)
def test_bytes_after_a_sound_start(start: bytes, content: bytes):
    check(start + content)


@given(st.text(alphabet="0123456789abcdef:./[]() \t\nBusSlotCapabilitiesLnk=,-+", max_size=300))
def test_text_of_the_letters_that_count(text: str):
    check(b"00:00.0 Host bridge: x\n\tControl: \n" + text.encode())


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A sound dump with lines removed, doubled, moved, words changed, bytes flipped, or cut off."""
    lines = draw(st.sampled_from(SOUND)).split(b"\n")
    places = st.integers(0, len(lines) - 1)
    for how, one, other in draw(
        st.lists(st.tuples(st.sampled_from(["delete", "double", "swap", "word"]), places, places), max_size=6)
    ):
        first, second = one % len(lines), other % len(lines)
        if how == "delete" and len(lines) > 1:
            del lines[first]
        elif how == "double":
            lines.insert(second, lines[first])
        elif how == "swap":
            lines[first], lines[second] = lines[second], lines[first]
        elif how == "word":
            words = lines[first].split(b" ")
            words[second % len(words)] = draw(
                st.sampled_from([b"", b"0", b"ffff", b"4e:00.0", b"\x9b", b"00", b"[", b'"', b"/>"])
            )
            lines[first] = b" ".join(words)
    content = bytearray(b"\n".join(lines))
    for position, value in draw(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=4)):
        if content:
            content[position % len(content)] = value
    return bytes(content[: draw(st.one_of(st.none(), st.integers(0, len(content))))])


@settings(max_examples=400)
@given(damaged())
def test_damaged_dumps(content: bytes):
    check(content)


@given(st.sampled_from(SOUND[3:]), st.randoms(use_true_random=False))
def test_shuffled_lines(sound: bytes, random):
    lines = sound.split(b"\n")
    random.shuffle(lines)
    check(b"\n".join(lines))
