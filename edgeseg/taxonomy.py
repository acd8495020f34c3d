"""The label set that every network here is trained on: the 19 Cityscapes classes and void.

``trainId`` numbering follows the Cityscapes scripts: 0-18 are the classes that are evaluated,
255 marks pixels that are ignored. Networks with a void output put it at index 19.
"""

__all__ = ["CLASSES", "IGNORE", "NUM_KNOWN", "PALETTE", "VOID"]

CLASSES: tuple[str, ...] = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)

NUM_KNOWN = len(CLASSES)
VOID = NUM_KNOWN
IGNORE = 255

# RGB colours of the Cityscapes colour maps, index = trainId.
PALETTE: tuple[tuple[int, int, int], ...] = (
    (128, 64, 128),
    (244, 35, 232),
    (70, 70, 70),
    (102, 102, 156),
    (190, 153, 153),
    (153, 153, 153),
    (250, 170, 30),
    (220, 220, 0),
    (107, 142, 35),
    (152, 251, 152),
    (70, 130, 180),
    (220, 20, 60),
    (255, 0, 0),
    (0, 0, 142),
    (0, 0, 70),
    (0, 60, 100),
    (0, 80, 100),
    (0, 0, 230),
    (119, 11, 32),
)
