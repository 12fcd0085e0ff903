"""The process: a run is loaded, a port opened, and at SIGTERM what has begun is finished."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from l2l.data.images import digest
from l2l.errors import InputError
from l2l.exchange.labels import read_labels, unfinished
from l2l.predict import Predictor
from l2l.serving.app import About, create_app
from l2l.serving.guard import LOCAL
from l2l.serving.labels import LabelFolder
from l2l.serving.limits import Limits
from l2l.serving.review import Queue
from l2l.training.checkpoint import load_tensors
from l2l.training.loop import CHECKPOINT
from l2l.training.prepare import choose_sam

HEAD_SECONDS = 10.0
M_ARENA_MAX = -8  # of glibc's malloc.h


def serve(
    run: Path, *, host: str = "127.0.0.1", port: int = 8321, device: str | None = None, labels: Path | None = None,
    review: Path | None = None, images: Path | None = None, limits: Limits | None = None, token: str = "",
    outlines: bool = False,
) -> None:
    """Serve a run until SIGTERM or Ctrl-C.

    Args:
        run: the run's folder.
        host: the address to listen at; loopback, unless others shall be served.
        port: 0 for any that is free.
        device: torch device; the run's own if not given.
        labels: the folder for what people correct.
        review: the folder that `l2l label` wrote, to be looked through at `/review`.
        images: where its pictures are, if not where they were.
        limits: what one client may ask for.
        token: what clients must know; that of `L2L_TOKEN` if not given.
        outlines: masks get their outlines from the pictures, see `predict.Predictor`.

    Raises:
        InputError: if there is no run, or labels cannot be written. OSError: if the port cannot be had.
    """
    _one_heap()
    limits = limits or Limits()
    token = token or os.environ.get("L2L_TOKEN", "")
    if review and (said := unfinished(review)):
        print(said, file=sys.stderr)
    queue = Queue(read_labels(review, images=images)) if review else None
    predictor, about = open_run(run, device, outlines=outlines)
    folder = LabelFolder(labels) if labels else None
    names = [name.strip() for name in os.environ.get("L2L_HOSTS", "").split(",") if name.strip()]
    app = create_app(predictor, about, limits=limits, labels=folder, review=queue, token=token,
                     hosts=(host, *names))  # fmt: skip
    config = uvicorn.Config(
        app, http=Protocol, ws="none", lifespan="on", log_level="warning", access_log=False, server_header=False,
        proxy_headers=False, timeout_graceful_shutdown=round(limits.seconds + 2 * limits.body_seconds) + 1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    with _listen(host, port) as listener:
        name, look = f"[{host}]" if ":" in host else host, "the queue at /review, " if queue else ""
        print(f"{about.name}: {about.method}, step {about.step}; http://{name}:{listener.getsockname()[1]}, a page "
              f"at /, {look}docs at /docs, Label Studio at /label-studio; Ctrl-C ends it", flush=True)  # fmt: skip
        if host not in LOCAL and not token:
            print("l2l: whoever reaches this address is served; set L2L_TOKEN to ask for a token", file=sys.stderr)
        # uvicorn raises SIGTERM once more when all is finished; only then does this one see it.
        signal.signal(signal.SIGTERM, lambda *_: setattr(server, "should_exit", True))
        server.run(sockets=[listener])


def _one_heap() -> None:
    """All threads share one heap. glibc gives each its own, which keeps what it once had: memory climbs until the heap
    of every thread that decodes has seen the largest pictures. Elsewhere nothing is changed."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def open_run(run: Path, device: str | None = None, *, outlines: bool = False) -> tuple[Predictor, About]:
    """A run ready to answer, on a device, and what may be told of it. Raises `InputError`."""
    predictor = Predictor(run, outlines=outlines)
    if device is not None:
        predictor.config = predictor.config.replace("train", device=device)
        predictor.network.to(device)
        predictor._sam = choose_sam(predictor.config)
    told = load_tensors(run / CHECKPOINT)[1].get("step")
    if not isinstance(told, int):
        raise InputError("a checkpoint that does not say its step", file=run / CHECKPOINT)
    step, weights = told, digest(str(run / CHECKPOINT))[:8]
    name = run.resolve().name
    about = About(name, predictor.config.hash(), predictor.config.train.method, step, f"{name}-{step}-{weights}")
    return predictor, about


class Protocol(H11Protocol):
    """Closes connections on which no whole head of a request arrives in time."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """The clock starts."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """The clock stops with the head, and starts once more with the next one."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """No more clock."""
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._close)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise InputError(f"cannot listen at {host} port {port}: {error.strerror}") from error
    return listener
