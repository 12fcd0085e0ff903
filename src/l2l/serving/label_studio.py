"""Label Studio's ML backend protocol: the run draws first, people mend it, and what they mend is kept as labels.

Give Label Studio this server's address with `/label-studio` behind it, as the project's model, and the same with
`/webhook` behind it as a webhook of the project. The project needs an `<Image>`, `<BrushLabels>` (or `<Brush>`) for it,
and a `<Text>` with the sentence, or a task with `sentence`, or `sentences`, in its data; that of `l2l export` has all.
Protocol: https://labelstud.io/guide/ml_create and label_studio_ml/api.py in
https://github.com/HumanSignal/label-studio-ml-backend.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard
from xml.etree import ElementTree

import numpy as np
from fastapi import APIRouter, Request, Response

from l2l.data.refer import MALFORMED, reason
from l2l.exchange import brush
from l2l.exchange.label_studio import NOTHING, POLYGONS, REJECT, mask_of
from l2l.predict import Prediction
from l2l.rle import Rle
from l2l.serving.asks import check_box, check_sentences, parse, writable
from l2l.serving.pictures import Picture
from l2l.serving.refusal import Refusal, answer, bad
from l2l.serving.studio_pictures import StudioPictures

if TYPE_CHECKING:
    from l2l.serving.app import Service

SENTENCES = ("sentence", "sentences", "expression", "text")
KEPT = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED")
STROKES = 64
"""Of an annotation: so many of the largest pictures may be painted over."""
CONFIG_HINT = "the project needs <Image>, and <BrushLabels> with toName of that image"


@dataclass(frozen=True, slots=True)
class Project:
    """What a project's labelling interface says."""

    control: str
    """Name of the brush."""
    image: str
    """Name of the image it draws on."""
    label: str | None
    """What its strokes are called; `None` for a brush without labels."""
    image_key: str
    """Where a task's data hold the picture."""
    sentence_keys: tuple[str, ...]
    """Where they may hold the sentence."""
    verdict: str | None
    """Name of the choices `nothing there` and `reject`, which the interface of `l2l export` has."""

    @classmethod
    def read(cls, config: object) -> Project:
        """From the XML. Raises `Refusal`."""
        if not isinstance(config, str) or "<!" in config.replace("<!--", ""):  # entities can grow without bounds
            raise bad("no labelling interface, or one with a DOCTYPE", CONFIG_HINT)
        try:
            tags = list(ElementTree.fromstring(config).iter())
        except (ElementTree.ParseError, ValueError, RecursionError):
            raise bad("the labelling interface is no XML", CONFIG_HINT) from None
        images = {tag.get("name"): tag.get("value", "").lstrip("$") for tag in tags if tag.tag == "Image"}
        for tag in tags:
            image, name = tag.get("toName"), tag.get("name")
            if tag.tag in ("BrushLabels", "Brush") and name and image in images and image:
                labels = [one.get("value") or one.get("alias") for one in tag if one.tag == "Label"]
                texts = (one.get("value", "").lstrip("$") for one in tags if one.tag == "Text")
                keys = tuple(dict.fromkeys((*filter(None, texts), *SENTENCES)))
                choices = (one.get("name") for one in tags if one.tag == "Choices" and one.get("toName") == image
                           and {NOTHING, REJECT} <= {choice.get("value") for choice in one})  # fmt: skip
                label = None if tag.tag == "Brush" else (labels or ["object"])[0]
                return cls(name, image, label, images[image], keys, next(choices, None))
        raise bad("the labelling interface has no brush for an image", CONFIG_HINT)

    def picture(self, task: dict[str, Any]) -> str:
        """The address of a task's picture. Raises `Refusal`."""
        found = _data(task).get(self.image_key)
        if not isinstance(found, str) or not found:
            raise bad("the task has no picture where the labelling interface says", CONFIG_HINT)
        return found

    def sentences(self, task: dict[str, Any]) -> list[str]:
        """What a task asks. Raises `Refusal`."""
        data = _data(task)
        found = next((data[key] for key in self.sentence_keys if data.get(key)), None)
        several = found if isinstance(found, list) else [found]
        texts = [one for one in several if isinstance(one, str)]
        if not texts or len(texts) < len(several):
            raise bad("the task has no sentence", "put it into its data as sentence, or name its field in <Text>")
        return texts

    def regions(self, sentences: Sequence[str], found: Sequence[Prediction]) -> list[dict[str, Any]]:
        """The masks as Label Studio draws them; where nothing is meant, the verdict that says so."""
        if self.verdict and all(one.box is None for one in found):
            return [self._part(self.verdict, "choices", {"choices": [NOTHING]}, sentences[0], found[0])]
        return [self._drawn(*pair) for pair in zip(sentences, found, strict=True) if pair[1].box is not None]

    def _drawn(self, sentence: str, found: Prediction) -> dict[str, Any]:
        value: dict[str, Any] = {"format": "rle", "rle": brush.encode(found.mask)}
        if self.label is None:
            return self._part(self.control, "brush", value, sentence, found)
        return self._part(self.control, "brushlabels", value | {"brushlabels": [self.label]}, sentence, found)

    def _part(self, name: str, kind: str, value: dict[str, Any], sentence: str, found: Prediction) -> dict[str, Any]:
        height, width = found.mask.shape
        return {
            "id": uuid.uuid4().hex[:10], "from_name": name, "to_name": self.image, "type": kind,
            "original_width": width, "original_height": height, "image_rotation": 0, "value": value,
            "score": round(found.score, 4), "origin": "prediction", "meta": {"text": [sentence]},
        }  # fmt: skip


