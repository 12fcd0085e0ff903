"""Requests, read and checked: JSON or multipart in, one of two plain objects out."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile

from l2l.errors import InputError
from l2l.priors.prior import from_pixels
from l2l.rle import Rle
from l2l.serving.limits import Limits
from l2l.serving.pictures import Picture, from_base64, mask_from_png, mask_from_rle, picture
from l2l.serving.refusal import Refusal, bad

SEE = "see /docs for what this address takes"
Box = list[float]


class PredictRequest(BaseModel):
    """What `/predict` takes. As multipart, `image` is the file, `sentence` may be repeated and `boxes` is JSON."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: str = Field(description="The picture's bytes in base64, or as a data: address.")
    sentence: str | None = Field(None, description="What is meant.")
    sentences: list[str] | None = Field(None, description="In place of sentence: several, about the same picture.")
    boxes: list[Box | None] | None = Field(
        None, description="For each sentence where something points, x0 y0 x1 y1 in pixels, or null; it may be wrong."
    )
    format: Literal["rle", "png"] = Field("rle", description="How masks are given: COCO RLE, or PNG in base64.")
    run: str | None = Field(None, description="The name or hash of the run that shall answer; 404 if it is not here.")


class LabelRequest(BaseModel):
    """What `/label` takes. As multipart, `image` is the file, `mask` a PNG file or RLE as JSON."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: str = Field(description="The picture's bytes in base64, or as a data: address.")
    sentence: str = Field(description="What is meant.")
    verdict: Literal["accept", "reject"] = Field(description="Whether the mask is right.")
    mask: dict[str, Any] | str | None = Field(
        None, description="COCO RLE, or a PNG in base64, of the picture's size; empty if the sentence means nothing "
        "here. May be left out with reject."
    )  # fmt: skip
    id: str | int | None = Field(None, description="Of the pair, as in labels.jsonl; kept as it is, or made up.")
    run: str | None = Field(None, description="The name or hash of the run whose answer was corrected.")


class Decision(BaseModel):
    """What `/review/item/{number}` takes."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str = Field(description="Of the pair, as the queue told it; 409 if another pair has this number by now.")
    verdict: Literal["accept", "reject", "open"] = Field(
        description="Whether the mask is right; open takes back what was decided, repainting too."
    )  # fmt: skip
    mask: str | None = Field(None, description="Where it was repainted: a PNG in base64, of the picture's size.")


@dataclass(frozen=True, slots=True)
class Ask:
    """Sentences about a picture."""

    picture: Picture
    sentences: tuple[str, ...]
    boxes: tuple[tuple[float, ...] | None, ...]
    png: bool = False
    run: str | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """A verdict on one pair."""

    picture: Picture
    sentence: str
    mask: Rle | None
    verdict: str
    id: str | int | None = None
    run: str | None = None


async def read_predict(request: Request, limits: Limits) -> Ask:
    """A request to `/predict`. Raises `Refusal`."""
    kind = _media(request)
    if kind == "json":
        value = parse(await request.body())
        if isinstance(value, dict) and "tasks" in value:
            raise bad("this is a request of Label Studio", "give Label Studio this server's address with /label-studio "
                      "behind it")  # fmt: skip
        asked = _model(PredictRequest, value)
        content = from_base64(asked.image, "image")
    else:
        async with _form(request, limits) as form:
            content = await _file(form, "image")
            fields = _fields(form, {"sentence", "boxes", "format", "run"}, {"sentence"})
        if "boxes" in fields:
            fields["boxes"] = parse(fields["boxes"].encode("utf-8", "replace"))
        fields["sentences"] = fields.pop("sentence", None)
        asked = _model(PredictRequest, {"image": "", **fields})
    if (asked.sentence is None) == (asked.sentences is None):
        raise bad("write either sentence or sentences", SEE)
    sentences = [asked.sentence] if asked.sentence is not None else asked.sentences or []
    checked = check_sentences(sentences, limits)
    boxes = asked.boxes if asked.boxes is not None else [None] * len(checked)
    if len(boxes) != len(checked):
        raise bad(f"{len(boxes)} boxes for {len(checked)} sentences", "give one for each, or null where nothing points")
    shown = picture(content, limits.pixels)
    return Ask(shown, checked, tuple(check_box(box, shown.size) for box in boxes), asked.format == "png", asked.run)


async def read_label(request: Request, limits: Limits) -> Told:
    """A request to `/label`. Raises `Refusal`."""
    kind = _media(request)
    uploaded = b""
    if kind == "json":
        told = _model(LabelRequest, parse(await request.body()))
        content = from_base64(told.image, "image")
    else:
        async with _form(request, limits) as form:
            content = await _file(form, "image")
            if isinstance(form.get("mask"), UploadFile):
                uploaded = await _file(form, "mask")
            fields = _fields(form, {"sentence", "verdict", "mask", "id", "run"}, set())
        if fields.get("mask", "").lstrip().startswith("{"):
            fields["mask"] = parse(fields["mask"].encode("utf-8", "replace"))
        told = _model(LabelRequest, {"image": "", **fields})
    (sentence,) = check_sentences([told.sentence], limits)
    if told.id is not None and not (0 < len(str(told.id)) <= 256 and writable(str(told.id))):
        raise bad("an id that is empty, very long or no text", "leave it out, or send the id of the pair")
    shown = picture(content, limits.pixels)
    mask: Rle | None = None
    if uploaded:
        mask = mask_from_png(uploaded, shown.size)
    elif isinstance(told.mask, dict):
        mask = mask_from_rle(told.mask, shown.size)
    elif told.mask is not None:
        mask = mask_from_png(from_base64(told.mask, "mask"), shown.size)
    if mask is None and told.verdict == "accept":
        raise bad("accept needs the mask", "send mask as COCO RLE or PNG; an empty one if the sentence means nothing")
    return Told(shown, sentence, mask, told.verdict, told.id, told.run)


