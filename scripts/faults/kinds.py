"""Rows A10 and A12: files that are another model than the engine runs, and configuration that would like to be code.

Sparse files of full size stand for the public ones. What a process does with them is watched from inside: its peak of memory, and
CPython's audit events for every import and every file that is opened.
"""

from __future__ import annotations

import json
import lzma
import math
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ldm.checkpoint.safetensors import BITS
from ldm.checkpoint.writer import head, ordered
from ldm.models.shapes import Family
from ldm.resources import configs
from scripts import synthetic
from scripts.faults import Figure

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
GROWTH = 64 * 2**20  # bytes of memory that a refusal may take: the header as objects, and the modules without their weights
RUN = ("sd_xl_base_", "sd_xl_refiner_", "sd_xl_turbo_", "sdxl_finetune_")  # the public files that are run
Table = dict[str, tuple[str, tuple[int, ...]]]  # tensor -> (dtype, shape)


class Fixture(NamedTuple):
    name: str
    tensors: Table
    code: str
    said: str  # a pattern of the message
    metadata: Mapping[str, str] = {}


@cache
def _manifests() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lzma.decompress((DATA / "manifests.json.xz").read_bytes()))
    return found


def table(name: str) -> Table:
    """The tensors of a public file."""
    return {tensor: (dtype, tuple(shape)) for tensor, (dtype, *shape) in _manifests()[name]["tensors"].items()}


