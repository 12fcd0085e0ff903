"""What vision-language models reply, each in its own dialect, read as priors.

Inside there is one convention (`priors.prior`: shares of the picture, x right and y down). Outside there are many, and
this file is the only one that knows them: which unit, which order, what stands around the numbers, and in which frame
(Qwen2.5-VL counts pixels of the picture as *it* saw it). A reply may be anything: prose, a refusal, three boxes, half a
JSON document. It always becomes a prior; where nothing can be read in it, an empty one whose note says what came back.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from l2l.errors import InputError
from l2l.priors.prior import Box, Prior, from_pixels
from l2l.rle import Rle

Unit = Literal["share", "percent", "thousand", "bins", "pixels"]
Wrapper = Literal["json", "qwen", "internvl", "loc", "paligemma"]

LONGEST = 20_000  # characters of a reply that are looked at
DEEPEST = 40  # nested brackets of JSON that are followed
MOST = 100  # boxes, points or corners that are kept
UNSCORED = 0.5  # of a box to which the model gave no score


@dataclass(frozen=True)
class Dialect:
    """How one family of models writes places."""

    name: str
    unit: Unit
    """share: 0 to 1; percent: 0 to 100; thousand: 0 to 1000; bins: 0 to 999 (or 1023), each the middle of its bin;
    pixels: of the picture as the model saw it."""
    wrapper: Wrapper
    """What stands around the numbers when the model is left to itself: JSON objects with `key`; Qwen2-VL's
    `<|box_start|>(x,y),(x,y)<|box_end|>`; InternVL's `<box>[[...]]</box>`; Florence-2's `<loc_N>`; PaliGemma's
    `<locN>`. Any of them is understood in any reply, as far as it cannot be mistaken."""
    key: str = "bbox_2d"
    """Name of a box in JSON."""
    rows_first: bool = False
    """y before x: Gemini's JSON and PaliGemma's tokens."""
    count: int = 1000
    """Bins."""


DIALECTS: dict[str, Dialect] = {
    one.name: one
    for one in (
        Dialect("qwen2.5-vl", "pixels", "json"),
        Dialect("qwen2-vl", "thousand", "qwen"),
        Dialect("qwen3-vl", "thousand", "json"),
        Dialect("internvl", "thousand", "internvl"),
        Dialect("florence-2", "bins", "loc"),
        Dialect("paligemma", "bins", "paligemma", rows_first=True, count=1024),
        Dialect("gemini", "thousand", "json", key="box_2d", rows_first=True),
        Dialect("molmo", "percent", "json"),
        Dialect("plain", "share", "json", key="box"),
        Dialect("pixels", "pixels", "json", key="box"),
    )
}


def dialect_of(model: str) -> Dialect:
    """The dialect of a model's name, as hubs and servers spell it.

    Raises:
        InputError: if none is known for it; it lists those there are.

    Example:
        >>> dialect_of("Qwen/Qwen2.5-VL-7B-Instruct").name, dialect_of("OpenGVLab/InternVL3-8B").unit
        ('qwen2.5-vl', 'thousand')
    """
    flat = model.lower().replace("_", "-")
    families = {
        "qwen2.5-vl": r"qwen-?2[.-]?5-?vl", "qwen3-vl": r"qwen-?3([.-]\d)?-?(vl|omni)", "qwen2-vl": r"qwen-?2-?vl",
        "internvl": "internvl", "florence-2": "florence-?2", "paligemma": "paligemma", "gemini": "gemini",
        "molmo": "molmo",
    }  # fmt: skip
    for name, pattern in families.items():
        if re.search(pattern, flat):
            return DIALECTS[name]
    raise InputError(f"in which units {model} writes boxes is not known: say --dialect {' or '.join(DIALECTS)}")


def instruction(dialect: Dialect, sentence: str, size: tuple[int, int]) -> str:
    """What the model is asked, in words, for one sentence. size: (height, width) of the picture as it sees it."""
    if dialect.wrapper == "loc":
        return f"<CAPTION_TO_PHRASE_GROUNDING>{sentence}"
    if dialect.wrapper == "paligemma":
        return f"detect {sentence}"
    units = {
        "share": "as shares of the width and height, 0 to 1", "percent": "in percent of the width and height",
        "thousand": "from 0 to 1000", "bins": "", "pixels": f"in pixels of the {size[1]} x {size[0]} picture",
    }  # fmt: skip
    order = "[y0, x0, y1, x1]" if dialect.rows_first else "[x0, y0, x1, y1]"
    return (
        f'Which object does this expression mean: "{sentence}"? Answer with JSON alone: {{"boxes": [{{"{dialect.key}": '
        f'{order}, "score": how sure you are, 0 to 1}}], "head": its noun, "attributes": [its attributes], '
        f'"relations": [its relations to other objects]}}. Coordinates {units[dialect.unit]}; best box first. '
        'If nothing in the picture is meant, "boxes" is [].'
    )


def write(dialect: Dialect, boxes: Sequence[Box], size: tuple[int, int]) -> str:
    """Boxes (shares) as a model of this dialect writes them; size: (height, width) of the picture as it sees it. For
    tests, and for servers that play a model. What a dialect cannot say exactly it rounds."""
    lines = []
    for box in boxes:
        numbers = [_outward(dialect, side, size[1 - at % 2]) for at, side in enumerate(box)]
        if dialect.rows_first:
            numbers = [numbers[1], numbers[0], numbers[3], numbers[2]]
        x0, y0, x1, y1 = (f"{number:g}" for number in numbers)
        match dialect.wrapper:
            case "json":
                lines.append(f'{{"{dialect.key}": [{x0}, {y0}, {x1}, {y1}]}}')
            case "qwen":
                lines.append(f"<|box_start|>({x0},{y0}),({x1},{y1})<|box_end|>")
            case "internvl":
                lines.append(f"<ref>it</ref><box>[[{x0}, {y0}, {x1}, {y1}]]</box>")
            case "loc":
                lines.append("it" + "".join(f"<loc_{number}>" for number in (x0, y0, x1, y1)))
            case "paligemma":
                lines.append("".join(f"<loc{int(number):04d}>" for number in numbers) + " it")
    if dialect.wrapper == "json":
        return "```json\n[" + ",\n".join(lines) + "]\n```"
    return " ; ".join(lines) if dialect.wrapper == "paligemma" else "".join(lines)


def read(reply: object, dialect: Dialect, size: tuple[int, int], *, seen: tuple[int, int] | None = None) -> Prior:
    """A model's reply as a prior. Never raises.

    Boxes are cut to the picture and their corners put in order; those that lie outside or have no area are dropped, the
    note says so where none is left. Points are kept where they lie inside; a polygon (Florence-2's segmentation)
    becomes a mask.

    Args:
        reply: the text.
        size: (height, width) of the picture. seen: of the picture as the model saw it, where that differs; only pixels
            depend on it.
    """
    if not isinstance(reply, str) or not reply.strip():
        return Prior(note="the model replied nothing")
    text = reply[:LONGEST]
    found = _Found()
    values = list(_json_values(text))
    for value in values:
        _gather(value, dialect, found, DEEPEST)
    if not found.boxes and not found.points:
        _gather_text(text, dialect, found)
    height, width = seen or size
    boxes, scores, dropped = [], [], ""
    for corners, score in found.boxes[:MOST]:
        try:
            boxes.append(_to_box(corners, dialect, (height, width)))
            scores.append(min(max(score, 0.0), 1.0))
        except InputError as error:
            dropped = dropped or error.reason
    order = sorted(range(len(boxes)), key=lambda at: -scores[at])  # stable: the model's own order among equals
    inside = [point for one in found.points[:MOST] if (point := _to_point(one, dialect, (height, width)))]
    mask = _polygons(found.polygons, dialect, (height, width), size)
    nothing = not boxes and not inside and mask is None
    note = ""
    if nothing and dropped:
        note = f"no usable box in the reply: {dropped}"
    elif nothing and (found.none or _says_nothing(text)):
        note = "the model says there is nothing"
    elif nothing:
        note = f"no box in the reply: {_shown(text)}"
    return Prior(
        boxes=tuple(boxes[at] for at in order), scores=tuple(scores[at] for at in order), points=tuple(inside),
        mask=mask, head=found.head, attributes=tuple(found.attributes[:MOST]),
        relations=tuple(found.relations[:MOST]), note=note,
    )  # fmt: skip


class _Found:
    """What a reply was seen to hold, in its own units."""

    def __init__(self) -> None:
        self.boxes: list[tuple[tuple[float, ...], float]] = []
        self.points: list[tuple[float, ...]] = []
        self.polygons: list[tuple[float, ...]] = []
        self.head = ""
        self.attributes: list[str] = []
        self.relations: list[str] = []
        self.none = False
        """A list of boxes that is there and empty."""


BOX_KEYS = ("bbox_2d", "box_2d", "bbox", "box", "bounding_box", "boxes", "bboxes")
POINT_KEYS = ("point_2d", "point", "points")
SCORE_KEYS = ("score", "confidence")


def _gather(value: Any, dialect: Dialect, found: _Found, depth: int) -> None:
    """Collect from a JSON value."""
    if depth == 0:
        return
    if isinstance(value, list):
        if box := _row(value, 4):
            found.boxes.append((_in_order(box, dialect), UNSCORED))
            return
        found.none |= not value
        for one in value:
            _gather(one, dialect, found, depth - 1)
    elif isinstance(value, dict):
        score = next((number for key in SCORE_KEYS if (number := _number(value.get(key))) is not None), None)
        for key, inner in value.items():
            name = str(key).lower()
            if name in BOX_KEYS:
                before = len(found.boxes)
                _gather(inner, dialect, found, depth - 1)
                scores = value.get("scores")
                for at in range(before, len(found.boxes)):
                    given = scores[at - before] if isinstance(scores, list) and at - before < len(scores) else score
                    number = _number(given)
                    if number is not None and (given is not score or found.boxes[at][1] == UNSCORED):
                        found.boxes[at] = (found.boxes[at][0], number)
            elif name in POINT_KEYS:
                rows = [inner] if _row(inner, 2) else inner if isinstance(inner, list) else []
                found.points += [_in_order(point, dialect) for one in rows if (point := _row(one, 2))]
            elif name == "head" and isinstance(inner, str):
                found.head = found.head or _plain(inner)
            elif name in ("attributes", "relations"):
                words = inner if isinstance(inner, list) else [inner]
                getattr(found, name).extend(_plain(word) for word in words if isinstance(word, str) and word.strip())
            elif isinstance(inner, (list, dict)) and name not in SCORE_KEYS and name != "scores":
                _gather(inner, dialect, found, depth - 1)


NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"


def _gather_text(text: str, dialect: Dialect, found: _Found) -> None:
    """Collect from a reply without JSON in it: special tokens first, then bare groups of numbers."""
    tokens = [[float(one) for one in re.findall(r"\d+", run)] for run in re.findall(r"(?:<loc_?\d{1,4}>\s*)+", text)]
    for run in tokens:
        if len(run) == 4:
            found.boxes.append((_in_order(run, dialect), UNSCORED))
        elif len(run) >= 6 and len(run) % 2 == 0 and dialect.wrapper == "loc":
            found.polygons.append(tuple(run))
        elif len(run) == 2:
            found.points.append(_in_order(run, dialect))
    if found.boxes or found.points or found.polygons:
        return
    corner = rf"[(\[]{NUMBER},{NUMBER}[)\]]"
    for pattern in (rf"{corner}\s*(?:,\s*)?{corner}", rf"[(\[]{','.join([NUMBER] * 4)}[)\]]"):
        for groups in re.findall(pattern, text):
            found.boxes.append((_in_order([float(one) for one in groups], dialect), UNSCORED))
        if found.boxes:
            return
    for tag in re.findall(r"<point[^<>]*", text):
        x, y = (re.search(rf'\b{name}="([\d.]+)"', tag) for name in "xy")
        if x and y and (point := _row([_number(x[1]), _number(y[1])], 2)) is not None:
            found.points.append(point)
    for groups in re.findall(corner, text) if not found.points else ():
        found.points.append(_in_order([float(one) for one in groups], dialect))


def _json_values(text: str) -> Iterator[Any]:
    """Every outermost JSON array or object of a text, mended where the end is missing or a comma is too much."""
    decoder, at, tries, read_in_vain = json.JSONDecoder(), 0, 0, 0
    while (start := _next(text, at)) < len(text) and (tries := tries + 1) <= 4 * MOST and read_in_vain < 40 * LONGEST:
        try:
            value, at = decoder.raw_decode(text, start)
            yield value
            continue
        except RecursionError:  # so deep that no box is meant; each further bracket would take as long
            return
        except ValueError as error:
            at = start + 1
            read_in_vain += getattr(error, "pos", len(text)) - start
        if (mended := _mended(text[start:])) is not None:
            yield mended
            return


def _next(text: str, at: int) -> int:
    """Position of the next bracket that may open JSON; the text's length if there is none."""
    places = [place for place in (text.find("[", at), text.find("{", at)) if place >= 0]
    return min(places, default=len(text))


def _mended(text: str) -> Any:
    """A JSON document that stops in the middle, or has Python's quotes or a comma too much; `None` where that does not
    help. Cut after the last whole object or array, closed with what is open there."""
    open_, within, escaped, last, closing = [], False, False, 0, ""
    for place, letter in enumerate(text):
        if within:
            escaped, within = (False, True) if escaped else (letter == "\\", letter != '"')
        elif letter == '"':
            within = True
        elif letter in "[{":
            open_.append("]" if letter == "[" else "}")
            if len(open_) > DEEPEST:
                return None
        elif letter in "]}":
            if not open_ or open_.pop() != letter:
                break
            last, closing = place + 1, "".join(reversed(open_))
            if not open_:
                break
    tried: Iterable[str] = [re.sub(r",\s*([}\]])", r"\1", text[:last] + closing)] if last else []
    for one in (*tried, *(each.replace("'", '"') for each in tried)):
        try:
            return json.loads(one)
        except (ValueError, RecursionError):
            continue
    return None


def _number(value: Any) -> float | None:
    """A finite number, also where it stands in quotes or with a percent sign; else `None`."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        percent = isinstance(value, str) and value.strip().endswith("%")
        number = float(value.strip().rstrip("%") if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        return None
    return (number / 100 if percent else number) if math.isfinite(number) else None


def _row(value: Any, count: int) -> tuple[float, ...] | None:
    """A list of exactly that many numbers, else `None`."""
    if not isinstance(value, (list, tuple)) or len(value) != count:
        return None
    numbers = [_number(one) for one in value]
    return None if any(one is None for one in numbers) else tuple(one for one in numbers if one is not None)


def _in_order(numbers: Sequence[float], dialect: Dialect) -> tuple[float, ...]:
    """x before y."""
    if not dialect.rows_first:
        return tuple(numbers)
    return tuple(numbers[at ^ 1] for at in range(len(numbers)))


def _inward(dialect: Dialect, value: float, side: int) -> float:
    """A coordinate of the dialect as a share of a picture's side."""
    match dialect.unit:
        case "share":
            return value
        case "percent":
            return value / 100
        case "thousand":
            return value / 1000
        case "bins":
            return (value + 0.5) / dialect.count
        case "pixels":
            return value / side


def _outward(dialect: Dialect, share: float, side: int) -> float:
    """The inverse of `_inward`, rounded as the dialect rounds."""
    match dialect.unit:
        case "share":
            return round(share, 4)
        case "percent":
            return round(100 * share, 1)
        case "thousand":
            return round(1000 * share)
        case "bins":
            return min(int(share * dialect.count), dialect.count - 1)
        case "pixels":
            return round(share * side)


def _to_box(corners: Sequence[float], dialect: Dialect, seen: tuple[int, int]) -> Box:
    """Corners in the dialect's units as a box of shares, cut to the picture. Raises `InputError` if nothing is left."""
    x0, y0, x1, y1 = (_inward(dialect, side, seen[1 - at % 2]) for at, side in enumerate(corners))
    box = from_pixels((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), (1, 1), least=0.1)
    if not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):  # an area so small that it counts as none
        raise InputError("a box without area")
    return box


