"""Where engines' formulas differ under one name: the profile decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ldm.diffusion.samplers.consistency import lower_sigma
from ldm.diffusion.samplers.loop import Step
from ldm.diffusion.samplers.sa_solver import comfyui_rules, diffusers_rules
from ldm.diffusion.table import SigmaTable

if TYPE_CHECKING:
    from ldm.diffusion.profiles import Profile
    from ldm.diffusion.samplers.table import Sampler

Rule = Callable[["Sampler", "Profile", SigmaTable], "Sampler"]


def follow(sampler: Sampler, profile: Profile, table: SigmaTable | None = None) -> Sampler:
    """`sampler` as the profile's engine has it; `table`: the model's, where it is not the plain one."""
    return RULES[sampler.name](sampler, profile, table or SigmaTable(profile.alphas)) if sampler.name in RULES else sampler


def _told(sampler: Sampler, **options: Any) -> Sampler:
    """`sampler`, its function called with these keywords."""
    run: Callable[..., Iterator[Step]] = sampler.run
    return replace(sampler, run=partial(run, **options))


def _last_step(sampler: Sampler, profile: Profile, _table: SigmaTable) -> Sampler:
    return _told(sampler, denoised_last=profile.multistep_last == "denoised")


def _orders(sampler: Sampler, profile: Profile, _table: SigmaTable) -> Sampler:
    return _told(sampler, second=profile.multistep_orders == "second")


def _adams(sampler: Sampler, profile: Profile, table: SigmaTable) -> Sampler:
    rules = diffusers_rules if profile.multistep_orders == "second" else comfyui_rules
    return _told(sampler, rules=rules(table))


def _singlestep(sampler: Sampler, profile: Profile, _table: SigmaTable) -> Sampler:
    if profile.singlestep_noise == "none":
        return sampler
    return replace(_told(sampler, eta=1.0), noise="ancestral")


def _below(sampler: Sampler, _profile: Profile, table: SigmaTable) -> Sampler:
    return _told(sampler, below=lower_sigma(table))


RULES: dict[str, Rule] = {
    **dict.fromkeys(("lms", "ipndm", "ipndm_v"), _last_step),
    **dict.fromkeys(("unipc", "unipc_bh2", "deis"), _orders),
    **dict.fromkeys(("dpm_fast", "dpm_adaptive"), _singlestep),
    "sa_solver": _adams,
    "tcd": _below,
}
