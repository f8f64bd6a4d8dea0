"""``report``: what folders of runs tell, as one page and as an image."""

from __future__ import annotations

from typing import Any

from ..checkpoints.atomic import replacing
from ..text import counted, printable
from .options import Outcome
from .options.report import ReportOptions
from .reporting_charts import axis_of, specs, write_png
from .reporting_checks import check
from .reporting_page import page
from .reporting_runs import read_runs


def report(options: ReportOptions) -> Outcome:
    """Write the page; the result is its path.

    Raises:
        ValueError: a folder is no run, a file cannot be written, or what draws is not installed.
    """
    check(options)
    import altair
    import vl_convert

    runs = read_runs(options.runs)
    drawn = specs(runs, options.over)
    version = ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    bundle: Any = vl_convert.javascript_bundle
    library = bundle(vl_version=version).replace("</script", "<\\/script")
    text = page(runs, drawn, library)
    with replacing(options.output) as part:
        part.write_text(text, encoding="utf-8")
    said = [f"wrote {printable(options.output)}: {counted(len(runs), 'runs')}, {counted(len(drawn), 'charts')}"]
    if options.png and drawn:
        write_png(runs, options.over, options.png)
        said.append(f"wrote {printable(options.png)}")
    elif options.png:
        said.append(f"--png {printable(options.png)} is not written: no step is logged yet")
    if drawn and axis_of(runs, options.over).removesuffix("s") != options.over.removesuffix("s"):
        said.append(f"drawn over samples: some logs have no {options.over}")
    return Outcome(options.output, "\n".join(said))
