"""Readers of road-scene data sets, one per layout, and the transforms that every part shares."""

from edgeseg.data.anomaly import AnomalySet
from edgeseg.data.camvid import CamVid
from edgeseg.data.cityscapes import Cityscapes, open_cityscapes
from edgeseg.data.folder import LabelledFolder
from edgeseg.data.labelled import open_labelled
from edgeseg.data.samples import Dataset, Sample, find_images, read_image, read_label

PairedFolder = LabelledFolder

__all__ = [
    "AnomalySet",
    "CamVid",
    "Cityscapes",
    "Dataset",
    "LabelledFolder",
    "PairedFolder",
    "Sample",
    "find_images",
    "open_cityscapes",
    "open_labelled",
    "read_image",
    "read_label",
]
