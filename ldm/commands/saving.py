"""What a run leaves behind: pictures with their marks, latents, lines of the manifest, and what is said of each."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ldm
from ldm import catalogue, naming, pictures
from ldm.commands import output
from ldm.commands.progress import rate
from ldm.commands.streams import complain, say, show, tell
from ldm.diffusion import profiles
from ldm.errors import LdmError, MemoryNeedError, NumericError
from ldm.files import write_atomic
from ldm.jobs import manifest
from ldm.jobs.fields import Task
from ldm.jobs.manifest import Entry, Manifest
from ldm.metadata import a1111, native
from ldm.metadata.native import SAVED, Record
from ldm.options import Job

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm.jobs.claims import Claim
    from ldm.jobs.work import Room
    from ldm.pipeline import Pipeline, Result


DEFAULT = "{index:05}-{seed}"  # names in a folder


class Saver:
    """Of one run: `job` has its flags, each task its own picture."""

    def __init__(self, pipeline: Pipeline, job: Job, tasks: Sequence[Task] = ()) -> None:
        self.pipeline, self.flags = pipeline, job
        self.is_file = output.is_file(job.output)
        self.folder = Path(job.output).parent if self.is_file else Path(job.output)
        self.pattern = naming.parse(job.name) if job.name else None
        self.suffix = Path(job.output).suffix if self.is_file else f".{job.type}"
        self.numbers = output.Numbers(self.folder)
        self.hash = None if job.no_hash or job.no_metadata else _hashing(job)
        self.digests = _digests(job, tasks, {"dtype": str(pipeline.dtype), "suffix": self.suffix})
        self.manifest = Manifest(self.folder) if len(tasks) > 1 and not self.is_file else None
        self.written: set[Path] = set()  # by this run, which does not overwrite itself
        self.count = 0  # of a task's pictures, counted over the run: their place when -o names a file

    def save(self, result: Result, task: Task, at: int, timings: dict[str, float]) -> int:
        """Write the latents, then every picture, whatever becomes of the others. The exit code: 1 where one could not be written."""
        code = 0 if self.flags.latents is None else _save_latents(result, Path(self.flags.latents), self.flags.overwrite)
        for index, picture in enumerate(result.images):
            try:
                saved = self._save_one(picture, result, index, task)
                code = max(code, self._tell(saved, result, index, timings))
                if self.manifest is not None:
                    self.manifest.append(self._entry(self.digests[at][index], result.seeds[index], saved, timings))
            except LdmError as error:
                complain(error, as_json=self.flags.format == "json")
                code = 1
        return code

    def _save_one(self, picture: Image, result: Result, index: int, task: Task) -> pictures.Saved:
        seed = result.seeds[index]
        encoded = self._encoded(picture, result, index)
        overwrite = self.flags.overwrite and (self.is_file or task.file is not None)
        names = (name for name in self._names(result.job, seed, index, task.file) if name not in self.written)
        kept: list[pictures.Saved] = []

        def save(path: Path, overwrite: bool) -> Path:
            kept.append(pictures.publish(encoded, path, overwrite=overwrite))
            self.written.add(path)
            return path

        self.count += 1
        output.save_or_keep(names, self.folder, f"ldm-{seed}{self.suffix}", save, overwrite)
        return kept[-1]

    def _encoded(self, picture: Image, result: Result, index: int) -> pictures.Encoded:
        if result.job.watermark == "sdxl":
            from ldm import watermark

            picture = watermark.embed(picture)
        marks = None if self.flags.no_metadata else marks_of(self.record(result, index))
        return pictures.encode(picture, Path(f"x{self.suffix}"), marks, self.flags.quality)

    def _names(self, job: Job, seed: int, index: int, file: str | None) -> Iterator[Path]:
        """The first choice first."""
        if self.is_file:
            return output.candidates(self.flags.output, seed, self.count, self.numbers, self.suffix)
        number = self.numbers.take()
        model = Path(self.pipeline.source).stem
        words = naming.values(job, seed=seed, index=number, batch=index + 1, model=model, now=datetime.datetime.now())
        named = None if file is None else naming.Pattern((f"{file}-{index}" if index else file,))
        pattern = named or self.pattern or naming.parse(DEFAULT)
        return pattern.candidates(self.folder, words, self.suffix)

    def record(self, result: Result, index: int) -> Record:
        """The record of one picture of the batch. Paths stay out of it: only the files' own names."""
        import torch

        pipeline = self.pipeline
        return Record(
            job=result.job,
            seed=result.seeds[index],
            index=index,
            model=_text(pipeline.source),
            family=pipeline.family.name,
            vae=None if pipeline.vae_source is None else _text(pipeline.vae_source),
            device=str(pipeline.device),
            dtype=str(pipeline.dtype).removeprefix("torch."),
            torch=torch.__version__,
            version=ldm.__version__,
            stopped_at=result.stopped_at,
            model_sha256=self.hash.result() if self.hash is not None else None,
        )

    def _tell(self, saved: pictures.Saved, result: Result, index: int, timings: dict[str, float]) -> int:
        for note in saved.notes:
            say(f"ldm: note: {note}", self.flags.quiet)
        seed, seconds = result.seeds[index], timings["sampling"]
        speed = rate(int(timings["steps"]), seconds)
        say(f"saved {saved.path}  seed {seed}  {seconds:.1f} s" + (f" ({speed})" if speed else ""), self.flags.quiet)
        if self.flags.format != "json":
            return tell(saved.path)
        parameters = {name: getattr(result.job, name) for name in SAVED}
        said = {"path": str(saved.path), "seed": seed, "index": index, "sha256": saved.sha256, "timings": timings, "parameters": parameters}
        return show(json.dumps(said))

    def claimed(self, tasks: Sequence[Task], make: Any) -> int:
        """Make what nobody has made or is making, each picture by itself: any number of processes share a folder so."""
        from ldm.jobs.work import Room

        room = Room(self.folder)
        places = [(at, place) for at, task in enumerate(tasks) for place in range(task.job.batch)]
        flat = [self.digests[at][place] for at, place in places]
        code = made = 0
        for which, claim in room.take_all(flat):
            at, place = places[which]
            with claim:
                code = max(code, self._claimed_one(room, claim, _alone(tasks[at], place), make))
            made += 1
        there = f"{len(flat) - made - room.held} of {len(flat)} pictures were there"
        say(there + (f", {room.held} are being made by other processes" if room.held else ""), self.flags.quiet)
        return code

    def _claimed_one(self, room: Room, claim: Claim, task: Task, make: Any) -> int:
        try:
            result, timings = make(task)
        except (NumericError, MemoryNeedError) as error:
            complain(error, f"{task.where}: {error}", as_json=self.flags.format == "json")
            return 1
        seed = result.seeds[0]
        encoded = self._encoded(result.images[0], result, 0)
        kept: list[pictures.Saved] = []

        def write(path: Path) -> Path:
            kept.append(pictures.publish(encoded, path))
            return path

        def put(names: Iterator[Path], save: Any) -> Path:
            return output.save_or_keep(names, self.folder, f"ldm-{seed}{self.suffix}", lambda path, overwrite: save(path), False)

        try:
            names = self._names(result.job, seed, 0, task.file)
            room.put(claim, encoded.content, names, seed=seed, put=put, write=write, timings=timings)
        except LdmError as error:
            complain(error, as_json=self.flags.format == "json")
            return 1
        return self._tell(kept[-1], result, 0, timings)

    def _entry(self, digest: str, seed: int, saved: pictures.Saved, timings: dict[str, float]) -> Entry:
        path = saved.path.relative_to(self.folder).as_posix()
        return Entry(digest, seed, path, saved.sha256, saved.path.stat().st_size, timings=timings)


