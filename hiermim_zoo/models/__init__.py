"""The model families, in the order in which they are listed. Importing this registers their architectures with timm."""

# isort: off
from . import hivit
from . import hpvit
from . import hiera
from . import hiera_sam2
from . import green
from . import vit
# isort: on

__all__ = ["green", "hiera", "hiera_sam2", "hivit", "hpvit", "vit"]
