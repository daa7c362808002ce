"""Experiments that train: one UNet several times, with everything equal but for what is asked after."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.errors import InputError
from ldm.models.unet import UNet
from ldm.models.vae import VAE
from ldm.pipeline import Pipeline
from ldm.train.cache import Pictures, fingerprint, load_pictures
from ldm.train.data import to_tensor
from ldm.train.loop import Trainer
from ldm.train.noising import Noising
from ldm.train.prepared import Prepared
from ldm.train.recipe import Optim, PicturesRecipe
from ldm.train.scenes import Placed, Scene, Thing, draw, with_article
from ldm.train.state import load_mean
from ldm.train.tune import LossRecipe, TuneRecipe, TuneTask
from ldm.train.unet import initialise
from scripts.experiments.common import Asked, Found, Table, columns, pictures
from scripts.experiments.measures import Pair, frechet, luminance, mean, sharpness

SMALL = 0.39  # the share of small pictures in the data that the paper's SDXL was trained on
PAPER = {"with sizes and crops": "36.53", "without": "39.76", "without, small pictures dropped": "43.84"}  # its FID-5k
RESAMPLED = 200  # times, for standard errors
STRENGTHS = (0.0, 0.05, 0.1, 0.2)
EXTREMES = ("black", "white")
STEADY: dict[str, Any] = {"steps": 10**6, "final": 1.0, "ema": 0.99}  # the same rate to the end, whenever it comes
FINER: dict[str, Any] = {"lr": 0.0003, "warmup": 20}  # of a model that is trained already
AT_ONCE = 32
EVERY = 100  # steps from one line of progress to the next


def conditioning(asked: Asked) -> Found:
    """Three trainings from one start, that is random."""
    if asked.count < 2:
        raise InputError(f"--count {asked.count}: a distribution takes 2 pictures or more")
    kept = mixed(source(asked), asked.seed)
    plain = untold(kept)
    arms = dict(zip(PAPER, (kept, plain, chosen(plain, torch.nonzero(~small(kept)).flatten().tolist())), strict=True))
    scenes = [draw(np.random.default_rng([asked.seed, 9, k]), asked.composer.things) for k in range(2 * asked.count)]
    data = [asked.composed(scene, k).astype(np.float32) for k, scene in enumerate(scenes)]
    reference, others = (features(asked.pipeline.vae, part) for part in (data[: asked.count], data[asked.count :]))
    again = np.random.default_rng([asked.seed, 10]).integers(asked.count, size=(RESAMPLED, asked.count))  # of scenes, for every training
    distances, rows, shown, steps = dict[str, np.ndarray](), list[list[Any]](), {"data": data[: asked.count]}, asked.steps
    single = [k for k, scene in enumerate(scenes[: asked.count]) if len(scene.placed) == 1] or [0]  # what sizes and crops are told of
    for name, found in arms.items():
        unet, steps = trained(asked, name, start(asked), found, asked.recipe.unet.offset, STEADY, steps)
        model = with_unet(asked, unet)
        drawn = [pixels for k, scene in enumerate(scenes[: asked.count]) for pixels in pictures(model.batch(scene.caption, k, 1))]
        own, distances[name] = apart(features(asked.pipeline.vae, drawn), reference, again)
        rows.append([name, len(found.z), steps, own, edges(drawn), PAPER[name]])
        shown[name.replace(", small pictures dropped", ", dropped")] = drawn
    rows.append(["other pictures of the data", None, None, apart(others, reference, again)[0], edges(data), None])
    head = ["trained", "pictures", "steps", "Fréchet distance", "difference of neighbours", "paper: FID-5k"]
    said = least(rows[:-1], distances)
    figure = columns({name: [found[k] for k in single] for name, found in shown.items()})
    return Found([Table(head, rows)], said, figure, "The data's pictures of single things, then a column a training in the table's order.")


def apart(drawn: np.ndarray, reference: np.ndarray, again: np.ndarray) -> tuple[Pair, np.ndarray]:
    """The distance of features in parts of the second set's variance, with its standard error by the bootstrap; and of each resample."""
    variance = float(reference.var(axis=0).sum())
    found = np.array([frechet(drawn[rows], reference[rows]) for rows in again]) / variance
    return [frechet(drawn, reference) / variance, float(found.std(ddof=1))], found


