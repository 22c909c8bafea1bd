import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from oml.const import BLUE, GRAY, GREEN, RED
from oml.retrieval import RetrievalResults
from oml.retrieval.calibration import Calibration, FittedOn
from oml.retrieval.figures import draw_distances, draw_queries

EVERYONE = torch.ones(5, dtype=torch.bool)


@pytest.fixture
def results() -> RetrievalResults:
    # item 2 finds a stranger first, item 4 has a single relative, and only 4 of 5 places can be filled
    embeddings, labels = torch.tensor([[0.0], [1.0], [3.5], [3.0], [9.0]]), torch.tensor([0, 0, 0, 1, 1])
    return RetrievalResults.from_embeddings(embeddings, labels, EVERYONE, EVERYONE, top_k=5)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Item i is an image of the shade 10 * i, in several modes and sizes."""
    paths = []
    for item, mode in enumerate(["RGB", "L", "RGBA", "P", "RGB"]):
        paths.append(tmp_path / f"{item}.png")
        Image.new("L", (8 + item, 6), 10 * item).convert(mode).save(paths[-1])
    return paths


def drawn(axes: Axes) -> tuple[int, tuple[float, ...], str]:
    """The item drawn, the colour of its frame, its title."""
    (image,) = axes.images
    pixels = np.asarray(image.get_array())
    assert pixels.ndim == 3
    assert (pixels == pixels[0, 0, 0]).all()
    colours = {to_rgb(spine.get_edgecolor()) for spine in axes.spines.values()}
    assert len(colours) == 1
    assert len(axes.get_xticks()) == len(axes.get_yticks()) == 0
    return int(pixels[0, 0, 0]) // 10, tuple(round(255 * channel) for channel in colours.pop()), axes.get_title()


def test_probabilities_stand_beside_distances(results: RetrievalResults, paths: list[Path]) -> None:
    calibration = Calibration("isotonic", (0.0, 5.0), (1.0, 0.0), FittedOn(n_pairs=2, n_relevant=1))
    figure = draw_queries(results, paths, rows=[2], n_instances=3, n_gt=0, calibration=calibration)
    assert [drawn(axes)[2].rpartition(chr(10))[2] for axes in figure.axes[1:]] == [
        "0.500, 90%",
        "2.500, 50%",
        "3.500, 30%",
    ]


def test_a_row_shows_query_galleries_and_ground_truth(results: RetrievalResults, paths: list[Path]) -> None:
    figure = draw_queries(results, paths, rows=[2], n_instances=3, n_gt=2)
    assert [drawn(axes) for axes in figure.axes] == [
        (2, BLUE, "query\n2 to find"),
        (3, RED, "1 ✗ wrong\n0.500"),
        (1, GREEN, "2 ✓ right\n2.500"),
        (0, GREEN, "3 ✓ right\n3.500"),
        (0, GRAY, "ground truth\n"),
        (1, GRAY, "ground truth\n"),
    ]


def test_rows_come_as_asked_and_missing_images_leave_room(results: RetrievalResults, paths: list[Path]) -> None:
    figure = results.visualize(paths, rows=[4, 0], n_instances=6)
    grid = [figure.axes[:9], figure.axes[9:]]
    assert len(grid[1]) == 9
    items = [[drawn(axes)[0] if axes.images else None for axes in line] for line in grid]
    assert items == [[4, 2, 3, 1, 0, None, None, 3, None], [0, 1, 3, 2, 4, None, None, 1, 2]]
    assert not any(axes.axison for line in grid for axes in line if not axes.images)


def test_queries_are_found_by_their_row_not_their_item(paths: list[Path]) -> None:
    is_query = torch.tensor([False, False, False, True, True])
    results = RetrievalResults.from_embeddings(
        torch.arange(5.0)[:, None], torch.tensor([0, 1, 1, 0, 1]), is_query, ~is_query, top_k=1
    )
    assert [drawn(axes)[0] for axes in results.visualize(paths, rows=[1], n_instances=1).axes] == [4, 2, 1, 2]


def test_boxes_are_cut_out(results: RetrievalResults, paths: list[Path]) -> None:
    pixels = np.zeros((6, 8, 3), dtype=np.uint8)
    pixels[1:3, 2:7] = 200
    Image.fromarray(pixels).save(paths[0])
    boxes = torch.tensor([[2, 1, 7, 3]] + [[0, 0, 4, 4]] * 4)
    figure = draw_queries(results, paths, rows=[0], n_instances=1, n_gt=0, boxes=boxes)
    query, gallery = (np.asarray(axes.images[0].get_array()) for axes in figure.axes)
    assert query.shape == (2, 5, 3)
    assert (query == 200).all()
    assert gallery.shape == (4, 4, 3)


def test_the_figure_can_be_saved_and_holds_its_colours(
    results: RetrievalResults, paths: list[Path], tmp_path: Path
) -> None:
    figure = draw_queries(results, paths, rows=[2], n_instances=3)
    assert isinstance(figure, Figure)
    figure.savefig(tmp_path / "figure.png", dpi=50)  # warnings are errors: the font has all characters
    with Image.open(tmp_path / "figure.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(10**6) or []}
        assert image.width == 16 * 50
    assert {BLUE, RED, GREEN, GRAY} <= colours


def test_no_global_state_and_no_early_import(tmp_path: Path) -> None:
    script = """
