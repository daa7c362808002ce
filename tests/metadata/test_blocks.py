"""EXIF, XMP, PNG's texts and AVIF's boxes as blocks of bytes: what others write, the limits, and what is hostile."""

from __future__ import annotations

import contextlib
import io
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ldm.errors import InputError
from ldm.metadata import boxes, containers, exif, png, xmp
from scripts.faults.picturefiles import AVIF, chunk, file, scene, whole


def tags(first: dict[int, object], comment: object = None) -> bytes:
    """A block as Pillow writes it."""
    made = Image.Exif()
    for tag, value in first.items():
        made[tag] = value
    if comment is not None:
        made.get_ifd(0x8769)[0x9286] = comment
    return made.tobytes()


UTF = "a fox 🦊"


@pytest.mark.parametrize(
    ("block", "texts"),
    [
        (tags({}, b"UNICODE\0" + UTF.encode("utf-16-be")), {"parameters": UTF}),
        (tags({}, b"UNICODE\0" + UTF.encode("utf-16-le")), {"parameters": UTF}),
        (tags({}, b"UNICODE\0" + UTF.encode("utf-16")), {"parameters": UTF}),
        (tags({}, b"ASCII\0\0\0a fox\0"), {"parameters": "a fox"}),
        (tags({}, bytes(8) + b"a fox"), {"parameters": "a fox"}),
        (tags({}, b"a fox in the snow"), {"parameters": "a fox in the snow"}),
        (tags({}, bytes(8)), {}),
        (tags({0x0110: 'prompt:{"1": {}}', 0x010F: 'workflow:{"nodes": []}'}), {"prompt": '{"1": {}}', "workflow": '{"nodes": []}'}),
        (tags({0x0110: '{"sui_image_params": {}}'}), {"parameters": '{"sui_image_params": {}}'}),
        (tags({0x010F: "Canon", 0x0110: "EOS: 5", 0x0131: "GIMP"}), {"Make": "Canon", "Model": "EOS: 5", "Software": "GIMP"}),
    ],
)
def test_what_others_write_in_exif(block: bytes, texts: dict[str, str]) -> None:
    assert exif.read(block) == texts
    assert exif.read(block.removeprefix(exif.HEAD)) == texts


def test_the_first_text_of_a_name_counts_and_the_comment_most() -> None:
    assert exif.read(tags({0x0110: '{"a": 1}'}, b"ASCII\0\0\0words")) == {"parameters": "words"}


@given(st.binary(max_size=200) | st.integers(0, 10**6).map(lambda seed: damaged(exif.write("a fox"), seed)))
def test_any_bytes_are_read_as_exif(data: bytes) -> None:
    assert all(type(text) is str for text in exif.read(data).values())
    assert all(type(text) is str for text in exif.read(b"II*\0\x08\0\0\0" + data).values())


def damaged(data: bytes, seed: int) -> bytes:
    at = seed % len(data)
    return data[:at] + bytes([seed // len(data) % 256]) + data[at + 1 :]


def packet(inside: str, more: str = "") -> bytes:
    return f'{more}<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">{inside}</rdf:RDF></x:xmpmeta>'.encode()


SPACES = " ".join(f'xmlns:{prefix}="{uri}"' for prefix, uri in xmp.NAMESPACES.items())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            packet(f'<rdf:Description {SPACES} Iptc4xmpExt:DigitalSourceType="{xmp.TRAINED}" xmp:CreatorTool="x"/>'),
            xmp.Packet(xmp.TRAINED, "x"),
        ),
        (packet(f"<rdf:Description {SPACES}><xmp:CreatorTool>a &amp; b</xmp:CreatorTool></rdf:Description>"), xmp.Packet(None, "a & b")),
        (
            packet(f'<rdf:Description xmlns:s="{xmp.SDCPP}"><s:parameters>cat\nSteps: 1</s:parameters></rdf:Description>'),
            xmp.Packet(parameters="cat\nSteps: 1"),
        ),
        (packet(""), xmp.Packet()),
        (packet(f"<rdf:Description {SPACES} xmp:CreatorTool='1'/><rdf:Description {SPACES} xmp:CreatorTool='2'/>"), xmp.Packet(tool="1")),
        (packet(f"<rdf:Description {SPACES}><other xmp:CreatorTool='1'/></rdf:Description>"), xmp.Packet()),
        (packet("").decode().encode("utf-16"), xmp.Packet()),
        (packet("") + bytes(100), xmp.Packet()),
        (packet("", '<!DOCTYPE x [<!ENTITY a "b"><!ENTITY c "&a;&a;">]>'), None),
        (packet("", '<!DOCTYPE x SYSTEM "file:///etc/passwd">'), None),
        (packet("", "<?xml version='1.0' encoding='no-such'?>"), None),
        (b"<a>" * 10_000, None),
        (b"", None),
        (b"\0\1\2", None),
        (b" " * (xmp.LIMIT + 1), None),
    ],
)
def test_what_others_write_in_xmp(data: bytes, said: xmp.Packet | None) -> None:
    assert xmp.read(data) == said


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn"])))
def test_what_xml_can_carry_comes_back(text: str) -> None:
    assert xmp.read(xmp.write(xmp.Packet(record=text))) == xmp.Packet(record=text)


