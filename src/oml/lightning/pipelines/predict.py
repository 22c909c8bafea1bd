"""Embeddings of a folder of images, by a config, into files."""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import Tensor

from oml.configs import ConfigError
from oml.const import IMAGE_EXTENSIONS, TCfg
from oml.datasets.list_dataset import ListDataset
from oml.inference.convolutions import lay_out
from oml.inference.embedding_files import write_embeddings
from oml.interfaces.models import IExtractor
from oml.lightning.pipelines.checks import checked
from oml.lightning.pipelines.parser import parse_engine_params_from_config, parse_precision_from_config
from oml.lightning.pipelines.schema import PREDICTION
from oml.lightning.pipelines.validate import config_of_run
from oml.lightning.quiet import quiet_lightning
from oml.registry.models import get_extractor_by_cfg
from oml.registry.transforms import get_transforms_by_cfg
from oml.transforms.images.utils import TTransforms, get_im_reader_for_transforms
from oml.utils.images.images import find_broken_images
from oml.utils.misc import dictconfig_to_dict

_SUFFIXES = {f".{extension.lower()}" for extension in IMAGE_EXTENSIONS}
_MOST_NAMED = 20
#: precisions in which the weights are, too
_DTYPES = {"64": torch.float64, "64-true": torch.float64, "16-true": torch.float16, "bf16-true": torch.bfloat16}


class PredictionReport(NamedTuple):
    """What a prediction wrote.

    ``n_items`` embeddings are in each of the ``files``; several processes write shards of them, but for JSON.
    ``unreadable`` images, each with the reason, have none.
    """

    files: list[Path]
    n_items: int
    unreadable: dict[str, str]


def extractor_prediction_pipeline(cfg: TCfg) -> PredictionReport:
    """Write the embeddings of all images in a folder, at any depth, into files.

    Everything comes from the config, which is checked before anything is loaded or written; its fields are those of
    ``oml.lightning.pipelines.schema.PREDICTION``. Files in ``save_dir``, which is made if need be, are named by
    ``output``: ``predictions.json``, one object ``{path: [numbers], ...}`` with paths that begin with ``data_dir``, by
    default; ``.parquet`` and ``.safetensors`` take less space and are read by
    :func:`oml.inference.embedding_files.read_embeddings`. They are written batch by batch, in the memory of one, and
    get their names once they are whole.

    On several devices, each process writes a shard of a Parquet or safetensors file, see
    :func:`oml.inference.embedding_files.shard_path`; a JSON file is one in any case.

    Raises:
        ConfigError: with all that is wrong with the config; or with the images that cannot be read: all are tried
            before anything is written. With ``skip_unreadable`` these are told of and left out.
        ValueError: no image can be read.

    Example:
        ::

            config = prediction_config_of("runs/my_run")
            report = extractor_prediction_pipeline({**config, "data_dir": "photos", "save_dir": "embeddings"})
    """
    config = dictconfig_to_dict(checked(cfg, PREDICTION))
    names = [config["output"]] if isinstance(config["output"], str) else config["output"]
    files = [Path(config["save_dir"]) / name for name in names]
    found = (path for path in Path(config["data_dir"]).rglob("*") if path.suffix.lower() in _SUFFIXES)
    paths = sorted(str(path) for path in found if path.is_file())
    transform = get_transforms_by_cfg(config["transforms_predict"])

    engine = parse_engine_params_from_config(config)
    engine.pop("use_distributed_sampler")
    engine["precision"] = parse_precision_from_config(config)
    with quiet_lightning():
        fabric = Fabric(**engine)
        fabric.launch()
    if not config["skip_unreadable"]:
        _check(paths, transform, fabric)
    extractor = _Precise(lay_out(get_extractor_by_cfg(config["extractor"])), fabric, str(config["precision"]))
    with _with_parts(files, fabric) as outputs, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "write_embeddings left out")  # all of them are told below
        written = write_embeddings(
            extractor,
            ListDataset(paths, transform=transform),
            outputs,
            batch_size=config["bs"],
            num_workers=config["num_workers"],
            on_unreadable="skip" if config["skip_unreadable"] else "raise",
        )
    report = PredictionReport(files, written.n_items, {paths[idx]: reason for idx, reason in written.unreadable})
    if fabric.is_global_zero:
        _tell(report)
    return report


