"""A catalogue of made-up products in the official format, of any size: for the default, for tests, and for speed at scale.

Each product is of a kind (`running shoe`), has a maker that does not exist, some of its kind's features, and options in colour, size or
pack. Instructions ask for features, as the original's do. The size and the seed fix every byte.
"""

import random
from collections.abc import Sequence
from typing import Any

_SHADES_TEXT = "black,white,navy blue,forest green,burgundy,light grey,dusty pink,mustard yellow,sky blue,charcoal,olive,coral"
_SHADES = _SHADES_TEXT.split(",")
_CLOTHES_TEXT = "x-small small medium large x-large xx-large"
_CLOTHES = _CLOTHES_TEXT.split()
_SHOES_TEXT = "6 6.5 7 7.5 8 8.5 9 9.5 10 11 12"
_SHOES = _SHOES_TEXT.split()
_PACKS_TEXT = "pack of 1,pack of 2,pack of 3,pack of 6,pack of 12"
_PACKS = _PACKS_TEXT.split(",")
_FLAVOURS_TEXT = "vanilla,dark chocolate,salted caramel,lemon ginger,wild berry,cinnamon,plain,mint,honey,toasted coconut"
_FLAVOURS = _FLAVOURS_TEXT.split(",")
_LENGTHS_TEXT = "3 feet,6 feet,10 feet,15 feet,25 feet"
_LENGTHS = _LENGTHS_TEXT.split(",")
_SIZES_TEXT = "24 inch,30 inch,36 inch,48 inch,60 inch"
_SIZES = _SIZES_TEXT.split(",")
_SCENTS_TEXT = "lavender,rose,sandalwood,citrus,unscented,tea tree,jasmine,cedar"
_SCENTS = _SCENTS_TEXT.split(",")

# category -> (path, kinds, features, options of which some are drawn, prices from and to)
_SHELVES: dict[str, tuple[str, str, str, dict[str, Sequence[str]], tuple[int, int]]] = {
    "fashion": (
        "Clothing, Shoes & Jewelry",
        "running shoe,hiking boot,rain jacket,wool sweater,linen shirt,denim skirt,yoga legging,winter coat,baseball cap,leather belt,"
        "canvas sneaker,evening dress,cotton t-shirt,swim short,ankle sock,knit scarf",
        "machine wash,slip resistant,rubber sole,long sleeve,short sleeve,moisture wicking,loose fit,slim fit,elastic waist,high waist,"
        "memory foam,steel toe,arch support,button closure,drawstring closure,quick drying,hand wash,wide leg,tummy control",
        {"color": _SHADES, "size": _CLOTHES},
        (9, 140),
    ),
    "electronics": (
        "Electronics",
        "wireless headphone,bluetooth speaker,phone charger,laptop sleeve,security camera,hdmi cable,tablet stand,smart plug,power bank,"
        "computer keyboard,gaming mouse,screen protector,action camera,radio receiver,memory card,projector lamp",
        "fast charging,noise cancelling,easy install,high definition,high speed,gold plated,plug play,water resistant,long lasting,"
        "stereo sound,dual band,ultra hd,heavy duty,wireless charging,aluminum alloy,tempered glass,hands free,usb port,carrying case,"
        "motion detection",
        {"color": _SHADES, "length": _LENGTHS},
        (6, 320),
    ),
    "garden": (
        "Home & Kitchen",
        "console table,floor lamp,throw pillow,area rug,storage ottoman,dining chair,wall shelf,bath towel,window curtain,bed frame,"
        "shoe rack,coffee table,duvet cover,bar stool,picture frame,laundry basket",
        "solid wood,easy assemble,space saving,living room,dining room,machine washable,mid century,non slip,faux leather,stainless steel,"
        "super soft,king size,queen size,white finish,storage space,memory foam,eco friendly,easy clean,high density,blackout lining",
        {"color": _SHADES, "size": _SIZES},
        (12, 620),
    ),
    "grocery": (
        "Grocery & Gourmet Food",
        "granola bar,green tea,ground coffee,trail mix,almond butter,protein cookie,dried mango,olive oil,oat cereal,rice cracker,"
        "fruit snack,popcorn kernel,hot sauce,coconut water,pasta shell,spice blend",
        "gluten free,sugar free,non gmo,dairy free,low calorie,certified organic,plant based,keto friendly,nut free,low sodium,"
        "artificial colors,natural flavors,ready eat,resealable bag,gift basket,kosher certified,soy free,low carb,high fiber",
        {"flavor": _FLAVOURS, "size": _PACKS},
        (3, 70),
    ),
    "beauty": (
        "Beauty & Personal Care",
        "face cream,hair brush,shampoo bar,lip balm,nail polish,makeup bag,body lotion,eye shadow,hand soap,beard oil,facial cleanser,"
        "electric toothbrush,perfume spray,hair dryer,bath sponge,sun lotion",
        "cruelty free,paraben free,tea tree,hyaluronic acid,coconut oil,sensitive skin,dry skin,hair growth,anti aging,fragrance free,"
        "sulfate free,long lasting,easy use,travel size,argan oil,vitamin c,double sided,fine mist,dead skin",
        {"scent": _SCENTS, "size": _PACKS},
        (4, 95),
    ),
}
_ONSETS_TEXT = "b br d dr f g h k l m n p r s st t tr v w z"
_ONSETS = _ONSETS_TEXT.split()
_VOWELS_TEXT = "a e i o u ai ea io"
_VOWELS = _VOWELS_TEXT.split()
_ENDINGS_TEXT = "lo ra nix ver ton dle mo ska fin que ro zen"
_ENDINGS = _ENDINGS_TEXT.split()
_MATERIALS_TEXT = "cotton bamboo steel oak glass silicone ceramic nylon wool cork brass walnut rubber linen copper maple"
_MATERIALS = _MATERIALS_TEXT.split()
_USES_TEXT = "for home,for travel,for the office,for outdoors,for women,for men,for kids,for beginners,for daily use,for gifts"
_USES = _USES_TEXT.split(",")


