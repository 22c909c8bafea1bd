import itertools
from collections import Counter
from collections.abc import Sequence
from functools import partial
from inspect import unwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.processes import run_processes
from torch import Tensor, nn
from torchvision.transforms import v2

from oml.datasets.image_files import UnreadableImageError
from oml.inference._pairs import _order_by_kin, _schedule
from oml.inference.pairs import pairwise_inference_on_embeddings, pairwise_inference_on_images
from oml.interfaces.models import IPairwiseModel
from oml.models.meta.siamese import LinearTrivialDistanceSiamese
from oml.utils.images.images import imread_tensor

TRANSFORM = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


class Difference(IPairwiseModel):
    """Largest difference between two inputs, weighted; it depends on the order of the two. Noise in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.n_pairs: list[int] = []

    def forward(self, x1: Any, x2: Any) -> Tensor:
        raise AssertionError("inference is by predict")

    def predict(self, x1: Tensor, x2: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.n_pairs.append(len(x1))
        difference = (self.scale * x1 - x2).flatten(1).amax(dim=1)
        return torch.rand_like(difference) if self.training else difference


class CountingReader:
    """Reads images, and counts how often each."""

    def __init__(self) -> None:
        self.n_reads: Counter[bytes] = Counter()

    def __call__(self, source: Path | str | bytes) -> Tensor:
        assert isinstance(source, bytes)
        self.n_reads[source] += 1
        return imread_tensor(source)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve images, no two alike."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    found = [folder / f"{i}.png" for i in range(12)]
    for path in found:
        Image.fromarray(rng.integers(256, size=(6, 8, 3), dtype=np.uint8)).save(path)
    return found


def expected(paths1: Sequence[Path | str], paths2: Sequence[Path | str]) -> Tensor:
    images = ((TRANSFORM(imread_tensor(a)), TRANSFORM(imread_tensor(b))) for a, b in zip(paths1, paths2, strict=True))
    return torch.stack([(2 * a - b).amax() for a, b in images])


def pairs_of(paths: list[Path], n: int = 40) -> tuple[list[Path], list[Path]]:
    draws = torch.randint(len(paths), (2, n), generator=torch.Generator().manual_seed(1)).tolist()
    return [paths[i] for i in draws[0]], [paths[i] for i in draws[1]]


@pytest.mark.parametrize(
    ("batch_size", "num_workers", "cache_size"), [(1, 0, 2**20), (7, 0, 0), (7, 2, 3000), (100, 1, 2**20)]
)
def test_no_bit_depends_on_how_pairs_of_images_come(
    paths: list[Path], batch_size: int, num_workers: int, cache_size: int
) -> None:
    first, second = pairs_of(paths)
    model = Difference()
    found = pairwise_inference_on_images(
        model, first, second, TRANSFORM, num_workers, batch_size, verbose=False, cache_size=cache_size
    )
    assert torch.equal(found, expected(first, second))
    assert not found.requires_grad
    assert sum(model.n_pairs) == len(first)
    assert max(model.n_pairs) == min(batch_size, len(first))


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_pairs_of_embeddings(batch_size: int, rng: torch.Generator) -> None:
    x1, x2 = torch.randn(20, 3, generator=rng), torch.randn(20, 3, generator=rng)
    model = Difference()
    found = pairwise_inference_on_embeddings(model, x1, x2, 0, batch_size)
    assert torch.equal(found, torch.stack([(2 * a - b).amax() for a, b in zip(x1, x2, strict=True)]))
    assert not found.requires_grad
    assert max(model.n_pairs) == min(batch_size, 20)


def test_each_image_is_read_once_if_there_is_room(paths: list[Path]) -> None:
    first, second = pairs_of(paths)
    assert len({*first, *second}) == len(paths) == 12
    reader = CountingReader()
    pairwise_inference_on_images(Difference(), first, second, TRANSFORM, 0, 4, False, reader)
    assert reader.n_reads.total() == len(reader.n_reads) == 12
    image_size = TRANSFORM(imread_tensor(paths[0])).nbytes
    reads = []
    for n_images in (12, 10, 8):
        reader = CountingReader()
        run = partial(pairwise_inference_on_images, Difference(), first, second, TRANSFORM, 0, 4, False, reader)
        run(cache_size=n_images * image_size)
        reads.append(reader.n_reads.total())
    assert 12 == reads[0] < reads[1] < reads[2] < 2 * len(first)


def test_images_of_a_group_are_compared_while_they_are_there(paths: list[Path]) -> None:
    """Though its pairs are spread over all the pairs, and there is room for one group."""
    pairs = [(i, j) for i in range(12) for j in range(12) if i != j and i % 3 == j % 3]
    first, second = ([paths[pair[side]] for pair in pairs] for side in (0, 1))
    reader, room = CountingReader(), 4 * TRANSFORM(imread_tensor(paths[0])).nbytes
    found = pairwise_inference_on_images(Difference(), first, second, TRANSFORM, 0, 3, False, reader, cache_size=room)
    assert reader.n_reads.total() == 12
    assert torch.equal(found, expected(first, second))


def test_boxes_count(paths: list[Path]) -> None:
    boxes1, boxes2 = [(0, 0, 4, 3), (4, 3, 8, 6), (1, 2, 5, 5)], [(4, 3, 8, 6), (0, 0, 4, 3), (4, 3, 8, 6)]
    chosen = [paths[0], paths[0], paths[1]]
    found = pairwise_inference_on_images(
        Difference(), chosen, paths[:3], TRANSFORM, 0, 2, False, bboxes1=boxes1, bboxes2=boxes2
    )

    def cut(path: Path, box: tuple[int, int, int, int]) -> Tensor:
        return TRANSFORM(imread_tensor(path)[:, box[1] : box[3], box[0] : box[2]])

    images = zip(map(cut, chosen, boxes1), map(cut, paths[:3], boxes2), strict=True)
    assert torch.equal(found, torch.stack([(2 * a - b).amax() for a, b in images]))
    assert not torch.equal(found, expected(chosen, paths[:3]))


def test_a_box_of_some_images(paths: list[Path]) -> None:
    whole: list[Any] = [None, None]
    args: Any = Difference(), paths[:2], paths[2:4], TRANSFORM, 0, 2, False
    found = pairwise_inference_on_images(*args, bboxes1=[(0, 0, 8, 6), None], bboxes2=whole)
    assert torch.equal(found, expected(paths[:2], paths[2:4]))


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_restored(paths: list[Path], training: bool) -> None:
    model = Difference().train(training)
    pairwise_inference_on_images(model, paths[:2], paths[1:3], TRANSFORM, 0, 2, verbose=False)
    pairwise_inference_on_embeddings(model, torch.ones(2, 1), torch.ones(2, 1), 0, 2)
    assert model.training is training


def test_a_cpu_goes_on_in_float32(rng: torch.Generator) -> None:
    model = LinearTrivialDistanceSiamese(3, identity_init=True)
    x1, x2 = torch.randn(20, 3, generator=rng), torch.randn(20, 3, generator=rng)
    exact, fast = (pairwise_inference_on_embeddings(model, x1, x2, 0, 20, use_fp16=fp16) for fp16 in (False, True))
    assert torch.equal(fast, exact)
    with torch.autocast("cpu", torch.float16):
        assert not torch.equal(model.predict(x1, x2).float(), exact)
        assert torch.equal(pairwise_inference_on_embeddings(model, x1, x2, 0, 20), exact)


def test_a_bar_if_asked_for(paths: list[Path], capfd: pytest.CaptureFixture[str]) -> None:
    pairwise_inference_on_images(Difference(), paths[:2], paths[1:3], TRANSFORM, 0, 2, verbose=False)
    assert capfd.readouterr() == ("", "")
    pairwise_inference_on_images(Difference(), paths[:2], paths[1:3], TRANSFORM, 0, 2)
    assert "Comparing pairs" in capfd.readouterr().err


def test_what_cannot_be_computed(paths: list[Path], tmp_path: Path) -> None:
    on_images = partial(pairwise_inference_on_images, transform=TRANSFORM, num_workers=0, batch_size=2, verbose=False)
    with pytest.raises(ValueError, match="3 first and 2 second"):
        on_images(Difference(), paths[:3], paths[:2])
    with pytest.raises(ValueError, match="0 first and 0 second"):
        on_images(Difference(), [], [])
    with pytest.raises(ValueError, match="1 first and 2 second"):
        unwrap(pairwise_inference_on_embeddings)(Difference(), torch.ones(1, 1), torch.ones(2, 1), 0, 2)
    with pytest.raises(TypeError, match="paths2, got the path"):
        on_images(Difference(), paths[:1], str(paths[0]))
    with pytest.raises(ValueError, match="1 bboxes2 for 2 paths2"):
        on_images(Difference(), paths[:2], paths[:2], bboxes2=[None])
    with pytest.raises(ValueError, match="cache_size of 0 or more bytes, got -1"):
        on_images(Difference(), paths[:2], paths[:2], cache_size=-1)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UnreadableImageError, match=r"broken\.png"):
        on_images(Difference(), paths[:2], [paths[1], tmp_path / "broken.png"])
    Image.new("RGB", (3, 3)).save(tmp_path / "small.png")
    for second in ([paths[1], tmp_path / "small.png"], [paths[0], paths[0], tmp_path / "small.png"]):  # in a batch, not
        with pytest.raises(ValueError, match=r"one size, got \[3, 3, 3\], \[3, 6, 8\]"):
            on_images(Difference(), [paths[0]] * len(second), second)


def test_a_model_that_gives_something_else() -> None:
    class Matrix(Difference):
        def predict(self, x1: Tensor, x2: Tensor) -> Tensor:
            return x1 - x2

    with pytest.raises(ValueError, match=r"Matrix makes \(2, 1\) of 2 pairs"):
        pairwise_inference_on_embeddings(Matrix(), torch.ones(2, 1), torch.ones(2, 1), 0, 2)


def _everywhere(rank: int, paths: list[str], folder: Path) -> None:
    model = Difference()
    images = pairwise_inference_on_images(model, paths, paths[::-1], TRANSFORM, 0, 2, verbose=True)
    assert sum(model.n_pairs) == [len(paths) // 2, len(paths) - len(paths) // 2][rank]
    x = torch.arange(len(paths)).float()[:, None]
    torch.save((images, pairwise_inference_on_embeddings(model, x, -x, 0, 2)), folder / f"{rank}.pt")


@pytest.mark.parametrize("n", [1, 5])
def test_processes_share_the_pairs(n: int, paths: list[Path], tmp_path: Path) -> None:
    chosen = [str(path) for path in paths[:n]]
    run_processes(_everywhere, chosen, tmp_path, folder=tmp_path, n=2)
    for rank in range(2):
        images, embeddings = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(images, expected(chosen, chosen[::-1]))
        assert torch.equal(embeddings, 3 * torch.arange(n).float())


def _fails_in_one(rank: int, paths: list[str], folder: Path) -> None:
    if rank == 1:
        paths = [*paths[:-1], str(folder / "missing.png")]
    with pytest.raises(ValueError, match=r"missing\.png"):
        pairwise_inference_on_images(Difference(), paths, paths, TRANSFORM, 0, 2, verbose=False)


def test_no_process_waits_for_one_that_failed(paths: list[Path], tmp_path: Path) -> None:
    run_processes(_fails_in_one, [str(path) for path in paths[:4]], tmp_path, folder=tmp_path, n=2)


PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=8)


@given(pairs=PAIRS, batch_size=st.integers(1, 2), spare=st.integers(0, 3))
def test_no_schedule_reads_fewer_images(pairs: list[tuple[int, int]], batch_size: int, spare: int) -> None:
    batches = [pairs[i : i + batch_size] for i in range(0, len(pairs), batch_size)]
    needs = [frozenset(itertools.chain(*batch)) for batch in batches]
    n_places = max(map(len, needs)) + spare
    held, n_reads = {pairs[0][0]}, 0
    for needed, step in zip(needs, _schedule(batches, n_places, pairs[0][0]), strict=True):
        assert held >= set(step.drop)
        held -= set(step.drop)
        assert not held & set(step.load)
        held |= set(step.load)
        assert len(held) <= n_places
        assert held >= needed
        n_reads += len(step.load)

    fewest = {frozenset({pairs[0][0]}): 0}  # by what is held, of all ways to go on
    for needed in needs:
        after: dict[frozenset[int], int] = {}
        for before, n in fewest.items():
            others = before - needed
            for size in range(min(len(others), n_places - len(needed)) + 1):
                for kept in itertools.combinations(others, size):
                    now = needed.union(kept)
                    after[now] = min(after.get(now, 99), n + len(needed - before))
        fewest = after
    assert n_reads == min(fewest.values())


@given(PAIRS)
def test_the_order_keeps_the_pairs_of_an_image_together(pairs: list[tuple[int, int]]) -> None:
    order = _order_by_kin(pairs)
    assert sorted(order) == list(range(len(pairs)))
    groups = [list(group) for _, group in itertools.groupby(order, key=lambda position: pairs[position][0])]
    assert len(groups) == len({one for one, _ in pairs})
    assert all(group == sorted(group) for group in groups)


@pytest.mark.parametrize("shared", [True, False])
def test_the_order_brings_relatives_together(shared: bool) -> None:
    """Of groups whose members are spread over the data set, one after another; also if galleries are no queries."""
    n, n_groups = 60, 12
    offset = 0 if shared else n
    pairs = [(i, offset + j) for i in range(n) for j in range(n) if i != j and i % n_groups == j % n_groups]
    ordered = [pairs[position][0] % n_groups for position in _order_by_kin(pairs)]
    assert len(list(itertools.groupby(ordered))) == n_groups
    assert len(list(itertools.groupby(pairs, key=lambda pair: pair[0] % n_groups))) == n


def test_after_a_query_comes_its_gallery_as_a_query() -> None:
    assert _order_by_kin([(0, 2), (1, 3), (2, 4), (3, 5)]) == [0, 2, 1, 3]
