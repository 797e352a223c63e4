"""What the package `@iconify/json` holds, read for our purpose: which families, and which icon shows which concept.

The lists below are judgement, made by looking at contact sheets; the rules around them are mechanical.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmlora_dist.errors import UserError

__all__ = ["EVERYDAY", "Drawing", "Family", "Package", "house_of", "read_package"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


LICENCES = frozenset(
    {"MIT", "Apache-2.0", "ISC", "BSD-3-Clause", "CC0-1.0", "OFL-1.1", "Unlicense", "CC-BY-4.0", "CC-BY-3.0"}
)

_EXCLUDED_CATEGORIES = frozenset({"Logos", "Emoji", "Programming"})
_EXCLUDED_FAMILIES = _words(
    # flags, emoji and brands outside those categories
    "circle-flags flag flagpack cif flat-ui fluent-emoji fa-brands fa6-brands fa7-brands "
    # notations and other things that are no drawings of objects
    "svg-spinners academicons ginetex fad bpmn geo gis iwwa medical-icon "
    # animations, which a renderer shows in their empty first frame
    "line-md meteocons eos-icons"
)

# Families of one house share drawings (restyled, forked, or a later version), so they go to the same side of the split.
_HOUSES = (
    ("streamline", r"streamline.*|covid|guidance"),
    ("fontawesome", r"fa\d?(-.*)?"),
    ("material", r"material-symbols.*|ic|mdi.*|zmdi|memory"),
    ("boxicons", r"boxicons|bxs?"),
    ("feather", r"feather|lucide.*|vadivam|mynaui"),
    ("ionicons", r"ion|famicons"),
    ("unicons", r"ui[lmst]"),
    ("fluent", r"fluent.*"),
    ("icon-park", r"icon-park.*"),
    ("pepicons", r"pepicons.*"),
    ("heroicons", r"heroicons.*|sidekickicons"),
    ("glyphs", r"glyphs.*"),
    ("mono-icons", r"mi|mono-icons"),
    ("pixelarticons", r"pixelarticons|majesticons"),
    ("map-icons", r"pinhead|maki|temaki|osmic|roentgen|map"),
    ("icons8", r"icons8|wpf|la|flat-color-icons"),
)

_STYLE = _words(
    "outline outlined line linear lined fill filled solid bold duotone duo twotone tone thin light regular broken "
    "sharp rounded round bulk stroke remix flat print sm md lg o alt f v1 v2 negative 24px expressive "
    "one two three four five"
)
_IC_PREFIXES = _words("baseline outline round sharp twotone")

_DIRECTIONS = _words(
    "left right up down top bottom upward downward north south east west next previous forward backward back align "
    "border text corner caret chevron chevrons skip"
)
_BRANDS = _words(
    "airplay amazon android app-store apple behance bitcoin bluetooth chrome creative-commons css discord dribbble "
    "dropbox ethereum facebook figma github gitlab google google-drive html instagram javascript linkedin linux "
    "markdown medium nfc paypal pinterest python react reddit skype slack snapchat spotify telegram tiktok tumblr "
    "twitch twitter wechat whatsapp windows wordpress youtube html5 css3 share-android safari firefox opera "
    "vimeo playstation xbox stripe trello visa mastercard yahoo"
)

# Names under which families draw different things: an arrow, a pencil, a waste bin, half of a flipped picture.
_AMBIGUOUS = _words("send delete edit compose video traffic mirror candle candlestick remove")

# Everyday things that the benchmark draws its classes from: `concept=other names of the same thing`.
_EVERYDAY = """
airplane=plane,aeroplane,aircraft alarm-clock=alarm ambulance anchor armchair atom axe baby backpack balloon=balloons
bandage=band-aid,adhesive-bandage barcode baseball basketball bathtub=bath,bath-tub battery=battery-full,battery-half
beach bed beer bell=notification,notifications bicycle=bike binoculars bird bomb bone book=book-closed bottle
box=package,shipping-box brain bread bridge briefcase=suitcase-business broom brush=paint-brush,paintbrush
bug building=buildings,office-building burger bus butterfly cable-car cactus cake=birthday-cake calculator calendar
camera=photo-camera,device-camera campfire candy car caravan carrot castle cat chair chalkboard cheese chef-hat
chess-bishop chess-king chess-knight chess-pawn church clipboard clock cloud clover cocktail=martini
coffee=coffee-cup,cup,tea-cup,mug coins=coin compass computer=desktop,desktop-computer cookie credit-card crown
cube cutlery=fork-knife,restaurant,utensils,knife-fork desk diamond=gem dice dishwasher dna dog donut=doughnut door
dress drone drop=droplet,water-drop drum dumbbell=barbell ear earbuds egg=eggs elevator envelope=mail,email eraser eye
factory fan feather fence ferris-wheel film fingerprint fire=flame fire-extinguisher fish flag
flashlight=torch flask=beaker,erlenmeyer-flask floppy-disk floor-lamp flower folder football=soccer,soccer-ball forest
fork fridge=refrigerator,fridge-freezer gamepad=game-controller,controller garage gas-station=gas-pump,fuel-pump
gauge=speedometer,tachometer gavel ghost gift=present,gift-box glasses=eyeglasses globe golf graduation-cap=mortarboard
guitar hammer hand handbag handshake hanger=clothes-hanger,coat-hanger headphones=headphone headset heart helicopter
hiking hospital hotel hourglass house=home hurricane ice-cream=icecream id-card iron joystick kettle key keyboard
knife ladder lamp=table-lamp,desk-lamp laptop leaf=leaves lemon library lifebuoy=life-buoy,life-ring lighthouse
light-bulb=lightbulb,bulb lightning=bolt,lightning-bolt,flash lipstick lock=padlock,lock-closed lungs magic-wand=wand
magnet magnifying-glass=search mailbox map mask medal megaphone=bullhorn microphone=mic microscope microwave milk
money-bag moon mosque motorcycle=motorbike mountain=mountains mouse=computer-mouse mushroom
music-note=music,music-notes newspaper=news notebook nut oven paint-bucket paint-roller palette=color-palette
paper-plane paperclip=attachment,attach,paper-clip passport paw pen pencil person=user
phone=call,telephone piano picture=image,photo piggy-bank pill=pills,medication pizza planet plug=power-plug
popcorn printer=print projector puzzle=puzzle-piece,jigsaw rabbit radio rain=cloud-rain,rainy rainbow receipt recycle
remote-control road robot=bot rocket rose router rugby ruler sailboat=sailing safe=vault satellite
satellite-dish scale=scales,balance,justice-scale,balance-scale scanner school scissors=cut scooter screwdriver
sd-card=memory-card server shield ship shoe shop=store,storefront shopping-bag=bag shopping-basket=basket
shopping-cart=cart shovel shower shrimp signpost sim-card siren skateboard=skateboarding skull
smartphone=mobile,mobile-phone,cell-phone snowflake sofa=couch solar-panel speaker stairs stamp star
steering-wheel stethoscope sticky-note stopwatch stroller suitcase=luggage sun=sunny sunrise swimming sword syringe
t-shirt=shirt,tshirt tablet tag target taxi telescope tennis-ball=tennis tent test-tube thermometer=temperature
ticket=tickets toilet toilet-paper toolbox tooth tornado traffic-cone traffic-light=traffic-lights train tram
trash=bin,recycle-bin,trash-can,trash-bin treadmill treasure-chest tree trophy truck tv=television ufo umbrella
usb video-camera=videocam,camera-video,movie-camera virus volcano volleyball wallet warehouse washing-machine watch
waves=wave webcam wheat wheelchair windmill wine=wine-glass wrench=spanner
"""


def _everyday() -> dict[str, tuple[str, ...]]:
    entries = (word.partition("=") for word in _EVERYDAY.split())
    return {name: tuple(filter(None, others.split(","))) for name, _, others in entries}


EVERYDAY = _everyday()
"""Concept → its synonyms, for everything that may become a class of the benchmark."""

_CANONICAL = {other: name for name, others in EVERYDAY.items() for other in others}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One icon set of the package."""

    prefix: str
    name: str
    version: str
    author: str
    author_url: str
    licence: str
    licence_url: str


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One icon: which family drew which concept, and the SVG (black on transparent)."""

    family: str
    name: str
    concept: str
    svg: str

    @property
    def key(self) -> str:
        """Unique name; also what every choice that looks random is hashed from."""
        return f"{self.family}--{self.name}"

    @property
    def house(self) -> str:
        return house_of(self.family)

    def hash(self, salt: str = "") -> str:
        """Hexadecimal SHA-256 of the salted key: an order of drawings that favours no family."""
        return hashlib.sha256(f"{salt}/{self.key}".encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Package:
    """What is left of `@iconify/json` after the rules: permissive families, and their drawings by concept."""

    version: str
    families: dict[str, Family]
    concepts: dict[str, list[Drawing]]


def house_of(family: str) -> str:
    """The group of families that `family` shares drawings with; its own name if it stands alone."""
    return next((house for house, pattern in _HOUSES if re.fullmatch(pattern, family)), family)


def concept_of(family: str, name: str) -> str | None:
    """What an icon's name says that it shows, without marks of style, size or variant; None where it says nothing.

    `outline-photo-camera-24` of Material Icons and `camera2-filled` of Reicon are both `camera`.
    """
    words = name.split("-")
    if family == "ic" and words[0] in _IC_PREFIXES:
        words = words[1:]
    if family in ("bx", "ion") and words[0] in ("bx", "bxs", "bxl", "md", "ios", "logo"):
        return None
    while words and (words[-1] in _STYLE or words[-1].isdigit()):
        words = words[:-1]
    if not words:
        return None
    words[-1] = re.sub(r"(?<=[a-z]{3})\d+$", "", words[-1])
    concept = "-".join(words)
    concept = _CANONICAL.get(concept, concept)
    if concept in _BRANDS | _AMBIGUOUS or len(concept) < 2 or _DIRECTIONS.intersection(words):
        return None
    return concept


def read_package(source: Path | str) -> Package:
    """Read `@iconify/json` from an unpacked folder or from the `.tgz` that `npm pack @iconify/json` writes.

    Raises:
        UserError: If `source` is not that package.
    """
    source = Path(source)
    try:
        files = dict(_files(source))
        version = str(files["package.json"]["version"])
        collections = files["collections.json"]
    except (OSError, KeyError, tarfile.TarError, json.JSONDecodeError) as error:
        raise UserError(
            f"{source}: found no @iconify/json package ({error}), expected its folder or .tgz;"
            " run npm pack @iconify/json"
        ) from None
    families = {prefix: family for prefix, info in sorted(collections.items()) if (family := _family(prefix, info))}
    concepts: dict[str, list[Drawing]] = defaultdict(list)
    for prefix in families:
        for drawing in _drawings(prefix, files[f"json/{prefix}.json"]):
            concepts[drawing.concept].append(drawing)
    for drawings in concepts.values():
        drawings.sort(key=lambda drawing: drawing.hash())
    return Package(version=version, families=families, concepts=dict(sorted(concepts.items())))


def _files(source: Path) -> Iterator[tuple[str, Any]]:
    """Every JSON document that we need, under its path inside the package."""
    wanted = re.compile(r"(package\.json|collections\.json|json/[a-z0-9-]+\.json)")
    if source.is_dir():
        root = source / "package" if (source / "package").is_dir() else source
        for path in sorted(root.rglob("*.json")):
            name = path.relative_to(root).as_posix()
            if wanted.fullmatch(name):
                yield name, json.loads(path.read_bytes())
        return
    with tarfile.open(source) as tar:
        for member in tar:
            name = member.name.partition("/")[2]
            if wanted.fullmatch(name) and (file := tar.extractfile(member)):
                yield name, json.load(file)


def _family(prefix: str, info: dict[str, Any]) -> Family | None:
    licence = info["license"]
    if (
        licence.get("spdx") not in LICENCES
        or info.get("category") in _EXCLUDED_CATEGORIES
        or prefix in _EXCLUDED_FAMILIES
        or info.get("palette")  # drawn in colours: most are coloured twins of a family in black
    ):
        return None
    return Family(
        prefix=prefix,
        name=info["name"],
        version=str(info.get("version", "")),
        author=info["author"]["name"],
        author_url=info["author"].get("url", ""),
        licence=licence["spdx"],
        licence_url=licence.get("url", ""),
    )


def _drawings(prefix: str, document: dict[str, Any]) -> Iterator[Drawing]:
    """The family's own icons; aliases would be the same drawing again."""
    for name, icon in document["icons"].items():
        concept = concept_of(prefix, name)
        if concept is None or icon.get("hidden") or len(name) > 60:
            continue
        box = {key: icon.get(key, document.get(key, default)) for key, default in _BOX.items()}
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="#000" '
            f'width="24" height="24" viewBox="{box["left"]} {box["top"]} {box["width"]} {box["height"]}">'
            f"{icon['body']}</svg>"
        )
        yield Drawing(family=prefix, name=name, concept=concept, svg=svg)


_BOX = {"left": 0, "top": 0, "width": 16, "height": 16}