def routes(service: Service) -> APIRouter:
    """The addresses of the protocol."""
    router = APIRouter(tags=["Label Studio"])
    pictures = StudioPictures(service.limits)
    version = service.about.version

    async def health() -> Response:
        """Whether it works."""
        return answer({"status": "UP" if service.batcher.alive else "DOWN", "model_class": "l2l"})

    for path in ("", "/", "/health"):
        router.add_api_route(path, health, methods=["GET"])

    @router.post("/setup")
    async def setup(request: Request) -> Response:
        """A project is connected: its labelling interface is checked."""
        asked = _object(parse(await request.body()))
        if asked.get("schema"):
            Project.read(asked["schema"])
        return answer({"model_version": version})

    @router.post("/predict")
    async def predict(request: Request) -> Response:
        """Masks for tasks; a task that cannot be answered gets none, and says why."""
        began = time.perf_counter()
        asked = _object(parse(await request.body()))
        tasks = asked.get("tasks")
        if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
            raise bad("no list of tasks", "this address is for Label Studio; others ask /predict")
        if len(tasks) > service.limits.tasks:
            raise Refusal(413, "tasks", f"more than {service.limits.tasks} tasks", "choose a smaller batch")
        project = Project.read(asked.get("label_config"))
        params = asked.get("params")
        context = params.get("context") if isinstance(params, dict) else None
        with service.batcher.place():
            results = []
            for task in tasks:
                try:
                    made = await service.in_time(_predict(service, pictures, project, task, context), began)
                except Refusal as refusal:
                    if len(tasks) == 1 or refusal.status >= 500:
                        raise
                    service.metrics.errors.add(refusal.kind)
                    made = {"result": [], "score": 0.0, "error": refusal.error}
                results.append({**made, "model_version": version})
        return answer({"results": results})

    @router.post("/webhook")
    async def webhook(request: Request) -> Response:
        """Something has happened in a project; annotations that were made or changed are kept."""
        told = _object(parse(await request.body()))
        if told.get("action") not in KEPT:
            return answer({"status": "ignored"})
        folder = service.label_folder()
        task, annotation = _object(told.get("task")), _object(told.get("annotation"))
        about = told.get("project")
        about = about if isinstance(about, dict) else {}
        project = Project.read(about.get("label_config"))
        sentences = check_sentences(project.sentences(task), service.limits)
        with service.batcher.place():
            shown: Picture | None = None
            try:
                shown = await service.in_thread(pictures.get, project.picture(task))
            except Refusal as refusal:  # the label is kept all the same, with the picture's address
                service.metrics.errors.add(refusal.kind)
            made = await service.in_thread(lambda: list(_corrections(service, project, annotation, sentences, shown)))
            origin = {name: value for name, value in (
                ("project", about.get("id")), ("task", task.get("id")), ("annotation", annotation.get("id")),
            ) if _id(value)}  # fmt: skip
            keys = []
            for number, (sentence, mask, verdict) in enumerate(made):
                keys.append(await service.in_thread(
                    folder.add, sentence=sentence, verdict=verdict, mask=mask, picture=shown,
                    key=_key(task, origin, number if len(made) > 1 else None),
                    more={"run": service.about.hash, "step": service.about.step, "label_studio": origin,
                          **({} if shown else {"address": project.picture(task)[:2048]})},
                ))  # fmt: skip
                service.metrics.labels.add(verdict)
        return answer({"status": "ok", "ids": keys}, 201)

    return router


async def _predict(
    service: Service, pictures: StudioPictures, project: Project, task: dict[str, Any], context: object
) -> dict[str, Any]:
    sentences = check_sentences(project.sentences(task), service.limits)
    shown = await service.in_thread(pictures.get, project.picture(task))
    box = check_box(_box(context, shown.size), shown.size)
    found = await service.segment(shown, sentences, (box,) * len(sentences))
    regions = await service.in_thread(project.regions, sentences, found)
    return {"result": regions, "score": round(float(np.mean([one.score for one in found])), 4)}


