"""The model families. Importing this registers their architectures with timm."""

from . import green, hivit, hpvit

ARCHITECTURES = {"hivit": tuple(hivit.VARIANTS), "hpvit": tuple(hpvit.VARIANTS), "green": tuple(green.VARIANTS)}
