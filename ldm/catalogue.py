"""Model files by name: a path, a name in the models folders (as A1111 and ComfyUI lay them out), or a file in the Hub's cache.

Nothing is downloaded here. Folders are walked to a depth and a count; what cannot be read is a note.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.errors import FileError, InputError
from ldm.hub import names as hub
from ldm.resources import weights

BOX = "ldm-emoji.safetensors"  # the model in the box
VARIABLE = "LDM_MODELS_DIR"
KINDS = ("checkpoint", "vae", "lora", "embedding")
MAX_DEPTH = 8
MAX_ENTRIES = 50_000
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
FOLDERS = {
    **dict.fromkeys(("stable-diffusion", "checkpoints"), "checkpoint"),
    "vae": "vae",
    **dict.fromkeys(("lora", "loras", "lycoris"), "lora"),
    "embeddings": "embedding",
    **dict.fromkeys(
        ("controlnet", "unet", "diffusion_models", "clip", "clip_vision", "text_encoders", "vae_approx", "vae-approx"), "other"
    ),
    **dict.fromkeys(("hypernetworks", "upscale_models", "esrgan", "realesrgan", "gfpgan", "codeformer", "style_models", "gligen"), "other"),
    **dict.fromkeys(("ipadapter", "photomaker", "animatediff_models", "configs", "model_patches", "audio_encoders"), "other"),
}  # what the folders of A1111 and ComfyUI hold, by their names in small letters


@dataclass(frozen=True)
class Found:
    """A model file, or a pickle, which is found only to be refused."""

    path: Path
    name: str  # below its kind's folder, with "/"
    kind: str | None  # by the folder that it lies in: one of KINDS, "other", or None for any
    place: int  # of the folder in the order given

    @property
    def is_pickle(self) -> bool:
        return self.path.suffix.lower() in PICKLES


@dataclass(frozen=True)
class Catalogue:
    files: tuple[Found, ...]
    notes: tuple[str, ...]  # what could not be read
    places: tuple[Path, ...]  # where was looked


def places(given: Sequence[str] = (), environ: Mapping[str, str] = os.environ) -> list[Path]:
    """The models folders: those given, then those of LDM_MODELS_DIR. Each may be a ComfyUI extra_model_paths.yaml."""
    listed = [*given, *environ.get(VARIABLE, "").split(os.pathsep)]
    return list(dict.fromkeys(Path(os.path.expanduser(each)) for each in listed if each))


def find(name: str | None, kind: str = "checkpoint", dirs: Sequence[Path] = ()) -> Path:
    """The file that `name` means; None is the model in the box. Raises InputError or FileError with what could have been meant.

    In this order: a file of that path; a name in `dirs` (exactly, without its suffix, in other letters, a beginning that only one has);
    `org/repo[:file][@revision]` in the Hub's cache.
    """
    if name is None:
        return weights() / BOX
    if not name.strip() or "\0" in name:
        raise InputError(f"model name {name!r} is empty or has a NUL in it: give a path or a name that `ldm models` lists")
    if os.path.lexists(name) and not os.path.isdir(name):
        return Path(name)
    if os.path.isabs(name) or name.startswith((f".{os.sep}", f"..{os.sep}")):
        raise FileError(f"{name}: {_missing(Path(name))}", "E3001")
    catalogue = scan([*dirs, weights()])
    hub_name = hub.parse(name)
    found = _named(name, kind, catalogue) or (None if hub_name is None else hub.cached(hub_name))
    if found is None:
        raise _unknown(name, kind, catalogue)
    return found


def _missing(path: Path) -> str:
    if os.path.isdir(path):
        return "is a folder: name a .safetensors file in it"
    near = _near(path.name, [each.name for each in path.parent.glob("*.safetensors")]) if os.path.isdir(path.parent) else ""
    return f"no such file: {near or 'check the path'}"


def scan(dirs: Sequence[Path]) -> Catalogue:
    """All model files in these folders, in the order of the folders and then of names."""
    notes: list[str] = []
    budget = [MAX_ENTRIES]
    files = [
        Found(path, path.relative_to(base).as_posix(), kind, place)
        for place, folder in enumerate(dirs)
        for root, root_kind in _roots(folder, notes)
        for path, base, kind in _walk(root, root_kind, notes, budget)
    ]
    return Catalogue(tuple(files), tuple(dict.fromkeys(notes)), tuple(dirs))


def _roots(folder: Path, notes: list[str]) -> list[tuple[Path, str | None]]:
    """The folders to walk, and what lies in them: all of a folder, or what a program's own folder has of models."""
    if folder.suffix.lower() in (".yaml", ".yml") and not os.path.isdir(folder):
        return _yaml_roots(folder, notes)
    if not os.path.isdir(folder):
        notes.append(f"models folder {folder} {'is not a folder' if os.path.lexists(folder) else 'does not exist'}")
        return []
    if os.path.isdir(folder / "models"):
        return [(each, FOLDERS.get(each.name.lower())) for each in (folder / "models", folder / "embeddings") if os.path.isdir(each)]
    return [(folder, FOLDERS.get(folder.name.lower()))]


def _yaml_roots(file: Path, notes: list[str]) -> list[tuple[Path, str | None]]:
    """The folders of a ComfyUI extra_model_paths.yaml: sections with a base_path and, by kind, one folder or one a line."""
    import yaml

    try:
        if file.stat().st_size > 2**20:
            raise ValueError("larger than 1 MiB")
        table = yaml.safe_load(file.read_bytes())
        if not isinstance(table, dict):
            raise ValueError("no sections")
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        text = " ".join(str(getattr(error, "strerror", None) or error).split())
        notes.append(f"{file}: not read as an extra_model_paths.yaml ({text[:120]})")
        return []
    return [root for section in table.values() if isinstance(section, dict) for root in _section(file.parent, section)]


