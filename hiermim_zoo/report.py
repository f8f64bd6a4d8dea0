"""Draw how runs went, one or several beside each other: a page that needs no network, and an image.

Curves, previews, options and their differences, what was skipped, how each run ended. The page is one file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .commands.options import Outcome, Verb, run_command
from .commands.options.report import ReportOptions

EXAMPLES = (
    "python -m hiermim_zoo.report runs/a -o report.html",
    "python -m hiermim_zoo.report runs/a runs/b runs/tuned -o report.html --png curves.png --over samples",
)


def execute(options: ReportOptions) -> Outcome:
    from .commands.reporting import report

    return report(options)


def more_problems(said: Mapping[str, Any]) -> list[str]:
    from .commands.reporting_checks import problems

    return problems(said)


VERB = Verb("report", __doc__ or "", ReportOptions, EXAMPLES, execute, more_problems=more_problems)
main = VERB.main
run = VERB.run

if __name__ == "__main__":
    run_command(main)
