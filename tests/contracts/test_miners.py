"""What every miner of the registry promises."""

import copy
import io
import warnings

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from oml.const import CONFIGS_PATH
from oml.functional.distances import elementwise_dist
from oml.interfaces.miners import ITripletsMiner, ITripletsMinerByIds, ITripletsMinerInBatch
from oml.losses.triplet import TripletLossWithMiner
from oml.registry import MINERS_REGISTRY

LABELS = torch.tensor([3, 1, 3, 1, 2, 2, 3, 2**31 + 1, 2**31 + 1])
POINTS = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
#: keep some anchors only, by design
CHOOSY = {"multi_similarity"}


def build(name: str) -> ITripletsMiner:
    return MINERS_REGISTRY.build(OmegaConf.load(CONFIGS_PATH / "miner" / f"{name}.yaml"))  # pyright: ignore[reportArgumentType]


BUILT = {name: build(name) for name in sorted(MINERS_REGISTRY)}
BY_IDS = [name for name, miner in BUILT.items() if isinstance(miner, ITripletsMinerByIds)]
IN_BATCH = [name for name, miner in BUILT.items() if isinstance(miner, ITripletsMinerInBatch)]
WITH_STATE = [name for name, miner in BUILT.items() if isinstance(miner, nn.Module) and miner.state_dict()]
every_miner = pytest.mark.parametrize("name", BUILT)


