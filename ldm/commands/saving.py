"""What a run leaves behind: pictures with their marks, latents, lines of the manifest, and what is said of each."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from ldm import catalogue, naming, pictures
from ldm.commands import output
from ldm.commands.progress import Bar, rate
from ldm.commands.stopping import STOPS, Stop
from ldm.commands.streams import complain, say, show, tell
from ldm.errors import LdmError, MemoryNeedError, NumericError
from ldm.files import name_of, write_atomic
from ldm.jobs import leftovers, manifest
from ldm.jobs.fields import Task
from ldm.jobs.work import Room
from ldm.marks import marks_of
from ldm.metadata.native import SAVED
from ldm.options import Job, alone
from ldm.runtime.encoding import Beside, threads_for

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm.jobs.claims import Claim
    from ldm.pipeline import Pipeline
    from ldm.results import Result


Held = AbstractContextManager["Claim | None"]
DEFAULT = "{index:05}-{seed}"  # names in a folder


class Saver:
    """Of one run: `job` has its flags, each task its own picture."""

    def __init__(self, pipeline: Pipeline, job: Job, tasks: Sequence[Task] = (), *, after: Saver | None = None) -> None:
        from ldm.runtime.quantise import precision

        self.pipeline, self.flags = pipeline, job
        self.is_file = output.is_file(job.output)
        self.folder = Path(job.output).parent if self.is_file else Path(job.output)
        self.pattern = naming.parse(job.name) if job.name else None
        self.suffix = Path(job.output).suffix if self.is_file else f".{job.type}"
        self.numbers = output.Numbers(self.folder)
        self.hash = None if job.no_hash or job.no_metadata else _hashing(job)
        self.digests = _digests(job, tasks, {"dtype": f"torch.{precision(pipeline.unet)}", "suffix": self.suffix})
        self.shared = job.resume or job.skip_existing
        self.room = None if self.is_file else Room(self.folder)
        if self.room is None:
            leftovers.sweep(self.folder)
        self.written: set[Path] = after.written if after else set()  # with --overwrite, by this run, which does not overwrite itself
        self.count: int = after.count if after else 0  # of a task's pictures, counted over the run: their place when -o names a file
        self.saved = self.code = 0  # the exit code: 1 where something could not be written, or made
        self.beside = Beside[pictures.Encoded](threads_for(pipeline.device.type))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A block in which signals wait until what is being written is there; Stop says then how much there is.

        What was made in it is written when it ends, however that is.
        """
        try:
            with STOPS.held():
                try:
                    yield
                finally:
                    self.beside.close()
        except KeyboardInterrupt as stop:
            raise Stop(stop.where if isinstance(stop, Stop) else "", self._kept()) from None
        finally:
            if self.room is not None:
                self.room.tidy()

    def _kept(self) -> str:
        names = [each for task in self.digests for each in task]
        saved = self.saved
        if self.room is not None and self.shared:  # with those of other processes and earlier runs
            with suppress(LdmError):
                self.room.manifest.refresh()
            saved = sum(self.room.manifest.done(each) is not None for each in names)
        return f"{saved} of {len(names)} pictures {'is' if saved == 1 else 'are'} saved"

    def save(self, task: Task, at: int, result: Result, timings: dict[str, float]) -> int:
        """Write the latents, then every picture, whatever becomes of the others; the exit code of what is written so far.

        Beside a GPU the pictures are encoded on threads, and written when that is done: in `settle`, later calls, or at the end.
        """
        if self.flags.latents is not None:
            self.code = max(self.code, _save_latents(result, Path(self.flags.latents), self.flags))
        for index in range(len(result.images)):
            borrow = partial(self.room.borrow, self.digests[at][index]) if self.room else nullcontext
            self._begin(borrow, task, result, index, timings)
        return self.code

    def settle(self, bar: Bar) -> None:
        """Write what is encoded, in its order, with the bar out of the way."""
        if self.beside.ready():
            with STOPS.held(), bar.away():
                self.beside.settle()

    def failed(self, task: Task, error: LdmError) -> None:
        """Say of one of many that it could not be made."""
        complain(error, f"{task.where}: {error}", as_json=self.flags.format == "json")
        self.code = 1

    def _begin(self, held: Callable[[], Held], task: Task, result: Result, index: int, timings: dict[str, float]) -> None:
        def write(encoded: Future[pictures.Encoded]) -> None:
            with held() as claim:
                self.code = max(self.code, self._save_one(claim, task, result, index, timings, encoded.result()))

        self.beside.do(partial(self._encoded, result.images[index], result, index), write)

    def _save_one(
        self, claim: Claim | None, task: Task, result: Result, index: int, timings: dict[str, float], encoded: pictures.Encoded
    ) -> int:
        """Write a picture, then its line in the manifest where there is one, and say so; the exit code."""
        seed = result.seeds[index]
        overwrite = self.flags.overwrite and (self.is_file or task.file is not None)
        names = (name for name in self._names(result.job, seed, index, task.file) if name not in self.written)
        kept: list[pictures.Saved] = []

        def save(path: Path, overwrite: bool) -> Path:
            kept.append(pictures.publish(encoded, path, overwrite=overwrite))
            self.written |= {path} if overwrite else set()
            return path

        def put(names: Iterator[Path], save: Any) -> Path:
            return output.save_or_keep(names, self.folder, f"ldm-{seed}{self.suffix}", save, overwrite)

        self.count += 1
        code = 0
        try:
            if self.room is None or claim is None:
                put(names, save)
            else:
                self.room.put(claim, encoded.content, names, seed=seed, put=put, write=save, timings=timings, overwrite=overwrite)
        except LdmError as error:
            complain(error, as_json=self.flags.format == "json")
            if claim is None or not claim.keep:
                return 1
            code = 1  # the picture is there, its line is not
        self.saved += 1
        return max(code, self._tell(kept[-1], result, index, timings))

    def _encoded(self, picture: Image, result: Result, index: int) -> pictures.Encoded:
        if result.job.watermark == "sdxl":
            from ldm import watermark

            picture = watermark.embed(picture)
        digest = self.hash.result() if self.hash is not None else None
        marks = None if self.flags.no_metadata else marks_of(self.pipeline, result, index, digest)
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

    def _asked(self, task: Task, place: int) -> Path | None:
        """The file that a picture asks for; None where its name gets a number or a time, or a seed that is to be drawn."""
        if task.file is not None:
            return self.folder / (task.file + self.suffix)
        if self.pattern is None or self.pattern.words & {"index", "batch", "date", "time"} or task.job.seed in (None, -1):
            return None
        from ldm.resolve import resolve

        job, _ = resolve(alone(task.job, place), self.pipeline.family)
        model, now = Path(self.pipeline.source).stem, datetime.datetime.now()
        words = naming.values(job, seed=int(job.seed or 0), index=1, batch=1, model=model, now=now)
        return self.folder / (self.pattern.fill(words) + self.suffix)

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

    def claimed(self, tasks: Sequence[Task], make: Any) -> None:
        """Make what nobody has made or is making, each picture by itself: any number of processes share a folder so."""
        if self.room is None:
            raise LdmError("pictures of several processes need a folder: choose one with -o")
        room = self.room
        places = [(at, place) for at, task in enumerate(tasks) for place in range(task.job.batch)]
        total = len(places)
        if self.flags.skip_existing:
            there = output.standing(self._asked(tasks[at], place) for at, place in places)
            places = [each for each, stands in zip(places, there, strict=True) if not stands]
        flat = [self.digests[at][place] for at, place in places]
        made = 0
        for which, claim in room.take_all(flat):
            at, place = places[which]
            self._claimed_one(claim, _alone(tasks[at], place), make)
            made += 1
        self.beside.drain()
        told = f"{total - made - room.held} of {total} pictures were there"
        say(told + (f", {room.held} are being made by other processes" if room.held else ""), self.flags.quiet)

    def _claimed_one(self, claim: Claim, task: Task, make: Any) -> None:
        """The claim is given back when its picture is written, or could not be made."""
        with ExitStack() as stack:
            stack.enter_context(claim)
            try:
                result, timings = make(task)
            except (NumericError, MemoryNeedError) as error:
                self.failed(task, error)
                return
            stack.pop_all()
        self._begin(lambda: claim, task, result, 0, timings)


