"""The bundled example: scikit-learn's handwritten digits, in the wheel as in the repository."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from talkoo_core.errors import NotFound

HELDOUT_EVERY = 5
"""As in digits.py: every fifth sample is held out."""


def example_folder() -> Path:
    """Where task.yaml, digits.py and digits.npz lie. Raises NotFound."""
    beside = Path(__file__).parent / "digits"
    in_repository = Path(__file__).parents[3] / "examples" / "digits"
    for folder in (beside, in_repository):
        if (folder / "task.yaml").is_file():
            return folder
    raise NotFound("the digits example is not installed; reinstall talkoo, or run from the repository")


@dataclass(frozen=True, slots=True)
class Sample:
    """A held-out picture, 64 brightnesses row by row, and the digit it shows."""

    pixels: list[int]
    digit: int


def heldout_samples(folder: Path, count: int) -> list[Sample]:
    """The first `count` held-out pictures that show different digits."""
    import numpy as np

    with np.load(folder / "digits.npz", allow_pickle=False) as file:
        pictures, labels = file["pictures"], file["labels"]
    chosen: dict[int, Sample] = {}
    for index in range(HELDOUT_EVERY - 1, len(labels), HELDOUT_EVERY):
        digit = int(labels[index])
        chosen.setdefault(digit, Sample([int(v) for v in pictures[index].reshape(-1)], digit))
        if len(chosen) == count:
            break
    return list(chosen.values())


def drawing(sample: Sample) -> str:
    """The picture as text, for people who like to see what they pay for."""
    shades = " .:-=+*#%@"
    rows = [sample.pixels[i : i + 8] for i in range(0, 64, 8)]
    return "\n".join("".join(shades[min(v * len(shades) // 17, len(shades) - 1)] * 2 for v in row) for row in rows)
