"""Losses, miners, distances and reducers of pytorch-metric-learning work with ours, and ours with theirs."""

import subprocess
import sys
import warnings
from inspect import unwrap
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_metric_learning import distances, losses, miners, reducers
from torch import Tensor, nn
from torch.utils.data import DataLoader

from oml.const import CONFIGS_PATH
from oml.functional.triplets import Triplets
from oml.interfaces.miners import ITripletsMinerInBatch
from oml.interfaces.models import IExtractor
from oml.lightning.modules.extractor import ExtractorModule
from oml.losses.pml import PMLLoss
from oml.losses.triplet import TripletLossWithMiner
from oml.miners.cross_batch import TripletMinerWithMemory
from oml.miners.inbatch_all_tri import AllTripletsMiner
from oml.miners.inbatch_hard_tri import HardTripletsMiner
from oml.miners.pml import PMLMiner
from oml.registry import MINERS_REGISTRY
from oml.registry.losses import get_criterion_by_cfg
from oml.registry.pml import get_pml_criterion

# SphereFaceLoss and HistogramLoss use numpy and torch in ways that these warn of
pytestmark = pytest.mark.filterwarnings("ignore:::pytorch_metric_learning")

DIM = 8
LABELS = torch.arange(4).repeat(3)
TABLE = {"num_classes": 4, "embedding_size": DIM}

#: all that take embeddings and labels -> arguments
LOSSES: dict[str, dict[str, Any]] = {
    "AngularLoss": {},
    "ArcFaceLoss": TABLE,
    "CircleLoss": {},
    "ContrastiveLoss": {},
    "CosFaceLoss": TABLE,
    "CrossBatchMemory": {"loss": {"name": "ContrastiveLoss"}, "embedding_size": DIM, "memory_size": 40},
    "DynamicSoftMarginLoss": {},
    "FastAPLoss": {},
    "GeneralizedLiftedStructureLoss": {},
    "HistogramLoss": {},
    "InstanceLoss": {},
    "IntraPairVarianceLoss": {},
    "LargeMarginSoftmaxLoss": TABLE,
    "LiftedStructureLoss": {},
    "MarginLoss": {},
    "MultiSimilarityLoss": {},
    "MultipleLosses": {"losses": [{"name": "ContrastiveLoss"}, {"name": "CircleLoss"}], "weights": [1, 0.5]},
    "NCALoss": {},
    "NPairsLoss": {},
    "NTXentLoss": {},
    "NormalizedSoftmaxLoss": TABLE,
    "P2SGradLoss": {"num_classes": 4, "descriptors_dim": DIM},
    "PNPLoss": {},
    "ProxyAnchorLoss": TABLE,
    "ProxyNCALoss": TABLE,
    "RankedListLoss": {"margin": 1, "Tn": 0.4},
    "SignalToNoiseRatioContrastiveLoss": {},
    "SmoothAPLoss": {},
    "SoftTripleLoss": TABLE,
    "SphereFaceLoss": TABLE,
    "SubCenterArcFaceLoss": TABLE,
    "SupConLoss": {},
    "ThresholdConsistentMarginLoss": {},
    "TripletMarginLoss": {"margin": 0.5},
    "TupletMarginLoss": {},
}
WITHOUT_LABELS = {"ManifoldLoss", "SelfSupervisedLoss", "VICRegLoss"}
IN_BATCH = [name for name in MINERS_REGISTRY if isinstance(MINERS_REGISTRY[name], type)
            and issubclass(MINERS_REGISTRY[name], ITripletsMinerInBatch)]  # fmt: skip


def embeddings(seed: int = 0) -> Tensor:
    return torch.randn(len(LABELS), DIM, generator=torch.Generator().manual_seed(seed))


def config(name: str = "TripletMarginLoss", with_miner: dict | None = None, **args: Any) -> dict[str, Any]:
    own = {"loss": {"name": name, "args": args}}
    return {"name": "pml", "args": own if with_miner is None else own | {"miner": with_miner}}


def loss_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return get_pml_criterion({"name": name, "args": LOSSES[name]}).loss