def sparse(name: str | Table, path: Path, metadata: Mapping[str, str] | None = None) -> Path:
    """A file of full size that takes no room: the header of a public file (or of a table), and zeros that are not stored."""
    tensors = table(name) if isinstance(name, str) else name
    start = head(ordered((tensor, dtype, shape, b"") for tensor, (dtype, shape) in tensors.items()), dict(metadata or {}), 8)
    path.write_bytes(start)
    os.truncate(path, len(start) + sum(math.prod(shape) * BITS[dtype] // 8 for dtype, shape in tensors.values()))
    return path


def _fixtures() -> Iterator[Fixture]:
    """Every public file that is not run, then base 1.0 in all the ways in which a file can be nearly right."""
    titles = tomllib.loads((DATA / "titles.toml").read_text(encoding="utf-8"))
    for name in sorted(_manifests()):
        if not name.startswith(RUN) or name.endswith(("inpainting_singlefile.safetensors", "lora_1.0.safetensors")):
            said = rf"this is an? {re.escape(titles[name])}: (\d) of the \d tensors that .* is known by differ: .* is .*, not \("
            yield Fixture(name, table(name), "E3006", said)
    yield from _nearly_right(table("sd_xl_base_1.0.safetensors"), table("v1-5-pruned-emaonly.safetensors"))


def _nearly_right(base: Table, old: Table) -> Iterator[Fixture]:
    unet, tower, big = "model.diffusion_model.", "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
    bias, weight, query = (
        f"{unet}out.2.bias",
        f"{unet}middle_block.0.in_layers.2.weight",
        f"{unet}middle_block.1.transformer_blocks.0.attn1.to_q.weight",
    )
    two = (f"{unet}middle_block.0.in_layers.0.bias", bias)

    def without(*starts: str) -> Table:
        return {name: entry for name, entry in base.items() if not name.startswith(starts)}

    def misfit(name: str, tensors: Table, counts: str, *named: str, code: str = "E3007") -> Fixture:
        return Fixture(name, tensors, code, f"{re.escape(counts)}.*" + ".*".join(map(re.escape, named)))

    yield misfit("one missing", without(bias), "(1 missing)", f"missing: {bias} (4,)")
    yield misfit("two missing", without(*two), "(2 missing)", *sorted(two, key=list(base).index)[:1])
    yield misfit("no vae", without("first_stage_model."), "(248 missing)", "; and 243 more")
    yield misfit("no text projection", without(f"{big}text_projection"), "(1 missing)", f"{big}text_projection (1280, 1280)")
    yield misfit("cut in half", dict(list(base.items())[:1200]), "tensors that", "absent, not", code="E3006")
    yield misfit("one extra", base | {"extra.weight": ("F16", (3,))}, "(1 unknown)", "unknown: extra.weight (3,)")
    yield misfit("a lora inside", base | table("sd_xl_offset_example-lora_1.0.safetensors"), "(2364 unknown)", "; and 2359 more")
    yield misfit("sd 1.x beside", old | base, "unknown)", "unknown: cond_stage_model.")
    yield misfit(
        "wrong shape",
        base | {weight: ("F16", (1280, 1280, 1, 1))},
        "(1 of another shape)",
        f"{weight} is (1280, 1280, 1, 1), not (1280, 1280, 3, 3)",
    )
    yield misfit(
        "wrong rank", base | {query: ("F16", (1280, 1280, 1, 1))}, "(1 of another shape)", "is (1280, 1280, 1, 1), not (1280, 1280)"
    )
    yield misfit(
        "transposed", base | {f"{big}text_projection": ("F16", (1024, 1280))}, "(1 of another shape)", "is (1024, 1280), not (1280, 1280)"
    )
    for dtype in ("I64", "U8", "F8_E4M3", "BOOL"):
        yield misfit(f"dtype {dtype}", base | {bias: (dtype, (4,))}, "(1 of a dtype that is not read)", f"{bias} is {dtype}, not")
    halves = {name: ("F8_E4M3", shape) if name.startswith(unet) else (dtype, shape) for name, (dtype, shape) in base.items()}
    yield misfit("unet in fp8", halves, "(1680 of a dtype that is not read)", "; and 1675 more")
    narrow = base | {f"{tower}embeddings.token_embedding.weight": ("F16", (49410, 768))}
    yield misfit("tokens added", narrow, "1 of the 9 tensors", "is (49410, 768), not (49408, 768)", code="E3006")
    yield misfit(
        "sd 1.x unet", without(unet) | {n: e for n, e in old.items() if n.startswith(unet)}, "2 of the 9", "label_emb", code="E3006"
    )
    yield misfit(
        "sd 1.x tower", without(tower) | {n: e for n, e in old.items() if n.startswith("cond_")}, "2 of the 9", tower, code="E3006"
    )
    several = base | {weight: ("F16", (2, 2)), "x": ("F32", ()), "y": ("F32", ())}
    yield misfit(
        "several",
        {n: e for n, e in several.items() if n != bias},
        "(1 missing, 1 of another shape, 2 unknown)",
        bias,
        weight,
        "x ()",
        "y ()",
    )
    for name, marker in {"CosXL": "edm_vpred.sigma_max", "Playground v2.5": "edm_mean"}.items():
        yield misfit(name, base | {marker: ("F32", (4,))}, f"this is a {name} checkpoint", marker, code="E3006")
    yield misfit("ztsnr alone", base | {"ztsnr": ("F32", (0,))}, "zero terminal SNR needs v-prediction", code="E3006")
    yield misfit("ema of nothing", base | {"model_ema.diffusion_modelx": ("F32", (4,))}, "(1 unknown)", "model_ema.diffusion_modelx (4,)")
    yield misfit("marker of another shape", base | {"v_pred": ("F32", (7,))}, "(1 unknown)", "v_pred (7,)")


LOADING = """
import json, resource, sys
import ldm, ldm.pipeline
from ldm.errors import LdmError

def number(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

def attempt(path):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    before = number("VmRSS")
    try:
        ldm.load(path, device="cpu")
        return {"code": "", "said": "it was loaded", "grew": 0}
    except LdmError as error:
        return {"code": error.code, "said": str(error), "grew": number("VmHWM") - before}

paths = sys.stdin.read().splitlines()
ldm.load(device="cpu").close()  # the model in the box: what is imported on the way is not the file's
limit = number("VmSize") + 2**29
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))  # no weights fit in
for path in paths:
    print(json.dumps(attempt(path)), flush=True)
"""


def _child(script: str, *words: str, stdin: str = "") -> list[Any]:
    """What a fresh process prints, a JSON value a line."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, *words]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, env=environment, timeout=1200)
    if done.returncode:
        raise RuntimeError(f"the process ended with {done.returncode}: {done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def _spread(items: list[Any], count: int | None) -> list[Any]:
    """`count` of the items from all over the list."""
    return items if count is None or count >= len(items) else [items[i * len(items) // count] for i in range(count)]


def a10(count: int | None = None) -> Figure:
    """Each fixture refused with its kind or counts, its first differing tensors and no memory; `count` of them."""
    fixtures: list[Fixture] = _spread(list(_fixtures()), count)
    with tempfile.TemporaryDirectory() as folder:
        paths = [sparse(each.tensors, Path(folder) / f"{at}.safetensors", each.metadata) for at, each in enumerate(fixtures)]
        results = _child(LOADING, stdin="\n".join(map(str, paths)))
    wrong = [
        f"{each.name}: {result['code']} {result['said'][:300]}"
        for each, result in zip(fixtures, results, strict=True)
        if not _fits(each, result)
    ]
    most = max(result["grew"] for result in results)
    refused = f"{len(fixtures) - len(wrong)} of {len(fixtures)} refused by kind with the tensors that differ"
    reached = f"{refused}; memory grew by at most {most / 2**20:.0f} MiB"
    goal = f"all of them; below {GROWTH >> 20} MiB, with sparse files of up to 14 GB"
    return Figure(goal, reached + "".join(f"; {line}" for line in wrong[:5]), not wrong and most < GROWTH)


def _fits(fixture: Fixture, result: Mapping[str, Any]) -> bool:
    """One printable line, with the right code and words, that names five tensors at most."""
    said = str(result["said"])
    named = len(re.findall(r" is (?:absent|\([\d, ]*\)|\w+), not |(?:missing|unknown): ", said))
    good = result["code"] == fixture.code and re.search(fixture.said, said) is not None
    return good and said.isprintable() and named <= 5


HOSTILE = ("auto_map", "_attn_implementation", "_attn_implementation_internal", "trust_remote_code", "_target_", "custom_pipeline")
VALUES = (
    "ldm_evil.Payload",
    "ldm_evil",
    '{"AutoModel": "ldm_evil.Payload"}',
    "true",
    "../ldm_evil.py",
    "org/repo--ldm_evil.Payload",
    "__import__('ldm_evil')",
)
CONFIGS = (("models", "sdxl-base"), ("profiles", "comfyui"))
BESIDE = ("config.json", "model_index.json", "tokenizer_config.json", "clean.json", "model.safetensors.index.json")
FILES = ("open ", "os.listdir ", "os.scandir ")  # events that are about files
EVIL = "import pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()\nclass Payload: pass\n"
WATCHING = """
import json, os, sys
from pathlib import Path
job = json.loads(sys.stdin.read())
folder = job["folder"]
os.chdir(folder)
sys.path.insert(0, folder)  # what is beside the file could be imported
import ldm, ldm.pipeline
from ldm import resources
from ldm.checkpoint import kinds
from ldm.checkpoint.safetensors import read_header
from ldm.diffusion import profiles
from ldm.errors import LdmError
from ldm.models.shapes import load_family

events = []

def watch(event, arguments):
    if event in ("import", "marshal.loads", "pickle.find_class", "os.system", "subprocess.Popen"):
        events.append(f"{event} {str(arguments[0])[:100]}")
    elif event in ("exec", "compile"):
        if "ldm_evil" in f"{arguments} {getattr(arguments[0], 'co_names', '')}":  # others are type hints of our own
            events.append(event)
    elif event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], (str, bytes)):
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if path.startswith(folder + os.sep) and path not in allowed:
            events.append(f"{event} {os.path.relpath(path, folder)}")

