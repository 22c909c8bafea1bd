"""Which loss to train with when labels have few images: every loss and miner of the registry, at our defaults, and the
losses of pytorch-metric-learning at theirs; same backbone, steps, batches and optimizer.

The backbone is EfficientNet-Lite0 with ImageNet weights. Training: 1,000 labels of Glyphs with 4 images each ("few"),
or all images of the training half ("many"); figures: cmc@1 and map@r on labels that were not trained on, 4 images each,
every image query and gallery. What is around the loss is compared in the same way (group "recipe"), also on another
data set, see loss_data.py.

One run after the other, one thread, a JSON line each in the file of results; what is there already is not done again,
so the benchmark goes on where it was stopped. losses_table.py makes the tables of docs/training_defaults.md of it.

    python benchmarks/bench_losses.py RESULTS.jsonl              # about an hour of one CPU
    python benchmarks/bench_losses.py /tmp/quick.jsonl --quick   # a minute, to see that it runs
"""

import argparse
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from common import circumstances
from losses_worker import Job, train

PACKAGES = ("torch", "timm", "pytorch-metric-learning")
SEEDS = (0, 1, 2)
N_IN_THE_FINAL = {"ours": 5, "pml": 3}  # of each side, by the first seed: those get all seeds
OURS, PML = "ours", "pml"
# around supcon, on Glyphs and on the other data set
RECIPES: list[dict[str, Any]] = [
    {"data": "few", "steps": 60, "side": 32, "lr": 3e-3, "n_unseen": 500},
    {"data": "objects", "steps": 60, "side": 64, "lr": 3e-3, "n_unseen": 500},
]
CHANGES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.05},
    {"temperature": 0.2},
    {"lr": 1e-3},
    {"lr": 6e-3},
    {"warm_up": 0.1},
    {"n_labels": 32, "n_instances": 2},
    {"batch_norm": True},
    {"embedding_dim": 256, "batch_norm": True},
    {"frozen_bn": True},
    {"augs": "affine+jitter"},
    {"steps": 250},
    {"steps": 250, "augs": "affine+jitter"},
    {"steps": 400, "augs": "weak_crop"},
]
LOSSES: dict[str, Any] = {"lr": 3e-3, "criterion_lr_factor": 10.0, "steps": 60, "side": 32, "n_unseen": 1000}


def _triplets(kind: str, margin: float | None = 0.2, **args: Any) -> dict[str, Any]:
    return {"name": "triplet_with_miner", "args": {"margin": margin, "miner": {"name": kind, "args": args}}}


def _ours() -> Iterator[tuple[str, dict[str, Any]]]:
    n_hard = {"name": "n_hard_triplets", "args": {}}
    yield "triplet, all_triplets", _triplets("all_triplets")
    yield "triplet, hard_triplets", _triplets("hard_triplets")
    yield "triplet, hard_triplets, soft margin", _triplets("hard_triplets", None)
    yield "triplet, n_hard_triplets", _triplets("n_hard_triplets", n_positive=2, n_negative=2)
    yield "triplet, hard_cluster", _triplets("hard_cluster")
    yield "triplet, multi_similarity", _triplets("multi_similarity")
    yield "triplet, miner_with_bank", _triplets("miner_with_bank", bank_size_in_batches=3, miner=n_hard)
    yield "triplet, triplets_with_memory", _triplets("triplets_with_memory", bank_size_in_batches=20, tri_expand_k=3)
    yield "supcon", {"name": "supcon", "args": {}}
    yield "supcon, bank", {"name": "supcon", "args": {"bank_size": 512}}
    yield "info_nce", {"name": "info_nce", "args": {}}
    yield "multi_similarity", {"name": "multi_similarity", "args": {}}
    yield "recall_surrogate", {"name": "recall_surrogate", "args": {}}
    yield "surrogate_precision", {"name": "surrogate_precision", "args": {"k": 3}}
    yield "arcface", {"name": "arcface", "args": {}}
    yield "mlp_arcface", {"name": "mlp_arcface", "args": {"mlp_features": [512, 256]}}
    yield "cosface", {"name": "cosface", "args": {}}
    yield "sub_center_arcface", {"name": "sub_center_arcface", "args": {}}
    yield "proxy_anchor", {"name": "proxy_anchor", "args": {}}
    matryoshka = {"dims": [64, 256, 1280], "criterion": {"name": "supcon", "args": {}}}
    yield "matryoshka, supcon", {"name": "matryoshka", "args": matryoshka}


# sizes that have no default; "?" is filled in
_PROXIES = {"num_classes": "?", "embedding_size": "?"}
_PML = {
    "AngularLoss": {},
    "ArcFaceLoss": _PROXIES,
    "CircleLoss": {},
    "ContrastiveLoss": {},
    "CosFaceLoss": _PROXIES,
    "FastAPLoss": {},
    "GeneralizedLiftedStructureLoss": {},
    "HistogramLoss": {},
    "InstanceLoss": {},
    "IntraPairVarianceLoss": {},
    "LargeMarginSoftmaxLoss": _PROXIES,
    "LiftedStructureLoss": {},
    "ManifoldLoss": {"l": 1280},
    "MarginLoss": {},
    "MultiSimilarityLoss": {},
    "NCALoss": {},
    "NPairsLoss": {},
    "NTXentLoss": {},
    "NormalizedSoftmaxLoss": _PROXIES,
    "P2SGradLoss": {"num_classes": "?", "descriptors_dim": "?"},
    "PNPLoss": {},
    "ProxyAnchorLoss": _PROXIES,
    "ProxyNCALoss": _PROXIES,
    "SignalToNoiseRatioContrastiveLoss": {},
    "SmoothAPLoss": {},
    "SoftTripleLoss": _PROXIES,
    "SphereFaceLoss": _PROXIES,
    "SubCenterArcFaceLoss": _PROXIES,
    "SupConLoss": {},
    "ThresholdConsistentMarginLoss": {},
    "TripletMarginLoss": {},
    "TupletMarginLoss": {},
}