def _to_point(numbers: Sequence[float], dialect: Dialect, seen: tuple[int, int]) -> tuple[float, float] | None:
    """A point as shares; `None` outside the picture."""
    x, y = (_inward(dialect, side, seen[1 - at]) for at, side in enumerate(numbers))
    return (x, y) if 0 <= x <= 1 and 0 <= y <= 1 else None


def _polygons(
    polygons: Sequence[Sequence[float]], dialect: Dialect, seen: tuple[int, int], size: tuple[int, int]
) -> Rle | None:
    """Polygons as one mask of the picture's size; `None` without any, or where they cover no pixel."""
    if not polygons:
        return None
    import numpy as np
    from PIL import Image, ImageDraw

    canvas = Image.new("1", (size[1], size[0]))
    for polygon in polygons[:MOST]:
        shares = [_inward(dialect, side, seen[1 - at % 2]) for at, side in enumerate(polygon)]
        places = [(x * size[1], y * size[0]) for x, y in zip(shares[::2], shares[1::2], strict=True)]
        ImageDraw.Draw(canvas).polygon(places, fill=1)
    mask = np.array(canvas, dtype=bool)
    return Rle.encode(mask) if mask.any() else None


def _says_nothing(text: str) -> bool:
    words = r"\W*(none|nothing|null|no (such )?objects?|not (found|present|visible))\W*"
    return re.fullmatch(words, text, re.IGNORECASE) is not None


def _plain(text: str) -> str:
    """One line of at most 80 characters."""
    return " ".join(text.split())[:80]


def _shown(text: str) -> str:
    short = " ".join(text.split())
    return short if len(short) <= 100 else short[:99] + "…"


def smart_resize(
    size: tuple[int, int], *, factor: int = 28, least: int = 56 * 56, most: int = 1280 * 28 * 28
) -> tuple[int, int]:
    """The size (height, width) at which Qwen's vision towers see a picture: both sides multiples of `factor`, the area
    between `least` and `most` pixels, the proportions kept as far as that goes (Qwen2-VL's `smart_resize`). A picture
    that is sent at this size is not resized again, so its pixels are those that the reply counts."""
    height, width = size
    rounded: Callable[[float], int] = lambda side: max(factor, round(side / factor) * factor)  # noqa: E731
    h, w = rounded(height), rounded(width)
    if h * w > most:
        scale = math.sqrt(height * width / most)
        h, w = (max(factor, math.floor(side / scale / factor) * factor) for side in (height, width))
    elif h * w < least:
        scale = math.sqrt(least / (height * width))
        h, w = (math.ceil(side * scale / factor) * factor for side in (height, width))
    return h, w