async def read_decision(request: Request) -> Decision:
    """A request to `/review/item/{number}`. Raises `Refusal`."""
    if _media(request) != "json":
        raise Refusal(415, "media", "a body that is not JSON", "send application/json")
    told: Decision = _model(Decision, parse(await request.body()))
    return told


def parse(body: bytes) -> Any:
    """JSON in the strict sense: no NaN, nothing bottomless. Raises `Refusal`."""
    try:
        return json.loads(body, parse_constant=_no_constant)
    except _Constant:
        raise bad("NaN and Infinity are no JSON, and no places in a picture", "write finite numbers") from None
    except (ValueError, RecursionError):
        raise Refusal(400, "json", "the body is not JSON", "send one JSON object, in UTF-8") from None


def check_sentences(sentences: Sequence[str], limits: Limits) -> tuple[str, ...]:
    """As they are. Raises `Refusal` if there are none or too many, or one is empty, too long, or no text."""
    if not sentences:
        raise bad("no sentence", "say what is meant, as in sentence: left black shoe")
    if len(sentences) > limits.sentences:
        raise Refusal(413, "sentences", f"more than {limits.sentences} sentences", "send them in several requests")
    for sentence in sentences:
        if not sentence.strip():
            raise bad("an empty sentence", "say what is meant, as in: left black shoe")
        if len(sentence) > limits.characters:
            raise Refusal(413, "sentences", f"a sentence of more than {limits.characters} characters", "say it shorter")
        if not writable(sentence):
            raise bad("a sentence that is no text", "send Unicode without lone surrogates or zero characters")
    return tuple(sentences)


def check_box(box: Sequence[float] | None, size: tuple[int, int]) -> tuple[float, ...] | None:
    """A box in pixels of a picture of `size` (height, width). Raises `Refusal` if it is none."""
    if box is None:
        return None
    hint = f"write x0, y0, x1, y1 in pixels of the picture, which is {size[1]} wide and {size[0]} high"
    if len(box) != 4:
        raise bad(f"a box has 4 numbers, not {len(box)}", hint)
    if not all(math.isfinite(side) and abs(side) < 1e9 for side in box):
        raise bad("a box with a number that is not finite", hint)
    try:
        from_pixels(box, size)
    except InputError as error:
        raise bad(error.reason, hint) from None
    return tuple(float(side) for side in box)


class _Constant(Exception):
    pass


def _no_constant(_: str) -> NoReturn:
    raise _Constant


def writable(text: str) -> bool:
    """Whether it is text that can be kept: without lone surrogates and zero characters, not empty."""
    try:
        return "\0" not in text and bool(text.encode())
    except UnicodeEncodeError:
        return False


def _media(request: Request) -> str:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("application/json", "multipart/form-data"):
        return kind.rpartition("/")[2].partition("-")[0]
    raise Refusal(415, "media", "a body that is neither JSON nor a form with a file",
                  "send application/json or multipart/form-data")  # fmt: skip


class _form:  # noqa: N801
    """A multipart form, closed afterwards. Raises `Refusal`."""

    def __init__(self, request: Request, limits: Limits):
        self.request, self.limits = request, limits

    async def __aenter__(self) -> FormData:
        try:
            self.form = await self.request.form(
                max_files=2, max_fields=self.limits.sentences + 8, max_part_size=self.limits.body_bytes
            )
        except Exception as error:  # the parser answers damage with nearly any exception
            if "Too many" in str(getattr(error, "detail", "") or getattr(error, "message", "")):
                raise Refusal(413, "sentences", "a form of too many fields", f"at most {self.limits.sentences} "
                              "sentences in one request") from None  # fmt: skip
            raise Refusal(400, "form", "the form cannot be read",
                          "send multipart/form-data with its boundary") from None  # fmt: skip
        return self.form

    async def __aexit__(self, *_: object) -> None:
        await self.form.close()


async def _file(form: FormData, name: str) -> bytes:
    found = form.getlist(name)
    if len(found) != 1 or not isinstance(found[0], UploadFile):
        raise bad(f"no file {name}, or several", f"send {name} as one file of the form")
    return await found[0].read()


def _fields(form: FormData, known: set[str], repeated: set[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in form:
        values = [value for value in form.getlist(name) if isinstance(value, str)]
        if len(values) < len(form.getlist(name)) and name in ("image", "mask"):
            continue
        if name not in known:
            raise bad("a field that is not known here", f"the fields are {', '.join(sorted({'image', *known}))}")
        if name not in repeated and len(values) != 1:
            raise bad(f"{name} is given several times, or as a file", SEE)
        found[name] = values if name in repeated else values[0]
    return found


def _model(kind: type[Any], value: Any) -> Any:
    """The object as a model. Raises `Refusal` with the first thing that is wrong; values are not repeated in it."""
    if not isinstance(value, dict):
        raise bad("the body is no JSON object", SEE)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        known = kind.model_fields
        place = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in known)
        if first["type"] == "extra_forbidden":
            raise bad("a field that is not known here", f"the fields are {', '.join(known)}") from None
        raise bad(f"{place or 'the body'}: {first['msg'].lower()}", SEE) from None
