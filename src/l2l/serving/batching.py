"""One thread owns the network. What waits is taken together, and a picture is encoded once for all its sentences."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from l2l.predict import Prediction
from l2l.serving.metrics import Metrics
from l2l.serving.refusal import Refusal, failed

LOG = logging.getLogger("l2l.serving")
TOGETHER = 32
"""Requests that are taken from the queue at once; so many, as the first of them waits for the last one's picture."""


class Answers(Protocol):
    """What `l2l.predict.Predictor` is here."""

    def set_image(self, image: np.ndarray) -> None:
        """Choose the picture."""
        ...

    def segment_all(self, sentences: Sequence[str], boxes: Sequence[Any] | None = None) -> list[Prediction]:
        """Answer sentences about it."""
        ...

    def segment_many(
        self, pictures: Sequence[np.ndarray], sentences: Sequence[Sequence[str]], boxes: Sequence[Any]
    ) -> list[list[Prediction]]:
        """Answer sentences about many pictures, in passes of them together."""
        ...


@dataclass(eq=False, slots=True)
class Job:
    """Sentences about a decoded picture, until they are answered."""

    digest: str
    pixels: np.ndarray
    sentences: Sequence[str]
    boxes: Sequence[Sequence[float] | None]
    answer: Future[list[Prediction]] = field(default_factory=Future)


class Batcher:
    """The queue and its thread.

    Args:
        predictor: only this object's thread touches it from now on.
        most: requests that may wait or be answered at a time.
        metrics: where batches are counted.
    """

    def __init__(self, predictor: Answers, *, most: int, metrics: Metrics):
        self.predictor, self.most, self.metrics = predictor, most, metrics
        self.held = 0
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._shown = ""  # digest of the picture that the predictor has
        self._thread = threading.Thread(target=self._work, name="l2l-network", daemon=True)
        self._thread.start()

    @property
    def length(self) -> int:
        """Requests whose turn has not come."""
        return len(self._jobs)

    @property
    def alive(self) -> bool:
        """Whether anything will be answered."""
        return self._thread.is_alive() and not self._closed

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue, for all the time that a request needs it. Raises `Refusal` (503) if there is none."""
        if self.held >= self.most or self._closed:
            raise Refusal(503, "busy", "too many requests are waiting", "try again in a moment", {"retry-after": "1"})
        self.held += 1
        try:
            yield
        finally:
            self.held -= 1

    async def ask(self, job: Job) -> list[Prediction]:
        """Wait for the answer; who stops waiting is forgotten, and not answered in vain."""
        with self._changed:
            if self._closed:
                raise Refusal(503, "busy", "the server is stopping", "try again in a moment", {"retry-after": "5"})
            self._jobs.append(job)
            self._changed.notify()
        try:
            return await asyncio.wrap_future(job.answer)
        finally:
            with self._changed:
                if job in self._jobs:
                    self._jobs.remove(job)

    def close(self, seconds: float = 60.0) -> None:
        """Answer what waits, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if not self._jobs:
                    return
                jobs = [self._jobs.popleft() for _ in range(min(TOGETHER, len(self._jobs)))]
            jobs = [job for job in jobs if job.answer.set_running_or_notify_cancel()]
            if jobs:
                self._answer(jobs)
            del jobs  # or the pictures stay until the next batch

    def _answer(self, jobs: list[Job]) -> None:
        pictures: dict[str, list[Job]] = {}
        for job in jobs:
            pictures.setdefault(job.digest, []).append(job)
        self.metrics.batch_requests.add(len(jobs))
        self.metrics.batch_sentences.add(sum(len(job.sentences) for job in jobs))
        self.metrics.batch_pictures.add(len(pictures))
        try:
            self._segment(list(pictures.values()))
        except Exception:
            LOG.exception("the network failed at a batch")
            for job in jobs if len(jobs) > 1 else ():  # only who is to blame shall suffer
                try:
                    self._segment([[job]])
                except Exception:
                    LOG.exception("the network failed at a request")
            for job in jobs:
                if not job.answer.done():
                    job.answer.set_exception(failed())

    def _segment(self, pictures: Sequence[Sequence[Job]]) -> None:
        """All sentences of some jobs, which are sorted by their picture."""
        sentences = [[sentence for job in same for sentence in job.sentences] for same in pictures]
        boxes = [[box for job in same for box in job.boxes] for same in pictures]
        shown, self._shown = self._shown, ""
        if len(pictures) > 1:
            found = self.predictor.segment_many([same[0].pixels for same in pictures], sentences, boxes)
        else:  # it may be the one of last time
            if shown != pictures[0][0].digest:
                self.predictor.set_image(pictures[0][0].pixels)
            found = [self.predictor.segment_all(sentences[0], boxes[0])]
            self._shown = pictures[0][0].digest
        for same, answers in zip(pictures, found, strict=True):
            for job in same:
                mine, answers = answers[: len(job.sentences)], answers[len(job.sentences) :]
                job.answer.set_result(mine)
