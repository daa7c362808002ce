"""The ranges of all values that a user gives, in one table that every refusal quotes. No torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """The range of one value, ends included, and how to say it."""

    low: float
    high: float
    multiple: int = 1
    note: str = ""

    def allows(self, value: float) -> bool:
        return self.low <= value <= self.high and (self.multiple == 1 or value % self.multiple == 0)

    def nearest(self, value: float) -> int:
        """The legal whole value nearest to `value`."""
        inside = min(max(value, self.low), self.high)
        return int(inside / self.multiple + 0.5) * self.multiple

    def __str__(self) -> str:
        return f"{self.low} to {self.high}" + (f", multiples of {self.multiple}" if self.multiple > 1 else "") + self.note


LIMITS = {
    "width": Limit(16, 8192, 8),
    "height": Limit(16, 8192, 8),
    "steps": Limit(1, 1000),
    "cfg": Limit(0, 100),
    "batch": Limit(1, 64),
    "seed": Limit(0, 2**64 - 1, note=", or -1 for a random one"),
    "subseed": Limit(0, 2**64 - 1, note=", or -1 for a random one"),
    "subseed_strength": Limit(0, 1),
    "seed_resize": Limit(16, 8192, 8),
    "clip_skip": Limit(0, 12),
    "original": Limit(1, 65536),
    "target": Limit(1, 65536),
    "crop": Limit(0, 65536),
    "quality": Limit(1, 100),
    "ar": Limit(0.05, 20),
    "prompt": Limit(0, 100_000, note=" characters"),
    "negative": Limit(0, 100_000, note=" characters"),
    "prompt_2": Limit(0, 100_000, note=" characters"),
    "negative_2": Limit(0, 100_000, note=" characters"),
    "weight": Limit(-10, 10),
}
SEEDS = ("seed", "subseed")  # of these the k-th picture takes the k-th after the first
SPEEDS = ("exact", "fp8", "approx")  # the tiers; a picture's record names its own
HIGHEST_SIGMA = 1e6  # a user's noise levels stay below; the highest of any schedule is 4519
