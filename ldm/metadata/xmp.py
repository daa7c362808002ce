"""XMP: the mark that a picture was made by a model, in the words that search engines read, and our record where there are no chunks.

The packet is RDF in XML with one rdf:Description. Iptc4xmpExt:DigitalSourceType says how the picture came to be (IPTC's own list of terms),
xmp:CreatorTool by what, ldm:Record holds the lossless record, ldm:Sidecar the sha256 of the file beside the picture that holds
what its format cannot.
"""

from __future__ import annotations

from dataclasses import dataclass
from xml.parsers import expat

_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
TRAINED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"  # made by a model from a text
COMPOSITE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"  # from a picture, or part of one
NAMESPACES = {
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "ldm": "urn:ldm:picture:1:",
}
SDCPP = "https://github.com/leejet/stable-diffusion.cpp/ns/1.0/"
JPEG_LIMIT = 65_504  # bytes of a packet that one segment holds
LIMIT = 16 * 2**20  # bytes of a packet that is read
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_DEPTH = 100
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_HEAD = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
_TAIL = '</x:xmpmeta>\n<?xpacket end="w"?>'


@dataclass(frozen=True)
class Packet:
    """What a packet says; None where it says nothing."""

    source: str | None = None  # a term of IPTC's digital source types
    tool: str | None = None
    record: str | None = None
    sidecar: str | None = None  # sha256
    parameters: str | None = None  # stable-diffusion.cpp's text


_PLACES = {
    "source": ("Iptc4xmpExt", "DigitalSourceType"),
    "tool": ("xmp", "CreatorTool"),
    "record": ("ldm", "Record"),
    "sidecar": ("ldm", "Sidecar"),
}
_NAMES = {f"{NAMESPACES[space]} {name}": field for field, (space, name) in _PLACES.items()} | {f"{SDCPP} parameters": "parameters"}


def write(packet: Packet) -> bytes:
    """The packet in UTF-8, without the padding that editors in place would want."""
    said = {place: getattr(packet, field) for field, place in _PLACES.items() if getattr(packet, field) is not None}
    spaces = "".join(f'\n  xmlns:{prefix}="{uri}"' for prefix, uri in NAMESPACES.items() if any(prefix == space for space, _ in said))
    lines = "".join(f"  <{space}:{name}>{value.translate(_ESCAPES)}</{space}:{name}>\n" for (space, name), value in said.items())
    description = f' <rdf:Description rdf:about=""{spaces}>\n{lines} </rdf:Description>\n'
    return f'{_HEAD}<rdf:RDF xmlns:rdf="{_RDF}">\n{description}</rdf:RDF>\n{_TAIL}'.encode()


def read(data: bytes) -> Packet | None:
    """What a stranger's packet says, elements and attributes alike; None where it is too long, declares entities or is no XML."""
    if len(data) > LIMIT:
        return None
    reader = _Reader()
    try:
        reader.parse(data if data[:2] in _UTF16 else data.rstrip(b"\0"))
    except (expat.ExpatError, ValueError, LookupError):  # the last two: an encoding that Python does not know
        return None
    return Packet(**reader.found)


class _Reader:
    """Collects the texts of the wanted properties; the first of a name counts."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self._open: list[str] = []
        self._text: list[str] = []

    def parse(self, data: bytes) -> None:
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text.append
        parser.StartDoctypeDeclHandler = self._refuse
        parser.Parse(data, True)

    def _refuse(self, *_: object) -> None:
        raise ValueError("a packet declares no document type")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if len(self._open) >= _DEPTH:
            raise ValueError("too deep")
        self._open.append(name)
        if name in _NAMES:
            self._text.clear()
        if name == f"{_RDF} Description":
            for key, value in attributes.items():
                self._keep(key, value)

    def _end(self, name: str) -> None:
        self._open.pop()
        self._keep(name, "".join(self._text))

    def _keep(self, name: str, value: str) -> None:
        if name in _NAMES:
            self.found.setdefault(_NAMES[name], value)
