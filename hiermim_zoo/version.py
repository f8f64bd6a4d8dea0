"""The version, read from the installed package's metadata; pyproject.toml is the one place where it stands."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("hiermim-zoo")
except PackageNotFoundError:  # imported from a checkout that is not installed
    __version__ = "0+unknown"
