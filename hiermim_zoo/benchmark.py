"""Time, memory and multiply-adds of models, run in turns so that a busy machine slows all of them alike.

    python -m hiermim_zoo.benchmark hivit_base --versus vit_base_patch16_224 --batch-size 4
    python -m hiermim_zoo.benchmark hivit_base:pretrain --versus hivit_base:dense --batch-size 8
    python -m hiermim_zoo.benchmark --suite gpu -o results

A model is "NAME" or "NAME:MODE". Modes: inference; train (forward and backward of the classifier); pretrain (forward
and backward of the masked autoencoder, masked as its family's recipe says); dense (the same with all units visible).

A suite is all that this project claims for a GPU or for a CPU, in one run. Its results are written after every
comparison, so a run that is cut off has what it has; what is not installed is left out and named.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .commands.options import Outcome, Verb, run_command
from .commands.options.benchmark import BenchmarkOptions

EXAMPLES = (
    "python -m hiermim_zoo.benchmark hivit_atto --versus hiera_atto --batch-size 4 --rounds 3 --warmup 1",
    "python -m hiermim_zoo.benchmark green_swin_atto:pretrain --versus green_swin_atto:dense --rounds 2 --warmup 1",
)


def execute(options: BenchmarkOptions) -> Outcome:
    from .commands.benchmarking_checks import check

    check(options)
    if options.suite:
        from .commands.suite_run import run_suite

        return run_suite(options)
    from .commands.benchmarking import benchmark

    return benchmark(options)


def more_problems(said: Mapping[str, Any]) -> list[str]:
    from .commands.benchmarking_checks import problems

    return problems(said)


VERB = Verb("benchmark", __doc__ or "", BenchmarkOptions, EXAMPLES, execute, more_problems=more_problems)
main = VERB.main
run = VERB.run

if __name__ == "__main__":
    run_command(main)
