"""What a run of pre-training reads, and how it is prepared."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from ..commands.options.pretrain import AUTO, PretrainOptions
from ..data.decoding import Form
from ..data.kinds import open_source
from ..data.labels import Ask, meaning_of, read_labels
from ..data.source import Source
from ..data.statistics import measured
from ..data.tables import is_table
from ..data.transforms import data_config
from ..mae import MaskedAutoencoder
from . import snapshots
from .drawing import Shown, shown_of
from .image_form import form_of, remembered_in, to_remember


class Data(NamedTuple):
    """What is read, and how it is prepared."""

    source: Any
    config: dict[str, Any]  # timm's: input_size (channels, frames?, height, width), mean, std, interpolation, ...
    form: Form  # that images are read in
    shown: Shown  # of them in drawings

    def described(self) -> dict[str, Any]:
        """What a snapshot tells of it, in plain values."""
        statistics = {key: [float(value) for value in self.config[key]] for key in ("mean", "std")}
        return {**statistics, "form": to_remember(self.form)}


def open_data(options: PretrainOptions, mae: MaskedAutoencoder, begun: snapshots.Begun | None) -> Data:
    """Images or clips, whatever the model takes.

    Raises:
        ValueError: there are none, or not as many as when the run began.
    """
    config = data_config(mae.encoder, mae.input_size)
    beside = begun.state.get("images", {}).get("form") if begun else None
    if beside is None:  # the run begins, or did so before snapshots said it
        beside = remembered_in(Path(options.checkpoint)) if options.checkpoint else {}
    form = form_of(options, mae.in_chans, beside)
    shown = shown_of(form, options.show_bands)
    source = open_source(
        options.data,
        config["input_size"],
        form=form,
        root=options.data_dir,
        split=options.split,
        seed=options.seed,
        stride=options.frame_stride,
        rate=options.frame_rate,
        repeat=options.repeat,
    )
    if begun:
        snapshots.check_options(begun.state["options"], {"pictures": len(source)}, begun.snapshot)
    config |= chosen_statistics(options, source, begun)
    if why := unprobed(options.data):
        source.labels = None
        if os.environ.get("RANK", "0") == "0":
            print(f"previews measure no neighbours: {why}; evaluate --method knn does")
    return Data(source, config, form, shown)


def unprobed(data: str) -> str:
    """Why the labels of a table are no classes that previews could measure; empty if they are, or there are none."""
    if not is_table(data) or Path(data).suffix == ".txt":
        return ""
    try:
        kind = meaning_of(read_labels(data), Ask()).kind
    except ValueError:  # no labels, or whole numbers: classes, as ever
        return ""
    return "" if kind == "classes" else f"the labels of {data} are {kind}"


def chosen_statistics(options: PretrainOptions, source: Source, begun: snapshots.Begun | None) -> dict[str, Any]:
    """Mean and standard deviation of the channels: as they were when the run began; else as far as the options say
    them, measured where they say so.

    Raises:
        ValueError: no image can be read.
    """
    if begun and "images" in begun.state:  # not in snapshots of before version 0.1
        return {key: tuple(begun.state["images"][key]) for key in ("mean", "std")}
    chosen = {key: value for key in ("mean", "std") if (value := getattr(options, key)) is not None}
    if (AUTO,) in chosen.values():
        found = measured(source)._asdict()
        found["std"] = tuple(max(value, 1e-3) for value in found["std"])  # of a channel that never changes
        chosen = {key: tuple(found[key]) if value == (AUTO,) else value for key, value in chosen.items()}
    return chosen
