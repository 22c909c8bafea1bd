"""Every registry entry has a packaged config from which it is built, and every packaged config has an entry."""

from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from oml.const import CONFIGS_PATH
from oml.models.zoo import ZOO
from oml.registry import REGISTRIES
from oml.registry.registry import Registry, path_of
from oml.retrieval.calibration import Calibration

ENTRIES = [(kind, name) for kind, registry in REGISTRIES.items() for name in registry]

RESNET = {
    "name": "resnet",
    "args": {
        "arch": "resnet50_projector",
        "gem_p": 7.0,
        "remove_fc": True,
        "normalise_features": False,
        "weights": "resnet50_moco_v2",
    },
}
ARCFACE = {"smoothing_epsilon": 0, "m": 0.4, "s": 64, "in_features": 384, "num_classes": 3985}
VIT = {"normalise_features": False, "use_multi_scale": False, "weights": None}
BATCHES = {"num_workers": 0, "batch_size": 4, "verbose": False}
PK = {"n_labels": 2, "n_instances": 2}
#: of the described system: key -> class of what is built, and ``args`` of the packaged config
DESCRIBED: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "criterion": {
        "arcface": ("ArcFaceLoss", ARCFACE),
        "mlp_arcface": ("ArcFaceLossWithMLP", ARCFACE | {"mlp_features": [512, 256]}),
        "surrogate_precision": ("SurrogatePrecision", {"k": 5, "temperature1": 1, "temperature2": 0.01}),
        "triplet": ("TripletLoss", {"margin": None, "reduction": "mean"}),
        "triplet_plain": ("TripletLossPlain", {"margin": None, "reduction": "mean"}),
        "triplet_with_miner": (
            "TripletLossWithMiner",
            {"margin": None, "reduction": "mean", "miner": {"name": "all_triplets", "args": {}}},
        ),
    },
    "extractor": {
        "resnet": ("ResnetExtractor", RESNET["args"] | {"gem_p": 5.0, "weights": None}),
        "vit": ("ViTExtractor", VIT | {"arch": "vits8"}),
        "vit_clip": ("ViTCLIPExtractor", {"arch": "vitb32_224", "weights": None, "normalise_features": False}),
        "vit_unicom": ("ViTUnicomExtractor", {"arch": "vitb32_unicom", "weights": None, "normalise_features": True}),
        "extractor_with_mlp": (
            "ExtractorWithMLP",
            {"mlp_features": [384], "weights": None, "extractor": {"name": "vit", "args": VIT | {"arch": "vits16"}}},
        ),
    },
    "logger": {
        "neptune": ("NeptuneLogger", {"project": "oml-team/test"}),
        "tensorboard": ("TensorBoardLogger", {"save_dir": "."}),
        "wandb": ("WandbLogger", {"project": "test_project"}),
    },
    "miner": {
        "all_triplets": ("AllTripletsMiner", {}),
        "hard_cluster": ("HardClusterMiner", {}),
        "hard_triplets": ("HardTripletsMiner", {}),
        "n_hard_triplets": ("NHardTripletsMiner", {"n_positive": 2, "n_negative": 2}),
        "miner_with_bank": (
            "MinerWithBank",
            {
                "bank_size_in_batches": 3,
                "need_logs": True,
                "miner": {"name": "n_hard_triplets", "args": {"n_positive": 1, "n_negative": 1}},
            },
        ),
        "triplets_with_memory": ("TripletMinerWithMemory", {"bank_size_in_batches": 20, "tri_expand_k": 3}),
    },
    "optimizer": {
        name.lower(): (name, {"lr": 0.00001})
        for name in ["Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "LBFGS", "RMSprop", "Rprop", "SGD"]
    },
    "pairwise_model": {
        "linear_siamese": ("LinearTrivialDistanceSiamese", {"feat_dim": 10, "identity_init": True}),
        "trivial_distance_siamese": ("TrivialDistanceSiamese", {"extractor": RESNET}),
        "concat_siamese": (
            "ConcatSiamese",
            {"extractor": RESNET, "mlp_hidden_dims": [20, 20], "use_tta": True, "weights": None},
        ),
    },
    "postprocessor": {
        "pairwise_embeddings": (
            "PairwiseEmbeddingsPostprocessor",
            {
                "top_n": 5,
                "pairwise_model": {"name": "linear_siamese", "args": {"feat_dim": 16, "identity_init": True}},
                **BATCHES,
            },
        ),
        "pairwise_images": (
            "PairwiseImagesPostprocessor",
            {
                "top_n": 3,
                "pairwise_model": {"name": "trivial_distance_siamese", "args": {"extractor": RESNET}},
                "transforms": {"name": "norm_resize_torch", "args": {"im_size": 224}},
                **BATCHES,
            },
        ),
    },
    "sampler": {
        "balance": ("BalanceSampler", PK),
        "category_balance": (
            "CategoryBalanceSampler",
            PK | {"n_categories": 1, "resample_labels": False, "weight_categories": True},
        ),
        "distinct_category_balance": ("DistinctCategoryBalanceSampler", PK | {"n_categories": 1, "epoch_size": 10}),
    },
    "scheduler": {
        "cosine_annealing": ("CosineAnnealingLR", {"T_max": 10}),
        "cyclic": ("CyclicLR", {"base_lr": 0.1, "max_lr": 0.5}),
        "exponential": ("ExponentialLR", {"gamma": 0.5}),
        "lambda": ("LambdaLR", {}),
        "multi_step": ("MultiStepLR", {"milestones": [30, 80]}),
        "multiplicative": ("MultiplicativeLR", {}),
        "one_cycle": ("OneCycleLR", {"max_lr": 0.1, "total_steps": 100}),
        "reduce_on_plateau": ("ReduceLROnPlateau", {"factor": 0.75, "patience": 1}),
        "step": ("StepLR", {"step_size": 30}),
    },
    "transforms": {
        "augs_albu": ("Compose", {"im_size": 224}),
        "augs_hypvit_torch": ("Compose", {"im_size": 224}),
        "augs_torch": ("Compose", {"im_size": 224}),
        "norm_albu": ("Compose", {}),
        "norm_resize_albu": ("Compose", {"im_size": 224}),
        "norm_resize_albu_clip": ("Compose", {"im_size": 224}),
        "norm_resize_hypvit_torch": ("Compose", {"im_size": 256, "crop_size": 224}),
        "norm_resize_torch": ("Compose", {"im_size": 224}),
        "norm_torch": ("Compose", {}),
        "unicom_transforms": ("Compose", {"im_size": 224}),
    },
}