def attempt(kind, name):
    try:
        if kind == "file":
            ldm.load(name, device="cpu").close()
            return "", kinds.unread_metadata(read_header(name))
        (load_family if kind == "models" else profiles.load_profile)(name)
        return "", []
    except LdmError as error:
        return str(error), []

def run(kind, name):
    global allowed
    allowed = {os.path.join(folder, name) if kind == "file" else str(resources.configs() / kind / f"{name}.toml")}
    allowed |= {str(resources.configs() / kind)}
    events.clear()
    modules = set(sys.modules)
    said, unread = attempt(kind, name)
    events.extend(f"import {module}" for module in sorted(set(sys.modules) - modules))  # importlib's own way tells no audit hook
    return {"said": said, "events": list(events), "unread": unread}

allowed = set()
run("file", job["clean"])  # what every load imports
sys.addaudithook(watch)
print(json.dumps(run("file", job["clean"])))
resources.configs = lambda: Path(folder) / "configs"
for kind, name in job["cases"]:
    print(json.dumps(run(kind, name)), flush=True)
"""


def a12(count: int | None = None) -> Figure:
    """Keys that other loaders follow, in all places where a file could put them: nothing imported, no file beside it opened."""
    cases = _spread(list(_hostile_cases()), count)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(os.path.realpath(name))
        _write_cases(folder, cases)
        job = {"folder": str(folder), "clean": "clean.safetensors", "cases": [(case.kind, case.name) for case in cases]}
        clean, *results = _child(WATCHING, stdin=json.dumps(job))
        ran = (folder / "ldm_evil.ran").exists()
    found = [(case, _trouble(case, result)) for case, result in zip(cases, results, strict=True)]
    wrong = [f"{case.name}: {problem}" for case, problem in found if problem]
    events = [event for result in results for event in result["events"]]
    code = sum(not event.startswith(FILES) for event in events)
    reached = f"{len(cases)} loads: {code} imports or other code, {len(events) - code} files beside the model opened, {len(wrong)} amiss"
    goal = "0 imports, 0 files; keys in metadata ignored and listed, in ldm.family and TOML refused by name"
    good = not wrong and not clean["events"] and not clean["said"] and not ran
    return Figure(goal, reached + "".join(f"; {line}" for line in wrong[:5]), good)


class Case(NamedTuple):
    kind: str  # "file", "models" or "profiles": what is loaded
    name: str
    key: str
    expected: str  # "ignored" or "refused"
    content: Any  # the metadata of a file, the line that is put before a TOML


def _small() -> Family:
    """A family of SDXL base's kind with few and narrow layers."""
    family = synthetic.tiny()
    unet = replace(family.unet, transformer_depth=(0, 1, 1), middle_depth=1, num_res_blocks=1)
    towers = tuple(replace(tower, layers=2) for tower in family.towers)
    return replace(family, name="small", unet=unet, vae=replace(family.vae, num_res_blocks=1), towers=towers)


