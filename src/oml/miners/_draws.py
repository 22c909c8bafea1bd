"""Random numbers that go on where a checkpoint was made."""

from typing import Any

import torch
from torch import Tensor, nn


class Draws(nn.Module):
    """A generator whose state is part of ``state_dict``; a checkpoint without it leaves it as it is.

    It is on the CPU, so that the same seed draws the same on every device.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def get_extra_state(self) -> Tensor:
        """The state of the generator."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what :meth:`get_extra_state` gave."""
        self.generator.set_state(state.cpu())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if any(key.startswith(prefix) for key in state_dict):
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