def _corrections(
    service: Service, project: Project, annotation: dict[str, Any], sentences: tuple[str, ...], shown: Picture | None
) -> Iterator[tuple[str, Rle | None, str]]:
    """Sentence, mask and verdict of each label in an annotation. Raises `Refusal`.

    Strokes and polygons belong to the sentence in their `meta`, as ours have it; where the task has one sentence, to
    that. Rejected is a skipped task, and one with the verdict `reject`. No mask at all says that the sentence means
    nothing here, unless people are asked to say so: then it is a rejection, as for `exchange.label_studio`.
    """
    result = annotation.get("result")
    parts = [one for one in (result if isinstance(result, list) else []) if isinstance(one, dict)]
    verdicts = {said for one in parts if one.get("type") == "choices" for said in _choices(one)}
    regions = [one for one in parts if one.get("from_name") == project.control
               or (one.get("type") in POLYGONS and one.get("to_name") == project.image)]  # fmt: skip
    if annotation.get("was_cancelled") or REJECT in verdicts:
        yield from ((sentence, None, "reject") for sentence in sentences)
        return
    painted = 0
    for sentence in sentences:
        mine = [one for one in regions if len(sentences) == 1 or sentence in _meta(one)]
        mask: np.ndarray | None = None
        for region in mine:
            size = region.get("original_height"), region.get("original_width")
            if not all(type(side) is int and 0 < side <= service.limits.pixels for side in size):
                raise bad("a stroke without its picture's size", "Label Studio writes original_width and _height")
            height, width = int(size[0] or 0), int(size[1] or 0)
            if height * width > service.limits.pixels or (shown and shown.size != (height, width)):
                raise bad("a stroke of another size than the picture", "open the task anew, and save it once more")
            if region.get("image_rotation"):
                raise bad("the picture was rotated in Label Studio", "turn it back, and save the task once more")
            painted += height * width
            if painted > STROKES * service.limits.pixels:
                raise Refusal(413, "strokes", "too many strokes", "join them, and save the task once more")
            try:
                drawn = mask_of(region["value"], (height, width))
            except MALFORMED as error:
                raise bad(reason(error), "brush strokes and polygons are kept") from None
            if mask is not None and mask.shape != drawn.shape:
                raise bad("strokes of different sizes", "open the task anew, and save it once more")
            mask = drawn if mask is None else mask | drawn
        if mask is None and len(sentences) > 1 and any(not _meta(one) for one in regions):
            raise bad("a stroke that does not say which sentence it is of", "write the sentence into its meta text, or "
                      "make tasks of one sentence")  # fmt: skip
        if project.verdict and NOTHING not in verdicts and (mask is None or not mask.any()):
            yield sentence, None, "reject"
            continue
        if mask is None and shown is not None:
            mask = np.zeros(shown.size, bool)
        yield sentence, None if mask is None else Rle.encode(mask), "accept"


def _key(task: dict[str, Any], origin: dict[str, Any], number: int | None) -> str | int:
    """The id of the pair, if the task's data have it; else one by which a later annotation replaces an earlier one."""
    own = next((one for one in map(_data(task).get, ("sentence_id", "id")) if _id(one)), None)
    if own is None:
        own = f"ls-{origin.get('project', 0)}-{origin.get('task', 0)}"[:256]
    return own if number is None else f"{own}_{number}"


def _id(value: object) -> TypeGuard[str | int]:
    """Whether it can be kept as an id."""
    return isinstance(value, (str, int)) and type(value) is not bool and len(str(value)) <= 256 and writable(str(value))


def _box(context: object, size: tuple[int, int]) -> list[float] | None:
    """The last rectangle that was just drawn, in pixels: what points, when Label Studio asks while somebody works."""
    result = context.get("result") if isinstance(context, dict) else None
    for region in reversed(result if isinstance(result, list) else []):
        value = region.get("value") if isinstance(region, dict) else None
        given = [value.get(name) for name in ("x", "y", "width", "height")] if isinstance(value, dict) else []
        sides = [side for side in given if isinstance(side, (int, float)) and abs(side) < 1e6]
        if len(sides) == 4:
            x, y, width, height = (side / 100 for side in sides)  # percent of the picture
            return [x * size[1], y * size[0], (x + width) * size[1], (y + height) * size[0]]
    return None


def _meta(region: dict[str, Any]) -> list[str]:
    meta = region.get("meta")
    text = meta.get("text") if isinstance(meta, dict) else None
    return [one for one in (text if isinstance(text, list) else [text]) if isinstance(one, str)]


def _choices(part: dict[str, Any]) -> list[str]:
    value = part.get("value")
    said = value.get("choices") if isinstance(value, dict) else None
    return [one for one in said if isinstance(one, str)] if isinstance(said, list) else []


def _data(task: dict[str, Any]) -> dict[str, Any]:
    data = task.get("data")
    return data if isinstance(data, dict) else {}


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise bad("a part of the request is no JSON object", "this address is for Label Studio")
    return value