def _hostile_cases() -> Iterator[Case]:
    numbers = _small().to_dict()
    plain = json.dumps(numbers)
    for at, (key, value) in enumerate((key, value) for key in HOSTILE for value in VALUES):
        added = {"ldm.family": plain, key: value, "config": json.dumps({key: value})}
        yield Case("file", f"metadata-{at}.safetensors", key, "ignored", added)
        places: dict[str, dict[str, Any]] = {
            "family": numbers | {key: value},
            "unet": numbers | {"unet": numbers["unet"] | {key: value}},
            "tower": numbers | {"towers": [numbers["towers"][0] | {key: value}, *numbers["towers"][1:]]},
        }
        for place, table_ in places.items():
            yield Case("file", f"{place}-{at}.safetensors", key, "refused", {"ldm.family": json.dumps(table_)})
        for kind, name in CONFIGS:
            yield Case(kind, f"{name}-{at}", key, "refused", f"{json.dumps(key)} = {json.dumps(value)}\n")
    for at, value in enumerate(VALUES):
        expected = "ignored" if re.fullmatch("[a-z][a-z0-9_]{0,39}", value) else "refused"  # a word may be a sampler of later
        hostile = json.dumps(numbers | {"defaults": numbers["defaults"] | {"sampler": value}})
        yield Case("file", f"sampler-{at}.safetensors", "sampler", expected, {"ldm.family": hostile})


def _write_cases(folder: Path, cases: Iterable[Case]) -> None:
    """The files of the cases, a clean one, and beside them all that another loader might follow."""
    family = _small()
    tensors: Table = {name: ("F16", shape) for part in synthetic.parts(family) for name, shape in synthetic.file_shapes(part)}
    sparse(tensors, folder / "clean.safetensors", {"ldm.family": json.dumps(family.to_dict())})
    (folder / "ldm_evil.py").write_text(EVIL)
    for beside in BESIDE:
        (folder / beside).write_text(json.dumps(dict.fromkeys(HOSTILE, VALUES[0]) | {"architectures": [VALUES[0]]}))
    official = {kind: (configs() / kind / f"{name}.toml").read_text(encoding="utf-8") for kind, name in CONFIGS}
    for kind in official:
        (folder / "configs" / kind).mkdir(parents=True)
    for case in cases:
        if case.kind == "file":
            sparse(tensors, folder / case.name, case.content)
        else:
            (folder / "configs" / case.kind / f"{case.name}.toml").write_text(case.content + official[case.kind], encoding="utf-8")


def _trouble(case: Case, result: Mapping[str, Any]) -> str:
    """What is wrong with a load; "" where nothing is."""
    if result["events"]:
        return ", ".join(result["events"][:3])
    if case.expected == "refused":
        return "" if case.key in result["said"] else f"not refused by name: {result['said'][:200]}"
    if result["said"]:
        return f"refused: {result['said'][:200]}"
    return "" if case.key == "sampler" or case.key in result["unread"] else "the key is not listed as unread"