def least(rows: Sequence[Sequence[Any]], distances: Mapping[str, np.ndarray]) -> str:
    """Which training is the nearest, and which of the others are further by more than twice the difference's standard error."""
    best = min(rows, key=lambda row: row[3][0])[0]
    other = {name: found - distances[best] for name, found in distances.items() if name != best}
    told = [f'"{name}" {"is" if found.mean() > 2 * found.std(ddof=1) else "is not"}' for name, found in other.items()]
    return f'The least distance has "{best}"; further by more than two standard errors of the difference: {", ".join(told)}.'


def offset(asked: Asked) -> Found:
    """The model trained further, with noise of several strengths, from its own weights."""
    data, scenes = source(asked), extremes(asked)
    shown = {"data": [asked.composed(scene, k).astype(np.float32) for k, scene in enumerate(scenes)], "before": lit(asked, scenes)}
    rows: list[list[Any]] = [["data", None, *brightness(shown["data"])], ["the model before", None, *brightness(shown["before"])]]
    steps = asked.steps
    for strength in STRENGTHS:
        unet, steps = trained(asked, f"offset {strength}", copied(asked.pipeline.unet), data, strength, STEADY | FINER, steps)
        drawn = shown[f"{strength:g}"] = lit(with_unet(asked, unet), scenes)
        rows.append([f"offset noise {strength:g}", steps, *brightness(drawn)])
    ranges = {row[0]: row[3][0] - row[2][0] for row in rows}
    said = "From black to white: " + ", ".join(f"{name} {value:.3f}" for name, value in ranges.items()) + "."
    return Found([Table(["", "steps", *EXTREMES], rows)], said, columns(shown, 4), "A column a row of the table, the strength above.")


def source(asked: Asked) -> Pictures:
    """The encoded pictures of a run. Raises InputError where they are not the model's."""
    if asked.run is None:
        raise InputError("this experiment trains on pictures that are encoded already: give --run, the folder of a run of emoji.toml")
    vae = load_mean(asked.run / "vae")
    if fingerprint(halves(vae)) != fingerprint(halves(asked.pipeline.vae.state_dict())):
        raise InputError(f"{asked.run}: its VAE is not the model's: give --model, the file that was exported from this run")
    return load_pictures(asked.run, vae)


