"""A whole run beside the same run by other people's code, at tiny width.

diffusers' UNet and VAE, transformers' towers and tokenizer, k-diffusion's schedule, samplers, sigma table and preconditioning, torchsde's
Brownian tree. What engines do differently is written here by hand, from what is known of them: nothing is read from configs/profiles.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.measure import relative_error
from ldm.pipeline import Pipeline
from tests.diffusion.foreign import FUNCTIONS, k_diffusion
from tests.models import cases
from tests.models.tiny import tiny

for _package in ("diffusers", "transformers", "open_clip"):
    if find_spec(_package) is None:
        pytest.skip(f"{_package} is not installed (extra: parity)", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore:Should have tb<=t1", "ignore:Should have ta>=t0")  # torchsde, on the end of its own range

GATE = 1e-5
MOVED = 10 * GATE  # what a rule must at least change where these tests are to see it
WIDTH, HEIGHT, STEPS, CFG, SEED = 64, 48, 4, 5.0, 11
START, END, COMMA = 49406, 49407, 267
PADS = {"sdxl-base": (49407, 0), "sdxl-refiner": (0,)}  # CLIP-L pads with its end token, OpenCLIP's bigG with 0
PROMPT = (
    "a wide photograph of an old harbour town at dawn with fishing boats of many colours tied to a long stone pier while gulls "
    "circle over wet roofs and a lone baker carries baskets of warm bread up narrow stairs past blue doors and pots of red flowers "
    "toward the market square where lanterns still burn behind fogged windows and cats wait below tables, "
    "soft golden light on quiet water and a small white lighthouse far away on the horizon, fine grain, calm mood"
)
NEGATIVE = "blurry, low quality"
T_GAIN = 6.0  # on the time embedding: a drawn network hardly sees a fraction of a step
LIST = (9.75, 8.25, 3.0, 0.0)  # of a user's own, below the table's end; exp(log(sigma)) is another float32 for the first two


@dataclass(frozen=True)
class Rules:
    """One engine's habits."""

    alphas: torch.dtype  # of the cumulated alphas that the sigma table is made from
    whole_t: bool  # t is the whole step nearest in log sigma; otherwise between two, linear in log sigma
    full_start: bool  # unit noise times sqrt(1 + sigma²) where the list starts at the table's end; otherwise always times sigma
    comma: bool  # a chunk ends after a comma among its last 20 tokens; otherwise after 75 tokens
    continued: bool  # ancestral noise goes on with the start noise's generator; otherwise a new one of the same seed
    log_ends: bool  # dpmpp_sde's noise from exp(log(sigma)), as k-diffusion asks for it; otherwise from sigma itself
    zeros: bool  # an empty negative is zeros for context and pooled; otherwise it is encoded


ENGINES = {
    "comfyui": Rules(torch.float64, whole_t=True, full_start=True, comma=False, continued=False, log_ends=False, zeros=False),
    "a1111": Rules(torch.float32, whole_t=False, full_start=False, comma=True, continued=True, log_ends=True, zeros=True),
}


@dataclass(frozen=True)
class Run:
    """One run by other people's code, with everything that could be wired wrongly as a value of its own."""

    rules: Rules
    family: str = "sdxl-base"
    sampler: str = "dpmpp_2m"
    prompt: str = PROMPT
    negative: str = NEGATIVE
    prediction: str = "epsilon"
    levels: tuple[float, ...] | None = None
    seed: int = SEED
    size: tuple[int, int] = (HEIGHT, WIDTH)  # as the vector says it
    aesthetic: tuple[float, float] = (6.0, 2.5)  # of the prompt and of the negative
    cfg: float = CFG
    scale: float = 0.13025


@dataclass(frozen=True)
class Networks:
    pipeline: Pipeline
    unet: Any
    vae: Any
    towers: list[Any]


