"""Embeddings of whole data sets, in memory."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from pandas import DataFrame
from torch import Tensor, nn
from torch.utils.data import Dataset

from oml.const import BBOXES_COLUMNS, EMBEDDINGS_KEY, PATHS_COLUMN, SPLIT_COLUMN, TRAIN_SPLIT, VALIDATION_SPLIT
from oml.datasets.base import BaseDataset
from oml.datasets.list_dataset import ListDataset, TBBoxes
from oml.datasets.table import check_retrieval_dataframe_format, read_table
from oml.ddp.utils import in_all_processes
from oml.inference._batches import (
    Batch,
    all_rows,
    device_of,
    embed_batches,
    has_fp16,
    patient_bar,
    rank_and_world,
    share,
)
from oml.inference._content_key import (
    UnknownContentError,
    digest_of,
    digest_of_files,
    digest_of_model,
    digest_of_tensor,
    digest_of_transforms,
)
from oml.inference.fast import Inference
from oml.interfaces.models import IExtractor
from oml.transforms.images.utils import TTransforms
from oml.utils.images.images import TImReader
from oml.utils.io import atomic_path
from oml.utils.user_warning import warn_user


def extract_embeddings(
    extractor: IExtractor,
    dataset: Dataset,
    batch_size: int = 64,
    num_workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
    inference: Inference | None = None,
) -> Float[Tensor, "item dim"]:
    """The embedding of every item, in the order of the data set, on the CPU.

    Computed on the device of the extractor's parameters and in its evaluation mode, which is undone afterwards.

    Args:
        extractor: its ``extract`` is called on batches.
        dataset: items are dicts with the input under ``dataset.input_tensors_key``, ``"input_tensors"`` if it has
            no such attribute.
        batch_size: items at a time; it does not change the result but for rounding.
        num_workers: processes that read the items.
        on_progress: called with the items done and the items in all, after every batch.
        inference: how to compute faster, for data sets of images; see :class:`~oml.inference.fast.Inference`. The
            embeddings of a batch of items from all over the data set are compared with exact ones first.
            To use a fast extractor for several data sets, make it with :func:`~oml.inference.fast.for_inference`.

    Raises:
        ValueError: if the data set is empty, or as :func:`~oml.inference.fast.for_inference` does.
        UnreadableImageError: an image cannot be decoded, whatever the data set's ``on_unreadable``: rows would
            be missing. :func:`oml.inference.embedding_files.write_embeddings` can leave items out.

    Example:
        On one CPU core with units for bfloat16, an hour becomes half of one for a ViT-S/16, and eight minutes for an
        EfficientNet-Lite0::

            extract_embeddings(extractor, dataset, inference=Inference(dtype=torch.bfloat16, compile=True))
    """
    total = len(dataset)  # pyright: ignore[reportArgumentType]
    if total == 0:
        raise ValueError("extract_embeddings needs a data set with at least one item.")
    return _rows(
        extractor, dataset, range(total), batch_size=batch_size, num_workers=num_workers, by_extract=True,
        use_fp16=None, inference=inference, on_progress=on_progress,
    )  # fmt: skip


def inference_on_images(
    model: nn.Module,
    paths: Sequence[Path | str],
    transform: TTransforms | None,
    num_workers: int,
    batch_size: int,
    verbose: bool | None = None,
    f_imread: TImReader | None = None,
    use_fp16: bool = False,
    accumulate_on_cpu: bool = True,
    bboxes: TBBoxes | None = None,
    inference: Inference | None = None,
) -> Float[Tensor, "item dim"]:
    """What a model makes of image files, a row each, in their order.

    ``model(x)`` is called on batches, on the device of the model's weights, in its evaluation mode, which is undone
    afterwards. If ``torch.distributed`` is at work, each process computes a part, and all get all rows.

    Args:
        model: any module that makes rows of floats of a batch of images.
        paths: of the image files, relative ones from the working directory.
        transform, f_imread: image -> tensor, and how files are read; see :class:`oml.datasets.base.BaseDataset`.
        num_workers: processes that read the images.
        batch_size: images at a time.
        verbose: show a bar; ``None`` does once it has taken two seconds.
        use_fp16: compute in float16 by autocast, on devices with units for it; a CPU goes on in float32.
        accumulate_on_cpu: move results to the CPU batch by batch; otherwise they stay on the device.
        bboxes: x1, y1, x2, y2 of the part to look at, for each path, or ``None`` for the whole image.
        inference: how to compute faster, see :class:`~oml.inference.fast.Inference`; instead of ``use_fp16``.

    Returns:
        The rows in float32, or float64 if the model gives these.

    Raises:
        ValueError: there are no paths, files do not exist, the boxes do not fit, or ``use_fp16`` and ``inference`` are
            both given.
        UnreadableImageError: an image cannot be decoded.

    Example:
        >>> from oml.datasets.mock import download_mock_dataset
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> table, _ = download_mock_dataset(folder)
        >>> colours = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> inference_on_images(colours, [folder / path for path in table["path"][:4]], None, 0, batch_size=2).shape
        torch.Size([4, 3])
    """
    dataset = ListDataset(paths, bboxes, transform, f_imread)
    with patient_bar("Computing embeddings", verbose) as on_progress:
        return _embed(
            model, dataset, accumulate_on_cpu, batch_size=batch_size, num_workers=num_workers, by_extract=False,
            use_fp16=use_fp16, inference=inference, on_progress=on_progress,
        )  # fmt: skip


class DataframeEmbeddings(NamedTuple):
    """Embeddings of a table's two splits, and the rows that they belong to."""

    train: Float[Tensor, "train dim"]
    validation: Float[Tensor, "validation dim"]
    df_train: DataFrame
    df_validation: DataFrame


