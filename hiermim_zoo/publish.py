"""Publish weights on the Hub: model, decoder, configuration, card and golden logits, in one commit.

    python -m hiermim_zoo.publish TAG|DIR --to ORG/NAME
    timm.create_model("hf-hub:ORG/NAME", pretrained=True)

What was published is downloaded again and compared bit by bit. Weights whose licence does not allow it are refused.
"""

from __future__ import annotations

from .commands.options import Outcome, Verb, run_command
from .commands.options.publish import PublishOptions

EXAMPLES = (
    "python -m hiermim_zoo.publish runs/base/encoder --to ORG/NAME --dry-run",
    "python -m hiermim_zoo.publish hivit_atto.mae_cifar10 --to ORG/hivit_atto.mae_cifar10 --private",
)


def execute(options: PublishOptions) -> Outcome:
    from .commands.publishing import publish

    return publish(options)


VERB = Verb("publish", __doc__ or "", PublishOptions, EXAMPLES, execute)
main = VERB.main
run = VERB.run

if __name__ == "__main__":
    run_command(main)
