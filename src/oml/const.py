"""Column names, batch keys, paths and colours that the whole library shares. Imports nothing heavy."""

import os
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TCfg = Mapping[str, Any]  # a dict or a DictConfig of OmegaConf

# Columns of the retrieval table, see docs/data_format.md
LABELS_COLUMN = "label"
PATHS_COLUMN = "path"
SPLIT_COLUMN = "split"
IS_QUERY_COLUMN = "is_query"
IS_GALLERY_COLUMN = "is_gallery"
CATEGORIES_COLUMN = "category"
SEQUENCE_COLUMN = "sequence"
X1_COLUMN = "x_1"
X2_COLUMN = "x_2"
Y1_COLUMN = "y_1"
Y2_COLUMN = "y_2"
OBLIGATORY_COLUMNS = [LABELS_COLUMN, PATHS_COLUMN, SPLIT_COLUMN, IS_QUERY_COLUMN, IS_GALLERY_COLUMN]
BBOXES_COLUMNS = [X1_COLUMN, X2_COLUMN, Y1_COLUMN, Y2_COLUMN]
TRAIN_SPLIT = "train"
VALIDATION_SPLIT = "validation"

# Keys of a data set's items and of the batches made of them
INPUT_TENSORS_KEY = "input_tensors"
LABELS_KEY = "labels"
IS_QUERY_KEY = "is_query"
IS_GALLERY_KEY = "is_gallery"
EMBEDDINGS_KEY = "embeddings"
CATEGORIES_KEY = "categories"
PATHS_KEY = "paths"
SEQUENCE_KEY = "sequence"
X1_KEY = "x1"
X2_KEY = "x2"
Y1_KEY = "y1"
Y2_KEY = "y2"
INDEX_KEY = "idx"
PAIR_1ST_KEY = "input_tensors_1"
PAIR_2ND_KEY = "input_tensors_2"
CROP_KEY = "crop"  # of the two crop helpers of albumentations: x1, y1, x2, y2
OVERALL_CATEGORIES_KEY = "OVERALL"

# Folders
PROJECT_ROOT = Path(__file__).resolve().parent.parent
CONFIGS_PATH = PROJECT_ROOT / "oml" / "configs"
DOTENV_PATH = PROJECT_ROOT / ".env"


def get_cache_folder() -> Path:
    """Where OML keeps data sets and weights: ``$XDG_CACHE_HOME/oml``, by default ``~/.cache/oml``."""
    if platform.system() == "Darwin":
        return Path.home() / "Library" / "Caches" / "oml"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "oml"


CACHE_PATH = get_cache_folder()
TMP_PATH = Path(tempfile.gettempdir())
CKPT_SAVE_ROOT = CACHE_PATH / "torch" / "checkpoints"
MOCK_DATASET_PATH = CACHE_PATH / "mock_dataset"
# of the figures that version 0.4.4 downloaded; ours are drawn on the spot
MOCK_DATASET_URL_GDRIVE = "https://drive.google.com/drive/folders/1plPnwyIkzg51-mLUXWTjREHgc1kgGrF4?usp=sharing"
MOCK_DATASET_MD5 = "f725276646677ce3d63fd4c7d8a7f666"

# Downloads
STORAGE_URL = "https://oml.daloroserver.com"
STORAGE_CKPTS = f"{STORAGE_URL}/download/checkpoints"
REQUESTS_TIMEOUT = 120.0  # seconds

# Images
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
MEAN_CLIP = (0.48145466, 0.4578275, 0.40821073)
STD_CLIP = (0.26862954, 0.26130258, 0.27577711)
TColor = tuple[int, int, int]
TNormParam = tuple[float, float, float]
RED, GREEN, BLUE, GRAY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (120, 120, 120)
PAD_COLOR = (255, 255, 255)
IMAGE_EXTENSIONS = ["jpg", "jpeg", "JPG", "JPEG", "png"]

# Logging of pictures
LOG_IMAGE_FOLDER = "image_logs"
LOG_TOPK_ROWS_PER_METRIC = 5
LOG_TOPK_IMAGES_PER_ROW = 5
N_GT_SHOW_EMBEDDING_METRICS = 2

HYDRA_VERSION = "1.1"  # the version_base of command lines made with Hydra