class Net(IExtractor):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(5, DIM)

    @property
    def feat_dim(self) -> int:
        return DIM

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def fit(criterion: nn.Module, folder: Path, **kwargs: Any) -> ExtractorModule:
    """One step of training, of the weights of the criterion too."""
    x = torch.randn(len(LABELS), 5, generator=torch.Generator().manual_seed(1))
    batches = [{"input_tensors": item, "labels": label} for item, label in zip(x, LABELS.tolist(), strict=True)]
    extractor = Net()
    optimizer = torch.optim.SGD([*extractor.parameters(), *criterion.parameters()], lr=0.1)
    module = ExtractorModule(extractor, criterion, optimizer)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=folder, **kwargs,
        )  # fmt: skip
        trainer.fit(module, DataLoader(batches, batch_size=len(x)))
    return module


def test_the_list_has_them_all() -> None:
    public = {name for name, value in vars(losses).items() if isinstance(value, type) and issubclass(value, nn.Module)}
    assert {name for name in public if not name.startswith(("Base", "Generic"))} == LOSSES.keys() | WITHOUT_LABELS


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_alone_is_a_criterion(name: str, tmp_path: Path) -> None:
    criterion = loss_of(name)
    before = {key: value.clone() for key, value in criterion.named_parameters()}
    module = fit(criterion, tmp_path)
    assert not torch.equal(module.model.layer.weight, Net().layer.weight)  # pyright: ignore
    assert module.model.layer.weight.isfinite().all()  # pyright: ignore
    for key, parameter in criterion.named_parameters():
        assert not torch.equal(parameter, before[key])
    assert module.trainer.callback_metrics["loss"] > 0


@pytest.mark.parametrize("name", LOSSES)
def test_wrapped_losses_give_the_same(name: str) -> None:
    results = []
    for criterion in (loss_of(name), PMLLoss(loss_of(name))):
        x = embeddings().requires_grad_()
        torch.manual_seed(0)
        value = criterion(x, LABELS)
        value.backward()
        assert x.grad is not None
        assert (x.grad != 0).any()
        results.append((value, x.grad))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_widened(name: str) -> None:
    x = embeddings().bfloat16()
    expected = loss_of(name)(x.float(), LABELS)
    x.requires_grad_()
    torch.manual_seed(0)
    criterion = PMLLoss(loss_of(name))
    with torch.autocast("cpu", torch.bfloat16):
        value = criterion(x, LABELS)
    value.backward()
    torch.testing.assert_close(value, expected)
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    assert x.grad.isfinite().all()
    assert all(parameter.dtype == torch.float32 for parameter in criterion.parameters())  # also after the step


# miners


def test_what_a_miner_finds_reaches_the_loss() -> None:
    """The value is that of triplets chosen by a loop."""
    x = embeddings()
    unit = x / x.norm(dim=1, keepdim=True)
    criterion = PMLLoss(
        losses.TripletMarginLoss(margin=0.2, distance=distances.CosineSimilarity(), reducer=reducers.MeanReducer()),
        miners.TripletMarginMiner(margin=0.2, distance=distances.CosineSimilarity(), type_of_triplets="semihard"),
    )
    expected, n = [], range(len(x))
    for a, p, k in ((a, p, k) for a in n for p in n for k in n):
        if a != p and LABELS[a] == LABELS[p] != LABELS[k]:
            gap = unit[a] @ unit[p] - unit[a] @ unit[k]
            if 0 < gap <= 0.2:
                expected.append(0.2 - gap)
    assert 0 < len(expected) < 50  # of 324 triplets
    torch.testing.assert_close(criterion(x, LABELS.tolist()), torch.stack(expected).mean())
    assert {name: value.item() for name, value in criterion.last_logs.items()} == {"n_triplets": len(expected)}
    assert all(isinstance(value, Tensor) and value.shape == () for value in criterion.last_logs.values())


def test_pairs_are_counted() -> None:
    criterion = PMLLoss(losses.ContrastiveLoss(), miners.PairMarginMiner(pos_margin=0, neg_margin=10))
    criterion(embeddings(), LABELS)
    assert {name: value.item() for name, value in criterion.last_logs.items()} == {
        "n_positive_pairs": 12 * 2,
        "n_negative_pairs": 12 * 9,
    }


@pytest.mark.parametrize("ours", IN_BATCH)
@pytest.mark.parametrize("loss", ["TripletMarginLoss", "MarginLoss", "ContrastiveLoss", "MultiSimilarityLoss"])
def test_our_miners_with_their_losses(ours: str, loss: str) -> None:
    x = embeddings()
    miner: ITripletsMinerInBatch = MINERS_REGISTRY[ours]()
    triplets = miner.pick(x, LABELS).triplets
    assert len(triplets.anchor)
    expected = loss_of(loss)(x, LABELS, triplets)
    assert expected > 0
    torch.testing.assert_close(PMLLoss(loss_of(loss), MINERS_REGISTRY[ours]())(x, LABELS), expected, rtol=0, atol=0)


