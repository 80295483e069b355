"""Writes what `gradprism advise` knows of the committed experiments, from every results/*/results.json, into the package.

python scripts/evidence.py           # after results were added or made again
python scripts/evidence.py --check   # writes nothing; fails where the file would change
"""

import sys
from pathlib import Path

from gradprism.advice.evidence import PACKAGED, Experiment, as_text
from gradprism.runtime.files import atomic_write


def gather(results: Path = Path("results")) -> str:
    """The content that the file should have."""
    folders = sorted(path.parent for path in results.glob("*/results.json"))
    return as_text([Experiment.of(folder) for folder in folders])


def main() -> None:
    """Writes the file, or with --check says whether it is current."""
    text = gather()
    if sys.argv[1:] == ["--check"]:
        sys.exit(0 if text == PACKAGED.read_text(encoding="utf-8") else f"{PACKAGED}: is stale; run python scripts/evidence.py")
    with atomic_write(PACKAGED) as file:
        file.write(text)


if __name__ == "__main__":
    main()
