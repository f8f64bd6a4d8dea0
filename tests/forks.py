"""Fresh processes without their cost: importing torch and timm takes seconds; one process does it and forks others.

A stem has imported torch, and nothing that reads an environment variable of the Hub. Each parent is a fork of it with
variables of its own, which then imports the rest; what a test runs are forks of a parent.
"""

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
from typing import Any, TextIO

ROOT = Path(__file__).parents[1]

STEM = """
import gc, json, os, signal, socket, sys, traceback
import requests, sklearn.datasets, torchvision.ops

assert "huggingface_hub" not in sys.modules
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

def done(job):
    children, first = set(), 0
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
    return first

def parent(about):
    os.environ.clear()
    os.environ.update(about["env"])
    os.chdir(about["cwd"])
    import timm, hiermim_zoo
    import hiermim_zoo.commands.extracting, hiermim_zoo.training.pretraining
    gc.collect()
    gc.freeze()
    with socket.create_connection(("127.0.0.1", about["port"])) as line, line.makefile("rw") as jobs:
        for job in jobs:
            print(done(json.loads(job)), file=jobs, flush=True)

parents = []
for about in sys.stdin:
    parents.append(os.fork())
    if parents[-1] == 0:
        parent(json.loads(about))
        os._exit(0)
for one in parents:
    os.waitpid(one, 0)
"""
COMMAND = "import runpy, sys; sys.argv.pop(0); runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"


class Forks:
    """Runs code in processes of their own, which have timm and hiermim_zoo imported."""

    def __init__(self, parent: TextIO, folder: Path) -> None:
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
        print(json.dumps(job), file=self.parent, flush=True)
        returned = int(self.parent.readline())
        return subprocess.CompletedProcess([code, *map(str, args)], returned, out.read_text(), err.read_text())

    def command(
        self, module: str, *args: object, processes: int = 1, cwd: Path | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """``python -m module``."""
        return self.run(COMMAND, module, *args, processes=processes, cwd=cwd, **env)


class Stem:
    """Makes parents."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    @contextmanager
    def forks(self, folder: Path, **env: str) -> Iterator[Forks]:
        """A parent with these environment variables, until the block ends."""
        assert self.process.stdin
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(120)
            about: dict[str, Any] = {"env": {**os.environ, "OMP_NUM_THREADS": "1", **env}, "cwd": str(folder)}
            about["port"] = server.getsockname()[1]
            print(json.dumps(about), file=self.process.stdin, flush=True)
            line, _ = server.accept()
        line.settimeout(None)
        with line, line.makefile("rw") as parent:
            yield Forks(parent, folder)
            line.shutdown(socket.SHUT_WR)
            assert parent.read() == "", "it ends"


@contextmanager
def new_stem() -> Iterator[Stem]:
    """One process for all that forks, until the block ends."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", STEM], stdin=subprocess.PIPE, text=True, env=env) as process:
        yield Stem(process)