def batches(n: int, sizes: tuple[int, ...] = (9,)) -> list[tuple[Tensor, Tensor]]:
    """Batches without lone labels, of which in-batch miners warn."""
    generator = torch.Generator().manual_seed(1)
    result = []
    for i in range(n):
        size = sizes[i % len(sizes)]
        order = torch.randperm(size, generator=generator)
        result.append((torch.randn(size, 4, generator=generator), (torch.arange(size) // 2 % max(1, size // 2))[order]))
    return result


def mined(miner: ITripletsMiner, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return miner.sample(*batch)


@pytest.mark.parametrize("name", BY_IDS)
def test_triplets_are_valid(name: str) -> None:
    miner = build(name)
    assert isinstance(miner, ITripletsMinerByIds)
    for step in range(6):  # banks fill on the way, and hold but one set of labels
        points = POINTS + step
        candidates, (anchor, positive, negative), is_original, distances = miner.pick(points, LABELS)
        assert torch.equal(candidates[: len(points)], points)
        labels = LABELS.repeat(len(candidates) // len(LABELS))
        assert len(anchor)
        assert anchor.dtype == positive.dtype == negative.dtype == torch.int64
        assert all(ids.min() >= 0 and ids.max() < len(candidates) for ids in (anchor, positive, negative))
        assert (anchor != positive).all()
        assert (labels[anchor] == labels[positive]).all()
        assert (labels[anchor] != labels[negative]).all()
        in_batch = torch.stack([anchor, positive, negative]) < len(points)
        assert is_original is None or torch.equal(is_original, in_batch.all(dim=0))
        if distances is not None:
            expected = [elementwise_dist(candidates[anchor], candidates[ids]) for ids in (positive, negative)]
            torch.testing.assert_close(list(distances), expected)
        if name not in CHOOSY:
            assert set(range(len(LABELS))) <= set(anchor.tolist())  # none is missing


@every_miner
def test_sample_gives_what_pick_does_and_does_not_touch_its_input(name: str) -> None:
    miner, other = build(name), build(name)
    points, labels = POINTS.clone(), LABELS.clone()
    parts = miner.sample(points, labels)
    assert torch.equal(points, POINTS)
    assert torch.equal(labels, LABELS)
    if isinstance(other, ITripletsMinerByIds):
        candidates, ids, is_original, _ = other.pick(POINTS, LABELS)
        expected = [candidates[role] for role in ids] + ([] if is_original is None else [is_original])
        assert all(torch.equal(a, b) for a, b in zip(parts, expected, strict=True))


@every_miner
def test_gradients_reach_the_embeddings(name: str) -> None:
    points = POINTS.clone().requires_grad_()
    anchor, positive, negative = build(name).sample(points, LABELS)[:3]
    ((anchor - positive).square() + (anchor - negative).square()).sum().backward()
    assert points.grad is not None
    if name not in CHOOSY:
        assert (points.grad != 0).any(dim=1).all()


@every_miner
def test_gradients_repeat_bit_for_bit(name: str) -> None:
    labels = torch.arange(8).repeat_interleave(4)
    points = torch.randn(32, 640, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def gradient() -> Tensor:
        anchor, positive, negative = build(name).sample(points, labels)[:3]
        loss = ((anchor - positive).norm(dim=1) - (anchor - negative).norm(dim=1)).mean()
        return torch.autograd.grad(loss, points)[0]

    first = gradient()
    assert all(torch.equal(gradient(), first) for _ in range(5))


@every_miner
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_is_kept(name: str, dtype: torch.dtype) -> None:
    miner = build(name)
    for points, labels in batches(5):
        assert all(part.dtype == dtype for part in mined(miner, (points.to(dtype), labels))[:3])


@every_miner
def test_same_seed_same_triplets_and_the_global_generator_stays(name: str) -> None:
    one, same = build(name), build(name)
    before = torch.get_rng_state()
    for batch in batches(5):
        assert all(torch.equal(a, b) for a, b in zip(mined(one, batch), mined(same, batch), strict=True))
    assert torch.equal(torch.get_rng_state(), before)


@every_miner
def test_labels_may_be_a_list(name: str) -> None:
    expected = build(name).sample(POINTS, LABELS)
    for labels in (LABELS.tolist(), LABELS.to(torch.int64)):
        assert all(torch.equal(a, b) for a, b in zip(build(name).sample(POINTS, labels), expected, strict=True))


@every_miner
def test_batches_of_any_size(name: str) -> None:
    miner = build(name)
    for batch in batches(16, sizes=(6, 6, 4, 9, 1, 0, 2)):
        anchor, positive, negative = mined(miner, batch)[:3]
        assert anchor.shape == positive.shape == negative.shape
        assert anchor.shape[1] == 4


@every_miner
def test_duplicates(name: str) -> None:
    miner = build(name)
    points = torch.zeros(6, 4, requires_grad=True)
    for _ in range(5):
        parts = miner.sample(points, [0, 0, 1, 1, 2, 2])[:3]
        assert all(len(part) or name in CHOOSY for part in parts)
        sum(part.sum() for part in parts).backward()  # pyright: ignore[reportAttributeAccessIssue]
    assert points.grad is not None
    assert points.grad.isfinite().all()


@every_miner
@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], [5]])
def test_a_batch_without_triplets_gives_none(name: str, labels: list[int]) -> None:
    points = POINTS[: len(labels)].clone().requires_grad_()
    batch = points, torch.tensor(labels)
    assert [tuple(part.shape) for part in mined(build(name), batch)[:3]] == [(0, 4)] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = TripletLossWithMiner(0.2, build(name), need_logs=True)(*batch)
    loss.backward()
    assert loss == 0
    assert torch.equal(points.grad, torch.zeros_like(points))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", IN_BATCH)
def test_lone_labels_are_named_once_and_the_others_mined(name: str) -> None:
    miner = build(name)
    assert isinstance(miner, ITripletsMinerInBatch)
    points = torch.zeros(5, 4)  # so that those that choose have no choice
    with pytest.warns(UserWarning, match=r"1 labels with a single instance in the batch, such as \[9\]"):
        anchor, _, negative = miner.pick(points, [4, 4, 9, 5, 5]).triplets
    assert set(anchor.tolist()) == {0, 1, 3, 4}
    assert len(negative)
    miner.sample(points, [4, 4, 9, 5, 5])  # warnings are errors here


@pytest.mark.parametrize("name", sorted(set(BUILT) - set(IN_BATCH)))
def test_others_mine_beside_lone_labels(name: str) -> None:
    miner = build(name)
    for _ in range(5):
        assert len(miner.sample(POINTS[:5], [4, 4, 9, 5, 5])[0])


@every_miner
@pytest.mark.parametrize("labels", [[0, 0, 1], [[0, 0, 1, 1]], [0.0, 0.0, 1.0, 1.0]])
def test_labels_that_do_not_fit(name: str, labels: list) -> None:
    miner = build(name)
    with pytest.raises(ValueError, match=f"{type(miner).__name__} needs one integer label per embedding"):
        miner.sample(POINTS[:4], torch.tensor(labels))


@every_miner
def test_takes_all_is_no_idle_promise(name: str) -> None:
    miner = build(name)
    for n in (4, 9):
        if miner.takes_all(n):
            for points, labels in batches(4, sizes=(n,)):
                candidates = miner.pick(points, labels)  # pyright: ignore[reportAttributeAccessIssue]
                expected = MINERS_REGISTRY["all_triplets"]().pick(points, labels)
                assert {*zip(*map(Tensor.tolist, candidates.triplets), strict=True)} == {
                    *zip(*map(Tensor.tolist, expected.triplets), strict=True)
                }


@pytest.mark.parametrize("name", WITH_STATE)
@pytest.mark.parametrize("n_before", [0, 2, 5])
def test_state_goes_on_from_a_checkpoint(name: str, n_before: int) -> None:
    """Banks were plain attributes in the described system: lost on resume."""
    miner, fresh = TripletLossWithMiner(0.2, build(name)), TripletLossWithMiner(0.2, build(name))
    for batch in batches(n_before):
        mined(miner.miner, batch)
    file = io.BytesIO()
    torch.save(miner.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    copied = copy.deepcopy(miner)
    for batch in batches(4, sizes=(9, 6)):
        expected = mined(miner.miner, batch)
        for other in (fresh, copied):
            assert all(torch.equal(a, b) for a, b in zip(mined(other.miner, batch), expected, strict=True))


def test_there_are_miners_of_each_kind() -> None:
    assert {"all_triplets", "hard_triplets", "n_hard_triplets"} <= set(IN_BATCH)
    assert {"miner_with_bank", "triplets_with_memory"} == set(WITH_STATE)


@pytest.mark.parametrize("name", WITH_STATE)
def test_a_bank_takes_in_batches_in_training_mode_only(name: str) -> None:
    miner = build(name)
    assert isinstance(miner, nn.Module)
    miner.sample(POINTS, LABELS)
    before = copy.deepcopy(miner.state_dict())
    assert any(len(value) for value in before.values() if value.ndim)
    miner.eval().sample(POINTS + 1, LABELS)
    banks = {key for key in before if "bank" in key}
    assert banks
    assert all(torch.equal(miner.state_dict()[key], before[key]) for key in banks)
    miner.train().sample(POINTS + 1, LABELS)
    assert not all(torch.equal(miner.state_dict()[key], before[key]) for key in banks)


@every_miner
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("n_bad", [1, 9])
def test_a_broken_embedding_breaks_the_loss(name: str, bad: float, n_bad: int) -> None:
    """A loss of 0 for a run that has diverged would look like a perfect one."""
    points = POINTS.clone()
    points[:n_bad, 0] = bad
    assert not TripletLossWithMiner(0.2, build(name))(points, LABELS).isfinite()
