"""Embeddings on disk: written a batch at a time, by one process or several, and read again."""

import json
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from glob import escape
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from oml.const import EMBEDDINGS_KEY, LABELS_KEY, PATHS_KEY
from oml.datasets.image_files import OnUnreadable
from oml.ddp.utils import in_all_processes
from oml.inference._batches import Batch, Unreadable, embed_batches, patient_bar, rank_and_world, share
from oml.inference.fast import Inference
from oml.interfaces.models import IExtractor
from oml.utils.io import atomic_path
from oml.utils.user_warning import warn_user

__all__ = [
    "EmbeddingRows",
    "EmbeddingWriter",
    "Written",
    "iterate_embeddings",
    "read_embeddings",
    "shard_path",
    "write_embeddings",
]

_IDS, _ENDS, _PADDING, _RUN = "ids", "path_ends", "padding", "oml_run"
_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_LOCK = ".lock"  # in the hidden folder of a writer
_HEADER = 2048  # bytes kept free for the header of a .safetensors file
_ROW_GROUP = 2**24  # bytes of embeddings
_AT_ONCE = 2**14  # rows
_PARQUET = (".parquet", ".pq")


class EmbeddingRows(NamedTuple):
    """Some embeddings, and what is known of their items."""

    embeddings: Float[Tensor, "item dim"]
    ids: Int[Tensor, " item"] | None = None
    """their numbers in the data set"""
    labels: Int[Tensor, " item"] | None = None
    paths: list[str] | None = None


class EmbeddingWriter:
    """A file of embeddings that grows by batches and needs the memory of one, however many there are.

    To be used in a ``with`` statement: the file gets its name at the end, if all went well; it replaces one of that
    name. Before, there is a hidden folder beside it; should the process be killed, the next writer of the file removes
    it. The suffix tells the format:

    ===============  ============================================================================================
    .parquet, .pq    columns ``embeddings``, ``ids``, ``labels``, ``paths``; needs the extra ``parquet``
    .safetensors     tensors ``embeddings``, ``ids``, ``labels``; ``paths`` are UTF-8 bytes, of which the one of item
                     ``i`` ends before ``path_ends[i]``; ``padding`` is nothing
    .json            one object, ``{path: [numbers], ...}``; ids and labels are left out
    ===============  ============================================================================================

    Args:
        path: of the file.
        run: what all shards of one run have in common, see :func:`shard_path`.

    Raises:
        ValueError: another suffix.
        ModuleNotFoundError: a Parquet file without the extra ``parquet``.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "embeddings.json"
        >>> with EmbeddingWriter(path) as writer:
        ...     writer.write(torch.tensor([[0.5, 1.0]]), paths=["a.jpg"])
        ...     writer.write(torch.tensor([[2.0, 0.0]]), paths=["b.jpg"])
        >>> path.read_text()
        '{"a.jpg": [0.5, 1.0], "b.jpg": [2.0, 0.0]}'
    """

    def __init__(self, path: Path | str, run: str = "") -> None:
        self.path = Path(path)
        kinds = {".safetensors": _SafetensorsFile, ".json": _JsonFile, **dict.fromkeys(_PARQUET, _ParquetFile)}
        if (suffix := self.path.suffix.lower()) not in kinds:
            raise ValueError(f"Embeddings are written to .parquet, .safetensors or .json, got {str(path)!r}.")
        if suffix in _PARQUET:
            _parquet()
        self.n_items = 0
        self._run = run
        self._kind = kinds[suffix]
        self._like: tuple[Any, ...] | None = None

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        _remove_leftovers(self.path)
        with (
            atomic_path(self.path) as temporary,
            FileLock(temporary.with_name(_LOCK)),
            closing(self._kind(temporary, self._run)) as file,
        ):
            yield file
            file.finish()
            file.close()

    def __enter__(self) -> "EmbeddingWriter":  # noqa: PYI034 (beartype)
        self._opening = self._opened()
        self._file = self._opening.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._opening.__exit__(kind, error, traceback)

    def write(
        self,
        embeddings: Float[Tensor, "item dim"],
        ids: Int[Tensor, " item"] | Sequence[int] | None = None,
        labels: Int[Tensor, " item"] | Sequence[int] | None = None,
        paths: Sequence[str] | None = None,
    ) -> None:
        """Add rows.

        Raises:
            ValueError: the numbers of rows differ, or rows are not like those before: of the same type and size, and
                with ids, labels and paths if these have them; or a JSON file gets no paths, or one path twice.
        """
        if embeddings.ndim != 2 or embeddings.dtype not in _DTYPES:
            raise ValueError(
                f"Embeddings need to be floats in two dimensions, item and dim, got {tuple(embeddings.shape)} and "
                f"{str(embeddings.dtype).removeprefix('torch.')}."
            )
        numbers = {
            name: torch.as_tensor(values, dtype=torch.int64).cpu()
            for name, values in ((_IDS, ids), (LABELS_KEY, labels))
            if values is not None
        }
        columns: dict[str, Any] = numbers if paths is None else {**numbers, PATHS_KEY: [str(path) for path in paths]}
        if lengths := {name: len(values) for name, values in columns.items() if len(values) != len(embeddings)}:
            raise ValueError(f"EmbeddingWriter needs one for each of {len(embeddings)} embeddings, got {lengths}.")
        like = (embeddings.dtype, embeddings.shape[1], *columns)
        if self._like not in (None, like):
            raise ValueError(f"EmbeddingWriter needs rows like those before, {self._like}, got {like}.")
        self._like = like
        self._file.write(embeddings.detach().cpu().contiguous(), columns)
        self.n_items += len(embeddings)


