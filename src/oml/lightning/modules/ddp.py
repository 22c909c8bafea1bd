"""Modules whose loaders bring every process its share."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from oml.ddp.patching import check_loaders_is_patched, patch_dataloader_to_ddp
from oml.ddp.utils import is_ddp

TTrainDataloaders = DataLoader | list | tuple | dict
TValDataloaders = DataLoader | list | tuple


class ModuleDDP(pl.LightningModule):
    """A module that has its loaders itself, patched by :func:`oml.ddp.patching.patch_dataloader_to_ddp`.

    Call ``trainer.fit(module)`` and ``trainer.validate(module)`` without loaders: those given there would take the
    place of these. The trainer may have ``use_distributed_sampler`` on or off: what is patched it leaves alone.

    Args:
        loaders_train: a loader, or a list, tuple or dict of them.
        loaders_val: a loader, or a list or tuple of them.
        args, kwargs: of the class that stands next to this one among the bases of a class.

    Raises:
        ValueError: there is neither.
        TypeError: they are something else.
    """

    def __init__(
        self,
        loaders_train: TTrainDataloaders | None = None,
        loaders_val: TValDataloaders | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if loaders_train is None and loaders_val is None:
            raise NoLoadersError("ModuleDDP needs loaders_train or loaders_val, or both, got neither.")
        for name, loaders, kinds in (
            ("loaders_train", loaders_train, (DataLoader, list, tuple, Mapping)),
            ("loaders_val", loaders_val, (DataLoader, list, tuple)),
        ):
            if loaders is not None and not (isinstance(loaders, kinds) and all(map(_is_loader, _each(loaders)))):
                raise TypeError(
                    f"ModuleDDP takes as {name} a DataLoader or several in a list or tuple"
                    f"{', or dict' if Mapping in kinds else ''}, got {loaders!r}."
                )
        self.loaders_train = loaders_train
        self.loaders_val = loaders_val

    def train_dataloader(self) -> Any:
        """The loaders for training, patched if there are several processes."""
        return super().train_dataloader() if self.loaders_train is None else _patched(self.loaders_train)

    def val_dataloader(self) -> Any:
        """The loaders for validation, patched if there are several processes; a training does without."""
        if self.loaders_val is not None:
            return _patched(self.loaders_val)
        try:
            return super().val_dataloader()
        except MisconfigurationException:  # there are none
            if self.trainer.state.fn == TrainerFn.FITTING:
                return []
            raise


class NoLoadersError(ValueError, AssertionError):
    """There is no loader. Also an ``AssertionError``, which old callers catch."""


def _patched(loaders: Any) -> Any:
    if not is_ddp():
        return loaders
    if isinstance(loaders, Mapping):
        return {key: _patched(loader) for key, loader in loaders.items()}
    if isinstance(loaders, list | tuple):
        return [_patched(loader) for loader in loaders]
    return loaders if check_loaders_is_patched(loaders) else patch_dataloader_to_ddp(loaders)


def _each(loaders: Any) -> list[Any]:
    if isinstance(loaders, Mapping):
        return list(loaders.values())
    return list(loaders) if isinstance(loaders, list | tuple) else [loaders]


def _is_loader(value: Any) -> bool:
    return isinstance(value, DataLoader)
