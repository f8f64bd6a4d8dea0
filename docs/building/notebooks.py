"""Execute the notebooks of examples/notebooks and keep their outputs: python -m docs.building.notebooks."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
PATIENCE = 900  # seconds that a cell may take


def executed(path: Path) -> nbformat.NotebookNode:
    """A notebook with new outputs: those of stdout and figures, for warnings depend on the machine.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    book = nbformat.read(path, 4)
    folder = {"metadata": {"path": str(path.parent)}}
    NotebookClient(book, timeout=PATIENCE, kernel_name="python3", resources=folder, record_timing=False).execute()
    book.metadata["language_info"] = {"name": "python"}
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return book


def main() -> int:
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    for path in sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(executed(path), path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