def inference_on_dataframe(
    dataset_root: Path | str,
    dataframe_name: str,
    extractor: IExtractor,
    transforms: TTransforms | None,
    output_cache_path: Path | str | None = None,
    num_workers: int = 0,
    batch_size: int = 128,
    use_fp16: bool = False,
    inference: Inference | None = None,
    verbose: bool | None = None,
) -> DataframeEmbeddings:
    """The embeddings of a table's train and validation images, of the parts in their boxes if it has boxes.

    With ``output_cache_path`` they are kept in that file, and read from it when all that they depend on is the same:
    paths and boxes of the table, the root, size and time of change of every image, transforms, the extractor with its
    weights and settings, the precision. Otherwise they are computed anew, a warning says why, and the file is replaced,
    if it holds such embeddings: files of other kinds are left alone. Labels and splits are always those of the table.

    Args:
        dataset_root: the folder of the table, which its paths are relative to.
        dataframe_name: of the table, a CSV or Parquet file.
        extractor: its ``extract`` is called.
        transforms: image -> tensor.
        output_cache_path: file to keep embeddings in, a .safetensors file whatever its name.
        num_workers, batch_size, use_fp16, inference, verbose: see :func:`inference_on_images`.

    Returns:
        Embeddings of the train and of the validation rows, then these rows, with an index from 0 on and absolute
        ``Path`` objects. There are no rows of a split that the table lacks.

    Raises:
        TableError: the table breaks the format.
        FileNotFoundError: there is no table.
        UnreadableImageError: an image cannot be decoded.

    Example:
        ::

            train, validation, df_train, df_validation = inference_on_dataframe(
                "data/CUB_200_2011", "df.csv", extractor, transforms, output_cache_path="cub.safetensors"
            )
    """
    root = Path(dataset_root).absolute()
    table = read_table(root / dataframe_name)
    check_retrieval_dataframe_format(table, dataset_root=root, verbose=False)  # remarks are about training
    dataset = BaseDataset(table, transform=transforms, dataset_root=root)
    cache = None
    if output_cache_path is not None:
        try:
            key = _key(dataset, root, table, extractor, use_fp16, inference)
            cache = _Cache(Path(output_cache_path), key, len(dataset))
        except UnknownContentError as error:
            warn_user(
                f"inference_on_dataframe neither reads nor writes {str(output_cache_path)!r}: the transforms cannot be "
                f"compared with others, {error}. Make them of a named function, or of objects that can be pickled."
            )
    embeddings = None if cache is None else cache.embeddings
    if embeddings is None:
        with patient_bar("Computing embeddings", verbose) as on_progress:
            embeddings = _embed(
                extractor, dataset, True, batch_size=batch_size, num_workers=num_workers, by_extract=True,
                use_fp16=use_fp16, inference=inference, on_progress=on_progress,
            )  # fmt: skip
        if cache is not None:
            cache.write(embeddings)
    table = table.assign(**{PATHS_COLUMN: np.array([Path(path) for path in dataset.df[PATHS_COLUMN]], dtype=object)})
    train, val = (np.flatnonzero(table[SPLIT_COLUMN] == split) for split in (TRAIN_SPLIT, VALIDATION_SPLIT))
    df_train, df_val = (table.iloc[rows].reset_index(drop=True) for rows in (train, val))
    embeddings_train, embeddings_val = (embeddings[torch.from_numpy(rows)] for rows in (train, val))
    return DataframeEmbeddings(embeddings_train, embeddings_val, df_train, df_val)


def _embed(model: nn.Module, dataset: Any, on_cpu: bool, **how: Any) -> Tensor:
    """The rows of all items: those of all processes."""
    ids = share(len(dataset), *rank_and_world())
    rows = in_all_processes(
        lambda: _rows(model, dataset, ids, on_cpu, dtype=torch.float32, **how) if len(ids) else None
    )
    return all_rows(rows, len(dataset), torch.device("cpu") if on_cpu else device_of(model))


def _rows(
    model: nn.Module, dataset: Any, ids: range, on_cpu: bool = True, dtype: torch.dtype | None = None, **how: Any
) -> Tensor:
    """The rows of some items, in ``dtype`` or a wider one."""
    # not a list of parts, which would take twice the memory when they are joined
    rows: Tensor | None = None

    def consume(batch: Batch, part: Tensor) -> None:
        nonlocal rows
        part = part.to("cpu" if on_cpu else part.device, torch.promote_types(part.dtype, dtype or part.dtype))
        if rows is None:
            rows = part.new_empty(len(ids), part.shape[1])
        start = batch.ids[0] - ids.start
        rows[start : start + len(part)] = part

    embed_batches(model, dataset, ids, consume, **how)
    assert rows is not None, "there are items, and what cannot be read is an error"
    return rows


