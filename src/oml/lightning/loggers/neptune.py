"""Logging to Neptune, by its client package: Lightning has no logger for it any more."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from oml.lightning.loggers.access import environment

if TYPE_CHECKING:
    import neptune


class NeptuneLogger(Logger):
    """Logs to a run of Neptune. The run starts with the first thing that is logged.

    Offline (``mode="offline"``) all goes to ``<save_dir>/.neptune``, from where ``neptune sync`` takes it.

    Args:
        project: ``workspace/project``; by default ``$NEPTUNE_PROJECT``.
        api_key: by default ``$NEPTUNE_API_TOKEN``.
        name: of the run.
        with_id: of a run to go on with, such as ``"OML-12"``.
        mode: ``"async"``, ``"sync"``, ``"offline"`` or ``"debug"``, which logs nothing; by default ``$NEPTUNE_MODE``,
            else async.
        prefix: folder of metrics and hyper-parameters within the run.
        save_dir: where files wait until they are sent.
        log_model_checkpoints: upload the best checkpoint, as ``<prefix>/model/best``, when the training ends.
        kwargs: further ones of ``neptune.init_run``, such as ``tags`` or ``capture_hardware_metrics``.
    """

    def __init__(
        self,
        project: str | None = None,
        api_key: str | None = None,
        name: str | None = None,
        with_id: str | None = None,
        mode: str | None = None,
        prefix: str = "training",
        save_dir: str | Path = ".",
        log_model_checkpoints: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self._log_model_checkpoints = log_model_checkpoints
        self._best = ""
        self._save_dir = Path(save_dir)
        self._prefix = prefix
        self._with_id = with_id
        self._settings = {"project": project, "api_token": api_key, "name": name, "mode": mode, **kwargs}
        self._run: neptune.Run | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> "neptune.Run":
        """The run of the client: ``logger.experiment["my/key"] = 1``."""
        if self._run is None:
            import neptune

            settings = {key: value for key, value in self._settings.items() if value is not None}
            if self._with_id is not None:  # a run that exists has its name, and is where its id is
                settings = {key: value for key, value in settings.items() if key not in ("name", "custom_run_id")}
            with environment("NEPTUNE_DATA_DIRECTORY", self._save_dir / ".neptune"):
                self._run = neptune.init_run(with_id=self._with_id, **settings)
        return self._run

    @property
    def name(self) -> str | None:
        """The project."""
        return self._settings["project"]

    @property
    def version(self) -> str | None:
        """The id of the run; ``None`` before it starts, and offline, where it has none yet."""
        run = self._run
        if run is None or run._mode.value not in ("async", "sync"):
            return self._with_id
        return run["sys/id"].fetch()

    @property
    def save_dir(self) -> str:
        """Where files wait until they are sent."""
        return str(self._save_dir)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Add a point to each of the series ``<prefix>/<name>``."""
        for key, value in metrics.items():
            self.experiment[self._path(key)].append(value, step=step)

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Set ``<prefix>/hyperparams``; what is neither number nor text becomes a text."""
        from neptune.utils import stringify_unsupported

        self.experiment[self._path("hyperparams")] = stringify_unsupported(dict(params))

    def after_save_checkpoint(self, checkpoint_callback: Checkpoint) -> None:
        """Note which checkpoint is the best."""
        self._best = getattr(checkpoint_callback, "best_model_path", "") or self._best

    @rank_zero_only
    def save(self) -> None:
        """Nothing to do: the client writes to disk what is logged, and sends it meanwhile."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Set ``<prefix>/status``. The run stays open, as validation may follow; it stops with the process."""
        if self._run is not None:
            self._run[self._path("status")] = status
            if self._log_model_checkpoints and self._best:
                self._run[self._path("model/best")].upload(self._best)

    def close(self) -> None:
        """Stop the run, once all is sent."""
        if self._run is not None:
            self._run.stop()

    def _path(self, key: str) -> str:
        return f"{self._prefix}/{key}" if self._prefix else key