def test_our_hard_triplets_in_their_loss_are_our_loss() -> None:
    x = embeddings()
    theirs = losses.TripletMarginLoss(
        margin=0.5, distance=distances.LpDistance(normalize_embeddings=False), reducer=reducers.MeanReducer()
    )
    ours = TripletLossWithMiner(margin=0.5, miner=HardTripletsMiner())
    assert ours(x, LABELS) > 0
    torch.testing.assert_close(PMLLoss(theirs, HardTripletsMiner())(x, LABELS), ours(x, LABELS))


THEIRS = [
    miners.BatchHardMiner(),
    miners.BatchEasyHardMiner(),
    miners.MultiSimilarityMiner(epsilon=0.3),
    miners.TripletMarginMiner(margin=0.5),
    miners.AngularMiner(),
    miners.PairMarginMiner(pos_margin=0.9, neg_margin=1.4),
    miners.HDCMiner(),
    miners.DistanceWeightedMiner(),
    miners.UniformHistogramMiner(),
]


@pytest.mark.parametrize("theirs", THEIRS, ids=lambda miner: type(miner).__name__)
def test_their_miners_with_our_loss(theirs: nn.Module) -> None:
    x = embeddings().requires_grad_()
    torch.manual_seed(0)
    triplets = PMLMiner(theirs).pick(x, LABELS).triplets
    assert isinstance(triplets, Triplets)
    assert len(triplets.anchor)
    for a, p, n in zip(*(ids.tolist() for ids in triplets), strict=True):
        assert a != p
        assert LABELS[a] == LABELS[p] != LABELS[n]
    criterion = TripletLossWithMiner(margin=None, miner=PMLMiner(theirs), need_logs=True)
    criterion(x, LABELS.tolist()).backward()
    assert criterion.last_logs["n_triplets"] > 0
    assert x.grad is not None
    assert (x.grad != 0).any()
    PMLMiner(theirs).sample(embeddings().bfloat16(), LABELS)


def test_pairs_are_joined_by_their_anchors() -> None:
    x = embeddings()
    everything = PMLMiner(miners.PairMarginMiner(pos_margin=0, neg_margin=10)).pick(x, LABELS).triplets
    expected = AllTripletsMiner().pick(x, LABELS).triplets
    assert sorted(zip(*(ids.tolist() for ids in everything), strict=True)) == sorted(
        zip(*(ids.tolist() for ids in expected), strict=True)
    )


