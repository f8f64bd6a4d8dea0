"""Fresh processes without their cost: importing torch and timm takes seconds; one process does it and forks others."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]

PARENT = """
import gc, json, os, signal, sys, traceback
import sklearn.datasets, timm, hiermim_zoo
import hiermim_zoo.commands.extracting, hiermim_zoo.training.pretraining

gc.collect()
gc.freeze()  # the children share these objects, and do not go through them

def work(job, rank):
    signal.alarm(300)
    for number, file in ((1, job["out"]), (2, job["err"])):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(job["env"], RANK=str(rank), LOCAL_RANK=str(rank))
    os.chdir(job["cwd"])
    sys.argv = ["script", *job["args"]]
    try:
        exec(job["code"], {"__name__": "__main__"})
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

for line in sys.stdin:
    job, children, first = json.loads(line), set(), 0
    for rank in range(job["processes"]):
        child = os.fork()
        if child == 0:
            code = work(job, rank)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        children.add(child)
    while children:
        child, status = os.wait()
        children.remove(child)
        first = first or os.waitstatus_to_exitcode(status)
        if status:  # as torchrun does
            for other in children:
                os.kill(other, signal.SIGTERM)
                os.kill(other, signal.SIGCONT)  # or one that was stopped would stay
    print(first, flush=True)
"""
COMMAND = "import runpy, sys; sys.argv.pop(0); runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"


class Forks:
    """Runs code in processes of their own, which have timm and hiermim_zoo imported."""

    def __init__(self, parent: subprocess.Popen[str], folder: Path) -> None:
        self.parent, self.folder, self.numbers = parent, folder, itertools.count()

    def run(
        self, code: str, *args: object, processes: int = 1, cwd: Path | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run code with arguments, in several processes if asked, which then can meet as those of torchrun can.

        The environment is the test's and ``env``, but what is read at import (the Hub's settings) is the parent's.
        Of several exit codes the first that is not zero is returned.
        """
        out, err = (self.folder / f"{next(self.numbers)}" for _ in range(2))
        if processes > 1:
            with socket.create_server(("127.0.0.1", 0)) as free:
                meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
            env = {**meeting, "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), **env}
        job = {
            "code": code,
            "args": [str(arg) for arg in args],
            "processes": processes,
            "env": {**os.environ, **env},
            "cwd": str(cwd or self.folder),
            "out": str(out),
            "err": str(err),
        }
        assert self.parent.stdin
        assert self.parent.stdout
        print(json.dumps(job), file=self.parent.stdin, flush=True)
        returned = int(self.parent.stdout.readline())
        return subprocess.CompletedProcess([code, *map(str, args)], returned, out.read_text(), err.read_text())

    def command(
        self, module: str, *args: object, processes: int = 1, cwd: Path | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """``python -m module``."""
        return self.run(COMMAND, module, *args, processes=processes, cwd=cwd, **env)


@contextmanager
def forks(folder: Path, **env: str) -> Iterator[Forks]:
    """A parent with these environment variables, until the block ends."""
    path = {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, **path, "OMP_NUM_THREADS": "1", **env},
    )
    with parent:
        yield Forks(parent, folder)
        assert parent.stdin
        parent.stdin.close()
