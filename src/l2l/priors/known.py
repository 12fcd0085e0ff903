"""What is known of the data that frozen models were trained on: what a prior has seen it points at well."""

from __future__ import annotations

SEEN = (
    ("grounding-dino-base", "trained on RefCOCO among others, by its maker's list"),
    ("grounding-dino-tiny", "trained on O365, GoldG and Cap4M, by its maker's list; RefCOCO is not on it"),
    ("florence-2", "trained on referring data; its fine-tuned models (-ft) on RefCOCO, by their maker's word"),
    ("qwen", "of a kind that has usually seen RefCOCO in training"),
    ("internvl", "of a kind that has usually seen RefCOCO in training"),
)
"""Part of a model's name, lower case, and what is known. From the models' own pages, as of 2026."""
OURS = ("simulated", "grounder")


def seen(prior: str, data: str) -> str:
    """A sentence on whether a prior's maker trained on a data set; empty where no model was asked.

    Args:
        prior: the prior's name, as `about.json` has it. data: the data set's name.

    Example:
        >>> seen("Qwen2.5-VL-7B-Instruct (mllm)", "refcoco")
        'The model that pointed, Qwen2.5-VL-7B-Instruct (mllm), is of a kind that has usually seen RefCOCO in training.'
    """
    if not prior or prior.startswith(OURS):
        return ""
    known = next((what for name, what in SEEN if name in prior.lower()), "")
    if "ref" in data.lower() and known:
        link = "was" if known.startswith("trained") else "is"
        return f"The model that pointed, {prior}, {link} {known}."
    return f"Whether the maker of what pointed, {prior}, trained on {data}, is not known here."