def _alone(task: Task, place: int) -> Task:
    """The picture `place` of a task as a job of its own: it is that of seed + place."""
    seed = task.job.seed
    return replace(task, job=replace(task.job, batch=1, seed=seed if seed in (None, -1) else int(seed or 0) + place))


def _digests(job: Job, tasks: Sequence[Task], about: dict[str, str]) -> list[list[str]]:
    """Of every picture, from all that makes it: the jobs, the files, the dtype and the format."""
    about = about | {"vae": "" if job.vae is None else _identity(Path(job.vae))}
    extras = [{**task.extra, **about, "ar": task.job.ar} for task in tasks]
    return manifest.digests([task.job for task in tasks], _identity(catalogue.find(job.model)), extras)


def _identity(path: Path) -> str:
    info = path.stat()
    return f"{_text(path.name)}:{info.st_size}:{info.st_mtime_ns}"


def _hashing(job: Job) -> Future[str | None]:
    """The sha256 of the model's file, found beside the work; None where it cannot be read."""
    from ldm.checkpoint.digests import cached_sha256
    from ldm.checkpoint.safetensors import read_header

    def find() -> str | None:
        try:
            return cached_sha256(read_header(catalogue.find(job.model), job.max_header))
        except LdmError:
            return None

    pool = ThreadPoolExecutor(1)
    future = pool.submit(find)
    pool.shutdown(wait=False)
    return future


def marks_of(record: Record) -> pictures.Marks:
    """The dialect that others read, and our own record."""
    rules = profiles.override(profiles.load_profile(record.job.profile), record.job.overrides or {})
    return pictures.Marks(a1111.write(a1111.from_record(record, rules)), native.write(record))


def _save_latents(result: Result, path: Path, overwrite: bool) -> int:
    from ldm.checkpoint.writer import content, tensor_items

    tensors = tensor_items({"latents": result.latents.float()})
    write = partial(write_atomic, write=content(tensors, {"seeds": ",".join(map(str, result.seeds))}))
    try:
        output.save_or_keep(iter([path]), path.parent, f"ldm-{result.seeds[0]}.safetensors", write, overwrite)
    except LdmError as error:
        complain(error)
        return 1
    return 0


def _text(path: str | Path) -> str:
    """A file's own name as text, whatever bytes it is made of."""
    return os.fsencode(Path(path).name).decode("utf-8", "replace")