_MAX_HEADER = 2**20  # bytes; those of ours have hundreds
_KEY = "oml_embeddings_of"
_DIGEST = "digest"
_NAMES = {
    "table": "the paths or boxes of the table",
    "root": "the root",
    "images": "the image files",
    "transforms": "the transforms",
    "extractor": "the extractor",
    "precision": "the precision",
}


def _key(
    dataset: BaseDataset,
    root: Path,
    table: DataFrame,
    extractor: nn.Module,
    use_fp16: bool,
    inference: Inference | None,
) -> dict[str, str]:
    boxes = [column for column in BBOXES_COLUMNS if column in table.columns]
    sides = table[boxes].to_numpy(dtype=np.float64, na_value=np.nan)
    sides = np.where(np.isnan(sides), np.nan, sides + 0.0)  # one kind of NaN, and of zero
    dtype = torch.float16 if use_fp16 and has_fp16(device_of(extractor)) else torch.float32
    return {
        "table": digest_of(*(os.fspath(path) for path in table[PATHS_COLUMN]), str(boxes), sides.tobytes()),
        "root": str(root),
        "images": digest_of_files(dataset.df[PATHS_COLUMN].tolist()),
        "transforms": digest_of_transforms((dataset.transform, dataset.f_imread)),
        "extractor": digest_of_model(extractor),
        "precision": str(dtype if inference is None else inference.dtype).removeprefix("torch."),
    }


class _Cache:
    """A file of embeddings that says what they were made of. It is read at once.

    Attributes:
        embeddings: those of the file, if they are of the key; the same in all processes.
    """

    def __init__(self, path: Path, key: dict[str, str], n_items: int) -> None:
        self.path, self.key = path, key
        self.embeddings: Tensor | None = None
        self._is_ours = True
        self._main = rank_and_world()[0] == 0
        why = None
        if path.is_dir():
            raise IsADirectoryError(
                f"inference_on_dataframe needs a file for output_cache_path, {str(path)!r} is a folder."
            )
        if path.exists():
            why = self._read(n_items)
        if (world := rank_and_world()[1]) > 1:  # all of them compute if one has to
            found: list[Any] = [None] * world
            dist.all_gather_object(found, self.embeddings is not None)
            self.embeddings = self.embeddings if all(found) else None
        if why is not None and self._main:
            warn_user(f"inference_on_dataframe computes the embeddings anew, and does not take {str(path)!r}: {why}.")

    def write(self, embeddings: Tensor) -> None:
        """Keep embeddings, unless there is somebody else's file; that they cannot be kept is no error."""
        from safetensors.torch import save_file

        if not (self._is_ours and self._main):
            return
        metadata = {_KEY: json.dumps(self.key), _DIGEST: digest_of_tensor(embeddings)}
        try:
            with atomic_path(self.path) as temporary:
                save_file({EMBEDDINGS_KEY: embeddings}, temporary, metadata)
        except OSError as error:
            warn_user(f"inference_on_dataframe could not keep the embeddings in {str(self.path)!r}: {error}.")

    def _read(self, n_items: int) -> str | None:
        """Why the file is of no use, if it is of none."""
        from safetensors import SafetensorError, safe_open

        metadata = _metadata(self.path)
        if _KEY not in metadata:
            self._is_ours = _is_plain_cache(self.path)
            if self._is_ours:
                return "it does not say what its embeddings were made of"
            return "it is no file of such embeddings, and stays as it is; name another one to keep them in"
        made_of = json.loads(metadata[_KEY])
        changed = [kind for kind in _NAMES if made_of.get(kind) != self.key[kind]]
        if {"table", "root"} & set(changed):
            changed = [kind for kind in changed if kind != "images"]  # they are others then, which is no news
        if changed:
            return f"since it was made, there is a change of {', '.join(_NAMES[kind] for kind in changed)}"
        try:
            with safe_open(self.path, framework="pt") as file:
                embeddings = file.get_tensor(EMBEDDINGS_KEY)
        except (SafetensorError, OSError) as error:
            return f"it is damaged ({error})"
        if len(embeddings) != n_items or digest_of_tensor(embeddings) != metadata.get(_DIGEST):
            return "it is damaged"
        self.embeddings = embeddings
        return None


def _metadata(path: Path) -> dict[str, str]:
    """Of a .safetensors file, even if its end is missing; nothing of other files."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            return json.loads(file.read(size)).get("__metadata__", {}) if size < _MAX_HEADER else {}
        except (ValueError, AttributeError):
            return {}


def _is_plain_cache(path: Path) -> bool:
    """Whether the file is what other versions kept: a matrix alone; or holds nothing."""
    if path.stat().st_size == 0:
        return True
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # of the many that loading anything raises
        return False
    return isinstance(content, Tensor) and content.ndim == 2
