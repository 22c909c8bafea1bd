"""The constants that callers of the described system import, by the words of its documentation."""

from pathlib import Path

import oml
from oml import const


def test_columns_and_keys() -> None:
    assert const.OBLIGATORY_COLUMNS == ["label", "path", "split", "is_query", "is_gallery"]
    assert const.BBOXES_COLUMNS == ["x_1", "x_2", "y_1", "y_2"]
    assert (const.CATEGORIES_COLUMN, const.SEQUENCE_COLUMN) == ("category", "sequence")
    keys = {
        "INPUT_TENSORS_KEY": "input_tensors",
        "LABELS_KEY": "labels",
        "IS_QUERY_KEY": "is_query",
        "IS_GALLERY_KEY": "is_gallery",
        "EMBEDDINGS_KEY": "embeddings",
        "CATEGORIES_KEY": "categories",
        "PATHS_KEY": "paths",
        "X1_KEY": "x1",
        "X2_KEY": "x2",
        "Y1_KEY": "y1",
        "Y2_KEY": "y2",
        "INDEX_KEY": "idx",
        "PAIR_1ST_KEY": "input_tensors_1",
        "PAIR_2ND_KEY": "input_tensors_2",
        "OVERALL_CATEGORIES_KEY": "OVERALL",
        "CROP_KEY": "crop",
    }
    assert {name: getattr(const, name) for name in keys} == keys


def test_folders_and_colours() -> None:
    assert Path(oml.__file__).parent.parent == const.PROJECT_ROOT
    assert const.CONFIGS_PATH.is_dir()
    assert const.DOTENV_PATH == const.PROJECT_ROOT / ".env"
    assert const.CACHE_PATH in const.MOCK_DATASET_PATH.parents
    assert f"{const.STORAGE_URL}/download/checkpoints" == const.STORAGE_CKPTS
    assert (const.RED, const.GREEN, const.BLUE) == ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    assert (const.GRAY, const.PAD_COLOR) == ((120, 120, 120), (255, 255, 255))
    assert const.IMAGE_EXTENSIONS == ["jpg", "jpeg", "JPG", "JPEG", "png"]