class _SafetensorsFile:
    """Embeddings go into their place at once, behind room for the header; the rest waits in files of its own."""

    def __init__(self, path: Path, run: str) -> None:
        self.file = path.open("wb")
        self.file.write(bytes(_HEADER))
        self.run, self.folder = run, path.parent
        self.dtype, self.n_items, self.dim = torch.float32, 0, 0
        self.columns: list[str] = []
        self.end = 0

    def write(self, embeddings: Tensor, columns: dict[str, Any]) -> None:
        self.file.write(_bytes_of(embeddings))
        for name, values in columns.items():
            if name == PATHS_KEY:
                texts = [path.encode() for path in values]
                ends = self.end + np.cumsum([len(text) for text in texts], dtype=np.int64)
                self.end = int(ends[-1]) if len(ends) else self.end
                self._append(_ENDS, ends.tobytes())
                self._append(PATHS_KEY, b"".join(texts))
            else:
                self._append(name, _bytes_of(values))
        self.dtype, self.dim = embeddings.dtype, embeddings.shape[1]
        self.n_items += len(embeddings)

    def _append(self, name: str, data: Any) -> None:
        if name not in self.columns:
            self.columns.append(name)
        with (self.folder / f".{name}").open("ab") as file:
            file.write(data)

    def finish(self) -> None:
        tensors = [(EMBEDDINGS_KEY, _DTYPES[self.dtype], [self.n_items, self.dim])]
        padding = -self.n_items * self.dim * self.dtype.itemsize % 8  # integers begin where readers can map them
        if padding and self.columns:
            tensors.append((_PADDING, "U8", [padding]))
            self.file.write(bytes(padding))
        for name in sorted(self.columns, key=[_IDS, LABELS_KEY, _ENDS, PATHS_KEY].index):
            tensors.append((name, "U8", [self.end]) if name == PATHS_KEY else (name, "I64", [self.n_items]))
            with (self.folder / f".{name}").open("rb") as part:
                shutil.copyfileobj(part, self.file, 2**20)
        header: dict[str, Any] = {"__metadata__": {_RUN: self.run}}
        sizes = {"F64": 8, "I64": 8, "F32": 4, "F16": 2, "BF16": 2, "U8": 1}
        start = 0
        for name, dtype, shape in tensors:
            end = start + int(np.prod(shape)) * sizes[dtype]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
            start = end
        self.file.seek(0)
        self.file.write((_HEADER - 8).to_bytes(8, "little") + json.dumps(header).encode().ljust(_HEADER - 8))

    def close(self) -> None:
        self.file.close()


