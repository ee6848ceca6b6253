"""Catalogs: believable products of about 700 bytes, the same in every run; a small catalog begins a large one."""

import json
import os
import random
import shutil

ADJECTIVES = "Compact Robust Classic Foldable Premium Lightweight Recycled Handmade Modular Quiet".split()
MATERIALS = "oak bamboo steel aluminium cotton wool porcelain glass silicone leather linen cork".split()
THINGS = (
    "Desk Lamp|Kettle|Backpack|Office Chair|Water Bottle|Cutting Board|Headphones|Picture Frame|Rain Jacket|"
    "Coffee Grinder|Yoga Mat|Bookshelf|Frying Pan|Bicycle Light|Garden Hose|Storage Box"
).split("|")
BRANDS = "Nordhaus,Café Lumière,Ferrum,Tanaka & Sons,Olmo,Brightwell,Kestrel,Müller,Ålesund,Piedra".split(",")
SHELVES = ["Home > Kitchen", "Home > Office", "Outdoor > Hiking", "Sport > Fitness", "Garden", "Travel > Bags"]
SENTENCES = (
    "Made for daily use and tested for ten thousand cycles.|Ships in recycled cardboard without any plastic.|"
    "The surface is easy to wipe clean and resists stains.|Spare parts are available for at least ten years.|"
    'Fits drawers of 12" and wider.|Designed together with people who use it for a living.|'
    "Store in a dry place and keep away from direct sunlight.|Comes with a printed manual in six languages.|"
    "Colours may differ slightly from the picture.|Weighs so little that you will forget you carry it.|"
    "Pairs well with the other pieces of the series.|Two years of warranty, extended to five on registration."
).split("|")


def product(number, id_bytes=11):
    dice = random.Random(number)
    material, thing, brand = dice.choice(MATERIALS), dice.choice(THINGS), dice.choice(BRANDS)
    return {
        "id": f"SKU-{number:0{id_bytes - 4}}",
        "title": f"{brand} {dice.choice(ADJECTIVES)} {material.title()} {thing}",
        "brand": brand,
        "category_path": dice.choice(SHELVES),
        "description": " ".join(dice.sample(SENTENCES, dice.randint(6, 8))),
        "attributes": {
            "material": material,
            "weight_g": dice.randint(40, 9_000),
            "dimensions_cm": [dice.randint(3, 120) for _ in range(3)],
            "ean": f"{dice.randint(10**12, 10**13 - 1)}",
        },
        "price": {"amount": round(dice.uniform(3, 480), 2), "currency": "EUR"},
        "stock": dice.randint(0, 900),
        "rating": round(dice.uniform(2.5, 5), 1),
    }


def line(number, id_bytes=11):
    return json.dumps(product(number, id_bytes), ensure_ascii=False) + "\n"


def catalog(folder, products, id_bytes=11):
    """Where the catalog lies; made if it is not there yet."""
    path = os.path.join(folder, f"catalog-{products}{'' if id_bytes == 11 else f'-{id_bytes}'}.jsonl")
    if not os.path.exists(path):
        os.makedirs(folder, exist_ok=True)
        with open(path + ".part", "w", encoding="utf-8") as file:
            for number in range(1, products + 1):
                file.write(line(number, id_bytes))
        os.rename(path + ".part", path)
    return path


def longer(path, copy, product_line):
    """A copy of the catalog with one product more, at its end."""
    shutil.copyfile(path, copy)
    with open(copy, "a", encoding="utf-8") as file:
        file.write(product_line)
    return copy
