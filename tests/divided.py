"""One of several processes that train a tiny world together, for `test_processes.py`: started by torchrun.

    python divided.py CONFIG.json OUT STEPS           # OUT/RANK.pt: losses and gradients by step, and the last weights
    python divided.py CONFIG.json OUT STEPS run       # the run directory OUT, as far as that step
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from l2l.config import Config
from l2l.training.checkpoint import whole
from l2l.training.loop import Run, train, train_step
from l2l.training.prepare import prepare
from l2l.training.processes import Processes


def take_steps(config: Config, processes: Processes, steps: int) -> dict[str, object]:
    """A few steps from the start; what they did, by step."""
    run = Run.start(config, prepare(config), processes=processes)
    losses, gradients = [], []
    for _ in range(steps):
        losses.append(train_step(run)["loss"])
        gradients.append({name: whole(one.grad) for one, name in run.names.items() if one.grad is not None})
    state = {name: whole(one) for name, one in run.parts.teacher.state_dict().items()}
    return {"loss": losses, "gradients": gradients, "teacher": state}


def main() -> None:
    torch.set_num_threads(1)
    config, out = Config.load(Path(sys.argv[1])), Path(sys.argv[2])
    if sys.argv[4:] == ["run"]:
        train(config, out, resume=True, stop_after=int(sys.argv[3]))
        return
    processes = Processes.here(config.train.device)
    torch.save(take_steps(config, processes, int(sys.argv[3])), out / f"{processes.rank}.pt")


if __name__ == "__main__":
    main()
