"""Calibration by a config: what a validation finds is what is calibrated."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tests.lightning.tiny import TRANSFORMS, Tiny

from oml.configs import ConfigError
from oml.datasets.base import DatasetQueryGallery
from oml.inference.flat import extract_embeddings
from oml.lightning.pipelines.calibrate import calibration_pipeline
from oml.registry.models import EXTRACTORS_REGISTRY
from oml.registry.transforms import get_transforms_by_cfg
from oml.retrieval import RetrievalResults
from oml.retrieval.calibration import Calibration


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRACTORS_REGISTRY, "tiny", Tiny)


def of_colours(root: Path, n_labels: int = 12, n_instances: int = 4) -> Path:
    """Images of a colour of their label and noise."""
    rng = np.random.default_rng(0)
    rows = []
    for label in range(n_labels):
        colour = rng.integers(0, 255, 3)
        for i in range(n_instances):
            pixels = np.clip(colour + rng.normal(0, 40, 3) + rng.normal(0, 9, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"{label}_{i}.png")
            rows.append({"label": label, "path": f"{label}_{i}.png", "split": "validation"})
    pd.DataFrame(rows).assign(is_query=True, is_gallery=True).to_csv(root / "df.csv", index=False)
    return root


def config(root: Path, **more: Any) -> dict[str, Any]:
    return {
        "accelerator": "cpu", "devices": 1, "precision": 32, "dataset_root": root, "dataframe_name": "df.csv",
        "bs_val": 16, "num_workers": 0, "transforms_val": TRANSFORMS, "extractor": {"name": "tiny", "args": {}},
        "metric_args": {"fmr_vals": [0.5], "recall_top_k": [7]}, **more,
    }  # fmt: skip


def test_it_is_of_what_a_validation_finds(tmp_path: Path) -> None:
    root = of_colours(tmp_path)
    found = calibration_pipeline(config(root), fmr_vals=[0.02], top_k=6, seed=3, method="platt")
    dataset = DatasetQueryGallery(pd.read_csv(root / "df.csv"), None, root, get_transforms_by_cfg(TRANSFORMS))
    embeddings = extract_embeddings(Tiny(), dataset, batch_size=48)
    results = RetrievalResults.from_dataset(embeddings, dataset, top_k=6)
    wanted = Calibration.from_results(results, embeddings=embeddings, fmr_vals=[0.02], seed=3, method="platt")
    assert found.distances == pytest.approx(wanted.distances, abs=1e-5)
    assert found.values == pytest.approx(wanted.values, rel=1e-3)
    assert found.thresholds[0].distance == pytest.approx(wanted.thresholds[0].distance, abs=1e-5)
    assert found.thresholds[0].fnmr == wanted.thresholds[0].fnmr
    assert 0 < found.thresholds[0].fnmr < 1
    on = found.fitted_on
    assert (on.n_pairs, on.n_queries, on.n_labels, on.top_k, on.distance) == (6 * 48, 48, 12, 6, "L2")
    other = calibration_pipeline(config(root, extractor={"name": "tiny", "args": {"seed": 1}}))
    assert other.fitted_on.table == on.table
    assert other.fitted_on.extractor != on.extractor


def test_re_ranked_distances_are_calibrated_as_they_are(tmp_path: Path) -> None:
    root = of_colours(tmp_path)
    re_ranker = {"name": "query_expansion", "args": {"n": 2}}
    plain, found = (
        calibration_pipeline(config(root, postprocessor=each), fmr_vals=[0.02]) for each in (None, re_ranker)
    )
    assert found.fitted_on.distance == "by QueryExpansionPostprocessor"
    assert found.distances != plain.distances
    # 48 queries with 3 items to find each, so that there are 44 wrong ones
    assert found.thresholds[0].n_wrong == plain.thresholds[0].n_wrong == 48 * 44


def test_too_few_labels_are_an_error_of_the_config(tmp_path: Path) -> None:
    root = of_colours(tmp_path, n_labels=2)
    rows = pd.read_csv(root / "df.csv")
    rows[rows["label"] == 0].to_csv(root / "one.csv", index=False)
    with pytest.raises(ConfigError, match="dataframe_name: Calibration needs right and wrong pairs, got 12 right ones"):
        calibration_pipeline(config(root, dataframe_name="one.csv"))
