"""Writes the nouns of the official 1,000 titles that the package ships, as spaCy's model finds them.

pip install -e '.[webshop]'
python scripts/webshop_nouns.py FOLDER        # with items_shuffle_1000.json, plain or .xz
"""

import argparse
import json
import lzma
import random
from pathlib import Path

from gradprism.environments.webshop import nouns
from gradprism.environments.webshop.catalogue import read_catalogue
from gradprism.environments.webshop.reward import type_score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--agreement", action="store_true", help="compare, and write nothing")
    arguments = parser.parse_args()
    catalogue = read_catalogue(arguments.folder)
    if arguments.agreement:
        rng, products = random.Random(0), catalogue.products
        pairs = [(rng.choice(products), rng.choice(products)) for _ in range(20_000)]
        types = [(type_score(*pair, catalogue.tagger.nouns).r_type, type_score(*pair, nouns.words).r_type) for pair in pairs]
        related = [pair for pair in types if pair[0] > 0]
        for name, found in (("all pairs", types), ("those whose r_type is not 0", related)):
            print(f"{name}: equal in {sum(a == b for a, b in found) / len(found):.1%} of {len(found):,}")
        return
    titles = [product.title for product in catalogue.products]
    model = nouns.load_model()
    if model is None or nouns.model_name(model) != nouns.MODEL:
        raise SystemExit(f"{nouns.MODEL}: is not installed; pip install 'gradprism[webshop]'")
    found = {nouns.title_key(title): nouns.tagged(model, title) for title in titles}
    nouns.FILE.write_bytes(lzma.compress(json.dumps(found, ensure_ascii=False, sort_keys=True).encode(), preset=9))


if __name__ == "__main__":
    main()