def _entries() -> dict[str, tuple[str, dict[str, Any]]]:
    """Side and config by name."""
    entries = {name: (OURS, config) for name, config in _ours()}
    for name, args in _PML.items():
        entries[f"pml: {name}"] = PML, {"name": "pml", "args": {"loss": {"name": name, "args": args}}}
    return entries


ENTRIES = _entries()
# a stop leaves out the end of this order
_FIRST = ["supcon", "triplet, hard_triplets", "multi_similarity", "proxy_anchor", "pml: SupConLoss"]
_LAST = [
    "pml: AngularLoss",
    "pml: HistogramLoss",
    "pml: InstanceLoss",
    "pml: LargeMarginSoftmaxLoss",
    "pml: ManifoldLoss",
    "pml: NPairsLoss",
    "pml: P2SGradLoss",
    "pml: PNPLoss",
    "pml: SphereFaceLoss",
    "pml: IntraPairVarianceLoss",
    "pml: SignalToNoiseRatioContrastiveLoss",
    "pml: LiftedStructureLoss",
    "pml: ThresholdConsistentMarginLoss",
]
# Ours start with smaller numbers, so that they turn faster at the same rate: each side has the better of two.
OTHER_RATE = {OURS: 1.0, PML: 100.0}
_WITH_PROXIES = {
    *("arcface", "mlp_arcface", "cosface", "sub_center_arcface", "proxy_anchor"),
    *(f"pml: {name}" for name, args in _PML.items() if "num_classes" in args),
}
_ORDER = sorted(ENTRIES, key=lambda name: (name not in _FIRST, name in _LAST))


def _jobs(done: dict[str, Any], quick: bool) -> Iterator[tuple[str, Job]]:
    """What is still to do and its group, in an order of which each part says something when it is stopped."""
    names = _ORDER[:: len(_ORDER) // 3] if quick else _ORDER
    settings: dict[str, Any] = LOSSES | ({"steps": 2, "n_unseen": 20} if quick else {})
    early = [name for name in names if name not in _LAST]
    for name in early:
        yield "losses", Job(name, ENTRIES[name][1], **settings)
    for name in () if quick else [name for name in early if name in _WITH_PROXIES]:
        other: dict[str, Any] = settings | {"criterion_lr_factor": OTHER_RATE[ENTRIES[name][0]]}
        yield "losses", Job(name, ENTRIES[name][1], **other)
    for best in _best(done):
        for seed in SEEDS[1:]:
            yield "losses", best._replace(seed=seed)
    for name in () if quick else _FIRST[:4]:
        yield "many", Job(name, ENTRIES[name][1], data="many", **settings)
    for name in names[len(early) :]:
        yield "losses", Job(name, ENTRIES[name][1], **settings)
    for name in () if quick else [*_FIRST[:3], "supcon, bank", "info_nce"]:
        yield "objects", Job(name, ENTRIES[name][1], **RECIPES[1])
    for base in () if quick else RECIPES:
        for change in CHANGES:
            config = {"name": "supcon", "args": {"temperature": change.get("temperature", 0.1)}}
            changed = {key: value for key, value in change.items() if key != "temperature"}
            yield "recipe", Job("supcon", config, **{**base, **changed})


def _best(done: dict[str, Any]) -> list[Job]:
    """The best of each side by the first seed, which get all seeds."""
    first: dict[str, Any] = {}
    for run in done.values():
        if run["group"] == "losses" and run["job"]["seed"] == 0 and "map@r" in run:
            name = run["job"]["name"]
            first[name] = max(first.get(name, run), run, key=_map_r)
    by_side = {side: [run for name, run in first.items() if ENTRIES[name][0] == side] for side in N_IN_THE_FINAL}
    return [Job(**run["job"]) for side, n in N_IN_THE_FINAL.items() for run in sorted(by_side[side], key=_map_r)[-n:]]


def _map_r(run: dict[str, Any]) -> float:
    return run["map@r"]["mean"]


def _read(path: Path) -> dict[str, Any]:
    runs = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {_key(run["group"], run["job"]): run for run in runs}


def _key(group: str, job: dict[str, Any]) -> str:
    return json.dumps([group, job])


def run(path: Path, quick: bool) -> None:
    """Do what is not in the file yet; each run that ends is added to it at once."""
    torch.set_num_threads(1)
    about = circumstances(1, *PACKAGES)
    while True:
        done = _read(path)
        missing = ((group, job) for group, job in _jobs(done, quick) if _key(group, job._asdict()) not in done)
        if (following := next(missing, None)) is None:
            return
        group, job = following
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                figures = train(job)
        except Exception as error:  # of some loss: the others go on
            figures = {"error": f"{type(error).__name__}: {error}"[:200]}
        line = {"benchmark": "losses", "group": group, "job": job._asdict(), **figures, **about}
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    run(args.results, args.quick)


if __name__ == "__main__":
    main()
