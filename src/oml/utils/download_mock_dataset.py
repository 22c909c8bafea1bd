"""Old path of the mock data set, see ``oml.datasets.mock``."""

from oml.datasets.mock import download_mock_dataset

__all__ = ["download_mock_dataset"]
