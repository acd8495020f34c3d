"""Road scenes drawn by program, with their label maps: the data that needs no download.

A street is planned in metres, then drawn from far to near with OpenCV. The 19 Cityscapes classes
all occur; objects that belong to none of them carry label 19 (void).
"""

from edgeseg.data.synthetic.render import SyntheticClip, scene
from edgeseg.data.synthetic.scenes import SyntheticScenes
from edgeseg.data.synthetic.unknown import void_cutout
from edgeseg.data.synthetic.weather import Options

__all__ = ["Options", "SyntheticClip", "SyntheticScenes", "scene", "void_cutout"]