def generate_catalogue(products: int, seed: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """`products` products as `items_shuffle.json` has them, and what `items_ins_v2.json` says of each."""
    categories = sorted(_SHELVES)
    items, instructions = [], {}
    for number in range(products):
        rng = random.Random(f"webshop {seed} {number}")
        category = categories[number % len(categories)]
        item, about = _product(rng, category, f"G{number:09d}")
        items.append(item)
        instructions[item["asin"]] = about
    return items, instructions


def _product(rng: random.Random, category: str, asin: str) -> tuple[dict[str, Any], dict[str, Any]]:
    path, kinds, features, shelves, (low, high) = _SHELVES[category]
    kind = rng.choice(kinds.split(","))
    own = rng.sample(features.split(","), rng.randint(3, 6))
    maker = (rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_ENDINGS)).capitalize()
    material, use = rng.choice(_MATERIALS), rng.choice(_USES)
    shown = [own[0], own[1], material, kind, use] if rng.random() < 0.5 else [material, kind, "with", own[0], use]
    names = [name for name in shelves if rng.random() < 0.7]
    pools = {name: _SHOES if name == "size" and ("shoe" in kind or "boot" in kind) else shelves[name] for name in names}
    options = {name: rng.sample(pool, min(len(pool), rng.randint(2, 5))) for name, pool in pools.items()}
    cents = rng.randint(low * 100, high * 100)
    price = f"${cents / 100}" if rng.random() < 0.8 else f"${cents / 100} to ${(cents + rng.randint(100, 2000)) / 100}"
    item = {
        "name": f"{maker} {' '.join(shown)}".title(),
        "asin": asin,
        "full_description": f"The {maker} {kind} is made of {material}. It is {use.removeprefix('for ')} ware: {', '.join(own[2:])}.",
        "pricing": price,
        "images": [],
        "product_category": f"{path} › {kind.split()[-1].title()}s › {kind.title()}s",
        "average_rating": "",
        "small_description": [f"{feature.capitalize()}: what a {kind} should be" for feature in own],
        "customization_options": {n: [{"value": v, "image": None} for v in values] for n, values in options.items()} or "",
        "category": category,
        "query": f"{kind}s",
        "page": rng.randint(1, 400),
    }
    wanted = rng.sample(own, rng.randint(1, min(3, len(own))))
    about: dict[str, Any] = {"attributes": own}
    if rng.random() < 0.5:
        last = f" with {wanted[-1]}" if len(wanted) > 1 else ""
        asked = ", ".join(wanted[:-1] if last else wanted)
        about |= {"instruction": f"Find me {asked} {kind}s{last}", "instruction_attributes": wanted}
    return item, about
