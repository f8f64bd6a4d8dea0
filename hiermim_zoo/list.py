"""List published and embedded weights: parameters, size, licence, accuracy, and whether they are here.

    python -m hiermim_zoo.list
    python -m hiermim_zoo.list 'hiera*' --size 0 60
    python -m hiermim_zoo.list --commercial --json

An accuracy stands with the crop that it was measured with and with who measured it. Nothing is fetched.
"""

from __future__ import annotations

from .commands.options import Outcome, Verb, run_command
from .commands.options.listing import ListOptions

EXAMPLES = (
    "python -m hiermim_zoo.list",
    "python -m hiermim_zoo.list 'hiera*' '*.mae_in1k' --size 0 60",
    "python -m hiermim_zoo.list --commercial --here --json",
)


def execute(options: ListOptions) -> Outcome:
    from .commands.listing import list_weights

    return list_weights(options)


VERB = Verb("list", __doc__ or "", ListOptions, EXAMPLES, execute)
main = VERB.main
run = VERB.run

if __name__ == "__main__":
    run_command(main)
