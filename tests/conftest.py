"""What all tests share: a cache of their own, one thread, and the data sets beside the checkout where there are any."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# A loaded machine is no reason to fail.
settings.register_profile("l2l", deadline=None)
settings.load_profile("l2l")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell; children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing that tests make lands in the user's cache, nor comes from it."""
    folder, before = tmp_path_factory.mktemp("cache"), os.environ.get("L2L_CACHE")
    os.environ["L2L_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["L2L_CACHE"]
    else:
        os.environ["L2L_CACHE"] = before


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Sums come out the same whatever the machine, and tests do not fight over its cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; a test that asks for it is skipped where there is none."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no shared/data beside the checkout")
    return folder
