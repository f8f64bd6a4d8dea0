"""Draw what a masked autoencoder makes of images or clips: original, masked, predicted, pasted.

python -m hiermim_zoo.reconstruct IMAGES... --model hivit_base --checkpoint DIR -o out.png
python -m hiermim_zoo.reconstruct CLIP.mp4 FOLDER_OF_FRAMES --model hiera_base_video --checkpoint DIR -o out.png
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .commands.options import Outcome, Verb, run_command
from .commands.options.reconstruct import ReconstructOptions

EXAMPLES = (
    "python -m hiermim_zoo.reconstruct examples/pictures/cat/0001.jpg --model hivit_atto -o out.png",
    "python -m hiermim_zoo.reconstruct examples/pictures/dog/0000.jpg --model hiera_atto --mask-ratio 0.5 -o out.jpg",
)


def execute(options: ReconstructOptions) -> Outcome:
    from .commands.reconstructing import reconstruct

    return reconstruct(options)


def more_problems(said: Mapping[str, Any]) -> list[str]:
    from .commands.reconstructing import problems

    return problems(said)


VERB = Verb("reconstruct", __doc__ or "", ReconstructOptions, EXAMPLES, execute, more_problems=more_problems)
main = VERB.main
run = VERB.run

if __name__ == "__main__":
    run_command(main)
