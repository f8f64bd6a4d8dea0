"""Turn a published checkpoint into a folder that timm loads.

    python -m hiermim_zoo.convert SOURCE --model ARCH -o DIR
    timm.create_model("local-dir:DIR", pretrained=True)

Every tensor is carried over or dropped for a stated reason. What the family of ARCH lets a conversion choose is shown
by --model ARCH --help.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .commands.options import Verb, run_command
from .commands.options.convert import ConvertOptions

EXAMPLES = (
    "python -m hiermim_zoo.convert hivit_atto.mae_cifar10 -o runs/hivit --verify",
    "python -m hiermim_zoo.convert hpvit_atto.mae_cifar10 --pool conv --dry-run",
)


def execute(options: ConvertOptions) -> Path | None:
    """Convert; the folder or file that was written, None of a dry run."""
    from .commands.converting import convert_source
    from .commands.converting_checks import check

    check(options)
    return convert_source(options)


def family_options(model: str | None, words: Sequence[str]) -> type[ConvertOptions]:
    from .commands.converting import options_of

    return options_of(model, words)


def family_values(model: str) -> Mapping[str, str]:
    from .commands.converting import values_of

    return values_of(model)


def more_problems(said: Mapping[str, Any]) -> list[str]:
    from .commands.converting_checks import problems

    return problems(said)


VERB = Verb(
    "convert",
    __doc__ or "",
    ConvertOptions,
    EXAMPLES,
    execute,
    family_values,
    family_options,
    more_problems=more_problems,
)
main = VERB.main
run = VERB.run

if __name__ == "__main__":
    run_command(main)
