"""Learning to Label: referring expression segmentation from few masks and the pointing of a frozen model.

`import l2l` does no work; what is asked for is imported when it is asked for.

Example:
    >>> import l2l
    >>> samples = l2l.read("scenes", scenes_count=10).split("val")
    >>> samples[0].sentences[0] in samples[0].sentences
    True
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from l2l.config import Config as Config
    from l2l.data.check import check as check
    from l2l.data.read import read as read
    from l2l.data.scene_set import write_scenes as write_scenes
    from l2l.data.splits import Split as Split
    from l2l.data.splits import draw as draw
    from l2l.demo import demo as demo
    from l2l.errors import InputError as InputError
    from l2l.evaluate import evaluate as evaluate
    from l2l.label import label as label
    from l2l.predict import Prediction as Prediction
    from l2l.predict import Predictor as Predictor
    from l2l.predict import predict as predict
    from l2l.priors.make import make_priors as make_priors
    from l2l.report import report as report
    from l2l.sample import Sample as Sample
    from l2l.sharing.folder import load as load
    from l2l.sharing.folder import push_to_hub as push_to_hub
    from l2l.sharing.folder import save_pretrained as save_pretrained
    from l2l.sharing.onnx import export_onnx as export_onnx
    from l2l.training.loop import load_run as load_run
    from l2l.training.loop import train as train

_HOME = {
    "Config": "config", "InputError": "errors", "Sample": "sample", "Split": "data.splits", "check": "data.check",
    "demo": "demo", "draw": "data.splits", "evaluate": "evaluate", "export_onnx": "sharing.onnx", "label": "label",
    "load": "sharing.folder", "load_run": "training.loop", "make_priors": "priors.make", "Prediction": "predict",
    "Predictor": "predict", "predict": "predict", "push_to_hub": "sharing.folder", "read": "data.read",
    "report": "report", "save_pretrained": "sharing.folder", "train": "training.loop",
    "write_scenes": "data.scene_set",
}  # fmt: skip

__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


class _Package(ModuleType):
    """`l2l.evaluate` is the function, also after something imported the module of that name.

    Python binds a submodule to its package under its own name, over whatever was there before.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if _HOME.get(name) == name and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
