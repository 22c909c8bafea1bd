"""Pictures for the loggers of experiments."""

from functools import singledispatch
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pytorch_lightning.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.logger import DummyLogger, Logger

from oml.const import LOG_IMAGE_FOLDER
from oml.lightning.loggers.clearml import ClearMLLogger
from oml.lightning.loggers.neptune import NeptuneLogger


@singledispatch
def log_figure(logger: Logger, key: str, figure: Figure, step: int) -> None:
    """Log a picture. ``log_figure.register`` adds a logger of your own.

    Args:
        logger: where to.
        key: such as ``image_logs/top 5 worst by OVERALL_cmc_1``; Weights & Biases gets it without the folder, MLflow
            and CSV as a folder of PNG files, one a step.
        figure: of matplotlib.
        step: the epoch, say.

    Raises:
        TypeError: There is no way of logging pictures to such a logger.
    """
    raise TypeError(
        f"log_figure does not know how to log {key!r} of step {step} to {type(logger).__name__}: register a function "
        f"that does, by @log_figure.register, and it gets the {type(figure).__name__}."
    )


def takes_figures(logger: Logger) -> bool:
    """Whether :func:`log_figure` knows such loggers."""
    return log_figure.dispatch(type(logger)) is not log_figure.dispatch(object)


@log_figure.register
def _(logger: TensorBoardLogger, key: str, figure: Figure, step: int) -> None:
    logger.experiment.add_image(key, _pixels(figure), step, dataformats="HWC")


@log_figure.register
def _(logger: WandbLogger, key: str, figure: Figure, step: int) -> None:  # noqa: ARG001 (its steps are those of training)
    logger.log_image(key.removeprefix(f"{LOG_IMAGE_FOLDER}/"), [_pixels(figure)])


@log_figure.register
def _(logger: NeptuneLogger, key: str, figure: Figure, step: int) -> None:
    from neptune.types import File

    logger.experiment[key].append(File.as_image(figure), step=step)


@log_figure.register
def _(logger: MLFlowLogger, key: str, figure: Figure, step: int) -> None:
    assert logger.run_id is not None, "the experiment has started"
    logger.experiment.log_image(logger.run_id, _pixels(figure), f"{key}/{step}.png")


@log_figure.register
def _(logger: ClearMLLogger, key: str, figure: Figure, step: int) -> None:
    title, _, series = key.rpartition("/")
    logger.experiment.get_logger().report_image(title or series, series, step, image=_pixels(figure))


@log_figure.register
def _(logger: DummyLogger, key: str, figure: Figure, step: int) -> None:
    """Of a trainer with ``fast_dev_run``."""


@log_figure.register
def _(logger: CSVLogger, key: str, figure: Figure, step: int) -> None:
    file = Path(logger.log_dir) / key / f"{step}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
