"""One training of the comparison of losses: what a job says, in a plain loop, and the figures on unseen labels."""

import time
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms import v2

from loss_data import SIDE, Images, load
from oml.functional.statistics import bootstrap_interval
from oml.metrics.per_query import ranking_metrics
from oml.models import TimmExtractor
from oml.models.fine_tuning import layer_decay_groups
from oml.registry.losses import get_criterion_by_cfg
from oml.retrieval import RetrievalResults
from oml.samplers.balance import BalanceSampler

WEIGHTS = "efficientnet_lite0_imagenet"
COLOURS = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}


class Job(NamedTuple):
    """A loss and all around it; the defaults are the recipe that the table of losses is made with."""

    name: str
    criterion: dict[str, Any]
    data: str = "few"
    seed: int = 0
    steps: int = 100
    n_labels: int = 16
    n_instances: int = 4
    lr: float = 1e-3
    criterion_lr_factor: float = 1.0
    weight_decay: float = 1e-4
    warm_up: float = 0.3
    augs: str = "none"
    embedding_dim: int | None = None
    batch_norm: bool = False
    frozen_bn: bool = False
    ema_decay: float | None = None
    layer_decay: float | None = None
    drop_path: float = 0.0
    dropout: float = 0.0
    side: int = SIDE
    optimizer: str = "adamw"
    clip: float | None = None
    n_unseen: int = 1000
    bn_momentum: float | None = None


def _augs(name: str) -> v2.Transform:
    affine = v2.RandomAffine(
        degrees=10, translate=(0.08, 0.08), scale=(0.85, 1.15), interpolation=v2.InterpolationMode.BILINEAR
    )
    crop = v2.RandomResizedCrop(SIDE, scale=(0.6, 1), ratio=(0.85, 1.18), antialias=True)
    weak_crop = v2.RandomResizedCrop(SIDE, scale=(0.8, 1), ratio=(0.9, 1.1), antialias=True)
    small_crop = v2.RandomResizedCrop(SIDE, scale=(0.3, 1), antialias=True)
    jitter = v2.ColorJitter(0.3, 0.3, 0.3, 0.02)
    erase = v2.RandomErasing(p=0.5, scale=(0.02, 0.2), value=127)
    sets: dict[str, list[v2.Transform]] = {
        "none": [v2.Identity()],
        "flip": [v2.RandomHorizontalFlip()],
        "hypvit": [v2.RandomResizedCrop(SIDE, scale=(0.2, 1), antialias=True), v2.RandomHorizontalFlip()],
        "crop": [crop],
        "weak_crop": [weak_crop],
        "small_crop": [small_crop],
        "affine": [affine],
        "jitter": [jitter],
        "erase": [erase],
        "crop+jitter": [crop, jitter],
        "affine+jitter": [affine, jitter],
        "crop+flip": [crop, v2.RandomHorizontalFlip()],
        "crop+jitter+erase": [crop, jitter, erase],
        "affine+jitter+erase": [affine, jitter, erase],
        "affine+crop+jitter": [affine, crop, jitter],
    }
    return v2.Compose(sets[name])


def _pixels(images: Tensor, side: int = SIDE) -> Tensor:
    pixels = (images.float() / 255 - COLOURS["mean"][0]) / COLOURS["std"][0]
    if side != SIDE:
        pixels = nn.functional.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True)
    return pixels.contiguous(memory_format=torch.channels_last)


def _extractor(job: Job) -> TimmExtractor:
    extractor = TimmExtractor(
        WEIGHTS,
        "efficientnet_lite0",
        normalise_features=True,
        embedding_dim=job.embedding_dim,
        batch_norm=job.batch_norm,
        dropout=job.dropout,
    )
    if job.drop_path:
        blocks = [block for stage in extractor.model.blocks for block in stage]
        for i, block in enumerate(blocks):
            if getattr(block, "has_skip", False):
                from timm.layers import DropPath

                block.drop_path = DropPath(job.drop_path * i / len(blocks))
    if job.bn_momentum is not None:
        for module in extractor.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = job.bn_momentum
    return extractor.to(memory_format=torch.channels_last)


