"""Training a re-ranking model by a config."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_info  # pyright: ignore[reportPrivateImportUsage]
from torch import nn
from torch.utils.data import DataLoader

from oml.const import EMBEDDINGS_KEY, INPUT_TENSORS_KEY, X1_COLUMN, X2_COLUMN, Y1_COLUMN, Y2_COLUMN, TCfg
from oml.datasets.base import BaseDataset, DatasetQueryGallery, DatasetWithLabels, get_retrieval_datasets
from oml.inference.convolutions import lay_out
from oml.inference.flat import inference_on_dataframe
from oml.lightning.callbacks.metric import MetricValCallback, MetricValCallbackDDP
from oml.lightning.modules.pairwise_postprocessing import PairwiseModuleDDP
from oml.lightning.pipelines.checks import checked
from oml.lightning.pipelines.fitting import TrainingReport, fit, train_loader
from oml.lightning.pipelines.parser import parse_scheduler_from_config
from oml.lightning.pipelines.schema import POSTPROCESSOR_TRAINING
from oml.lightning.pipelines.validate import validation_parts
from oml.metrics.embeddings import EmbeddingMetrics
from oml.miners.pairs import PairsMiner
from oml.registry.models import get_extractor_by_cfg
from oml.registry.optimizers import get_optimizer_by_cfg
from oml.registry.postprocessors import get_postprocessor_by_cfg
from oml.registry.transforms import get_transforms_by_cfg
from oml.retrieval.postprocessors.pairwise import PairwiseEmbeddingsPostprocessor, PairwisePostprocessor
from oml.utils.images.decoding import EncodedImage
from oml.utils.io import calc_file_hash
from oml.utils.misc import dictconfig_to_dict, load_dotenv, set_global_seed
from oml.utils.randomness import draws_of

_BEFORE = "before_reranking"  # in the names of metrics


def postprocessor_training_pipeline(cfg: TCfg) -> TrainingReport:
    """Train the model of a postprocessor on top of an extractor, and validate it by what it does to rankings.

    Everything comes from the config, which is checked before anything is loaded or written; its fields are those of
    ``oml.lightning.pipelines.schema.POSTPROCESSOR_TRAINING``. The extractor, which does not learn, embeds all images
    of the table first, of several processes each a share; the embeddings are kept in ``embeddings_cache_dir``, see
    :func:`oml.inference.flat.inference_on_dataframe`. By them :class:`oml.miners.pairs.PairsMiner` picks pairs from
    batches, and the pairwise model learns by ``BCEWithLogitsLoss`` to tell which are negative. In validation the
    postprocessor re-ranks what the embeddings find: metrics are called ``OVERALL/cmc/1`` and the like, those of the
    extractor alone ``before_reranking/OVERALL/cmc/1``. If the table has boxes, items are what is inside.

    The postprocessor is ``pairwise_images``, whose model gets images, or ``pairwise_embeddings``, whose model gets the
    embeddings: then no image is read once these are there.

    The folder of the run gets the same files as that of an extractor, see
    :func:`oml.lightning.pipelines.train.extractor_training_pipeline`; in ``checkpoints/best.ckpt`` the weights of the
    pairwise model are under ``model.``. ``resume``, ``validation_tables`` and others work as there.

    Raises:
        ConfigError: with all that is wrong with the config.
        ValueError: if the parts do not fit each other.
    """
    load_dotenv()  # keys of loggers may be in it
    config: dict[str, Any] = dictconfig_to_dict(checked(cfg, POSTPROCESSOR_TRAINING))
    set_global_seed(config["seed"])
    postprocessor = get_postprocessor_by_cfg(config["postprocessor"])
    assert isinstance(postprocessor, PairwisePostprocessor), "the config was checked"
    of_embeddings = isinstance(postprocessor, PairwiseEmbeddingsPostprocessor)
    model = lay_out(postprocessor.model)
    train = _train_items(config, of_embeddings)
    loader = train_loader(config, train)
    loaders_val, callbacks_val = _validation_parts(config, postprocessor)
    extraction = _Extraction(config, train, [each.dataset for each in loaders_val])  # pyright: ignore[reportArgumentType]

    def module(n_steps: int, n_epochs: int | None) -> PairwiseModuleDDP:
        optimizer = get_optimizer_by_cfg(config["optimizer"], params=list(model.parameters()))
        return PairwiseModuleDDP(
            loader,
            loaders_val,
            pairwise_model=model,
            pairs_miner=PairsMiner(config["hard_pairs_mining"]),
            criterion=nn.BCEWithLogitsLoss(),
            optimizer=optimizer,
            input_tensors_key=EMBEDDINGS_KEY if of_embeddings else INPUT_TENSORS_KEY,
            freeze_n_epochs=config["freeze_n_epochs"],
            **parse_scheduler_from_config(config, optimizer, n_steps, n_epochs),
        )

    report = fit(config, loader, loaders_val, callbacks_val, module, [extraction])
    before = {
        name: value
        for each in callbacks_val
        if isinstance(each, _BeforeAndAfter)
        for name, value in each.before.items()
    }
    if report.monitor in before:
        is_worse = report.score < before[report.monitor]
        hint = " Re-ranking makes it worse: the model has learned too little, or something else." if is_worse else ""
        rank_zero_info(
            f"{report.monitor}: {before[report.monitor]:.4f} before re-ranking, {report.score:.4f} after.{hint}"
        )
    return report


def get_loaders_with_embeddings(cfg: TCfg) -> tuple[DataLoader, DataLoader]:
    """The loaders of a re-ranker's training, for the train and the validation part of the main table.

    Items have the embedding that the config's extractor makes, which it does here, unless they were kept before. Those
    of validation come without their image.

    Args:
        cfg: fields of ``oml.lightning.pipelines.schema.POSTPROCESSOR_TRAINING``, all of them.

    Raises:
        ConfigError: with all that is wrong with the config.
    """
    config: dict[str, Any] = dictconfig_to_dict(checked(cfg, POSTPROCESSOR_TRAINING))
    train = _train_items(config, of_embeddings=False)
    validation = _validation_parts({**config, "validation_tables": {}}, None)[0][0]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _Extraction(config, train, [validation.dataset]).run(device)  # pyright: ignore[reportArgumentType]
    return train_loader(config, train), validation


def get_hash_of_extraction_stage_cfg(cfg: TCfg) -> str:
    """MD5 of what embeddings depend on: the extractor and transforms of the config, the table and the precision.

    The order of keys does not matter. Of the table its content counts, and the folder it is in; not the images, nor
    the content of a file of weights: :func:`oml.inference.flat.inference_on_dataframe` looks at those when it reads
    embeddings that it kept.

    Args:
        cfg: ``extractor``, ``transforms_extraction``, ``dataframe_name``, ``dataset_root``, ``precision``.

    Raises:
        FileNotFoundError: there is no such table.
    """
    config = dictconfig_to_dict(cfg)  # pyright: ignore[reportArgumentType]
    table = Path(config["dataset_root"]).resolve() / config["dataframe_name"]
    stage = {
        "extractor": config["extractor"],
        "transforms": config["transforms_extraction"],
        "table": [str(table), calc_file_hash(table)],
        "precision": str(config.get("precision") or 32),
    }
    return hashlib.md5(json.dumps(stage, sort_keys=True, default=str).encode(), usedforsecurity=False).hexdigest()


class _WithoutImages(BaseDataset):
    """Items without their image. Boxes are those of the table; where it has none, that of the whole image."""

    def __getitem__(self, idx: int) -> dict[str, Any]:
        idx = range(len(self))[idx]
        return {
            **{key: column[idx] for key, column in self._columns.items()},
            **dict(zip(self.bboxes_keys, self._sides[idx] if self.bboxes_exist else (), strict=True)),
            **{key: values[idx] for key, values in self.extra_data.items()},
            self.index_key: idx,
        }

    @cached_property
    def _sides(self) -> list[tuple[int, ...]]:
        boxes = self.df[[X1_COLUMN, Y1_COLUMN, X2_COLUMN, Y2_COLUMN]]
        return [
            (0, 0, *EncodedImage(Path(path), type(self).__name__).size) if whole else tuple(int(side) for side in box)
            for path, whole, box in zip(
                self._columns[self.paths_key], boxes.isna().any(axis=1), boxes.itertuples(index=False), strict=True
            )
        ]


class _TrainItems(_WithoutImages, DatasetWithLabels):
    """Of training, for models of embeddings."""


class _ValidationItems(_WithoutImages, DatasetQueryGallery):
    """Of validation: a postprocessor reads the images that it needs."""


def _train_items(config: dict[str, Any], of_embeddings: bool) -> DatasetWithLabels:
    train, _ = get_retrieval_datasets(
        dataset_root=config["dataset_root"],
        dataframe_name=config["dataframe_name"],
        transforms_train=None if of_embeddings else get_transforms_by_cfg(config["transforms_train"]),
        transforms_val=None,
        cache_size=config["cache_size"],
        verbose=config["show_dataset_warnings"],
    )
    return _TrainItems(train.df) if of_embeddings else train


def _validation_parts(
    config: dict[str, Any], postprocessor: PairwisePostprocessor | None
) -> tuple[list[DataLoader], list[MetricValCallback]]:
    changes = {
        "transforms_val": config["transforms_extraction"],
        "bs_val": config["batch_size_inference"],
        "num_workers": 0,  # there is nothing to read
        "cache_size": 0,
        "show_dataset_warnings": False,
    }
    return validation_parts(config | changes, None, postprocessor, _ValidationItems, _BeforeAndAfter)


class _Extraction(pl.Callback):
    """Gives items their embeddings, once the processes of a training are there to share the work."""

    def __init__(
        self, config: dict[str, Any], train: DatasetWithLabels, validation: Sequence[DatasetQueryGallery]
    ) -> None:
        self.config = config
        self.train = train
        self.validation = validation

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Embed."""
        self.run(trainer.strategy.root_device)

    def run(self, device: torch.device) -> None:
        """Embed all items of all tables, or take what is kept of them."""
        config = self.config
        main = {key: config[key] for key in ("dataset_root", "dataframe_name")}
        tables = [main, *({**main, **own} for own in config["validation_tables"].values())]
        with draws_of(config["seed"]):  # training is to draw the same, whether embeddings were kept or not
            extractor = lay_out(get_extractor_by_cfg(config["extractor"])).to(device)
            transforms = get_transforms_by_cfg(config["transforms_extraction"])
            for i, (table, validation) in enumerate(zip(tables, self.validation, strict=True)):
                embedded = inference_on_dataframe(
                    **table,
                    extractor=extractor,
                    transforms=transforms,
                    output_cache_path=self._file({**config, **table}),
                    num_workers=config["num_workers"],
                    batch_size=config["batch_size_inference"],
                    use_fp16=str(config["precision"]).startswith("16"),
                )
                validation.extra_data[EMBEDDINGS_KEY] = embedded.validation
                if i == 0:
                    self.train.extra_data[EMBEDDINGS_KEY] = embedded.train

    def _file(self, config: dict[str, Any]) -> Path | None:
        folder = config["embeddings_cache_dir"]
        return folder and Path(folder) / f"embeddings_{get_hash_of_extraction_stage_cfg(config)}.safetensors"


class _BeforeAndAfter(MetricValCallbackDDP):
    """Logs also what the extractor alone comes to, and says what re-ranking changes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.before: dict[str, float] = {}

    def calc_and_log_metrics(self, pl_module: pl.LightningModule) -> None:
        """The same before re-ranking and after it."""
        super().calc_and_log_metrics(pl_module)
        assert isinstance(self.metric, EmbeddingMetrics), "validation_parts makes no others"
        prefix = f"{self.name}/" if self.name else ""
        if not self.before:  # embeddings do not learn
            self.before = {
                f"{prefix}{category}/{name}/{k}": change.a.mean().item()
                for category, by_name in self.metric.compare().items()
                for name, by_k in by_name.items()
                for k, change in by_k.items()
            }
        pl_module.log_dict(
            {f"{_BEFORE}/{name}": value for name, value in self.before.items()},
            add_dataloader_idx=False,
            batch_size=1,
            rank_zero_only=True,
            sync_dist=True,
        )
