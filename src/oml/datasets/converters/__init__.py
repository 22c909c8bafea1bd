"""Tables of public data sets, out of the files that their archives hold."""

from oml.datasets.converters.cars import convert_cars
from oml.datasets.converters.cub import convert_cub
from oml.datasets.converters.inshop import convert_inshop
from oml.datasets.converters.sop import convert_sop

__all__ = ["convert_cars", "convert_cub", "convert_inshop", "convert_sop"]