@cache
def networks(name: str) -> Networks:
    """Ours with every weight drawn, so that text, sizes and t all reach the latents, and theirs over the same weights."""
    from tests.models import foreign

    family = tiny(name)
    unet, vae, towers = cases.unet(family), cases.vae(family), cases.towers(family)
    unet.time_embed[2].weight.data.mul_(T_GAIN)
    return Networks(
        Pipeline(family, unet, vae, towers, source=name),
        foreign.diffusers_unet(unet, family.size_embedding),
        foreign.diffusers_vae(vae),
        [foreign.transformers_tower(tower) for tower in towers],
    )


@cache
def encoded(family: str, text: str, comma: bool) -> tuple[Tensor, Tensor]:
    """context (1, 77n, D) and pooled (1, P): the layer before the last of every chunk; what the last tower pools of the first."""
    from tests.text.foreign import transformers

    parts = chunked(transformers()(text, add_special_tokens=False).input_ids, comma)
    hidden, pooled = [], torch.empty(0)
    for tower, pad in zip(networks(family).towers, PADS[family], strict=True):
        ids = torch.tensor([[START, *part, END, *[pad] * (75 - len(part))] for part in parts])
        out = tower(ids, output_hidden_states=True)
        hidden.append(out.hidden_states[-2].reshape(1, 77 * len(parts), -1))
        pooled = out[0][:1]
    return torch.cat(hidden, -1), pooled


def chunked(tokens: list[int], comma: bool) -> list[list[int]]:
    if len(tokens) <= 75:
        return [tokens]
    end = max([k + 1 for k in range(55, 75) if tokens[k] == COMMA and tokens[75] != COMMA], default=75) if comma else 75
    return [tokens[:end], *chunked(tokens[end:], comma)]


