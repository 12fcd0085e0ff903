"""The application: what each address answers. How requests are let in is `guard`, how they are read `asks`."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field

from l2l.predict import Prediction
from l2l.rle import Rle
from l2l.serving.asks import Ask, LabelRequest, PredictRequest, read_label, read_predict
from l2l.serving.batching import Answers, Batcher, Job
from l2l.serving.guard import Guard, handlers
from l2l.serving.labels import LabelFolder
from l2l.serving.limits import Limits, PixelBudget
from l2l.serving.metrics import Gauge, Metrics
from l2l.serving.pictures import Picture, to_png
from l2l.serving.refusal import Refusal, answer
from l2l.serving.review import Queue

T = TypeVar("T")
DECODERS = 4  # threads that decode pictures and write labels
PICTURES = 4  # so many of the largest pictures may be decoded at once


@dataclass(frozen=True, slots=True)
class About:
    """Which run answers; nothing of where it is."""

    name: str
    hash: str
    method: str
    step: int
    version: str
    """Name, hash and step in one word, for Label Studio."""


class Found(BaseModel):
    """What a run answers to one sentence."""

    sentence: str
    mask: dict[str, Any] | str = Field(description="COCO RLE, or a PNG in base64 where format is png.")
    score: float = Field(description="The IoU the model expects of this mask, in [0, 1].")
    box: list[int] | None = Field(description="x0 y0 x1 y1 around the mask, x1 and y1 just outside.")
    area: int = Field(description="Pixels of the mask.")
    nothing: bool = Field(description="Whether the model says that the sentence means nothing in this picture.")


class Predicted(BaseModel):
    """The answer of `/predict`."""

    run: str
    size: list[int] = Field(description="Height and width of the picture, upright by its EXIF tag.")
    answers: list[Found]


class Kept(BaseModel):
    """The answer of `/label`: it is on the disk."""

    id: str | int


class Wrong(BaseModel):
    """The answer of whatever could not be done."""

    error: str
    hint: str


class Service:
    """Everything the addresses share."""

    def __init__(
        self, predictor: Answers, about: About, *, limits: Limits, labels: LabelFolder | None, review: Queue | None
    ):
        self.about, self.limits, self.labels, self.review = about, limits, labels, review
        self.metrics = Metrics()
        self.batcher = Batcher(predictor, most=limits.waiting, metrics=self.metrics)
        self.budget = PixelBudget(PICTURES * limits.pixels)
        self.threads = CapacityLimiter(DECODERS)
        self.metrics.gauges += [
            Gauge("l2l_queue_length", "Requests whose turn has not come.", lambda: self.batcher.length),
            Gauge("l2l_in_flight", "Requests accepted and not answered yet.", lambda: self.batcher.held),
        ]

    async def in_thread(self, function: Any, *args: Any, **named: Any) -> Any:
        """Work that would stop the event loop."""
        return await to_thread.run_sync(partial(function, *args, **named), limiter=self.threads)

    async def in_time(self, work: Awaitable[T], began: float) -> T:
        """Raises `Refusal` (504) if the work is not done when the time of a request is over."""
        try:
            async with asyncio.timeout(max(0.0, self.limits.seconds - (time.perf_counter() - began))):
                return await work
        except TimeoutError:
            raise Refusal(504, "timeout", f"no answer within {self.limits.seconds:g} s",
                          "ask less at once, or later") from None  # fmt: skip

    async def segment(
        self, shown: Picture, sentences: tuple[str, ...], boxes: tuple[tuple[float, ...] | None, ...]
    ) -> list[Prediction]:
        """The network's answers. Raises `Refusal`. The caller has a place in the queue."""
        async with self.budget.hold(shown.pixels):
            pixels = await self.in_thread(shown.decode)
            return await self.batcher.ask(Job(shown.digest, pixels, sentences, boxes))

    def check_run(self, name: str | None) -> None:
        """Raises `Refusal` (404) if another run is meant."""
        if name is not None and name not in (self.about.name, self.about.hash):
            raise Refusal(404, "run", "that run is not here", "leave run out, or see /health for the run that is")

    def label_folder(self) -> LabelFolder:
        """Raises `Refusal` (403) if the server keeps no labels."""
        if self.labels is None:
            raise Refusal(403, "labels", "this server keeps no labels", "start it with --labels DIR")
        return self.labels


