"""Counts and times in Prometheus' text format, https://prometheus.io/docs/instrumenting/exposition_formats/."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Counter:
    """How often, for each combination of labels. The values of labels come from fixed sets, never from clients."""

    def __init__(self, name: str, text: str, *labels: str):
        self.name, self.text, self.labels = name, text, labels
        self._values: dict[tuple[str, ...], int] = {}
        self._lock = threading.Lock()

    def add(self, *labels: str) -> None:
        """Once more."""
        with self._lock:
            self._values[labels] = self._values.get(labels, 0) + 1

    def lines(self) -> list[str]:
        """As Prometheus reads it."""
        with self._lock:
            found = sorted(self._values.items())
        shown = [f"{self.name}{_labels(self.labels, key)} {value}" for key, value in found]
        return [*_head(self.name, self.text, "counter"), *shown]


class Histogram:
    """How large, for each combination of labels."""

    def __init__(self, name: str, text: str, bounds: Sequence[float], *labels: str):
        self.name, self.text, self.bounds, self.labels = name, text, tuple(bounds), labels
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        self._lock = threading.Lock()

    def add(self, value: float, *labels: str) -> None:
        """One more."""
        with self._lock:
            counts = self._counts.setdefault(labels, [0] * (len(self.bounds) + 1))
            counts[sum(value > bound for bound in self.bounds)] += 1
            self._sums[labels] = self._sums.get(labels, 0.0) + value

    def lines(self) -> list[str]:
        """As Prometheus reads it: each bucket counts all that are not above its bound."""
        out = _head(self.name, self.text, "histogram")
        with self._lock:
            for labels, counts in sorted(self._counts.items()):
                total = 0
                for bound, count in zip((*map(str, self.bounds), "+Inf"), counts, strict=True):
                    total += count
                    out.append(f"{self.name}_bucket{_labels((*self.labels, 'le'), (*labels, bound))} {total}")
                out.append(f"{self.name}_sum{_labels(self.labels, labels)} {self._sums[labels]:.6f}")
                out.append(f"{self.name}_count{_labels(self.labels, labels)} {total}")
        return out


class Gauge:
    """What a function says at the moment."""

    def __init__(self, name: str, text: str, value: Callable[[], float]):
        self.name, self.text, self.value = name, text, value

    def lines(self) -> list[str]:
        """As Prometheus reads it."""
        return [*_head(self.name, self.text, "gauge"), f"{self.name} {self.value():g}"]


class Metrics:
    """All that the server counts."""

    def __init__(self) -> None:
        self.requests = Counter("l2l_requests_total", "Requests answered.", "endpoint", "status")
        self.errors = Counter("l2l_errors_total", "Requests refused or failed, by kind.", "kind")
        self.seconds = Histogram("l2l_request_seconds", "From the head of a request to the end of its answer.", SECONDS,
                                 "endpoint")  # fmt: skip
        self.batch_requests = Histogram("l2l_batch_requests", "Requests answered together.", SIZES)
        self.batch_sentences = Histogram("l2l_batch_sentences", "Sentences answered together.", SIZES)
        self.batch_pictures = Histogram("l2l_batch_pictures", "Pictures among them, each encoded once.", SIZES)
        self.labels = Counter("l2l_labels_total", "Labels that people gave.", "verdict")
        self.gauges: list[Gauge] = []

    def text(self) -> str:
        """The page `/metrics`."""
        shown: tuple[Counter | Histogram | Gauge, ...] = (
            self.requests, self.errors, self.seconds, self.batch_requests, self.batch_sentences, self.batch_pictures,
            self.labels, *self.gauges,
        )  # fmt: skip
        return "\n".join(line for one in shown for line in one.lines()) + "\n"


def _head(name: str, text: str, kind: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _labels(names: Sequence[str], values: Sequence[str]) -> str:
    pairs = ",".join(f'{name}="{value}"' for name, value in zip(names, values, strict=True))
    return f"{{{pairs}}}" if pairs else ""
