"""Where :mod:`oml.datasets.table` was found in earlier versions."""

from oml.datasets.table import check_retrieval_dataframe_format

__all__ = ["check_retrieval_dataframe_format"]
