"""Files that the reader must refuse, each with what its sentence says, by the class of the error."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from typing import Any

from tests.checkpoint.builders import entry, raw

GOOD = {"a": entry("F32", [2], 0, 8), "b": entry("F16", [1, 2], 8, 12)}
ONE = entry("F32", [2], 0, 8)
TEXT = json.dumps(ONE).encode()


def field(**changes: object) -> bytes:
    """A file with one tensor, some of its fields changed; None takes one out."""
    return raw({"a": {key: value for key, value in {**ONE, **changes}.items() if value is not None}}, b"\0" * 8)


def literal(name: str, text: str) -> bytes:
    """A file with one tensor, one of its fields written so."""
    fields = {key: json.dumps(value) for key, value in ONE.items()} | {name: text}
    return raw(f'{{"a":{{{",".join(f"{json.dumps(key)}:{value}" for key, value in fields.items())}}}}}'.encode(), b"\0" * 8)


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.safetensors"))
    return buffer.getvalue()


class Trap:
    """Its pickle runs code when it is opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('a pickle was run')",)


def pickles() -> dict[str, tuple[bytes, str]]:
    """State dicts of every protocol, the trap's too."""
    things = {"dict": {"state_dict": {"weight": [0.5]}}, "list": [{"weight": 0.5}], "trap": {"weight": Trap()}, "trap alone": Trap()}
    return {
        f"pickle {protocol} {name}": (pickle.dumps(thing, protocol), "a Python pickle .*pickles can run code")
        for protocol in range(6)
        for name, thing in things.items()
    }