def offered(kind: str) -> dict[str, Any]:
    """What a pipeline has at hand at run time."""
    if kind == "sampler":
        return {"labels": np.repeat(np.arange(6), 3), "label2category": {label: label % 2 for label in range(6)}}
    if kind == "optimizer":
        return {"params": [torch.zeros(1)]}
    if kind == "scheduler":
        return {"optimizer": torch.optim.SGD([torch.zeros(1)], lr=0.1), "lr_lambda": lambda epoch: 0.5**epoch}
    return {}


@pytest.fixture
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loggers need no key then."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("WANDB_MODE", "offline"), ("NEPTUNE_MODE", "offline"), ("CLEARML_OFFLINE_MODE", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


@pytest.mark.usefixtures("_offline")
@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_packaged_config_builds(kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = OmegaConf.load(CONFIGS_PATH / kind / f"{name}.yaml")
    assert config.name == name
    if name == "calibrated_threshold":  # it names a file
        monkeypatch.chdir(tmp_path)
        Calibration.fit(torch.tensor([0.1, 0.2]), torch.tensor([True, False])).save("calibration.json")
    model = config.get("args", {}).get("pairwise_model", config) if kind in ("pairwise_model", "postprocessor") else {}
    if "extractor" in model.get("args", {}):
        assert model.args.extractor.args.weights in ZOO
        model.args.extractor.args.weights = None  # which would be downloaded
    # of networks, numbers do not matter here, and take long to draw
    with torch.device("meta" if kind in ("extractor", "pairwise_model", "postprocessor") else "cpu"):
        built = REGISTRIES[kind].build(config, **offered(kind))
    constructor = REGISTRIES[kind][name]
    if isinstance(constructor, type):
        assert type(built) is constructor
    if name in DESCRIBED[kind]:
        assert type(built).__name__ == DESCRIBED[kind][name][0]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in DESCRIBED for name in DESCRIBED[kind]])
def test_described_configs(kind: str, name: str) -> None:
    """They have the described arguments, and beyond them defaults at most."""
    file = CONFIGS_PATH / kind / f"{name}.yaml"
    args, described = OmegaConf.to_container(OmegaConf.load(file))["args"], DESCRIBED[kind][name][1]  # pyright: ignore
    assert {key: args[key] for key in described} == described
    parameters = signature(REGISTRIES[kind][name]).parameters
    assert all(args[key] == parameters[key].default for key in args.keys() - described.keys())


def test_no_config_without_an_entry() -> None:
    files = [path for path in CONFIGS_PATH.glob("*/*.yaml") if path.parent.name != "recipes"]
    assert {(path.parent.name, path.stem) for path in files} == set(ENTRIES)
    for path in files:  # 1e-5, for one, is a text to PyYAML and a number to OmegaConf
        assert yaml.safe_load(path.read_text()) == OmegaConf.to_container(OmegaConf.load(path))


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_import_paths_lead_to_the_entries(kind: str, name: str) -> None:
    registry = REGISTRIES[kind]
    path = path_of(registry[name])
    assert registry.find(path) is registry[name]
    if isinstance(registry[name], type):  # by its class alone
        bare = Registry(registry.kind, {}, base=registry.base)
        assert bare.find(path) is registry[name]
    other = REGISTRIES["sampler" if kind != "sampler" else "miner"]
    with pytest.raises(TypeError, match=f"cannot be the {other.kind}"):
        other.find(path)
