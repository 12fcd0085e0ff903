"""The model card: what it is, what it was trained on, how good it is, what it may not be used for without asking."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from l2l.config import Config

METRICS = ("mIoU", "oIoU", "P@0.5", "P@0.9")


def make_card(
    name: str, config: Config, about: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]], *, licence: str = ""
) -> str:
    """A card in Markdown with the hub's header.

    Args:
        about: the run's `about.json`. evaluations: see `sharing.folder.evaluations`.
    """
    header = {"library_name": "l2l", "pipeline_tag": "image-segmentation",
              "tags": ["referring-expression-segmentation", "semi-supervised", config.train.method]}  # fmt: skip
    if licence:
        header["license"] = licence
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in header.items())  # JSON is YAML
    data, model = config.data, config.model
    simulated = " It was *simulated*, that is, drawn from the true masks." if about.get("prior_simulated") else ""
    prior = "none"
    if about.get("prior"):
        prior = f"`{_plain(about['prior'])}`, on {about['pairs_with_prior']:,} of the pairs.{simulated}"
    parts = [_plain(one) for one in (model.backbone, model.text) if one]
    size = f"{data.height} x {data.width}"
    licences = f"The weights: `{_plain(licence)}`." if licence else "**No licence was chosen for these weights yet.**"
    given = f"`{_plain(about['data'])}`: {about['images']:,} pictures, {about['refs']:,} referents, "
    given += f"{about['pairs']:,} pairs"
    return f"""---
{front}
---

# {_plain(name)}

Follows sentences: a picture and "the left black shoe" in, its pixels and the IoU expected of them out. Trained with
l2l, method `{config.train.method}`, for {about.get("step", config.train.steps)} steps, on pictures of {size} pixels.

```python
import l2l

model = l2l.load("{_plain(name)}")          # this folder, or its name on the hub
model.set_image("street.jpg")
print(model.segment("left black shoe").score)
```

## What it was trained on

| | |
|---|---|
| data set | {given} |
| with masks | {about["labelled_images"]:,} pictures, {about["labelled_refs"]:,} referents |
| prior of a frozen model | {prior} |
| encoders | {", ".join(f"`{one}`" for one in parts) or "compact, trained from scratch"} |
| seed | {config.train.seed} |
| fingerprints | data {about["fingerprint"]}, split {about["split_hash"]}, configuration {about["hash"]} |

## How good it is

{_scores(evaluations)}

The score of an answer is the IoU that is expected of it; how far it can be trusted, `l2l report` shows for the data it
was measured on. On other data measure again before you believe it.

## Licences

{licences} The code: Apache-2.0. What holds for the training data, for the frozen model that pointed and for the
encoders named above holds beside that; whoever publishes these weights has to check it.

The whole configuration is in `config.json`.
"""


def _scores(evaluations: Sequence[Mapping[str, Any]]) -> str:
    if not evaluations:
        return "Not measured: `l2l evaluate` was not run before this folder was made."
    rows = ["| measured on | | " + " | ".join(METRICS) + " |", "|---|---" + "|---" * len(METRICS) + "|"]
    for one in evaluations:
        way = "with the prior" if one["prior"] else "without a prior"
        if one["method"] == "prior alone":
            way = one["method"]
        if one["outlines"]:
            way += ", outlines from the picture"
        values = (one["scores"].get(metric) for metric in METRICS)
        shown = " | ".join("" if value is None else f"{100 * value:.1f}" for value in values)
        rows.append(f"| `{_plain(one['data'])}`, {_plain(one['split'])} | {way} | {shown} |")
    return "\n".join(rows)


def _plain(text: object) -> str:
    """A name as one line that cannot break out of Markdown's code."""
    return " ".join(str(text).replace("`", "'").replace("|", "/").split())