OTHER_KINDS = {  # E3002
    **pickles(),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:31e35c80fc\nsize 6938078334\n", "a git-lfs pointer.*git lfs pull"),
    "xet": (b"# xet version 0\nfilesize = 6938078334\nhash = '31e35c80fc'\n", "a Xet pointer"),
    "html": (b"<!DOCTYPE html><html><body>401</body></html>", "an HTML or XML page"),
    "html after space": (b"\xef\xbb\xbf\n  <html></html>", "an HTML or XML page"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an HTML or XML page"),
    "index": (b'{"metadata": {"total_size": 5135149760}, "weight_map": {"a": "1.safetensors"}}', "the index of a model in several files"),
    "json": (b'{\n  "error": "Access to model x is restricted"\n}', 'JSON that begins \'. "error": "Access'),
    "text": (b"Invalid username or password.", "text that begins 'Invalid username or password.'"),
    "zip": (b"PK\x03\x04" + b"\x14\0" * 50, "a zip archive.*pickles can run code"),
    "gguf": (b"GGUF\x03\0\0\0" + b"\x01" * 40, "a GGUF file"),
    "gguf that looks long": (b"GGUF\x03\0\0\0{" + b"\x01" * 40, "a GGUF file"),
    "gzip": (b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + b"\x11" * 40, "a gzip archive"),
    "bzip2": (b"BZh91AY&SY" + b"\xa1" * 40, "a bzip2 archive"),
    "xz": (b"\xfd7zXZ\0\0\x04" + b"\xa1" * 40, "an xz archive"),
    "zstd": (b"\x28\xb5\x2f\xfd\x24" + b"\xa1" * 40, "a zstd archive"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\x04" + b"\xa1" * 40, "a 7z archive"),
    "rar": (b"Rar!\x1a\x07\x01\0" + b"\xa1" * 40, "a RAR archive"),
    "tar": (tarred(), "a tar archive"),
    "png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\0" * 40, "a picture, not weights"),
    "jpeg": (b"\xff\xd8\xff\xe0\0\x10JFIF" + b"\0" * 40, "a picture, not weights"),
    "webp": (b"RIFF\x24\0\0\0WEBPVP8 " + b"\0" * 40, "a picture, not weights"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 40, "an HDF5 file"),
    "npy": (b"\x93NUMPY\x01\0v\0{'descr': '<f4'}", "a numpy array"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "a PDF document"),
    "noise": (bytes(range(200, 255)), "not a safetensors file"),
}
CUT = {  # E3003
    "empty": (b"", "the file is empty"),
    "few bytes": (b"\x08\0\0", "truncated: has 3 of at least 10 bytes"),
    "length alone": (raw(b"", length=300), "truncated: has 8 of at least 308 bytes"),
    "zeros": (b"\0" * 600, "begins with zeros"),
    "header cut": (raw(GOOD, b"\0" * 12)[:40], "truncated: has 40 of at least 1.. bytes"),
    "data cut": (raw(GOOD, b"\0" * 11), r"truncated: has 1\d\d of 1\d\d bytes: download it again"),
}
JSON = {  # E3004, as are the others
    "length 0": (raw(b"{}", length=0) + b"\0" * 9, "length at byte 0 is 0, the least is 2"),
    "length 1": (raw(b"{", b"}" * 9, length=1), "length at byte 0 is 1"),
    "leading space": (raw(b" {}"), "begins with white space at byte 8"),
    "leading newline": (raw(b"\n{}"), "begins with white space at byte 8"),
    "bom": (raw(b"\xef\xbb\xbf{}"), "begins with a byte order mark at byte 8"),
    "list": (raw(b"[]"), r"begins with '\[' at byte 8"),
    "number": (raw(b"12"), "begins with '1' at byte 8"),
    "not json": (raw(b"{nope}"), r"not JSON at byte 9 \(Expecting property name"),
    "cut json": (raw(b'{"a": {"dtype": "F32"'), "not JSON at byte 29"),
    "not json after wide letters": (raw('{"ключ": nope}'.encode()), "not JSON at byte 21 .Expecting value"),
    "two objects": (raw(b"{}{}"), r"not JSON at byte 10 \(Extra data"),
    "zeros after": (raw(b"{}\0"), r"not JSON at byte 10 \(Extra data"),
    "trailing comma": (raw(b"{%s,}" % b'"__metadata__":{}'), "not JSON at byte"),
    "comment": (raw(b"{/**/}"), "not JSON at byte 9"),
    "single quotes": (raw(b"{'a':1}"), "not JSON at byte 9"),
    "raw newline in a name": (raw(b'{"a\nb":%s}' % TEXT, b"\0" * 8), r"not JSON at byte 11 \(Invalid control character"),
    "bad escape": (raw(b'{"\\x41":%s}' % TEXT, b"\0" * 8), "not JSON at byte 10"),
    "not utf-8": (raw(b'{"\xff": 1}'), "not UTF-8 at byte 10"),
    "overlong utf-8": (raw(b'{"\xc0\xaf": 1}'), "not UTF-8 at byte 10"),
    "surrogate in utf-8": (raw(b'{"\xed\xa0\x80": 1}'), "not UTF-8 at byte 10"),
    "utf-16": (raw("{}".encode("utf-16-le")), "not JSON at byte 9"),
    "deep": (raw(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "nested too deeply"),
    "deep objects": (raw(b'{"a":' * 50_000 + b"1" + b"}" * 50_000), "nested too deeply"),
    "duplicate tensor": (raw(b'{"a":%s,"a":%s}' % (TEXT, TEXT), b"\0" * 8), "duplicate name 'a' in the header"),
    "duplicate escaped": (raw(b'{"a":%s,"\\u0061":%s}' % (TEXT, TEXT), b"\0" * 8), "duplicate name 'a' in the header"),
    "duplicate metadata": (raw(b'{"__metadata__":{},"__metadata__":{}}'), "duplicate name '__metadata__'"),
    "duplicate field": (
        raw(b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"\0" * 8),
        "tensor 'a': duplicate field 'dtype'",
    ),
    "duplicate key": (raw(b'{"__metadata__":{"k":"1","k":"2"}}'), "duplicate key 'k' in __metadata__"),
}
METADATA = {
    "metadata list": (raw({"__metadata__": []}), "__metadata__ is a list"),
    "metadata null": (raw({"__metadata__": None}), "__metadata__ is null"),
    "metadata text": (raw({"__metadata__": "x"}), "__metadata__ is 'x', not an object"),
    "metadata value number": (raw({"__metadata__": {"a": 1}}), "__metadata__: 'a' is 1, not a string"),
    "metadata value float": (raw({"__metadata__": {"a": 0.5}}), "__metadata__: 'a' is 0.5, not a string"),
    "metadata value null": (raw({"__metadata__": {"a": None}}), "__metadata__: 'a' is null"),
    "metadata value true": (raw({"__metadata__": {"a": True}}), "__metadata__: 'a' is true"),
    "metadata value object": (raw({"__metadata__": {"a": {}}}), "__metadata__: 'a' is an object"),
    "metadata value surrogate": (raw(b'{"__metadata__":{"a":"\\ud800"}}'), "__metadata__: 'a' is not Unicode text"),
    "metadata key surrogate": (raw(b'{"__metadata__":{"\\udfff":"a"}}'), "__metadata__: '.udfff' is not Unicode text"),
}
FIELDS = {
    "not an object": (raw({"a": 1}), "tensor 'a': is 1, not an object"),
    "null": (raw({"a": None}), "tensor 'a': is null, not an object"),
    "fields in a list": (raw({"a": ["F32", [2], [0, 8]]}, b"\0" * 8), "tensor 'a': is a list, not an object"),
    "dtype missing": (field(dtype=None), "tensor 'a': dtype is missing"),
    "shape missing": (field(shape=None), "tensor 'a': shape is missing"),
    "data_offsets missing": (field(data_offsets=None), "tensor 'a': data_offsets is missing"),
    "field unknown": (field(extra=1), "tensor 'a': unknown field 'extra'"),
    "dtype unknown": (field(dtype="F33"), "tensor 'a': unknown dtype 'F33': the known ones are BOOL"),
    "dtype lower": (field(dtype="f32"), "unknown dtype 'f32'"),
    "dtype number": (field(dtype=32), "unknown dtype 32"),
    "dtype list": (field(dtype=[]), "unknown dtype a list"),
    "dtype in an object": (literal("dtype", '{"F32":null}'), "unknown dtype an object"),
    "dtype null": (literal("dtype", "null"), "unknown dtype null"),
    "shape number": (field(shape=2), "tensor 'a': shape is 2, not a list"),
    "shape null": (literal("shape", "null"), "shape is null, not a list"),
    "shape text": (field(shape=["2"]), r"tensor 'a': shape\[0\] is '2', not an integer"),
    "shape bool": (field(shape=[2, True]), r"shape\[1\] is true, not an integer"),
    "shape null inside": (field(shape=[2, None]), r"shape\[1\] is null, not an integer"),
    "shape nested": (field(shape=[[2]]), r"shape\[0\] is a list, not an integer"),
    "shape float": (field(shape=[2.0]), r"shape\[0\] is 2.0, not an integer"),
    "shape exponent": (literal("shape", "[2e0]"), r"shape\[0\] is 2e0, not an integer"),
    "shape 1e400": (literal("shape", "[1e400]"), r"shape\[0\] is 1e400, not an integer"),
    "shape nan": (literal("shape", "[NaN]"), r"shape\[0\] is NaN, not an integer"),
    "shape infinity": (literal("shape", "[2,-Infinity]"), r"shape\[1\] is -Infinity, not an integer"),
    "shape -0": (literal("shape", "[2,-0]"), r"shape\[1\] is -0, not an integer"),
    "shape leading zero": (literal("shape", "[02]"), "not JSON at byte"),
    "shape plus": (literal("shape", "[+2]"), "not JSON at byte"),
    "shape negative": (field(shape=[-1, -2]), r"shape\[0\] is -1, not an integer"),
    "shape huge": (raw({"a": entry("F32", [2**50, 0], 0, 0)}), "dimension 1125899906842624 is above 2.48"),
    "shape 2^63-1": (raw({"a": entry("F32", [2**63 - 1, 0], 0, 0)}), "dimension 9223372036854775807 is above 2.48"),
    "shape huge and full": (raw({"a": entry("U8", [2**49], 0, 2**49)}), "dimension 562949953421312 is above 2.48"),
    "shape overflow": (raw({"a": entry("F32", [2**48, 2**48, 0], 0, 0)}), "the dimensions .* overflow"),
    "shape overflow after 0": (raw({"a": entry("F32", [0, 2**48, 2**48], 0, 0)}), "the dimensions .* overflow"),
    "number huge": (raw({"a": entry("F32", [10**30, 0], 0, 0)}), r"shape\[0\] is 10000000.*, not an integer from 0"),
    "rank 9": (field(shape=[1] * 8 + [2]), "the shape has 9 dimensions, at most 8"),
    "rank 100,000": (field(shape=[1] * 99_999 + [2]), "the shape has 100,000 dimensions"),
    "offsets one": (field(data_offsets=[8]), "data_offsets has 1 numbers, two are due"),
    "offsets three": (field(data_offsets=[0, 8, 8]), "data_offsets has 3 numbers"),
    "offsets null": (literal("data_offsets", "null"), "data_offsets is null, not a list"),
    "offsets -0": (literal("data_offsets", "[-0,8]"), r"data_offsets\[0\] is -0, not an integer"),
    "offsets 8.0": (field(data_offsets=[0, 8.0]), r"data_offsets\[1\] is 8.0, not an integer"),
    "offsets reversed": (field(data_offsets=[8, 0]), "data_offsets end at 0, before they begin at 8"),
    "size": (field(data_offsets=[0, 4]), "4 bytes do not hold F32 .2,."),
    "part of a byte": (raw({"a": entry("F4", [3], 0, 1)}, b"\0"), "1 bytes do not hold F4"),
}
NAMES = {
    "name empty": (raw({"": ONE}, b"\0" * 8), "a tensor without a name"),
    "name zero": (raw({"a\0b": ONE}, b"\0" * 8), "tensor 'a.x00b': the name has a control character"),
    "name newline": (raw({"a\nb": ONE}, b"\0" * 8), "tensor 'a.nb': the name has a control character"),
    "name C1": (raw({"a\x9bb": ONE}, b"\0" * 8), "the name has a control character"),
    "name long": (raw({"a" * 513: ONE}, b"\0" * 8), "the name has 513 bytes, at most 512"),
    "name long in bytes": (raw({"é" * 257: ONE}, b"\0" * 8), "the name has 514 bytes, at most 512"),
    "name surrogate": (raw(b'{"\\ud800":%s}' % TEXT, b"\0" * 8), "tensor '.ud800': the name is not Unicode text"),
}
PLACES = {
    "trailing": (raw(GOOD, b"\0" * 13), "1 bytes after the last tensor, from byte 1"),
    "bytes without tensors": (raw(b"{}", b"\0"), "1 bytes after the last tensor, from byte 10"),
    "hole": (raw({"a": ONE, "b": entry("F32", [2], 12, 20)}, b"\0" * 20), "'b': a hole of 4 bytes before it at byte 1"),
    "hole first": (raw({"a": entry("F32", [2], 4, 12)}, b"\0" * 12), "'a': a hole of 4 bytes"),
    "overlap": (raw({"a": ONE, "b": entry("F32", [2], 4, 12)}, b"\0" * 12), "'b': an overlap of 4 bytes"),
    "same place": (raw({"a": ONE, "b": ONE}, b"\0" * 8), "'b': an overlap of 8 bytes"),
    "empty inside": (raw({"a": ONE, "b": entry("F32", [0], 4, 4)}, b"\0" * 8), "'b': an overlap of 4 bytes"),
    "empty after": (raw({"a": ONE, "b": entry("F32", [0], 9, 9)}, b"\0" * 8), "'b': a hole of 1 bytes"),
}
TOO_LARGE = {  # E3005
    "length 2^63": (raw(b"{}", b"\0" * 9, length=2**63), "too large: 9,223,372,036,854,775,808 bytes, the format allows 100,000,000"),
    "length 2^32": (raw(b"{}", b"\0" * 9, length=2**32), "header too large: 4,294,967,296 bytes, the format allows 100,000,000"),
}
MALFORMED = {
    name: (content, sentence, code)
    for code, tables in {
        "E3002": [OTHER_KINDS],
        "E3003": [CUT],
        "E3004": [JSON, METADATA, FIELDS, NAMES, PLACES],
        "E3005": [TOO_LARGE],
    }.items()
    for table in tables
    for name, (content, sentence) in table.items()
}  # name: content, what the sentence says (a regular expression), the error's class
