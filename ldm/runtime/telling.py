"""From a finished job's words and sizes to conditioning, with a second try where memory runs out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ldm.runtime import retry
from ldm.text import conditioning, prompt, script
from ldm.text.conditioning import Conditioning
from ldm.text.course import Course, Strand

if TYPE_CHECKING:
    from ldm.diffusion.profiles import Profile
    from ldm.models.clip import CLIPText
    from ldm.models.shapes import Family
    from ldm.options import Job

BOTH = (2, 2)  # SDXL's own layer in every tower


@dataclass(frozen=True)
class Teller:
    """The text towers under the rules of a profile."""

    towers: Sequence[CLIPText]
    family: Family
    rules: Profile

    def both(self, job: Job) -> tuple[Course, Course | None]:
        """What the prompt says over the run, and the negative where guidance asks for it."""
        said, said_negative = script.of(job, self.rules)
        told, told_negative = conditioning.sizes_told(job, self.rules.size_defaults)
        read, read_negative = (conditioning.depths(self.rules.clip_skip, job.clip_skip, negative=negative) for negative in (False, True))
        cond = self._without_empty(self.course(said, told, read), job.prompt, job.prompt_2, negative=False)
        if said_negative is None:
            return cond, None
        uncond = self.course(said_negative, told_negative, read_negative)
        return cond, self._without_empty(uncond, job.negative, job.negative_2, negative=True)

    def _without_empty(self, course: Course, text: str | None, second: str | None, *, negative: bool) -> Course:
        """Zeros for what the profile does not encode."""
        rule = self.rules.empty_negative
        towers = conditioning.emptied(rule, text, second, negative=negative, aesthetic="aesthetic" in self.family.numbers)
        pooled = rule != "zeros-keep-pooled"
        zeroed = partial(conditioning.zeroed, family=self.family, towers=towers, pooled=pooled)
        return course.mapped(zeroed) if any(towers) else course

    def course(self, parts: Sequence[script.Part], told: Mapping[str, Any], depths: tuple[int, int] = BOTH) -> Course:
        """The parts of one prompt, each encoded apart."""
        return Course(tuple(Strand(self._encode(part, told, depths), part.at, part.weight) for part in parts))

    def _encode(self, part: script.Part, told: Mapping[str, Any], depths: tuple[int, int]) -> tuple[Conditioning, ...]:
        pads = [tower.shape.pad_token for tower in self.towers]
        longest = max(prompt.length(texts, self.rules) for texts in part.texts)
        read = [prompt.tower_texts([first] * (len(pads) - 1) + [last], pads, self.rules, longest) for first, last in part.texts]
        numbers = conditioning.size_numbers(self.family.numbers, **told)
        rules: dict[str, Any] = {"times": part.times, "weighting": self.rules.weighting, "depths": depths}
        run = partial(conditioning.encode, self.towers, self.family, read, numbers, **rules)
        return tuple(retry.once_more("text", run, partial(run, at_once=1), "trying again, 77 tokens at a time"))
