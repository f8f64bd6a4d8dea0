"""What a data set holds: sizes, depth, channels, mean and deviation, files that cannot be read, duplicates.

    python -m hiermim_zoo.stats DATA
    python -m hiermim_zoo.stats DATA --scale 0,4095 --json stats.json

Numbers are those in the files: they tell which --scale suits. Mean and deviation are of values from 0 to 1, as
pretrain --mean and --std take them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .commands.options import Outcome, Verb, run_command
from .commands.options.stats import StatsOptions

EXAMPLES = (
    "python -m hiermim_zoo.stats examples/pictures",
    "python -m hiermim_zoo.stats examples/pictures --most 50 --json stats.json",
)


def execute(options: StatsOptions) -> Outcome:
    from .commands.surveying import survey

    return survey(options)


def more_problems(said: Mapping[str, Any]) -> list[str]:
    from .commands.surveying import problems

    return problems(said)


VERB = Verb("stats", __doc__ or "", StatsOptions, EXAMPLES, execute, more_problems=more_problems)
main = VERB.main
run = VERB.run

if __name__ == "__main__":
    run_command(main)
