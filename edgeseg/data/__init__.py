"""Readers of road-scene data sets, one per layout, and the transforms that every part shares."""

from edgeseg.data.anomaly import AnomalySet
from edgeseg.data.camvid import CamVid
from edgeseg.data.cityscapes import Cityscapes, PairedFolder, open_cityscapes
from edgeseg.data.samples import Dataset, Sample, find_images, read_image, read_label

__all__ = [
    "AnomalySet",
    "CamVid",
    "Cityscapes",
    "Dataset",
    "PairedFolder",
    "Sample",
    "find_images",
    "open_cityscapes",
    "read_image",
    "read_label",
]