def sigma_table(rules: Rules, predict: Any, prediction: str) -> Any:
    """k-diffusion's wrapper around a network, in float32 after the table is made."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0).to(rules.alphas)
    kind = {"epsilon": "DiscreteEpsDDPMDenoiser", "v": "DiscreteVDDPMDenoiser"}[prediction]
    return getattr(k_diffusion("external"), kind)(predict, alphas, rules.whole_t).float()


def sigmas_of(run: Run) -> Tensor:
    if run.levels is not None:
        return torch.tensor(run.levels)
    table = sigma_table(run.rules, None, "epsilon").sigmas
    made: Tensor = k_diffusion("sampling").get_sigmas_karras(STEPS, float(table[0]), float(table[-1]))
    return made


@cache
@torch.no_grad()
def latents(run: Run) -> Tensor:
    rows = [row(run, run.prompt, run.aesthetic[0])]
    if run.cfg != 1:
        rows.append(row(run, run.negative, run.aesthetic[1], empty=run.rules.zeros and run.negative == ""))

    def guided(x: Tensor, t: Tensor) -> Tensor:
        """A pass for each text, as their contexts differ in length."""
        cond, *uncond = (networks(run.family).unet(x, t, **each).sample for each in rows)
        return uncond[0] + run.cfg * (cond - uncond[0]) if uncond else cond

    denoise, sigmas = sigma_table(run.rules, guided, run.prediction), sigmas_of(run)
    generator = torch.Generator().manual_seed(run.seed)
    unit = torch.randn(1, 4, HEIGHT // 8, WIDTH // 8, generator=generator)
    full = run.rules.full_start and sigmas[0] >= denoise.sigmas[-1] * (1 - 1e-5)
    x = unit * ((1 + sigmas[0] ** 2).sqrt() if full else sigmas[0])
    sample = getattr(k_diffusion("sampling"), FUNCTIONS[run.sampler])
    z: Tensor = sample(denoise, x, sigmas, disable=True, **noise_sampler(run, unit, sigmas, generator))
    return z


def row(run: Run, text: str, aesthetic: float, *, empty: bool = False) -> dict[str, Any]:
    """What diffusers' UNet is told of one text."""
    context, pooled = encoded(run.family, text, run.rules.comma)
    if empty:
        context, pooled = torch.zeros_like(context), torch.zeros_like(pooled)
    last = (aesthetic,) if run.family == "sdxl-refiner" else run.size
    numbers = torch.tensor([[*run.size, 0.0, 0.0, *last]])
    return {"encoder_hidden_states": context, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": numbers}}


def noise_sampler(run: Run, unit: Tensor, sigmas: Tensor, generator: torch.Generator) -> dict[str, Any]:
    """The noise on the way, for the samplers that take some; `generator` has drawn the start noise."""
    if run.sampler == "euler_a":
        source = generator if run.rules.continued else torch.Generator().manual_seed(run.seed)
        return {"noise_sampler": lambda sigma, sigma_next: torch.randn(unit.shape, generator=source)}
    if run.sampler != "dpmpp_sde":
        return {}
    tree = k_diffusion("sampling").BrownianTreeNoiseSampler(unit, sigmas[sigmas > 0].min(), sigmas.max(), seed=run.seed)

    def exact(sigma: Tensor) -> Tensor:
        """The sigma of the list that exp(log(sigma)) came from; a midpoint is itself."""
        nearest = sigmas[(sigmas - sigma).abs().argmin()]
        return nearest if (nearest / sigma - 1).abs() < 1e-6 else sigma

    return {"noise_sampler": tree if run.rules.log_ends else lambda sigma, sigma_next: tree(exact(sigma), exact(sigma_next))}


@cache
@torch.no_grad()
def image(run: Run) -> Tensor:
    made: Tensor = networks(run.family).vae.decode(latents(run) / run.scale).sample.clamp(-1, 1)
    return made


def check(run: Run, profile: str, k: int = 0, **changes: Any) -> None:
    """Picture k of generate() is that of `run`: sigmas bit for bit, latents and image within the gate, 8-bit pixels within one."""
    settings = {"width": WIDTH, "height": HEIGHT, "cfg": run.cfg, "sampler": run.sampler, "seed": run.seed - k, "profile": profile}
    settings |= {"sigmas": run.levels} if run.levels else {"steps": STEPS, "schedule": "karras"}
    settings |= {"negative": run.negative, "overrides": {"rng": "cpu"} | changes.pop("overrides", {})} | changes
    ours = networks(run.family).pipeline
    pipeline = Pipeline(replace(ours.family, prediction=run.prediction), ours.unet, ours.vae, ours.towers, source=run.family)
    result = pipeline.generate(run.prompt, **settings)
    assert list(result.job.sigmas or ()) == sigmas_of(run).tolist()
    assert relative_error(result.latents[k : k + 1], latents(run)) <= GATE
    assert relative_error(pipeline.decode(result.latents[k : k + 1]), image(run)) <= GATE
    pixels = (image(run)[0].permute(1, 2, 0) + 1) * 127.5
    assert np.abs(np.asarray(result.images[k], np.float32) - pixels.numpy()).max() <= 1


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_sde", "euler_a"])
@pytest.mark.parametrize("family", cases.FAMILIES)
@pytest.mark.parametrize("profile", ENGINES)
def test_a_run(profile: str, family: str, sampler: str) -> None:
    check(Run(ENGINES[profile], family, sampler), profile)


@pytest.mark.parametrize("negative", ["", None])
@pytest.mark.parametrize("family", cases.FAMILIES)
@pytest.mark.parametrize("profile", ENGINES)
def test_an_empty_negative(profile: str, family: str, negative: str | None) -> None:
    """Zeros beside the sizes under a1111, "" encoded under comfyui; none given is the same to both."""
    check(Run(ENGINES[profile], family, negative=""), profile, negative=negative)


@pytest.mark.parametrize("prompt", ["a cat", f"{PROMPT}, {PROMPT}"], ids=["one chunk", "three chunks"])
@pytest.mark.parametrize("profile", ENGINES)
def test_a_negative_of_two_chunks(profile: str, prompt: str) -> None:
    """Contexts of unequal length fit one batch here, and have a pass each there."""
    check(Run(ENGINES[profile], prompt=prompt, negative=PROMPT), profile)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_sde", "euler_a"])
@pytest.mark.parametrize("profile", ENGINES)
def test_sigmas_of_a_users_own(profile: str, sampler: str) -> None:
    check(Run(ENGINES[profile], sampler=sampler, levels=LIST), profile)


@pytest.mark.parametrize("profile", ENGINES)
def test_a_network_that_predicts_v(profile: str) -> None:
    check(Run(ENGINES[profile], prediction="v"), profile)


@pytest.mark.filterwarnings("ignore:cfg 1 is no guidance")
@pytest.mark.parametrize("profile", ENGINES)
def test_without_guidance(profile: str) -> None:
    check(Run(ENGINES[profile], cfg=1.0), profile)


@pytest.mark.parametrize("family", cases.FAMILIES)
@pytest.mark.parametrize("profile", ENGINES)
def test_a_table_in_half_precision(profile: str, family: str) -> None:
    """The rule whose effect on a picture is plain: the table's last sigma is 14.609375, and its first differs by 7 %."""
    check(Run(replace(ENGINES[profile], alphas=torch.float16), family), profile, overrides={"alphas": "float16"})


@pytest.mark.parametrize("sampler", ["dpmpp_sde", "euler_a"])
@pytest.mark.parametrize("profile", ENGINES)
def test_the_second_picture_of_a_batch(profile: str, sampler: str) -> None:
    check(Run(ENGINES[profile], sampler=sampler, seed=SEED + 1), profile, k=1, batch=2)


ELSEWHERE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # what the run is, and what changes
    "height and width": ({}, {"size": (WIDTH, HEIGHT)}),
    "negative": ({}, {"negative": ""}),
    "prediction": ({}, {"prediction": "v"}),
    "guidance": ({}, {"cfg": 4.5}),
    "seed": ({}, {"seed": SEED + 1}),
    "t": ({}, {"whole_t": None}),
    "start": ({}, {"full_start": None}),
    "chunks": ({}, {"comma": None}),
    "ancestral": ({"sampler": "euler_a"}, {"continued": None}),
    "Brownian ends": ({"sampler": "dpmpp_sde", "levels": LIST}, {"log_ends": None}),
    "empty negative": ({"negative": ""}, {"zeros": None}),
    "alphas": ({}, {"alphas": torch.float16}),
    "list": ({}, {"levels": LIST}),
}


