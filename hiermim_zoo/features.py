"""Draw what models find in images or clips: their feature maps as colours, side by side.

    python -m hiermim_zoo.features IMAGES... --model hivit_base -o features.png
    python -m hiermim_zoo.features IMAGES... --model hivit_base --model vit_base_patch16_224.mae -o features.html
    python -m hiermim_zoo.features CLIP.mp4 --model hiera_base_video -o features.png

Of each level the three principal components are shown as red, green and blue. They are found over all images together,
so like colours are like features; those of the other levels and models are turned to the first ones (orthogonal
Procrustes), so that colours can be compared. In a page a click on any place shows the cosine similarity to it; the page
is one file that fetches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .commands.options import Outcome, Verb, run_command
from .commands.options.features import FeaturesOptions

EXAMPLES = (
    "python -m hiermim_zoo.features examples/pictures/horse/0013.jpg --model hivit_atto hiera_atto -o features.png",
    "python -m hiermim_zoo.features 'examples/pictures/*/0003.jpg' --model hivit_atto --point 0.5 0.5 -o features.html",
)


def execute(options: FeaturesOptions) -> Outcome:
    from .commands.featuring import draw

    return draw(options)


def more_problems(said: Mapping[str, Any]) -> list[str]:
    from .commands.featuring_checks import problems

    return problems(said)


VERB = Verb("features", __doc__ or "", FeaturesOptions, EXAMPLES, execute, more_problems=more_problems)
main = VERB.main
run = VERB.run

if __name__ == "__main__":
    run_command(main)
