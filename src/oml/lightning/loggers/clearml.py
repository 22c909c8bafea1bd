"""Logging to ClearML, which Lightning has no logger for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from oml.lightning.loggers.access import environment

if TYPE_CHECKING:
    import clearml


class ClearMLLogger(Logger):
    """Logs to a task of ClearML. The task starts with the first thing that is logged.

    Offline all goes to ``<save_dir>/offline``, from where ``clearml-task`` or ``Task.import_offline_session`` takes it.

    Args:
        project: its name.
        name: of the task.
        task_id: of a task to go on with.
        offline: log to files alone; also by ``$CLEARML_OFFLINE_MODE``.
        tags: of the task.
        save_dir: where offline sessions go.
        kwargs: further ones of ``clearml.Task.init``. What that would catch by itself, such as output, arguments of
            the command line, checkpoints and what TensorBoard gets, is off by default. It sends by threads, not by a
            process of its own.
    """

    def __init__(
        self,
        project: str = "oml",
        name: str | None = None,
        task_id: str | None = None,
        offline: bool = False,
        tags: Sequence[str] | None = None,
        save_dir: str | Path = ".",
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self._project, self._name, self._task_id, self._offline = project, name, task_id, offline
        self._save_dir = Path(save_dir)
        self._settings = {
            "tags": tags,
            "auto_connect_arg_parser": False,
            "auto_connect_frameworks": False,
            "auto_connect_streams": False,
            "auto_resource_monitoring": False,
            **kwargs,
        }
        self._task: clearml.Task | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> "clearml.Task":
        """The task of the client."""
        if self._task is None:
            from clearml import Task

            with environment("CLEARML_CACHE_DIR", self._save_dir):
                if self._offline:
                    Task.set_offline(True)
                # or it forks this process, whose locks other threads may hold, and waits for the fork without end
                Task._report_subprocess_enabled = False  # pyright: ignore[reportAttributeAccessIssue]
                self._task = Task.init(
                    self._project,
                    self._name,
                    reuse_last_task_id=False,
                    continue_last_task=self._task_id or False,
                    **self._settings,
                )
                self._task.get_offline_mode_folder()  # which it remembers
        return self._task

    @property
    def name(self) -> str:
        """The project."""
        return self._project

    @property
    def version(self) -> str | None:
        """The id of the task; ``None`` before it starts, and offline, where it has none to go on with."""
        if self._task is None:
            return self._task_id
        return None if self._task.is_offline() else self._task.id

    @property
    def save_dir(self) -> str:
        """Where offline sessions go."""
        return str(self._save_dir)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Add a point to each series: ``OVERALL/cmc/1`` is the series ``1`` of the plot ``OVERALL/cmc``."""
        reporter = self.experiment.get_logger()
        for key, value in metrics.items():
            title, _, series = key.rpartition("/")
            reporter.report_scalar(title or series, series, value, step or 0)

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Set the section ``config`` of the task's parameters."""
        self.experiment.connect(dict(params), name="config")

    @rank_zero_only
    def save(self) -> None:
        """Nothing to do: the client sends what is logged meanwhile."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Nothing but a note of a failure. The task stays open, as validation may follow; it ends with the process."""
        if self._task is not None and status == "failed":
            self._task.mark_failed(status_reason="The training was broken off.")

    def close(self) -> None:
        """End the task, once all is sent."""
        if self._task is not None:
            self._task.close()