def _section(beside: Path, section: Mapping[object, object]) -> Iterator[tuple[Path, str | None]]:
    base = _place(beside, str(section.get("base_path") or ""))
    for key, text in section.items():
        if key not in ("base_path", "is_default") and isinstance(text, str):
            folders = [_place(base, line.strip()) for line in text.splitlines() if line.strip()]
            yield from ((folder, FOLDERS.get(str(key).lower(), "other")) for folder in folders if os.path.isdir(folder))


def _place(beside: Path, text: str) -> Path:
    return Path(os.path.normpath(beside / os.path.expanduser(os.path.expandvars(text))))


def _walk(root: Path, kind: str | None, notes: list[str], budget: list[int]) -> Iterator[tuple[Path, Path, str | None]]:
    """(file, folder of its kind, kind) of every model file; links are followed, each folder once."""
    waiting: list[tuple[Path, Path, str | None, int]] = [(root, root, kind, 0)]
    seen: set[tuple[int, int]] = set()
    while waiting:
        folder, base, kind, depth = waiting.pop()
        entries = _entries(folder, depth, seen, notes, budget)
        inner = [folder / entry.name for entry in entries if _is_folder(entry)]
        for path in reversed(inner):
            known = FOLDERS.get(path.name.lower())
            waiting.append((path, path if known else base, known or kind, depth + 1))
        for entry in entries:
            if not _is_folder(entry) and entry.name.lower().endswith((hub.SUFFIX, *PICKLES)):
                yield folder / entry.name, base, kind


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _entries(folder: Path, depth: int, seen: set[tuple[int, int]], notes: list[str], budget: list[int]) -> list[os.DirEntry[str]]:
    """What is not hidden in a folder, by name; nothing, and a note, where it cannot be read or the limits end."""
    try:
        info = folder.stat()
        if (info.st_dev, info.st_ino) in seen:
            return []
        seen.add((info.st_dev, info.st_ino))
        with os.scandir(folder) as found:
            entries = sorted((each for each in found if not each.name.startswith(".")), key=lambda each: each.name)
    except OSError as error:
        notes.append(f"{folder} could not be read ({error.strerror})")
        return []
    budget[0] -= len(entries)
    if budget[0] < 0 or depth > MAX_DEPTH:
        notes.append(f"{folder} is left out: the limits are {MAX_ENTRIES:,} files and {MAX_DEPTH} folders deep")
        return []
    return entries


def _named(name: str, kind: str, catalogue: Catalogue) -> Path | None:
    """The one file that a name means in a catalogue, or None. InputError where it means several, or a pickle."""
    wanted = name.replace("\\", "/")
    files = [each for each in catalogue.files if each.kind in (kind, None)]
    safe = [each for each in files if not each.is_pickle]
    for test in (_is, _is_stem, _is_folded):
        for spelt in (_below, _own):
            hits = [each for each in safe if test(spelt(each), wanted)]
            if hits:
                return _only(name, kind, [each for each in hits if each.place == hits[0].place])
    begun = [each for each in safe if any(_fold(spelt(each)).startswith(_fold(wanted)) for spelt in (_below, _own))]
    if begun:
        return _only(name, kind, begun)
    pickle = next((each for each in files if each.is_pickle and _is_folded(each.path.name, wanted)), None)
    if pickle is not None:
        raise FileError(f"{pickle.path}: is refused: pickles ({pickle.path.suffix}) can run code: get the {hub.SUFFIX} file", "E3002")
    return None


def _only(name: str, kind: str, hits: list[Found]) -> Path:
    different = {os.path.realpath(each.path): each for each in hits}
    if len(different) > 1:
        several = ", ".join(each.name for each in list(different.values())[:8])
        raise InputError(f"{kind} {name!r} could be {several}{', ...' if len(different) > 8 else ''}: write more of the name")
    return hits[0].path


def _below(found: Found) -> str:
    return found.name


def _own(found: Found) -> str:
    return found.path.name


def _is(name: str, wanted: str) -> bool:
    return name == wanted


def _is_stem(name: str, wanted: str) -> bool:
    return os.path.splitext(name)[0] == wanted


def _is_folded(name: str, wanted: str) -> bool:
    return _fold(wanted) in (_fold(name), _fold(os.path.splitext(name)[0]))


def _fold(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _unknown(name: str, kind: str, catalogue: Catalogue) -> InputError:
    """Why nothing was found: near names, a file of another kind, the Hub, and where was looked."""
    hub_name = hub.parse(name)
    other = next((each for each in catalogue.files if each.kind not in (kind, None) and _is_folded(_own(each), name)), None)
    known = [os.path.splitext(each.name)[0] for each in catalogue.files if each.kind in (kind, None) and not each.is_pickle]
    remedies = [
        f"{other.path} lies among the files of kind {other.kind}" if other else "",
        f"the folder {name} is here: name a {hub.SUFFIX} file in it" if os.path.isdir(name) else "",
        f"not in the Hub's cache: `ldm pull {hub_name}`" if hub_name else "",
        _near(name, known),
    ]
    remedy = next((each for each in remedies if each), "`ldm models` lists what is there, or give the path of a .safetensors file")
    what = f"unknown {kind} {name[:100]!r}: {remedy}"
    others = catalogue.places[:-1]  # the last is the box's folder
    looked = [f"looked in {', '.join(map(str, others))}"] if others else []
    return InputError("; ".join([what, *looked, *catalogue.notes]))


def _near(name: str, known: list[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, sorted(set(known)), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else ""