def _alone(task: Task, place: int) -> Task:
    """The picture `place` of a task as a job of its own."""
    return replace(task, job=alone(task.job, place))


def _digests(job: Job, tasks: Sequence[Task], about: dict[str, str]) -> list[list[str]]:
    """Of every picture, from all that makes it: the jobs, the files, the dtype and the format."""
    about = about | {"vae": "" if job.vae is None else _identity(Path(job.vae))}
    extras = [{**about, "ar": task.job.ar} for task in tasks]
    return manifest.digests([task.job for task in tasks], _identity(catalogue.find(job.model)), extras)


def _identity(path: Path) -> str:
    info = path.stat()
    return f"{name_of(path.name)}:{info.st_size}:{info.st_mtime_ns}"


def _hashing(job: Job) -> Future[str | None]:
    """The sha256 of the model's file, found beside the work; None where it cannot be read."""
    from ldm.checkpoint.digests import cached_sha256
    from ldm.checkpoint.safetensors import read_header

    def find() -> None:
        try:
            future.set_result(cached_sha256(read_header(catalogue.find(job.model), job.max_header)))
        except LdmError:
            future.set_result(None)
        except Exception as error:
            future.set_exception(error)

    future: Future[str | None] = Future()
    Thread(target=find, daemon=True).start()  # nobody waits for it at the end of a run that is interrupted
    return future


def _save_latents(result: Result, path: Path, job: Job) -> int:
    from ldm.checkpoint.writer import content, tensor_items

    tensors = tensor_items({"latents": result.latents.float()})
    write = partial(write_atomic, write=content(tensors, {"seeds": ",".join(map(str, result.seeds))}))
    try:
        output.save_or_keep(iter([path]), path.parent, f"ldm-{result.seeds[0]}.safetensors", write, job.overwrite)
    except LdmError as error:
        complain(error, as_json=job.format == "json")
        return 1
    return 0
