"""Tries the probe on a small random model of every type that transformers builds, and prints the tables of docs/models.md.

python scripts/model_table.py            # all, some minutes
python scripts/model_table.py llama opt  # a line for each of these
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from helpers.every_model import TYPES, judge, table


def main() -> None:
    """Prints a line a type as it goes, on stderr for all types, and then the tables."""
    chosen = sys.argv[1:]
    verdicts = {}
    for name in chosen or TYPES:
        verdicts[name] = judge(name)
        print(f"{name}: {verdicts[name].way}: {verdicts[name].words}", file=sys.stdout if chosen else sys.stderr)
    if not chosen:
        print(table(verdicts))


if __name__ == "__main__":
    main()
