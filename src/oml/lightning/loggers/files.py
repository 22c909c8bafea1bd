"""Loggers of Lightning that write to files, and what runs that resume need of them."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO, cast

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning import loggers
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.utilities import rank_zero_only


class _Writer(ExperimentWriter):
    """Lightning's deletes the file of a version that it finds; this one goes on with it."""

    def _check_log_dir_exists(self) -> None:
        self._earlier: list[dict[str, str]] | None = None
        if self._fs.isfile(self.metrics_file_path):
            rows, self.metrics_keys = self._read()
            self._earlier = [row for row in rows if None not in row.values()]  # a kill may have left half a row

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        if self._earlier is not None and step is not None:  # steps that the run did before, and does again
            self._rewrite([row for row in self._earlier if int(row["step"]) < step], self.metrics_keys)
        self._earlier = None
        super().log_metrics(metrics_dict, step)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self._rewrite(self._read()[0], fieldnames)

    def _read(self) -> tuple[list[dict[str, str]], list[str]]:
        with self._fs.open(self.metrics_file_path, "r", newline="") as file:
            reader = csv.DictReader(cast(TextIO, file))
            return list(reader), list(reader.fieldnames or ())

    def _rewrite(self, rows: list[dict[str, str]], fieldnames: list[str]) -> None:
        """At once, as Lightning does not: a kill in between would take the file along."""
        part = f"{self.metrics_file_path}.part"
        with self._fs.open(part, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(rows)
        self._fs.mv(part, self.metrics_file_path)


class CSVLogger(loggers.CSVLogger):
    """Logs to ``<save_dir>/<name>/<version>/metrics.csv``, hyper-parameters to ``hparams.yaml``, figures beside.

    It is Lightning's, but for this: a run that resumes with its ``version`` goes on with the file, in which the rows of
    the steps that it does again are replaced.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer."""
        if self._experiment is None:
            self._fs.makedirs(self.root_dir, exist_ok=True)
            self._experiment = _Writer(log_dir=self.log_dir)
        assert isinstance(self._experiment, ExperimentWriter)
        return self._experiment


class MLFlowLogger(loggers.MLFlowLogger):
    """Logs to a server of MLflow, or to a folder.

    It is Lightning's, but for this: names hold what MLflow allows (``fnmr_at_fmr``, ``extractor/args``); a run that
    resumes keeps the hyper-parameters that it has, which MLflow does not change; ``$MLFLOW_TRACKING_URI`` may be set
    late, as from a ``.env`` file; the folder works with MLflow 3, which wants to be told so; and a server that is gone
    is asked again 3 times and not 7, as a training waits meanwhile, unless ``$MLFLOW_HTTP_REQUEST_MAX_RETRIES`` says
    otherwise.
    """

    def __init__(
        self,
        experiment_name: str = "lightning_logs",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: dict[str, Any] | None = None,
        save_dir: str | Path = "mlruns",
        run_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"file:{Path(save_dir).absolute()}"
        if uri.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        super().__init__(experiment_name, run_name, uri, tags, None, run_id=run_id, **kwargs)

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Set those that the run does not have yet."""
        known = self.experiment.get_run(self.run_id).data.params
        params = {key.replace("|", "/"): value for key, value in params.items()}
        super().log_hyperparams({key: value for key, value in params.items() if key not in known})

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a point to each series."""
        super().log_metrics({key.replace("@", "_at_"): value for key, value in metrics.items()}, step)