import sys
import oml.retrieval.figures
assert "matplotlib" not in sys.modules
import torch
from PIL import Image
for i in range(2):
    Image.new("RGB", (4, 4)).save(f"{sys.argv[1]}/{i}.png")
labels, everyone = torch.tensor([1, 1]), torch.tensor([True, True])
results = oml.retrieval.RetrievalResults.from_embeddings(torch.eye(2), labels, everyone, everyone, top_k=1)
results.visualize([f"{sys.argv[1]}/{i}.png" for i in range(2)], [0], 1).savefig(f"{sys.argv[1]}/figure.png")
assert "matplotlib" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)


def test_bad_arguments(results: RetrievalResults, paths: list[Path]) -> None:
    for rows in ([], [5], [0, -1]):
        with pytest.raises(ValueError, match="needs rows of 5 queries, got"):
            draw_queries(results, paths, rows, n_instances=1)
    with pytest.raises(ValueError, match="paths of all 5 items of the data set, got 4"):
        draw_queries(results, paths[:4], [0], n_instances=1)
    with pytest.raises(ValueError, match="boxes of all 5 items of the data set, got 2"):
        draw_queries(results, paths, [0], n_instances=1, boxes=torch.zeros(2, 4))
    paths[1].write_text("no image")
    with pytest.raises(ValueError, match=r"cannot read the image '.*1\.png'"):
        draw_queries(results, paths, [0], n_instances=1)
    paths[1].unlink()
    paths[4].unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 are not where .* such as '\S*1\.png'\. Give paths"):
        draw_queries(results, paths, [0], n_instances=1)
    with pytest.raises(FileNotFoundError, match=r"2 of 5 are not where .* such as '\S*1\.png', '\S*4\.png'\. Give"):
        draw_queries(results, paths, [0], n_instances=4)
    draw_queries(results, paths, [2], n_instances=1, n_gt=1)  # items 2, 3 and 0


def test_distances_share_bins_and_have_an_area_of_one() -> None:
    right, wrong = torch.tensor([0.0, 1.0, 1.0, 2.0]), torch.tensor([2.0, 4.0])
    (axes,) = draw_distances(right, wrong, n_bins=4, title="pairs").axes
    polygons = [patch.get_path().vertices for patch in axes.patches]
    edges = [sorted(set(vertices[:, 0].tolist())) for vertices in polygons]
    assert edges[0] == edges[1] == [0, 1, 2, 3, 4]
    assert [vertices[:, 1].max() for vertices in polygons] == [0.5, 0.5]  # two of four, and one of two
    assert [patch.get_facecolor()[:3] for patch in axes.patches] == [to_rgb(np.array(c) / 255) for c in (GREEN, RED)]
    assert [line.get_xdata()[0] for line in axes.lines] == [1, 2]  # the lower of two in the middle
    assert (axes.get_title(), axes.get_xlabel()) == ("pairs", "distance")


def test_distances_all_equal_are_drawn() -> None:
    draw_distances(torch.zeros(3), torch.zeros(2))


@pytest.mark.parametrize(
    ("right", "wrong", "text"),
    [
        (torch.empty(0), torch.ones(1), "of right pairs, got 0"),
        (torch.ones(2), torch.tensor([1.0, torch.inf]), "of wrong pairs, got 2, of which 1 are finite"),
    ],
)
def test_distances_that_cannot_be_drawn(right: torch.Tensor, wrong: torch.Tensor, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        draw_distances(right, wrong)