@pytest.mark.parametrize("what", ELSEWHERE)
@pytest.mark.parametrize("family", cases.FAMILIES)
@pytest.mark.parametrize("profile", ENGINES)
def test_these_networks_feel(profile: str, family: str, what: str) -> None:
    """Every choice moves the latents by far more than the gate, so that a run with the wrong one cannot pass; None: the other habit."""
    settings, changes = ELSEWHERE[what]
    run = Run(ENGINES[profile], family, **settings)
    habits = {
        name: not getattr(run.rules, name) if value is None else value for name, value in changes.items() if name in Rules.__annotations__
    }
    others = {name: value for name, value in changes.items() if name not in habits}
    assert relative_error(latents(replace(run, rules=replace(run.rules, **habits), **others)), latents(run)) > MOVED


def test_the_refiner_feels_the_score() -> None:
    run = Run(ENGINES["comfyui"], "sdxl-refiner")
    for scores in ((6.0, 6.0), (2.5, 2.5), (2.5, 6.0)):
        assert relative_error(latents(replace(run, aesthetic=scores)), latents(run)) > MOVED


@pytest.mark.parametrize("family", cases.FAMILIES)
@pytest.mark.parametrize("profile", ENGINES)
def test_these_latents_are_sane(profile: str, family: str) -> None:
    run = Run(ENGINES[profile], family)
    assert 0.1 < float(latents(run).std()) < 50
    assert float((image(run).abs() == 1).float().mean()) < 0.5  # most pixels are not clipped
    assert relative_error(image(run), networks(family).vae.decode(latents(run) * run.scale).sample.detach()) > 0.1


def test_the_prompt_is_cut_in_two_ways() -> None:
    from tests.text.foreign import transformers

    tokens = transformers()(PROMPT, add_special_tokens=False).input_ids
    assert [len(part) for part in chunked(tokens, comma=False)] == [75, len(tokens) - 75]
    assert [len(part) for part in chunked(tokens, comma=True)] == [66, len(tokens) - 66]
