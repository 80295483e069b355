"""What every part is told."""

from dataclasses import dataclass
from pathlib import Path

from device.machine import Machine

ROOT = Path(__file__).resolve().parents[2]
# Everything that is prepared or measured by default lies below it; it is not committed.
BUILD = ROOT / "build" / "device"


@dataclass(frozen=True, slots=True)
class Setting:
    """`device` is cpu or cuda; `smoke` asks for tiny models; `model` is the folder of the converted model; `out` that of the results;
    `jobs` how many stages of the arms run at once."""

    device: str
    machine: Machine
    smoke: bool
    out: Path
    model: Path = BUILD / "smollm2-135m"
    jobs: int = 4
    repeats: int = 5
