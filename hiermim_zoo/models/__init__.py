"""The model families. Importing this registers their architectures with timm."""

from . import green, hiera, hivit, hpvit

ARCHITECTURES = {
    "hivit": tuple(hivit.VARIANTS),
    "hpvit": tuple(hpvit.VARIANTS),
    "hiera": tuple(hiera.VARIANTS),
    "green": tuple(green.VARIANTS),
}