@given(st.binary(max_size=300) | st.text().map(packet))
def test_any_bytes_are_read_as_xmp(data: bytes) -> None:
    xmp.read(data)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_a_text_comes_back_from_its_chunk(text: str) -> None:
    kind, data = png.chunk("a key", text)
    assert png.read(kind, data) == ("a key", text)
    assert kind == (b"tEXt" if all(char == "\n" or " " <= char <= "~" or "\xa0" <= char <= "\xff" for char in text) else b"iTXt")


@pytest.mark.parametrize("key", ["", " a", "a ", "a  b", "x" * 80, "a\0", "a\n", "日", "\x7f", "\xa0"])
def test_keys_that_png_does_not_take(key: str) -> None:
    with pytest.raises(InputError, match="1 to 79 printable Latin-1"):
        png.chunk(key, "")


@given(st.sampled_from([b"tEXt", b"zTXt", b"iTXt"]), st.binary(max_size=100))
def test_any_bytes_are_a_text_or_an_error(kind: bytes, data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert all(type(each) is str for each in png.read(kind, b"k\0" + data))


@given(st.sampled_from(sorted(whole())), st.integers(0, 10**9), st.binary(max_size=8), st.integers(0, 8))
def test_any_damage_is_walked_or_refused(name: str, at: int, inside: bytes, cut: int) -> None:
    content = whole_files[name]
    at %= len(content)
    try:
        found = containers.find(io.BytesIO(content[:at] + inside + content[at + cut :]))
    except ValueError:
        return
    assert min(found.size) > 0


whole_files = whole()


@pytest.mark.parametrize("name", whole_files)
def test_the_size_is_the_decoders(name: str) -> None:
    with Image.open(io.BytesIO(whole_files[name])) as picture:
        found = containers.find(io.BytesIO(whole_files[name]))
        assert (found.format, found.size) == (picture.format, picture.size)
        assert found.animated == (getattr(picture, "n_frames", 1) > 1)


@pytest.mark.parametrize("count", [200_000])
def test_a_file_of_many_chunks_ends(count: int) -> None:
    plain = file(scene(8, 8), "PNG")
    start = time.process_time()
    found = containers.find(io.BytesIO(plain[:33] + chunk(b"tEXt", b"a\0") * count + plain[33:]))
    assert time.process_time() - start < 20
    assert "too many" in found.notes[-1]


def test_texts_beyond_the_limit_are_left_out() -> None:
    plain = file(scene(8, 8), "PNG")
    large = chunk(b"tEXt", b"a\0" + b"x" * (15 * 2**20))
    found = containers.find(io.BytesIO(plain[:33] + large.replace(b"a\0", b"a\0") * 5 + chunk(b"tEXt", b"b\0y") + plain[33:]))
    assert found.texts["b"] == "y"
    assert any("too long to be read" in note for note in found.notes)


@pytest.mark.skipif(not AVIF, reason="this Pillow was built without AVIF")
def test_avif_items_inside_the_box_and_without_end() -> None:
    assert boxes.find(io.BytesIO(file(scene(8, 8), "AVIF", exif=exif.write("a"), xmp=b"<x/>"))).xmp == b"<x/>"
    with pytest.raises(ValueError, match="another brand"):
        boxes.find(io.BytesIO(box(b"ftyp", b"heic\0\0\0\0mif1")))
    start = time.process_time()
    table = struct.pack(">IHH", 0, 0, 60_000) + struct.pack(">HHH", 1, 0, 65_535) * 60_000  # extents of no bytes
    found = boxes.find(io.BytesIO(box(b"ftyp", b"avif\0\0\0\0") + box(b"meta", bytes(4) + box(b"iloc", table))))
    assert time.process_time() - start < 2
    assert found.notes == ["the list of items is damaged"]
    inside = box(b"iinf", bytes(4) + b"\0\1" + box(b"infe", b"\2\0\0\0\0\1\0\0mime\0application/rdf+xml\0"))
    place = box(b"iloc", struct.pack(">IHH HHHHII", 1 << 24, 0x4400, 1, 1, 1, 0, 1, 0, 4))
    found = boxes.find(io.BytesIO(box(b"ftyp", b"avif\0\0\0\0") + box(b"meta", bytes(4) + inside + place + box(b"idat", b"<x/>"))))
    assert found.xmp == b"<x/>"


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content
