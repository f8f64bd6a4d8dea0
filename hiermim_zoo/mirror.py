"""Make an offline bundle of weights, or a mirror of them under an organisation of the Hub.

    python -m hiermim_zoo.mirror 'hiera*' --to ./bundle
    HIERMIM_MIRROR=./bundle     in the environment of whoever should find them there

A bundle is a folder that can be copied to a machine without a network, or stand behind a web server.
"""

from __future__ import annotations

from .commands.options import Outcome, Verb, run_command
from .commands.options.mirror import MirrorOptions

EXAMPLES = (
    "python -m hiermim_zoo.mirror 'hivit_atto*' hpvit_atto.mae_cifar10 --to ./bundle",
    "python -m hiermim_zoo.mirror 'hiera*' --to hf-hub:ORG --private --dry-run",
)


def execute(options: MirrorOptions) -> Outcome:
    from .commands.mirroring import mirror

    return mirror(options)


VERB = Verb("mirror", __doc__ or "", MirrorOptions, EXAMPLES, execute)
main = VERB.main
run = VERB.run

if __name__ == "__main__":
    run_command(main)
