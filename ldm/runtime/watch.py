"""The caller's eyes on a run."""

from __future__ import annotations

from collections.abc import Callable

from ldm.diffusion.samplers import Step

OnStep = Callable[[Step], bool | None]


class Watch:
    """The caller's on_step, remembering where it said stop."""

    def __init__(self, on_step: OnStep | None) -> None:
        self.on_step = on_step
        self.stopped_at: int | None = None

    def __call__(self, step: Step) -> bool:
        if self.on_step is not None and self.on_step(step) is False:
            self.stopped_at = step.i + 1
        return self.stopped_at is None
