"""What ``convert --to LAYOUT --into FILE`` does: a model goes into the whole checkpoint that it came from."""

from __future__ import annotations

from pathlib import Path

from ..checkpoints.configs import read_config
from ..checkpoints.exchange import Whole, check_name, exchange, read_into, write_whole
from ..checkpoints.folder import CONFIG_FILE
from ..checkpoints.layouts import all_layouts, find_layout
from ..models.beside import check_beside
from ..models.conversion import Converted
from ..models.family import family_of
from ..text import counted
from .options.convert import ConvertOptions


def whole_checkpoint(options: ConvertOptions, arch: str) -> Whole:
    """The checkpoint that a model goes into, before any work is done.

    Raises:
        ValueError: the layout is of another family, or its files hold an encoder alone; the file does not fit, or would
            be written over.
    """
    table = find_layout(options.to or "")
    if not table.exchanges:
        able = ", ".join(layout.name for layout in all_layouts() if layout.exchanges)
        raise ValueError(f"--into goes with --to {able}; --to {table.name} writes a whole file: leave out --into")
    family = family_of(arch)
    if table.name not in {layout.name for layout in family.layouts}:
        raise ValueError(f"--to {table.name} is no layout of {family.name}, whose model {arch} is")
    whole = read_into(options.into or Path(), table)
    check_name(whole, options.output or Path())
    return whole


def put_into(converted: Converted, whole: Whole, file: Path) -> None:
    """Exchange the encoder and write the checkpoint.

    Raises:
        ValueError: it does not fit, or the configuration beside the checkpoint says another function.
    """
    config = whole.file.parent / CONFIG_FILE
    try:
        check_beside(read_config(config) if config.is_file() else {}, converted.native, converted.model, converted.arch)
    except ValueError as error:
        raise ValueError(f"--into {whole.file}: {error}") from error
    left_out = exchange(whole, converted.contents().state(), converted.source)
    write_whole(whole, file)
    print(f"wrote {file}: {whole.file} with its encoder exchanged")
    types = ", ".join(sorted({str(whole.weights[name].dtype).removeprefix("torch.") for name in whole.names.values()}))
    print(f"  {counted(len(whole.names), 'tensors')} exchanged ({types}), {whole.others} others as they were")
    if left_out:
        print(f"  left out, as an encoder is exchanged and no classifier: {', '.join(left_out)}")
    if converted.source_decoder():
        print("  the source's decoder is left out: the file has none of its kind")
