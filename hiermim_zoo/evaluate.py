"""Measure how well a model tells the labels of images: classes, tags (several an image) or numbers.

    python -m hiermim_zoo.evaluate DATA --model hivit_base.mae_in1k_ft_in1k --method classify
    python -m hiermim_zoo.evaluate DATA --train DATA --model hivit_base --method knn        (or linear, finetune)
    python -m hiermim_zoo.evaluate TABLE.csv --target-columns age --group patient --split-fraction 0.2 ...
    torchrun --nproc-per-node 8 -m hiermim_zoo.evaluate DATA --model hivit_base --method finetune -o DIR

The last line on stdout is a JSON object; the line before it says the same for people. Images of DATA never take part
in a choice: not of weights, not of settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .commands.options import Outcome, Verb, run_command
from .commands.options.evaluate import EvaluateOptions

EXAMPLES = (
    "python -m hiermim_zoo.evaluate examples/pictures --model hivit_atto --method classify",
    "python -m hiermim_zoo.evaluate digits --model hivit_atto --method knn --img-size 32",
)


def execute(options: EvaluateOptions) -> Outcome:
    if options.explain:
        from .commands.explaining import explain_finetuning

        return explain_finetuning(options)
    from .commands.evaluating import evaluate

    return evaluate(options)


def family_values(model: str) -> Mapping[str, str]:
    from .commands.tuning_recipe import recipe_in_words

    return recipe_in_words(model)


def more_problems(said: Mapping[str, Any]) -> list[str]:
    from .commands.evaluating_checks import problems

    return problems(said)


VERB = Verb("evaluate", __doc__ or "", EvaluateOptions, EXAMPLES, execute, family_values, more_problems=more_problems)
main = VERB.main
run = VERB.run

if __name__ == "__main__":
    run_command(main)
