"""Which training step the network is told at a sigma, where an engine's rule depends on the list and on the solver."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldm.diffusion.profiles import Profile

_FROM_SIGMAS = {"karras": "nearest-log", "exponential": "floor", "beta": "floor"}  # made without steps; how `whole_steps` then round


def rule(profile: Profile, schedule: str | None, sampler: str) -> str:
    """The rule of SigmaTable.locate: the profile's `timestep`, or what "by-list" stands for, after diffusers' schedulers.

    A list made from training steps keeps them. From one made of sigmas, `whole_steps` take whole numbers, rounded or cut (`timesteps` is
    cast to int64), and all others the position between two entries of the table in log sigma, as for a solver's midpoints in any list.
    """
    if profile.timestep != "by-list":
        return profile.timestep
    if sampler in profile.whole_steps:
        return _FROM_SIGMAS.get(schedule or "", "nearest-log")
    if schedule is None or schedule in _FROM_SIGMAS:
        return "float"
    return "float-linear" if profile.spacing == "linspace-linear" else "entry-or-float"
