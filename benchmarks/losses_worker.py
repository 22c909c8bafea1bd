"""One training of the comparison of losses: what a job says, in a plain loop, and the figures on unseen labels."""

import time
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import OneCycleLR
from torchvision.transforms import v2

from loss_data import SIDE, Images, load
from oml.functional.statistics import bootstrap_interval
from oml.metrics.per_query import ranking_metrics
from oml.models import TimmExtractor
from oml.registry.losses import get_criterion_by_cfg
from oml.retrieval import RetrievalResults
from oml.samplers.balance import BalanceSampler

MEAN, STD = 127 / 255, 128 / 255  # of the weights
AUGS: dict[str, v2.Transform] = {
    "none": v2.Identity(),
    "weak_crop": v2.RandomResizedCrop(SIDE, scale=(0.8, 1), ratio=(0.9, 1.1), antialias=True),
    "affine+jitter": v2.Compose(
        [
            v2.RandomAffine((-10, 10), (0.08, 0.08), (0.85, 1.15), interpolation=v2.InterpolationMode.BILINEAR),
            v2.ColorJitter(0.3, 0.3, 0.3, 0.02),
        ]
    ),
}


class Job(NamedTuple):
    """A loss and all around it."""

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
    warm_up: float = 0.3  # share of the steps
    augs: str = "none"
    embedding_dim: int | None = None
    batch_norm: bool = False
    frozen_bn: bool = False
    side: int = SIDE
    n_unseen: int = 1000


def train(job: Job) -> dict[str, Any]:
    """The job's figures; CPU seconds are those of the training steps."""
    torch.manual_seed(job.seed)
    (train_images, labels), unseen = load(job.data)
    extractor = TimmExtractor(
        "efficientnet_lite0_imagenet",
        "efficientnet_lite0",
        normalise_features=True,
        embedding_dim=job.embedding_dim,
        batch_norm=job.batch_norm,
    ).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    sizes = {"in_features": extractor.feat_dim, "num_classes": int(labels.max()) + 1}
    criterion = get_criterion_by_cfg(_with_sizes(job.criterion, **sizes), **sizes)
    groups = [{"params": list(extractor.parameters()), "lr": job.lr}]
    if own := list(criterion.parameters()):
        groups.append({"params": own, "lr": job.lr * job.criterion_lr_factor})
    optimizer = torch.optim.AdamW(groups, weight_decay=job.weight_decay)
    rates = [group["lr"] for group in groups]
    scheduler = OneCycleLR(optimizer, rates, job.steps + 1, pct_start=job.warm_up, cycle_momentum=False)
    sampler = BalanceSampler(labels, job.n_labels, job.n_instances, seed=job.seed)
    losses, start = [], time.process_time()
    while len(losses) < job.steps:
        for batch, _ in zip(sampler, range(job.steps - len(losses))):  # noqa: B905 (the last epoch may be cut short)
            images = train_images[batch]
            if job.augs != "none":
                images = torch.stack([AUGS[job.augs](image) for image in images])
            extractor.train()
            if job.frozen_bn:
                for module in extractor.modules():
                    if isinstance(module, _BatchNorm):
                        module.eval()
            loss = criterion(extractor(_pixels(images, job.side)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.detach())
    seconds = time.process_time() - start
    return {
        **evaluate(extractor.eval(), unseen, job),
        "cpu_seconds": round(seconds, 1),
        "last_loss": round(float(torch.stack(losses[-10:]).mean()), 4),
    }


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


def _pixels(images: Tensor, side: int) -> Tensor:
    pixels = (images.float() / 255 - MEAN) / STD
    if side != SIDE:
        pixels = nn.functional.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True)
    return pixels.contiguous(memory_format=torch.channels_last)


def _with_sizes(criterion: dict[str, Any], in_features: int, num_classes: int) -> dict[str, Any]:
    """The config, with the sizes that losses of pytorch-metric-learning with proxies need in place of "?"."""
    criterion = deepcopy(criterion)
    if criterion["name"] == "pml":
        args = criterion["args"]["loss"]["args"]
        sizes = {"embedding_size": in_features, "descriptors_dim": in_features, "num_classes": num_classes}
        args |= {key: sizes[key] for key, value in args.items() if value == "?"}
    return criterion
