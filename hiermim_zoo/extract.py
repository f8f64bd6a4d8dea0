"""Write the features that a model finds in images or videos to a file.

    python -m hiermim_zoo.extract IMAGES... --model hivit_base -o features.safetensors
    python -m hiermim_zoo.extract VIDEOS... --model hiera_base_video -o features.safetensors
    torchrun --nproc-per-node 8 -m hiermim_zoo.extract IMAGES... --model hivit_base -o features.safetensors

The ending names the form: .safetensors, .npz, .npy (one array, its names beside it) or .parquet. Row i of every tensor
belongs to the i-th name of "files": of safetensors a JSON list in the metadata. With a model of video it is of the clip
in the middle of a file of video, or of a folder of frames, which goes by the name of the folder.

Several processes (they must share the disk) write what one writes, bit by bit, given equal devices and, on CPUs, equal
OMP_NUM_THREADS.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .commands.options import Outcome, Verb, run_command
from .commands.options.extract import ExtractOptions

EXAMPLES = (
    "python -m hiermim_zoo.extract examples/pictures/cat --model hivit_atto -o features.safetensors",
    "python -m hiermim_zoo.extract 'examples/pictures/*/0000.jpg' --model hpvit_atto --what maps --levels 0 3 "
    "-o maps.safetensors",
)


def execute(options: ExtractOptions) -> Outcome:
    from .commands.extracting import extract

    return extract(options)


def more_problems(said: Mapping[str, Any]) -> list[str]:
    from .commands.extracting_checks import problems

    return problems(said)


VERB = Verb("extract", __doc__ or "", ExtractOptions, EXAMPLES, execute, more_problems=more_problems)
main = VERB.main
run = VERB.run

if __name__ == "__main__":
    run_command(main)
