"""The addresses under `/review`: the queue, a pair of it, its picture, and what somebody decides of it."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from l2l.exchange.decisions import OPEN
from l2l.exchange.labels import Label
from l2l.rle import Rle
from l2l.serving.asks import read_decision
from l2l.serving.pictures import from_base64, mask_from_png, to_png
from l2l.serving.refusal import Refusal, answer, bad
from l2l.serving.review import Queue, picture_of, to_show

if TYPE_CHECKING:
    from l2l.serving.app import Service

PRIVATE = {"cache-control": "no-store"}


def routes(service: Service, queue: Queue) -> APIRouter:
    """The addresses, without their prefix."""
    router = APIRouter()

    @router.get("/queue")
    async def all_of_them() -> Response:
        """Every pair, lowest expected IoU first, and what was decided of it."""
        said = await service.in_thread(service.label_folder().verdicts)
        pairs = [
            {"number": number, "id": one.id, "sentence": one.sentence, "score": round(one.score, 4),
             "decided": said.get(one.id)}
            for number, one in enumerate(queue.labels)
        ]  # fmt: skip
        return answer({"pairs": pairs}, headers=PRIVATE)

    @router.get("/item/{number}")
    async def item(number: str) -> Response:
        """One pair with its mask, the one somebody decided on where there is one."""
        label = queue.get(number)
        async with service.budget.hold(label.size[0] * label.size[1]):
            told = await service.in_thread(_item, service, int(number), label)
        return answer(told, headers=PRIVATE)

    @router.get("/picture/{number}")
    async def picture(number: str) -> Response:
        """The picture of a pair; a huge one smaller."""
        label = queue.get(number)
        async with service.budget.hold(label.size[0] * label.size[1]):
            content, media = await service.in_thread(lambda: to_show(picture_of(label, service.limits.pixels)))
        return Response(content, media_type=media,
                        headers=PRIVATE | {"content-security-policy": "default-src 'none'; sandbox"})  # fmt: skip

    @router.post("/item/{number}")
    async def decide(number: str, request: Request) -> Response:
        """Keep what somebody decides: the mask, as it is or repainted, is right, or not; or take that back."""
        label, folder = queue.get(number), service.label_folder()
        told = await read_decision(request)
        if told.id != label.id:
            raise Refusal(409, "review", "another pair has this number by now", "load the queue once more")
        if told.verdict == OPEN:  # needs no picture: what was decided of one that is gone can be taken back too
            if told.mask is not None:
                raise bad("a mask, though nothing is decided", "leave mask out; the pair gets back that of l2l label")
            with service.batcher.place():
                await service.in_thread(folder.add, sentence=label.sentence, verdict=OPEN, mask=None, picture=None,
                                        key=label.id)  # fmt: skip
            service.metrics.labels.add(OPEN)
            return answer({"id": label.id})
        with service.batcher.place():
            async with service.budget.hold(label.size[0] * label.size[1]):
                shown = await service.in_thread(picture_of, label, service.limits.pixels)
                await service.in_thread(shown.decode)  # a damaged picture would be of no use to anybody
                if told.mask is None:
                    mask = _mask(label, await service.in_thread(folder.last, label.id))
                else:
                    mask = await service.in_thread(mask_from_png, from_base64(told.mask, "mask"), label.size)
            key = await service.in_thread(
                folder.add, sentence=label.sentence, verdict=told.verdict, mask=mask, picture=shown, key=label.id,
                more={"score": label.score, "repainted": told.mask is not None},
            )  # fmt: skip
        service.metrics.labels.add(told.verdict)
        return answer({"id": key})

    return router


def _item(service: Service, number: int, label: Label) -> dict[str, Any]:
    said = service.label_folder().last(label.id)
    mask = _mask(label, said)
    return {
        "number": number, "id": label.id, "sentence": label.sentence, "score": round(label.score, 4),
        "decided": said["verdict"] if said else None, "size": list(label.size), "nothing": not mask.area(),
        "mask": base64.b64encode(to_png(mask.decode())).decode(), "picture": f"/review/picture/{number}",
    }  # fmt: skip


def _mask(label: Label, said: dict[str, Any] | None) -> Rle:
    """What the page shows: the mask that was last decided on, or that of `l2l label`."""
    if said is None or not said.get("mask"):
        return label.mask
    kept = Rle.from_coco(said["mask"])
    return kept if (kept.height, kept.width) == label.size else label.mask