def halves(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As an exported file has them."""
    return {name: value.detach().half().float() for name, value in state.items()}


def small(found: Pictures) -> Tensor:
    """Which were enlarged (N,)."""
    return (found.numbers[:, :2] < found.numbers[:, 4:]).any(dim=1)


def mixed(found: Pictures, seed: int) -> Pictures:
    """All small pictures, and as many of the others, drawn, as make them the share that the paper has."""
    few, others = (torch.nonzero(mask).flatten() for mask in (small(found), ~small(found)))
    if not len(few):
        raise InputError("none of the run's pictures was enlarged from a smaller one: give a run with data.small_share above 0")
    wanted = round(len(few) * (1 - SMALL) / SMALL)
    drawn = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))[:wanted]]
    return chosen(found, sorted([*few.tolist(), *drawn.tolist()]))


def untold(found: Pictures) -> Pictures:
    """With the numbers of a whole picture of its bucket's size for each."""
    target = found.numbers[:, 4:]
    return dataclasses.replace(found, numbers=torch.cat([target, torch.zeros_like(target), target], dim=1))


def chosen(found: Pictures, rows: Sequence[int]) -> Pictures:
    return Pictures([found.z[row] for row in rows], found.numbers[list(rows)], [found.captions[row] for row in rows])


def start(asked: Asked) -> UNet:
    """A new UNet of the model's shape, the same for the same seed."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(asked.seed)
        unet = UNet(asked.pipeline.family.unet)
    initialise(unet)
    return unet.to(asked.pipeline.device)


def copied(unet: UNet) -> UNet:
    made = UNet(unet.shape).to(next(unet.parameters()).device)
    made.load_state_dict(unet.state_dict())
    return made


def trained(
    asked: Asked, name: str, unet: UNet, found: Pictures, strength: float, changes: Mapping[str, Any], steps: int | None
) -> tuple[UNet, int]:
    """The moving average after `steps`, or where none are given after the minutes asked for; and the steps."""
    numbers = dataclasses.replace(asked.recipe.unet.optim, **changes)
    trainer = Trainer(task(asked, unet, found, strength, numbers), numbers, Path())  # nothing is saved
    begun = time.monotonic()
    while trainer.step < steps if steps else time.monotonic() - begun < 60 * asked.minutes:
        loss = trainer.advance()["loss"]
        if trainer.step % EVERY == 0:
            asked.say(f"{name}: step {trainer.step}, loss {loss:.4g}, {(time.monotonic() - begun) / 60:.1f} min")
    unet.load_state_dict(trainer.ema.mean)
    return unet.requires_grad_(False), trainer.step


def task(asked: Asked, unet: UNet, found: Pictures, strength: float, numbers: Optim) -> TuneTask:
    """The recipe of the model in the box on encoded pictures, with other noise."""
    model, settings, data = asked.pipeline, asked.recipe.unet, asked.recipe.data
    loss = LossRecipe(settings.weighting, settings.gamma, dropout=settings.dropout)
    shape = PicturesRecipe(data.size, data.step)
    recipe = TuneRecipe("unet", asked.seed, asked.recipe.precision, shape, numbers, noise=Noising(strength), loss=loss)
    z = [each.float() * model.family.vae.scale for each in found.z]
    rows = list(range(len(z)))
    return TuneTask(model.family, unet, model.towers, Prepared(z, found.numbers.float(), found.captions, [None] * len(z), rows, []), recipe)


def with_unet(asked: Asked, unet: UNet) -> Asked:
    model = asked.pipeline
    return dataclasses.replace(asked, pipeline=Pipeline(model.family, unet, model.vae, model.towers, source=model.source))


@torch.no_grad()
def features(vae: VAE, drawn: Sequence[np.ndarray]) -> np.ndarray:
    """(N, D) of pictures: the means over all places of the encoder's last inner layer."""
    made, weight = [], next(vae.parameters())
    for first in range(0, len(drawn), AT_ONCE):
        h = vae.encoder.conv_in(to_tensor(np.stack(drawn[first : first + AT_ONCE])).to(weight))
        for level in vae.encoder.down:
            h = level(h)
        made.append(vae.encoder.mid(h).mean(dim=(2, 3)).double().cpu())
    return torch.cat(made).numpy()


def edges(drawn: Sequence[np.ndarray]) -> Pair:
    return mean([sharpness(each)[0] for each in drawn])


def extremes(asked: Asked) -> list[Scene]:
    """`count` things, each on black, then each on white."""
    things = asked.composer.things
    shares = np.array([thing.weight for thing in things])
    rows = np.random.default_rng([asked.seed, 8]).choice(len(things), asked.count, p=shares / shares.sum()).tolist()
    placed = [(Placed(row, 0.72, (0.5, 0.5)), said(things[row])) for row in rows]
    return [Scene("one", colour, (each,), f"{name} on a {colour} background") for colour in EXTREMES for each, name in placed]


def said(thing: Thing) -> str:
    return thing.names[0] if thing.plural else with_article(thing.names[0])


def lit(asked: Asked, scenes: Sequence[Scene]) -> list[np.ndarray]:
    """A picture of each scene; a thing has the same seed on black and on white."""
    return [pixels for k, scene in enumerate(scenes) for pixels in pictures(asked.batch(scene.caption, k % asked.count, 1))]


def brightness(drawn: Sequence[np.ndarray]) -> tuple[Pair, ...]:
    """The mean luminance, 0 to 1, of the pictures on each of the backgrounds."""
    values, count = [float(luminance(each).mean()) / 255 for each in drawn], len(drawn) // len(EXTREMES)
    return tuple(mean(values[at * count : (at + 1) * count]) for at in range(len(EXTREMES)))