def test_a_batch_with_nothing_to_learn_from() -> None:
    x = embeddings().requires_grad_()
    lone = torch.arange(len(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = PMLLoss(losses.TripletMarginLoss(), HardTripletsMiner())(x, lone)
        ours = TripletLossWithMiner(margin=0.2, miner=PMLMiner(miners.BatchHardMiner()))(x, lone)
    (value + ours).backward()
    assert value == ours == 0
    assert x.grad is not None
    assert (x.grad == 0).all()


# errors


def test_things_of_another_kind() -> None:
    with pytest.raises(TypeError, match="PMLLoss needs a loss of pytorch-metric-learning, got dict"):
        unwrap(PMLLoss.__init__)(PMLLoss.__new__(PMLLoss), {"name": "TripletMarginLoss"})  # pyright: ignore
    with pytest.raises(TypeError, match="PMLLoss needs a loss of embeddings and labels, got SelfSupervisedLoss"):
        PMLLoss(losses.SelfSupervisedLoss(losses.TripletMarginLoss()))
    with pytest.raises(TypeError, match="PMLMiner needs a miner of pytorch-metric-learning, got Linear"):
        PMLMiner(nn.Linear(1, 1))
    with pytest.raises(TypeError, match="looks at nothing but the batch, got TripletMinerWithMemory"):
        PMLLoss(losses.ContrastiveLoss(), TripletMinerWithMemory(1, 2))
    with pytest.raises(TypeError, match="ContrastiveLoss has a reducer that gives more than a number"):
        PMLLoss(losses.ContrastiveLoss(reducer=reducers.DoNothingReducer()))(embeddings(), LABELS)
    with pytest.raises(ValueError, match="PMLLoss needs one integer label per embedding"):
        PMLLoss(losses.ContrastiveLoss())(embeddings(), LABELS.float())


# configs


def test_the_packaged_config_is_the_constructor_calls(tmp_path: Path) -> None:
    criterion = get_criterion_by_cfg(OmegaConf.load(CONFIGS_PATH / "criterion" / "pml.yaml"))  # pyright: ignore
    assert isinstance(criterion, PMLLoss)
    same = PMLLoss(
        losses.TripletMarginLoss(
            margin=0.2, distance=distances.CosineSimilarity(), reducer=reducers.ThresholdReducer(low=0)
        ),
        miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard", distance=distances.CosineSimilarity()),
    )
    assert repr(criterion) == repr(same)
    value = criterion(embeddings(), LABELS)
    assert value > 0
    torch.testing.assert_close(value, same(embeddings(), LABELS), rtol=0, atol=0)
    metrics = fit(criterion, tmp_path, log_every_n_steps=1).trainer.callback_metrics
    assert metrics["pml_loss"] > 0
    assert metrics["n_triplets"] > 0


def test_our_miner_in_a_config() -> None:
    criterion = get_criterion_by_cfg(config(margin=0.3, with_miner={"name": "hard_triplets"}))
    assert isinstance(criterion.miner, HardTripletsMiner)
    with pytest.raises(TypeError, match="looks at nothing but the batch, got TripletMinerWithMemory"):
        get_criterion_by_cfg(
            config(with_miner={"name": "triplets_with_memory", "args": {"bank_size_in_batches": 1, "tri_expand_k": 2}})
        )


def test_components_within_components() -> None:
    criterion: Any = get_criterion_by_cfg(
        config(
            "CrossBatchMemory",
            embedding_size=DIM,
            memory_size=40,
            loss={"name": "NTXentLoss", "args": {"temperature": 0.1, "distance": {"name": "LpDistance"}}},
            miner={"name": "MultiSimilarityMiner", "args": {"epsilon": 0.2}},
        )
    )
    assert criterion.loss.loss.temperature == 0.1
    assert isinstance(criterion.loss.loss.distance, distances.LpDistance)
    assert criterion.loss.miner.epsilon == 0.2
    regularised: Any = get_criterion_by_cfg(
        config("ContrastiveLoss", embedding_regularizer={"name": "LpRegularizer", "args": {"p": 1}})
    )
    plain: Any = get_criterion_by_cfg(config("ContrastiveLoss"))
    assert regularised(embeddings(), LABELS) > plain(embeddings(), LABELS)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (config("TripletMarginLos"), KeyError, "No loss is called 'TripletMarginLos'; did you mean TripletMarginLoss"),
        (config(margn=0.1), ValueError, r"'TripletMarginLoss' has no argument 'margn': did you mean margin\?"),
        (config(reduce={"name": "MeanReducer"}), ValueError, r"'reduce': did you mean reducer\?"),
        (config(with_miner={"name": "TripletMarginMinr"}), KeyError, "did you mean TripletMarginMiner"),
        (config(with_miner={"name": "MultiSimilarityMiner", "args": {"eps": 1}}), ValueError, "no argument 'eps'"),
        (config(distance={"name": "Cosine"}), KeyError, "No distance is called 'Cosine'"),
        (config("SubCenterArcFaceLoss", sub_center=3), ValueError, "did you mean sub_centers"),
        ({"name": "pml", "args": {"los": {}}}, ValueError, r"'pml' has no argument 'los': did you mean loss\?"),
        (config("ProxyAnchorLoss", num_classes=3), TypeError, "embedding_size"),
    ],
)
def test_misspelt_configs(wrong: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        get_criterion_by_cfg(wrong)


@pytest.mark.slow
def test_without_the_package() -> None:
    code = """
import sys
sys.modules["pytorch_metric_learning"] = None
import oml.losses.pml, oml.miners.pml
from oml.registry.losses import get_criterion
for make in (lambda: oml.miners.pml.PMLMiner(None), lambda: get_criterion("pml", loss={"name": "ContrastiveLoss"})):
    try:
        make()
    except ModuleNotFoundError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert "pip install 'open-metric-learning[pml]'" in first
    assert "pip install 'open-metric-learning[pml]'" in second
