"""`ldm info FILE...`: what model files and pictures are and hold, without torch. Facts on stdout, refusals on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ldm.checkpoint.describe import LONGEST, MOST, describe
from ldm.checkpoint.foreign import picture_format
from ldm.checkpoint.identity import counted
from ldm.checkpoint.safetensors import MAX_HEADER, Header, read_header
from ldm.commands.progress import Bar, size
from ldm.commands.streams import complain, printable
from ldm.errors import InputError
from ldm.files import beginning
from ldm.flags import Parser
from ldm.options import KNOBS

PROMPT = 2000  # characters of a prompt that are shown


def run(argv: list[str]) -> int:
    """Do the verb and return the exit code: 2 where one of the files is refused, the others being shown."""
    options = parser().parse_args(argv)
    code = 0
    for at, file in enumerate(options.files):
        try:
            facts = _facts(Path(file), options)
        except InputError as error:
            complain(error)
            code = error.exit_code
            continue
        for line in [json.dumps(facts)] if options.json else [*([""] if at else []), *_lines(facts)]:
            _print(line)
    return code


def parser() -> Parser:
    what = "Say what files are: models, LoRAs, VAEs and others by their headers, pictures by their texts."
    made = Parser(prog="ldm info", description=what, allow_abbrev=False)
    made.add_argument("files", nargs="+", metavar="FILE", help="a .safetensors file or a picture")
    made.add_argument("--json", action="store_true", help="one JSON object a file")
    made.add_argument("--hash", action="store_true", help="add sha256, AutoV2 and AutoV3, which reads the whole file")
    made.add_argument("--verify", action="store_true", help="refuse a model file whose sha256 is not the one known for it")
    made.add_argument("--max-header", type=_size, default=MAX_HEADER, metavar="SIZE", help=KNOBS["max_header"].help)
    made.add_argument("--debug", action="store_true", help=KNOBS["debug"].help)
    return made


def _size(text: str) -> int:
    parse = KNOBS["max_header"].parse
    return int(parse(text)) if parse is not None else 0


_size.__name__ = "size"  # argparse names it when it refuses


def _facts(path: Path, options: Any) -> dict[str, Any]:
    if _is_picture(path):
        return _picture(path) | (_picture_hash(path) if options.hash else {})
    header = read_header(path, options.max_header)
    facts = describe(header)
    if options.verify:
        from ldm.checkpoint import digests

        with _bar(header) as bar:
            facts["verified"] = digests.verify(header, lambda more: bar.count(more, header.size))
    return facts | (_hashes(header) if options.hash else {})


def _hashes(header: Header) -> dict[str, str]:
    from ldm.checkpoint import digests

    with _bar(header) as bar:
        whole = digests.cached_sha256(header, lambda more: bar.count(more, header.size))
    with _bar(header) as bar:
        data = digests.autov3(header, lambda more: bar.count(more, header.size))
    return {"sha256": whole, "autov2": digests.autov2(whole), "autov3": data}


def _bar(header: Header) -> Bar:
    return Bar(f"reading {printable(header.path.name)}", False, header.size, unit="B")


def _picture_hash(path: Path) -> dict[str, str]:
    from ldm.checkpoint import digests

    return {"sha256": digests.sha256(path)}


def _is_picture(path: Path) -> bool:
    """Whether a file begins as a picture; one that cannot be looked at is left to the reader of models, which says why."""
    try:
        return picture_format(beginning(path, 12)) is not None
    except (OSError, ValueError):
        return False


def _picture(path: Path) -> dict[str, Any]:
    """What a picture file says of its making; the pixels are not decoded."""
    from ldm import pictures
    from ldm.metadata import foreign, native

    found = pictures.read(path)
    reading = foreign.read(found.texts)
    info = reading.info
    facts: dict[str, Any] = {
        "file": os.fspath(path),
        "kind": "picture",
        "title": f"{found.format} picture, {found.size[0]}x{found.size[1]}",
    }
    facts |= {"bytes": path.stat().st_size, "width": found.size[0], "height": found.size[1], "made_by": reading.dialect}
    said: dict[str, Any] = {"prompt": info.prompt, "negative": info.negative, "settings": dict(info.settings)}
    texts = {key: {"characters": len(text), "start": text[:LONGEST]} for key, text in list(found.texts.items())[:MOST]}
    record = _record(found.texts[native.KEY]) if native.KEY in found.texts else {}
    return facts | said | record | {"texts": texts, "source": found.source, "tool": found.tool, "notes": list(found.notes)}


def _record(text: str) -> dict[str, Any]:
    """Our own record, whole; a note where it cannot be read."""
    from ldm.metadata import native

    try:
        native.read(text)
    except InputError as error:
        return {"record_refused": str(error)}
    return {"record": json.loads(text)}


def _lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """A compact block for people."""
    yield printable(facts["file"])
    rows = _picture_rows(facts) if facts["kind"] == "picture" else _model_rows(facts)
    for name, text in rows:
        if text:
            yield f"  {printable(name):<11} {printable(text)}"


def _model_rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "what", facts["title"]
    yield "use", _use(facts)
    yield "size", f"{size(facts['bytes'])} ({facts['bytes']:,} bytes), {facts['tensors']:,} tensors, header {facts['header_bytes']:,} bytes"
    yield "parameters", f"{facts['parameters']:,}: {counted(facts['parts'].items())}"
    yield "dtypes", ", ".join(f"{name} {row['tensors']:,} tensors {size(row['bytes'])}" for name, row in facts["dtypes"].items())
    if "prediction" in facts:
        terminal = ", zero terminal SNR" if facts["zero_terminal"] else ""
        yield "prediction", f"{facts['prediction']} (from {facts['prediction_from']}){terminal}"
    spare = facts["leftovers"]
    yield "leftovers", f"{spare['count']:,}, which are not read: {', '.join(spare['names'][:5])}" if spare["count"] else ""
    yield from (("note", note) for note in facts.get("notes", ()))
    yield "licence", facts["licence"] or "not said"
    yield from _digest_rows(facts)
    yield from facts["metadata"].items()


def _use(facts: Mapping[str, Any]) -> str:
    if "refused" in facts:
        return f"not run: {facts['remedy'] if facts['refused'].startswith('this is ') else facts['refused']}"
    if "family" not in facts:
        return f"with {facts['flag']}" if facts["flag"] else f"not used: {facts['remedy']}"
    told = facts["defaults"]
    means = f"{told['width']}x{told['height']}, {told['sampler']} {told['schedule']}, {told['steps']} steps, cfg {told['cfg']:g}"
    return f"with {facts['flag']}: {facts['family_title']}, {means}"


def _picture_rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    makers = {"none": "no text says what made it", "unknown": "texts of no known program"}
    yield "what", f"{facts['title']}, {size(facts['bytes'])}, {makers.get(facts['made_by']) or 'made by ' + facts['made_by']}"
    yield from ((name, _cut(facts[name])) for name in ("prompt", "negative"))
    yield "settings", ", ".join(f"{name}: {_cut(value)}" for name, value in list(facts["settings"].items())[:MOST])
    if "record" in facts:
        job = {name: value for name, value in facts["record"]["job"].items() if name not in ("prompt", "negative") and value is not None}
        yield "record", _cut(", ".join(f"{name} {json.dumps(value)}" for name, value in job.items()))
    yield "record", facts.get("record_refused", "")
    for key, text in facts["texts"].items():
        yield "text", f"{key}: {text['characters']:,} characters: {text['start'][:60]}"
    yield "source", facts["source"] or ""
    yield "tool", facts["tool"] or ""
    yield from (("note", note) for note in facts["notes"])
    yield from _digest_rows(facts)


def _digest_rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from ((name, facts[name]) for name in ("sha256", "autov2", "autov3") if name in facts)
    if "verified" in facts:
        yield "verified", facts["verified"] or "no sha256 is known for this file"


def _cut(text: str) -> str:
    return text if len(text) <= PROMPT else f"{text[:PROMPT]}... ({len(text):,} characters)"


def _print(line: str) -> None:
    """A line on stdout, with escapes for what its encoding cannot say."""
    encoding = sys.stdout.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)