class _ParquetFile:
    """Row groups of some megabytes."""

    def __init__(self, path: Path, run: str) -> None:
        self.file = path.open("wb")
        self.run = run
        self.writer: Any = None
        self.waiting: list[Any] = []
        self.n_bytes = 0

    def write(self, embeddings: Tensor, columns: dict[str, Any]) -> None:
        import pyarrow as pa

        if embeddings.dtype == torch.bfloat16:  # which Parquet has not
            embeddings = embeddings.float()
        numbers = pa.array(embeddings.flatten().numpy())
        arrays: dict[str, Any] = {EMBEDDINGS_KEY: pa.FixedSizeListArray.from_arrays(numbers, embeddings.shape[1])}
        for name, values in columns.items():
            arrays[name] = pa.array(values, pa.string()) if name == PATHS_KEY else pa.array(values.numpy())
        self.waiting.append(pa.table(arrays))
        self.n_bytes += embeddings.nbytes
        if self.n_bytes >= _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        nothing = pa.table({EMBEDDINGS_KEY: pa.array([], pa.list_(pa.float32(), 1))})
        table = pa.concat_tables(self.waiting) if self.waiting else nothing
        if self.writer is None:
            schema = table.schema.with_metadata({_RUN: self.run})
            self.writer = _parquet().ParquetWriter(self.file, schema, use_dictionary=False)
        self.writer.write_table(table.combine_chunks())
        self.waiting, self.n_bytes = [], 0

    def finish(self) -> None:
        if self.waiting or self.writer is None:
            self._flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.file.close()


class _JsonFile:
    def __init__(self, path: Path, run: str) -> None:  # noqa: ARG002 (there is no place for it)
        self.file = path.open("w", encoding="utf-8")
        self.file.write("{")
        self.seen: set[int] = set()

    def write(self, embeddings: Tensor, columns: dict[str, Any]) -> None:
        if PATHS_KEY not in columns:
            raise ValueError("Embeddings in a JSON file are found by their paths: EmbeddingWriter needs paths for it.")
        for path, row in zip(columns[PATHS_KEY], embeddings.tolist(), strict=True):
            if hash(path) in self.seen:  # not the texts, which would take much memory
                raise ValueError(
                    f"A JSON file has one embedding for each path, but {path!r} comes twice. Parquet and safetensors "
                    "files take several, such as those of boxes."
                )
            self.file.write(f"{', ' if self.seen else ''}{json.dumps(path)}: {json.dumps(row)}")
            self.seen.add(hash(path))

    def finish(self) -> None:
        self.file.write("}")

    def close(self) -> None:
        self.file.close()


def _remove_leftovers(path: Path) -> None:
    """What writers of this file left when they were killed; a writer at work has a lock."""
    for lock in path.parent.glob(f".{escape(path.name)}.*/{_LOCK}"):
        with suppress(Timeout, OSError), FileLock(lock, timeout=0):
            shutil.rmtree(lock.parent, ignore_errors=True)


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def shard_path(path: Path | str, rank: int, world: int) -> Path:
    """The file in which the process ``rank`` of ``world`` writes its part of ``path``.

    Example:
        >>> shard_path("runs/embeddings.parquet", 0, 4).as_posix()
        'runs/embeddings-00000-of-00004.parquet'
    """
    path = Path(path)
    return path.with_name(f"{path.stem}-{rank:05}-of-{world:05}{path.suffix}")


class Written(NamedTuple):
    """What :func:`write_embeddings` did, in all processes together."""

    n_items: int
    unreadable: list[Unreadable]
    """items that have no embedding, by their number in the data set, and why"""


