"""The model families. Importing this registers their architectures with timm."""

from . import hivit

ARCHITECTURES = {"hivit": tuple(hivit.VARIANTS)}