def prediction_config_of(run: Path | str) -> DictConfig:
    """The config to predict with what a training made: the weights of its best checkpoint, its validation transforms.

    Args:
        run: the folder of the training, with ``config.yaml`` and ``checkpoints/best.ckpt``.

    Returns:
        Fields of ``oml.lightning.pipelines.schema.PREDICTION``, for one device of any kind; ``data_dir`` is left to
        set, and ``save_dir`` is the folder ``predictions`` of the run.

    Raises:
        FileNotFoundError: there is no such folder, or it lacks one of these files.
    """
    config = config_of_run(run)
    return OmegaConf.create(
        {
            "save_dir": str(Path(run).absolute() / "predictions"),
            "bs": config["bs_val"],
            "num_workers": config["num_workers"],
            "transforms_predict": config["transforms_val"],
            "extractor": config["extractor"],
            "precision": config.get("precision") or 32,
            "devices": 1,
        }
    )


class _Precise(IExtractor):
    """An extractor on a device and at a precision of Lightning's; embeddings are float32, or float64."""

    def __init__(self, extractor: IExtractor, fabric: Fabric, precision: str) -> None:
        super().__init__()
        self.dtype = _DTYPES.get(precision, torch.float32)
        self.extractor = extractor.to(fabric.device, self.dtype).eval()
        self.fabric = fabric

    @property
    def feat_dim(self) -> int:
        """Size of an embedding."""
        return self.extractor.feat_dim

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings."""
        with self.fabric.autocast():
            embeddings = self.extractor.extract(x.to(self.dtype))
        return embeddings if embeddings.dtype == torch.float64 else embeddings.float()


def _check(paths: list[str], transform: TTransforms, fabric: Fabric) -> None:
    """Try to read all images, a part in each process."""
    own = find_broken_images(paths[fabric.global_rank :: fabric.world_size], get_im_reader_for_transforms(transform))
    everyone: list[list[str]] = [own]
    if fabric.world_size > 1:
        everyone = [[] for _ in range(fabric.world_size)]
        dist.all_gather_object(everyone, own)
    if broken := sorted(path for part in everyone for path in part):
        findings = [f"data_dir: {path} cannot be read." for path in broken[:_MOST_NAMED]]
        if len(broken) > _MOST_NAMED:
            findings.append(f"data_dir: {len(broken) - _MOST_NAMED:,} more images cannot be read.")
        findings.append(
            f"data_dir: {len(broken):,} of {len(paths):,} images cannot be read; replace or remove them, or set "
            "skip_unreadable=true to leave them out."
        )
        raise ConfigError(findings)


@contextmanager
def _with_parts(files: list[Path], fabric: Fabric) -> Iterator[list[Path]]:
    """The files to write; for several processes that are to make JSON alone, with one to make it of meanwhile."""
    if fabric.world_size == 1 or any(file.suffix.lower() != ".json" for file in files):
        yield files
        return
    folder = files[0].parent / f".{files[0].name}.parts"
    if fabric.is_global_zero:
        shutil.rmtree(folder, ignore_errors=True)  # of a prediction that was killed
    fabric.barrier()
    try:
        yield [*files, folder / "embeddings.safetensors"]
    finally:
        if fabric.is_global_zero:
            shutil.rmtree(folder, ignore_errors=True)


def _tell(report: PredictionReport) -> None:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for reason in list(report.unreadable.values())[:_MOST_NAMED]:
        console.print(f"Left out: {reason}")
    if len(report.unreadable) > _MOST_NAMED:
        console.print(f"Left out: {len(report.unreadable) - _MOST_NAMED:,} more.")
    console.print(f"{report.n_items:,} embeddings in {', '.join(str(file) for file in report.files)}")
