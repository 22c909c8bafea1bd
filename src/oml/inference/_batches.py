"""The one loop over a data set that all inference goes through, and how several processes share it."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from oml.const import INPUT_TENSORS_KEY
from oml.datasets.image_files import OnUnreadable, UnreadableImageError
from oml.inference.fast import Inference, for_inference
from oml.interfaces.models import IExtractor
from oml.utils.misc_torch import temporary_setting_model_mode
from oml.utils.progress import progress_bar

OnProgress = Callable[[int, int], None]

_PATIENCE = 2.0  # seconds without a word


class Unreadable(NamedTuple):
    """An item whose image cannot be read."""

    idx: int
    reason: str


class Batch(NamedTuple):
    """Some items of a data set in their order, and those in between that cannot be read."""

    ids: list[int]
    entries: dict[str, Any]
    unreadable: list[Unreadable]


class _Model(IExtractor):
    """What is called on batches, as an extractor."""

    def __init__(self, model: nn.Module, by_extract: bool) -> None:
        super().__init__()
        self.model = model
        self.by_extract = by_extract

    @property
    def feat_dim(self) -> int:
        return self.model.feat_dim  # pyright: ignore[reportReturnType]

    def forward(self, x: Tensor) -> Tensor:
        return self.model.extract(x) if self.by_extract else self.model(x)  # pyright: ignore[reportCallIssue]


class Items(Dataset):
    """Items by their numbers in a data set; what cannot be read comes as its error."""

    def __init__(self, dataset: Dataset, ids: Sequence[int], on_unreadable: OnUnreadable) -> None:
        self.dataset, self.ids, self.on_unreadable = dataset, ids, on_unreadable

    def __len__(self) -> int:
        return len(self.ids)

    def __getitems__(self, positions: Sequence[int]) -> list[tuple[int, Any]]:
        return [self._item(self.ids[position]) for position in positions]

    def _item(self, idx: int) -> tuple[int, Any]:
        try:
            return idx, self.dataset[idx]
        except UnreadableImageError as error:
            if self.on_unreadable == "raise":
                raise
            return idx, Unreadable(idx, str(error))


def collate(items: list[tuple[int, Any]]) -> Batch:
    found = [(idx, item) for idx, item in items if not isinstance(item, Unreadable)]
    try:
        entries = default_collate([item for _, item in found]) if found else {}
    except RuntimeError as error:
        shapes = {value.shape for _, item in found for value in item.values() if isinstance(value, Tensor)}
        if len(shapes) < 2:
            raise
        raise different_sizes(shapes) from error
    return Batch([idx for idx, _ in found], entries, [item for _, item in items if isinstance(item, Unreadable)])


def different_sizes(shapes: Iterable[torch.Size]) -> ValueError:
    """What to raise if the images of a batch have these shapes."""
    found = ", ".join(sorted(str(list(shape)) for shape in shapes)[:3])
    return ValueError(
        f"A batch needs images of one size, got {found}: resize them by the transforms, or take a batch_size of 1."
    )


def embed_batches(
    model: nn.Module,
    dataset: Dataset,
    ids: Sequence[int],
    consume: Callable[[Batch, Tensor], None],
    *,
    batch_size: int,
    num_workers: int,
    by_extract: bool,
    use_fp16: bool | None = False,
    inference: Inference | None = None,
    on_unreadable: OnUnreadable = "raise",
    on_progress: OnProgress | None = None,
) -> list[Unreadable]:
    """Give every batch of the items ``ids``, with its embeddings on the model's device, to ``consume``.

    Works in evaluation mode, which is undone afterwards, and at the precision that is asked for, whatever autocast is
    around; with ``use_fp16`` of ``None``, at that around. Returns the items that cannot
    be read, for which there are no embeddings.
    """
    if on_unreadable not in ("raise", "skip"):
        raise ValueError(f"Inference knows on_unreadable 'raise' and 'skip', got {on_unreadable!r}.")
    if use_fp16 and inference is not None:
        raise ValueError("use_fp16 and inference both say how to compute: give Inference(dtype=torch.float16) alone.")
    key = getattr(dataset, "input_tensors_key", INPUT_TENSORS_KEY)
    device = device_of(model)
    embed: IExtractor = _Model(model, by_extract)

    def loader(chosen: Sequence[int]) -> DataLoader:
        items = Items(dataset, chosen, on_unreadable)
        return DataLoader(items, batch_size=batch_size, num_workers=num_workers, collate_fn=collate)

    unreadable: list[Unreadable] = []
    done = 0
    with evaluation(model, use_fp16):
        if inference is not None and len(ids):
            # items from all over the data set; or the first ones, should these have no image
            spread = torch.linspace(0, len(ids) - 1, min(batch_size, len(ids)), dtype=torch.float64).long().tolist()
            batches = chain(loader([ids[i] for i in spread]), loader(ids))
            if sample := next((batch for batch in batches if batch.ids), None):
                embed = for_inference(embed, sample.entries[key], inference)
        for batch in loader(ids):
            if batch.ids:
                rows = embed.extract(batch.entries[key].to(device))
                if rows.ndim != 2 or len(rows) != len(batch.ids):
                    raise ValueError(
                        f"Inference needs a model that gives a row for each image, but {type(model).__name__} makes "
                        f"{tuple(rows.shape)} of {len(batch.ids)} images."
                    )
                consume(batch, rows)
            unreadable += batch.unreadable
            done += len(batch.ids) + len(batch.unreadable)
            if on_progress is not None:
                on_progress(done, len(ids))
    return unreadable


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's weights; the CPU if it has none."""
    return next((weight.device for weight in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def has_fp16(device: torch.device) -> bool:
    """Whether float16 saves time there: not on CPUs, which have no units for it."""
    return device.type != "cpu" and torch.amp.is_autocast_available(device.type)


@contextmanager
def evaluation(model: nn.Module, use_fp16: bool | None) -> Iterator[None]:
    """Within, a model is in evaluation mode, and computes without gradients at the precision that is asked for.

    That is float16 by autocast with ``use_fp16`` where :func:`has_fp16`, and with ``None`` that of the caller.
    """
    device = device_of(model)
    precision = nullcontext()
    if use_fp16 is not None and torch.amp.is_autocast_available(device.type):
        precision = torch.autocast(device.type, torch.float16, enabled=use_fp16 and has_fp16(device))
    with torch.no_grad(), temporary_setting_model_mode(model, set_train=False), precision:
        yield


@contextmanager
def patient_bar(description: str, verbose: bool | None) -> Iterator[OnProgress | None]:
    """A bar from the start if ``verbose``, after two seconds if ``None``; of the first process alone."""
    if verbose is False or rank_and_world()[0] > 0:
        yield None
        return
    began = time.monotonic()
    bar: list[OnProgress] = []
    with ExitStack() as stack:

        def on_progress(done: int, total: int) -> None:
            if not bar and (verbose or time.monotonic() - began > _PATIENCE):
                bar.append(stack.enter_context(progress_bar(description, Console(stderr=True))))
            if bar:
                bar[0](done, total)

        yield on_progress


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are: (0, 1) without ``torch.distributed``."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def share(n: int, rank: int, world: int) -> range:
    """The items of a process: parts of the data set in its order, as equal as can be.

    Example:
        >>> [list(share(5, rank, 3)) for rank in range(3)]
        [[0], [1, 2], [3, 4]]
    """
    return range(n * rank // world, n * (rank + 1) // world)


def all_rows(part: Tensor | None, n: int, device: torch.device) -> Tensor:
    """The rows of all processes, each of which has those of its :func:`share` of ``n``, in each process."""
    rank, world = rank_and_world()
    if world == 1:
        assert part is not None, "there are items"
        return part
    there = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    shapes: list[Any] = [None] * world
    dist.all_gather_object(shapes, None if part is None else (tuple(part.shape[1:]), part.dtype))
    shape, dtype = next(shape for shape in shapes if shape is not None)
    rows = torch.empty((n, *shape), dtype=dtype, device=there)
    if part is not None:
        own = share(n, rank, world)
        rows[own.start : own.stop] = part.to(there)
    for sender in range(world):
        theirs = share(n, sender, world)
        if len(theirs):
            dist.broadcast(rows[theirs.start : theirs.stop], src=sender)
    return rows.to(device)
