"""Build the documentation site: python -m docs.building [-o FOLDER]. Warnings are errors."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import build_main

from .stage import ROOT, stage

HERE = Path(__file__).parent


def main() -> int:
    """Stage the pages, build them, and say where the site is; the exit code is Sphinx's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "build" / "docs", metavar="FOLDER")
    folder = parser.parse_args().output
    source, site = folder / "source", folder / "html"
    for old in (source, site):  # a page that is gone would stay
        shutil.rmtree(old, ignore_errors=True)
    stage(source)
    doctrees = ["-d", str(folder / "doctrees")]
    code = build_main(
        ["-W", "--keep-going", "-q", "-E", "-b", "html", *doctrees, "-c", str(HERE), str(source), str(site)]
    )
    if not code:
        print(f"built {site / 'index.html'}")
    return code


if __name__ == "__main__":
    sys.exit(main())
