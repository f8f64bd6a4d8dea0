"""Pre-train an encoder by masked autoencoding.

The output folder gets run.json, log.jsonl, checkpoints/ (snapshots to go on from), looks/ (what the autoencoder makes
of some images) and, at the end, encoder/: the encoder as timm loads it, and the decoder beside it.

What is seen in a step, and what is hidden, follows from the seed and the step alone: a run that was interrupted and
resumed ends like one that was not. Several processes: torchrun --nproc-per-node 8 -m hiermim_zoo.pretrain ...
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .commands.options import Outcome, Verb, run_command
from .commands.options.pretrain import PretrainOptions

EXAMPLES = (
    "python -m hiermim_zoo.pretrain digits --model hivit_atto --img-size 32 -o runs/digits --batch-size 64 --steps 4",
    "python -m hiermim_zoo.pretrain moving:digits --model hiera_atto_video -o runs/moving --batch-size 8 --steps 2 "
    "--mask-ratio 0.8 --look-every 0",
)


def execute(options: PretrainOptions) -> Path | Outcome:
    if options.explain:
        from .commands.explaining import explain_pretraining

        return explain_pretraining(options)
    from .commands.recording import record_of_pretraining
    from .training.pretraining import pretrain

    return pretrain(options, record_of_pretraining)


def family_words(model: str) -> Mapping[str, str]:
    from .training.defaults import family_words

    return family_words(model)


def more_problems(said: Mapping[str, Any]) -> list[str]:
    from .training.checks import problems

    return problems(said)


VERB = Verb("pretrain", __doc__ or "", PretrainOptions, EXAMPLES, execute, family_words, more_problems=more_problems)
main = VERB.main
run = VERB.run

if __name__ == "__main__":
    run_command(main)