def write_embeddings(
    extractor: IExtractor,
    dataset: Dataset,
    path: Path | str | Sequence[Path | str],
    batch_size: int = 64,
    num_workers: int = 0,
    *,
    on_unreadable: OnUnreadable = "raise",
    use_fp16: bool = False,
    inference: Inference | None = None,
    verbose: bool | None = None,
) -> Written:
    """Write the embedding of every item, batch by batch: the memory it takes does not grow with the data set.

    With them go the items' numbers, their paths and their labels, if the data set has ``paths_key`` and
    ``labels_key``. If ``torch.distributed`` is at work, each process writes a shard, see :func:`shard_path`, and
    :func:`read_embeddings` finds them by ``path``. A JSON file is one in any case; the first process makes it of the
    shards, so it needs one of the other formats beside it then.

    Args:
        extractor: its ``extract`` is called on batches.
        dataset: as for :func:`oml.inference.flat.extract_embeddings`.
        path: a file or several, in the formats of :class:`EmbeddingWriter`. Those there are replaced.
        batch_size, num_workers, use_fp16, inference, verbose: see :func:`oml.inference.flat.inference_on_images`.
        on_unreadable: ``raise``, or ``skip`` to go on without items whose images cannot be read. They come back, and a
            warning says how many they are.

    Raises:
        ValueError: there are no items, or none can be read; a format is unknown.
        UnreadableImageError: an image cannot be read, and this is to be raised. There are no files then.
        FileExistsError: a file of another number of processes has the same name, so that reading would be ambiguous.

    Example:
        ::

            files = ["embeddings.parquet", "predictions.json"]
            written = write_embeddings(extractor, dataset, files, on_unreadable="skip")
            embeddings = read_embeddings(files[0])
    """
    rank, world = rank_and_world()
    total = len(dataset)  # pyright: ignore[reportArgumentType]
    if total == 0:
        raise ValueError("write_embeddings needs a data set with at least one item.")
    paths = [Path(one) for one in ([path] if isinstance(path, Path | str) else path)]
    texts = [one for one in paths if one.suffix.lower() == ".json"] if world > 1 else []
    parts = [one for one in paths if one not in texts]
    if not parts:
        raise ValueError(
            f"write_embeddings by {world} processes needs a .parquet or .safetensors file, of which the JSON file is "
            f"made, got {[str(one) for one in paths]}."
        )
    run: list[Any] = [uuid.uuid4().hex]
    for one in parts:
        own = _shards(one, world) if world > 1 else [one]
        if others := [file.name for file in _files(one) if file not in own]:
            raise FileExistsError(
                f"write_embeddings would make files that cannot be told from {', '.join(others[:3])} beside "
                f"{str(one)!r}: remove these, or name another file."
            )
    if world > 1:
        dist.broadcast_object_list(run, src=0)  # also waits until all have looked
    keys = {name: getattr(dataset, f"{name}_key", None) for name in (LABELS_KEY, PATHS_KEY)}
    with ExitStack() as stack:
        files = [one if world == 1 else shard_path(one, rank, world) for one in parts]
        writers = [stack.enter_context(EmbeddingWriter(file, run[0])) for file in files]

        def consume(batch: Batch, embeddings: Tensor) -> None:
            columns = {name: batch.entries[key] for name, key in keys.items() if key is not None}
            if not isinstance(columns.get(LABELS_KEY), Tensor):  # texts
                columns.pop(LABELS_KEY, None)
            for writer in writers:
                writer.write(embeddings, batch.ids, **columns)

        on_progress = stack.enter_context(patient_bar("Computing embeddings", verbose))
        unreadable = in_all_processes(lambda: embed_batches(
            extractor, dataset, share(total, rank, world), consume, batch_size=batch_size, num_workers=num_workers,
            by_extract=True, use_fp16=use_fp16, inference=inference, on_unreadable=on_unreadable,
            on_progress=on_progress,
        ))  # fmt: skip
        everyone: list[Any] = [unreadable]
        if world > 1:
            everyone = [None] * world
            dist.all_gather_object(everyone, unreadable)
        unreadable = [item for part in everyone for item in part]
        if len(unreadable) == total:
            raise ValueError(f"write_embeddings could not read any of {total} items. {unreadable[0].reason}")
    if world > 1:
        dist.barrier()
        if rank == 0:
            for text in texts:
                with EmbeddingWriter(text) as writer:
                    for rows in iterate_embeddings(parts[0]):
                        writer.write(*rows)
        dist.barrier()
    if unreadable and rank == 0:
        warn_user(
            f"write_embeddings left out {len(unreadable):,} of {total:,} items, whose images cannot be read. The first "
            f"of them: {unreadable[0].reason}"
        )
    return Written(total - len(unreadable), unreadable)


