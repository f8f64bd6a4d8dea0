"""Look at the installation, or closely at weights: digest, layout, plausibility, licence, golden outputs, contract.

    python -m hiermim_zoo.doctor
    python -m hiermim_zoo.doctor hivit_atto.mae_cifar10 DIR
    python -m hiermim_zoo.doctor hivit_base.mae_in1k --fetch --json

Without names it prints versions, folders of weights and their sizes, what is set to work offline, which weights are
here and which could be had. The exit code is 0 if all is right, 1 if something is wrong with what was asked about, 2 on
bad input. No server is asked without --fetch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from .commands.options import Outcome, Verb, run_command
from .commands.options.doctor import DoctorOptions

EXAMPLES = (
    "python -m hiermim_zoo.doctor",
    "python -m hiermim_zoo.doctor hivit_atto.mae_cifar10",
    "python -m hiermim_zoo.doctor hiera_atto.mae_cifar10_ft_cifar10 --fetch --json",
)
WRONG = 1  # exit code


def execute(options: DoctorOptions) -> Outcome:
    from .commands.doctoring import look

    return look(options)


VERB = Verb("doctor", __doc__ or "", DoctorOptions, EXAMPLES, execute)
run = VERB.run


def main(argv: Sequence[str] | None = None) -> Any:
    """Run it with the options of a command line.

    Raises:
        SystemExit: with exit code 1, if something is wrong.
    """
    found = VERB.main(argv)
    if any(check["state"] == "wrong" for target in found["targets"] for check in target["checks"]):
        sys.exit(WRONG)
    return found


if __name__ == "__main__":
    run_command(main)