def _optimizer(job: Job, extractor: nn.Module, criterion: nn.Module) -> torch.optim.Optimizer:
    if job.layer_decay is None:
        groups: list[dict[str, Any]] = [{"params": list(extractor.parameters()), "lr": job.lr}]
    else:
        groups = layer_decay_groups(extractor, job.lr, layer_decay=job.layer_decay, weight_decay=job.weight_decay)
    if own := list(criterion.parameters()):
        groups.append({"params": own, "lr": job.lr * job.criterion_lr_factor})
    if job.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=job.lr, momentum=0.9, weight_decay=job.weight_decay)
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[job.optimizer]
    return kind(groups, lr=job.lr, weight_decay=job.weight_decay)


def train(job: Job) -> dict[str, Any]:
    """The job's figures; CPU seconds are those of the training steps."""
    torch.manual_seed(job.seed)
    split = load(job.data)
    train_images, labels = split.train
    extractor = _extractor(job)
    n_train = int(labels.max()) + 1
    criterion = get_criterion_by_cfg(
        _sized(job.criterion, extractor.feat_dim, n_train), **_offers(extractor.feat_dim, n_train)
    )
    optimizer = _optimizer(job, extractor, criterion)
    rates = [group["lr"] for group in optimizer.param_groups]
    scheduler = OneCycleLR(
        optimizer, max_lr=rates, total_steps=job.steps + 1, pct_start=job.warm_up, cycle_momentum=False
    )
    sampler = BalanceSampler(labels, job.n_labels, job.n_instances, seed=job.seed)
    averaged = None
    augs = _augs(job.augs)
    losses, done, start = [], 0, time.process_time()
    while done < job.steps:
        for batch in sampler:
            images = train_images[batch]
            if job.augs != "none":
                images = torch.stack([augs(image) for image in images])
            extractor.train()
            if job.frozen_bn:
                for module in extractor.model.modules():
                    if isinstance(module, _BatchNorm):
                        module.eval()
            loss = criterion(extractor(_pixels(images, job.side)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            if job.clip:
                nn.utils.clip_grad_norm_(extractor.parameters(), job.clip)
            optimizer.step()
            scheduler.step()
            losses.append(loss.detach())
            if job.ema_decay is not None:
                if averaged is None:
                    averaged = AveragedModel(extractor, multi_avg_fn=get_ema_multi_avg_fn(job.ema_decay))
                averaged.update_parameters(extractor)
            done += 1
            if done == job.steps:
                break
    seconds = time.process_time() - start
    if averaged is not None:
        for old, new in zip(averaged.module.buffers(), extractor.buffers(), strict=True):
            old.data = new.data
        extractor = averaged.module
    return {
        **evaluate(extractor.eval(), split.unseen, job),
        "cpu_seconds": round(seconds, 1),
        "last_loss": round(float(torch.stack(losses[-10:]).mean()), 4),
    }


def _offers(dim: int, n_labels: int) -> dict[str, int]:
    return {"in_features": dim, "num_classes": n_labels}


def _sized(criterion: dict[str, Any], dim: int, n_labels: int) -> dict[str, Any]:
    """The config of a loss of pytorch-metric-learning with the sizes that its losses with proxies need."""
    criterion = deepcopy(criterion)
    if criterion["name"] == "pml":
        args = criterion["args"]["loss"].setdefault("args", {})
        sizes = {"embedding_size": dim, "descriptors_dim": dim, "num_classes": n_labels}
        args |= {key: sizes[key] for key, value in args.items() if value == "?"}
    return criterion


@torch.no_grad()
def evaluate(extractor: nn.Module, unseen: Images, job: Job) -> dict[str, Any]:
    """cmc@1 and map@r, each image being query and gallery, with intervals over labels."""
    keep = unseen.labels < job.n_unseen
    images, labels = unseen.images[keep], unseen.labels[keep]
    embeddings = torch.cat([extractor(_pixels(part, job.side)) for part in images.split(256)])
    everyone = torch.ones(len(labels), dtype=torch.bool)
    results = RetrievalResults.from_embeddings(embeddings, labels, everyone, everyone, top_k=50)
    metrics = ranking_metrics(results, cmc_top_k=(1,), map_top_k=("r",))
    figures = {}
    for name, values in (("cmc@1", metrics["cmc"][1]), ("map@r", metrics["map"]["r"])):
        interval = bootstrap_interval(values, clusters=results.query_labels)
        figures[name] = {key: round(float(value), 4) for key, value in interval._asdict().items()}
    return figures