def read_embeddings(path: Path | str) -> Float[Tensor, "item dim"]:
    """The embeddings in a file, or in the shards that several processes wrote of it.

    A .safetensors file has them under the key ``embeddings``, as ``oml demo`` writes them, a .npy file is one array, a
    .parquet file has a column ``embeddings`` of lists. Shards, see :func:`shard_path`, are put together by the numbers
    of their items, each of which is taken once.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Another suffix, a file that cannot be read, no such key or column, or no matrix of floats; shards
            that are missing or of different runs.
        ModuleNotFoundError: A Parquet file without the extra ``parquet``.
    """
    path = Path(path)
    readers = {".safetensors": _read_safetensors, ".npy": _read_npy, **dict.fromkeys(_PARQUET, _read_parquet)}
    if path.is_file() and path.suffix.lower() not in readers:
        raise ValueError(f"Embeddings are read from .safetensors, .npy or .parquet, got {str(path)!r}.")
    if _whole(path) == [path]:
        with _readable(path):
            embeddings = readers[path.suffix.lower()](path)
    else:
        embeddings = _read_shards(path)
    if embeddings.ndim != 2 or not embeddings.is_floating_point() or embeddings.shape[1] == 0:
        raise ValueError(
            f"Embeddings need to be floats in two dimensions, item and dim, but those of {str(path)!r} have shape "
            f"{tuple(embeddings.shape)} and type {str(embeddings.dtype).removeprefix('torch.')}."
        )
    return embeddings


def iterate_embeddings(path: Path | str) -> Iterator[EmbeddingRows]:
    """What :class:`EmbeddingWriter` wrote to a .safetensors or .parquet file or to shards of it, some rows at a time.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Another suffix, a file that cannot be read, shards that are missing or of different runs.
        ModuleNotFoundError: A Parquet file without the extra ``parquet``.
    """
    readers = {".safetensors": _iterate_safetensors, **dict.fromkeys(_PARQUET, _iterate_parquet)}
    if (suffix := Path(path).suffix.lower()) not in readers:
        raise ValueError(f"Embeddings are read some at a time from .safetensors or .parquet, got {str(path)!r}.")
    for file in _whole(Path(path)):
        with _readable(file):
            yield from readers[suffix](file)


def _read_shards(path: Path) -> Tensor:
    parts = [rows for rows in iterate_embeddings(path) if len(rows.embeddings)]
    embeddings = torch.cat([rows.embeddings for rows in parts]) if parts else torch.zeros(0, 0)
    ids = [rows.ids for rows in parts if rows.ids is not None]
    if not ids or len(ids) < len(parts) or (torch.cat(ids).diff() > 0).all():
        return embeddings
    return embeddings[torch.from_numpy(np.unique(torch.cat(ids).numpy(), return_index=True)[1])]


def _iterate_safetensors(path: Path) -> Iterator[EmbeddingRows]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        slices = {name: file.get_slice(name) for name in names}
        n_items, begin = slices[EMBEDDINGS_KEY].get_shape()[0], 0
        for start in range(0, n_items, _AT_ONCE):
            part = slice(start, min(start + _AT_ONCE, n_items))
            columns = {name: slices[name][part] if name in names else None for name in (_IDS, LABELS_KEY)}
            paths = None
            if _ENDS in names:
                ends = slices[_ENDS][part].tolist()
                text = bytes(slices[PATHS_KEY][begin : ends[-1]].numpy())
                paths = [text[a - begin : b - begin].decode() for a, b in zip([begin, *ends], ends, strict=False)]
                begin = ends[-1]
            yield EmbeddingRows(slices[EMBEDDINGS_KEY][part], columns[_IDS], columns[LABELS_KEY], paths)


def _iterate_parquet(path: Path) -> Iterator[EmbeddingRows]:
    with _parquet().ParquetFile(path) as file:
        for batch in file.iter_batches(_AT_ONCE):
            cells = batch.column(EMBEDDINGS_KEY)
            embeddings = torch.from_numpy(cells.flatten().to_numpy().copy()).reshape(len(cells), -1)
            columns = {
                name: torch.from_numpy(batch.column(name).to_numpy().copy()) if name in batch.schema.names else None
                for name in (_IDS, LABELS_KEY)
            }
            paths = batch.column(PATHS_KEY).to_pylist() if PATHS_KEY in batch.schema.names else None
            yield EmbeddingRows(embeddings, columns[_IDS], columns[LABELS_KEY], paths)


