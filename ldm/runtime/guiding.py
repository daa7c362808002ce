"""How one run asks the network: evaluation, denoiser and guidance put together, in the exact tier and in the approximate one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ldm.diffusion import timesteps
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.guidance import Guidance
from ldm.diffusion.prediction import Prediction
from ldm.runtime.evaluation import Directed
from ldm.text import course
from ldm.text.course import Course

if TYPE_CHECKING:
    from ldm.diffusion.profiles import Profile
    from ldm.diffusion.samplers import Sampler
    from ldm.diffusion.schedules import SigmaTable
    from ldm.models.shapes import Family
    from ldm.models.unet import UNet
    from ldm.runtime.approx import Interval


@dataclass(frozen=True)
class Guide:
    """What the denoiser of a run of `pictures` pictures is made of, beside the words."""

    unet: UNet
    family: Family
    rules: Profile
    table: SigmaTable
    solver: Sampler
    schedule: str | None
    cfg: float
    pictures: int

    def exact(self, told: Course, away: Course | None, levels: Sequence[float], kind: type[Prediction] = Prediction) -> Guidance:
        """The guided denoiser of calls at these sigmas, as far as they are known."""
        timestep = timesteps.rule(self.rules, self.schedule, self.solver.name)
        ts = [self.table.locate(sigma, timestep)[0] for sigma in levels]
        predict = Directed(self.unet, course.scenes(told, away, self.pictures, self.rules.cfg_order), ts, kind)
        denoise = Denoiser(predict, self.table, prediction=self.family.prediction, timestep=timestep)
        return Guidance(denoise, scale=self.cfg, weights=told.weights, order=self.rules.cfg_order, both=away is not None)

    def approximate(self, told: Course, away: Course | None, levels: Sequence[float]) -> Guidance | Interval:
        """The same with work left out; guidance stays in all calls where the sampler asks for its other half, or AND joins prompts."""
        from ldm.runtime.approx import LOW, Interval, Skipping

        low = [call for call, sigma in enumerate(levels) if sigma <= LOW]
        if away is None or not low or self.solver.needs_uncond or told.weights != (1.0,):
            return self.exact(told, away, levels, Skipping)
        alone = replace(self, cfg=1.0).exact(told.during(low), None, [levels[call] for call in low], Skipping)
        high = [call for call in range(len(levels)) if call not in low]
        if not high:
            return alone
        guided = self.exact(told.during(high), away.during(high), [levels[call] for call in high], Skipping)
        return Interval(guided, alone, LOW)
