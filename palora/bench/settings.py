"""The settings of `palora spectrum`; those of `palora compare` are a recipe of their own (`comparison.py`)."""

from pydantic import Field, field_validator

from palora.common.settings import Settings


class SpectrumSettings(Settings):
    """What is measured, and how thoroughly."""

    fractions: list[float] = Field([0.05, 0.1, 0.25, 0.5], min_length=1, description="widths of the bands, with commas")
    scale: float = Field(0.0, description="what a band's singular values are multiplied by; 0 removes it")
    slices: int = Field(8, ge=1, description="slices that the whole spectrum is removed in")
    draws: int = Field(3, ge=1, description="random bands of each width")
    problems: int = Field(400, ge=1, description="test problems, and known facts, at most")
    examples: int = Field(512, ge=1, description="texts for gradient and overlap, at most")
    batch_size: int = Field(64, ge=1, description="prompts, or texts, a batch")
    max_answer_tokens: int = Field(32, ge=1, description="length limit of an answer to a fact")

    @field_validator("fractions")
    @classmethod
    def _widths(cls, values: list[float]) -> list[float]:
        if not all(0 < f <= 1 for f in values):
            raise ValueError("must be over 0 and at most 1, with commas: 0.05,0.1,0.25,0.5")
        return sorted(set(values))

    @property
    def part_fraction(self) -> float:
        """The width that single layers and kinds of matrix are measured with: the middle one of `fractions`."""
        return self.fractions[len(self.fractions) // 2]