def _shards(path: Path, world: int) -> list[Path]:
    return [shard_path(path, rank, world) for rank in range(world)]


def _files(path: Path) -> list[Path]:
    """The file, and all shards of it."""
    pattern = re.compile(re.escape(path.stem) + r"-\d{5}-of-\d{5}" + re.escape(path.suffix))
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    return [path] * path.is_file() + sorted(file for file in beside if pattern.fullmatch(file.name))


def _whole(path: Path) -> list[Path]:
    """The file, or its shards, all of them and of one run."""
    found = _files(path)
    if not found:
        raise FileNotFoundError(f"Embeddings are needed, but there is no file {str(path)!r}.")
    if found == [path]:
        return found
    names = ", ".join(file.name for file in found[:3]) + ", ..." * (len(found) > 3)
    wanted = _shards(path, int(found[-1].stem[-5:]))
    if missing := [file for file in wanted if file not in found]:
        raise ValueError(f"Embeddings in shards need all of them: {missing[0].name} is missing ({names} are there).")
    if len(found) > len(wanted):
        raise ValueError(f"Embeddings are to be in one file or one set of shards, but there are {names}: remove some.")
    runs = {_run_of(file) for file in found}
    if len(runs) > 1:
        raise ValueError(f"Embeddings in shards need to be of one run, {names} are of {len(runs)}: write them anew.")
    return found


def _run_of(path: Path) -> str:
    with _readable(path):
        if path.suffix.lower() in _PARQUET:
            return (_parquet().read_schema(path).metadata or {}).get(_RUN.encode(), b"").decode()
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get(_RUN, "")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (ModuleNotFoundError, _WrongContentError):
        raise
    except Exception as error:  # parsers have many kinds
        raise ValueError(f"Embeddings cannot be read from {str(path)!r}: {' '.join(str(error).split())}") from error


class _WrongContentError(ValueError):
    pass


def _read_safetensors(path: Path) -> Tensor:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        if EMBEDDINGS_KEY not in file.keys():  # noqa: SIM118 (it is no mapping)
            raise _WrongContentError(
                f"Embeddings are read under the key {EMBEDDINGS_KEY!r}, but {str(path)!r} has {sorted(file.keys())}."
            )
        return file.get_tensor(EMBEDDINGS_KEY)


def _read_npy(path: Path) -> Tensor:
    return torch.from_numpy(np.load(path, allow_pickle=False))


def _read_parquet(path: Path) -> Tensor:
    parquet = _parquet()
    import pyarrow as pa

    if EMBEDDINGS_KEY not in (names := parquet.read_schema(path).names):
        raise _WrongContentError(
            f"Embeddings are read from the column {EMBEDDINGS_KEY!r}, but {str(path)!r} has the columns {names}."
        )
    column = parquet.read_table(path, columns=[EMBEDDINGS_KEY]).column(0)
    if pa.types.is_fixed_size_list(column.type) and not column.null_count:  # as EmbeddingWriter makes them
        numbers = column.combine_chunks().flatten().to_numpy()
        return torch.from_numpy(numbers.copy()).reshape(-1, column.type.list_size)
    cells = column.to_numpy()
    if len(cells) == 0:
        return torch.zeros(0, 1)
    sizes = np.array([-1 if cell is None else np.size(cell) for cell in cells])
    if len(bad := np.flatnonzero(sizes != sizes.max())):
        raise _WrongContentError(
            f"Embeddings need lists of one length in every row, but in {str(path)!r} rows {bad[:3].tolist()} "
            f"({len(bad)} in all) have not the {sizes.max()} numbers of the others."
        )
    return torch.from_numpy(np.stack(cells.tolist()))


def _parquet() -> Any:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Embeddings in a Parquet file need pyarrow: pip install 'open-metric-learning[parquet]'."
        ) from error
    return parquet
