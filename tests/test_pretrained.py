"""Which model is read, and how it is named; reading itself is tested with those who read (mllm, sam, backbones)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from l2l.config import ModelConfig
from l2l.errors import InputError
from l2l.model.pretrained import identities
from l2l.pretrained import LENGTH, PLACES, Pretrained, digest_of
from l2l.report import _models


def test_nothing_heavy_is_imported() -> None:
    told = "import sys, l2l, l2l.pretrained; print([one for one in ('torch', 'transformers') if one in sys.modules])"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_folder_is_known_by_its_files_wherever_it_lies(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "far" / "other"
    for folder in (one, other):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"model_type": "bert"}')
        (folder / "model.safetensors").write_bytes(bytes(LENGTH * (PLACES + 4)))
    assert digest_of(one) == digest_of(other) and digest_of(one, sampled=True) == digest_of(other, sampled=True)
    found = Pretrained(f"{other}/", asked_by="data.sam")
    assert found.fingerprint == digest_of(one) and found.identity == f"other@{digest_of(one)}"
    with (one / "model.safetensors").open("r+b") as file:  # between two pieces
        file.seek(LENGTH + 9)
        file.write(b"1")
    assert digest_of(one) != digest_of(other) and digest_of(one, sampled=True) == digest_of(other, sampled=True)


def test_what_a_run_says_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")

    def told(name: str, **how: Any) -> tuple[dict, dict]:
        return {"model_type": "swin", "_commit_hash": f"{how['revision']}0123456789abcdef"}, {}

    monkeypatch.setattr(transformers.PreTrainedConfig, "get_config_dict", told)
    said = identities(ModelConfig(backbone="some/swin"))
    assert said == {"backbone": "some/swin@main0123456789abcdef", "text": ""}
    assert _models(said | {"sam": "sam@0123"}) == "backbone some/swin@main01234567, SAM sam@0123"
    assert _models({"prior": "older runs do not say"}) == ""


def test_errors_name_the_setting(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    for asked_by, place in (("data.sam", f"data.sam={tmp_path}"), ("--source mllm", str(tmp_path))):
        with pytest.raises(InputError, match=f"^{place}: no model here"):
            _ = Pretrained(str(tmp_path), asked_by=asked_by).kind
    with pytest.raises(InputError, match="a folder"):
        Pretrained(str(tmp_path), revision="v2")
