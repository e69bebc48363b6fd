"""What tests of sweeps share."""

from __future__ import annotations

from pathlib import Path

# Methods that misbehave, a plugin.
STRANGERS = Path(__file__).parent / "strangers.py"
# Settings of a small one.
SMALL = ["NUM_IMAGES", "30", "BATCH_SIZE", "16"]


def cells(folder: Path) -> dict[str, bytes]:
    """The predictions of every cell."""
    return {str(file.relative_to(folder)): file.read_bytes()
            for file in folder.rglob("*.npz")}
