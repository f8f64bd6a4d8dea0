"""Write MODEL_CARDS.md and the README's table of models from the manifest and the models themselves.

python -m hiermim_zoo.cards [--check]
"""

from __future__ import annotations

from .commands.options import Outcome, Verb, run_command
from .commands.options.cards import CardsOptions

EXAMPLES = (
    "python -m hiermim_zoo.cards",
    "python -m hiermim_zoo.cards --check --root .",
)


def execute(options: CardsOptions) -> Outcome:
    from .commands.cataloguing import write_cards

    return write_cards(options)


VERB = Verb("cards", __doc__ or "", CardsOptions, EXAMPLES, execute)
main = VERB.main
run = VERB.run

if __name__ == "__main__":
    run_command(main)
