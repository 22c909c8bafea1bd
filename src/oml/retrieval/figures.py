"""Pictures of what was retrieved. Matplotlib is loaded when one is drawn."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from oml.const import BLUE, GRAY, GREEN, N_GT_SHOW_EMBEDDING_METRICS, RED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from oml.retrieval.calibration import Calibration
    from oml.retrieval.results import RetrievalResults


def draw_queries(
    results: "RetrievalResults",
    paths: Sequence[str | Path],
    rows: Sequence[int],
    n_instances: int,
    n_gt: int = N_GT_SHOW_EMBEDDING_METRICS,
    boxes: Float[Tensor, "item 4"] | Int[Tensor, "item 4"] | None = None,
    calibration: "Calibration | None" = None,
) -> "Figure":
    """A row of images per query: the query, its ``n_instances`` nearest galleries, up to ``n_gt`` right answers.

    The query has a blue frame and tells how many galleries are right. A retrieved gallery has its rank and distance
    above, a green frame and a check mark if it is right, a red frame and a cross if it is wrong. What should have been
    found, at the end, has a gray frame.

    Args:
        results: what was found.
        paths: of the images of all items of the data set.
        rows: which queries, by their row in the results.
        n_instances: how many of the retrieved items to draw.
        n_gt: how many of the right answers to draw at the end.
        boxes: x1, y1, x2, y2 of the part of each image to draw.
        calibration: tells how likely each retrieved gallery is right; shown beside its distance.

    Raises:
        ValueError: if there are no such rows, or ids without a path or box, or a file is not an image.
        FileNotFoundError: if there is no file at some of the paths.

    Example:
        >>> import tempfile
        >>> from oml.retrieval import RetrievalResults
        >>> labels, everyone = torch.tensor([0, 0]), torch.tensor([True, True])
        >>> results = RetrievalResults.from_embeddings(torch.eye(2), labels, everyone, everyone, top_k=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     paths = [f"{folder}/{i}.png" for i in range(2)]
        ...     for path in paths:
        ...         Image.new("RGB", (32, 32)).save(path)
        ...     figure = draw_queries(results, paths, rows=[0], n_instances=1)
        >>> figure.axes[0].get_title()
        'query\\n1 to find'
    """
    from matplotlib.figure import Figure

    if len(rows) == 0 or not all(0 <= row < len(results) for row in rows):
        raise ValueError(f"draw_queries needs rows of {len(results)} queries, got {list(rows)}.")
    n_items = 1 + int(torch.cat([results.query_ids, results.gallery_ids]).amax())
    for name, given in (("paths", paths), ("boxes", boxes)):
        if given is not None and len(given) < n_items:
            raise ValueError(f"draw_queries needs {name} of all {n_items} items of the data set, got {len(given)}.")
    gt_ids = [results.gt_ids(row).tolist() for row in rows]
    retrieved = results.retrieved_ids[list(rows), :n_instances].flatten().tolist()
    items = {*results.query_ids[list(rows)].tolist(), *retrieved, *chain.from_iterable(ids[:n_gt] for ids in gt_ids)}
    if missing := [str(paths[item]) for item in sorted(items - {-1}) if not Path(paths[item]).is_file()]:
        raise FileNotFoundError(
            f"draw_queries needs the images of all items that it draws, {len(missing)} of {len(items - {-1})} are not "
            f"where they should be, such as {', '.join(map(repr, missing[:3]))}. Give paths that lead to them from the "
            "working directory, or whole ones."
        )

    n_columns = 1 + n_instances + n_gt
    figure = Figure(figsize=(16, 16 / n_columns * len(rows) * 1.25), layout="constrained")
    grid = figure.subplots(len(rows), n_columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()

    def show(axes: "Axes", item: int, title: str, colour: tuple[int, int, int]) -> None:
        try:
            with Image.open(paths[item]) as image:
                shown = image.convert("RGB")
        except OSError as error:
            raise ValueError(f"draw_queries cannot read the image {str(paths[item])!r}: {error}. Mend it.") from error
        if boxes is not None:
            x1, y1, x2, y2 = (int(side) for side in boxes[item].tolist())
            shown = shown.crop((x1, y1, x2, y2))
        axes.set_axis_on()
        axes.imshow(shown)
        axes.set(xticks=[], yticks=[])
        axes.set_title(title, fontsize=9)
        for spine in axes.spines.values():
            spine.set(color=[channel / 255 for channel in colour], linewidth=4)

    for row, right_ids, line in zip(rows, gt_ids, grid, strict=True):
        show(line[0], int(results.query_ids[row]), f"query\n{len(right_ids)} to find", BLUE)
        retrieved = zip(
            results.retrieved_ids[row].tolist(),
            results.distances[row].tolist(),
            results.is_relevant[row].tolist(),
            strict=True,
        )
        for rank, (item, distance, is_right) in enumerate(list(retrieved)[:n_instances], start=1):
            if item >= 0:
                title = f"{rank} {'✓ right' if is_right else '✗ wrong'}\n{distance:.3f}"
                if calibration is not None:
                    title += f", {float(calibration.probability(results.distances[row, rank - 1])):.0%}"
                show(line[rank], item, title, GREEN if is_right else RED)
        for axes, item in zip(line[1 + n_instances :], right_ids[:n_gt], strict=False):
            show(axes, item, "ground truth\n", GRAY)
    return figure


def draw_distances(
    right: Float[Tensor, " right"], wrong: Float[Tensor, " wrong"], *, n_bins: int = 100, title: str = ""
) -> "Figure":
    """Histograms of the distances of right and of wrong pairs: the less they overlap, the better for verification.

    Each has an area of 1, whatever its number of pairs; both have the same bins. A line marks each median.

    Args:
        right: distances of pairs of one label.
        wrong: distances of pairs of two labels.
        n_bins: of the range of all distances.
        title: of the picture.

    Raises:
        ValueError: if there are no right or no wrong pairs, or distances are not finite.

    Example:
        >>> figure = draw_distances(torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.5, 0.6]))
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['right: 2 pairs, median 0.1', 'wrong: 3 pairs, median 0.5']
    """
    from matplotlib.figure import Figure

    for name, distances in (("right", right), ("wrong", wrong)):
        if not len(distances) or not distances.isfinite().all():
            raise ValueError(
                f"draw_distances needs finite distances of {name} pairs, got {len(distances)}, of which "
                f"{int(distances.isfinite().sum())} are finite."
            )
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    low, high = float(min(right.amin(), wrong.amin())), float(max(right.amax(), wrong.amax()))
    for name, distances, colour in (("right", right, GREEN), ("wrong", wrong, RED)):
        red, green, blue = (channel / 255 for channel in colour)
        median, shade = float(distances.median()), (red, green, blue)
        axes.hist(
            distances.float().cpu().numpy(),
            bins=n_bins,
            range=(low, high),
            density=True,
            histtype="stepfilled",
            alpha=0.4,
            color=shade,
            label=f"{name}: {len(distances):,} pairs, median {median:.3g}",
        )
        axes.axvline(median, color=shade, linestyle="--")
    axes.set(xlabel="distance", ylabel="density", title=title)
    axes.margins(y=0.2)  # room for the legend
    axes.legend(loc="upper left")
    return figure