def create_app(
    predictor: Answers, about: About, *, limits: Limits | None = None, labels: LabelFolder | None = None,
    review: Queue | None = None, token: str = "", hosts: Iterable[str] = (),
) -> FastAPI:
    """The application around a predictor, which belongs to it from now on.

    Args:
        predictor: an `l2l.predict.Predictor`.
        about: which run it is.
        limits: what one client may ask for.
        labels: where labels go; without, `/label` answers 403.
        review: what there is to look through; without, `/review` is no address.
        token: what clients must know; see `Guard`. hosts: further names of this server; see `Guard`.
    """
    from l2l import __version__
    from l2l.serving import label_studio, pages, review_addresses

    service = Service(predictor, about, limits=limits or Limits(), labels=labels, review=review)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await to_thread.run_sync(service.batcher.close)
        if labels is not None:
            await to_thread.run_sync(labels.write_metadata)

    wrong: dict[int | str, dict[str, Any]] = {
        status: {"model": Wrong} for status in (400, 401, 403, 404, 408, 413, 415, 422, 500, 503, 504)
    }
    app = FastAPI(title="l2l", version=__version__, lifespan=lifespan, exception_handlers=handlers(), redoc_url=None,
                  swagger_ui_oauth2_redirect_url=None, redirect_slashes=False,
                  description="Masks for sentences about pictures, each with the IoU the model expects.")  # fmt: skip
    app.state.service = service

    @app.post("/predict", response_model=Predicted, responses=wrong, openapi_extra=_body(PredictRequest))
    async def predict(request: Request) -> Response:
        """The pixels that each sentence means."""
        began = time.perf_counter()
        ask = await read_predict(request, service.limits)
        service.check_run(ask.run)
        with service.batcher.place():
            return await service.in_time(_predict(service, ask), began)

    @app.post("/label", response_model=Kept, responses={**wrong, 507: {"model": Wrong}},
              openapi_extra=_body(LabelRequest))  # fmt: skip
    async def label(request: Request) -> Response:
        """Keep what somebody says of a mask."""
        folder = service.label_folder()
        told = await read_label(request, service.limits)
        service.check_run(told.run)
        with service.batcher.place():
            async with service.budget.hold(told.picture.pixels):
                await service.in_thread(told.picture.decode)  # a damaged picture would be of no use to anybody
            key = await service.in_thread(
                folder.add, sentence=told.sentence, verdict=told.verdict, mask=told.mask, picture=told.picture,
                key=told.id, more={"run": about.hash, "step": about.step},
            )  # fmt: skip
        service.metrics.labels.add(told.verdict)
        return answer({"id": key})

    @app.get("/health")
    async def health() -> Response:
        """Whether it works, and which run it is."""
        alive = service.batcher.alive
        told = {"status": "UP" if alive else "DOWN", "run": about.name, "hash": about.hash, "method": about.method,
                "step": about.step, "labels": labels is not None, "review": review is not None}  # fmt: skip
        return answer(told, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counts and times, as Prometheus reads them."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    app.include_router(label_studio.routes(service), prefix="/label-studio")
    app.include_router(pages.routes(review=review is not None))
    if review is not None:
        app.include_router(review_addresses.routes(service, review), prefix="/review")
    app.add_middleware(Guard, limits=service.limits, metrics=service.metrics, token=token, hosts=tuple(hosts))
    return app


async def _predict(service: Service, ask: Ask) -> Response:
    found = await service.segment(ask.picture, ask.sentences, ask.boxes)
    shown = await service.in_thread(
        lambda: [_shown(sentence, one, ask.png) for sentence, one in zip(ask.sentences, found, strict=True)]
    )
    return answer({"run": service.about.hash, "size": list(ask.picture.size), "answers": shown})


def _shown(sentence: str, found: Prediction, png: bool) -> dict[str, Any]:
    mask = base64.b64encode(to_png(found.mask)).decode() if png else Rle.encode(found.mask).to_coco()
    return {
        "sentence": sentence, "mask": mask, "score": round(found.score, 4), "box": found.box and list(found.box),
        "area": int(found.mask.sum()), "nothing": found.box is None,
    }  # fmt: skip


def _body(kind: type[BaseModel]) -> dict[str, Any]:
    """The request's body for /docs: it is read by hand, as JSON or as a form."""
    schema = kind.model_json_schema()
    fields = {name: dict(value) for name, value in schema["properties"].items()}
    fields["image"] = {"type": "string", "format": "binary"}
    if "sentences" in fields:
        fields["sentence"] = {"type": "array", "items": {"type": "string"}}
        del fields["sentences"]
        fields["boxes"] = {"type": "string", "description": "JSON: for each sentence x0 y0 x1 y1, or null."}
    if "mask" in fields:
        fields["mask"] = {"type": "string", "format": "binary", "description": "A PNG file, or COCO RLE as JSON."}
    form = {"type": "object", "properties": fields, "required": [name for name in schema["required"] if name in fields]}
    content = {"application/json": {"schema": schema}, "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}
