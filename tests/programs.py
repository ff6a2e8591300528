"""The command lines as processes of their own, without the seconds that importing torch takes.

A server that has imported everything forks for each program (multiprocessing's forkserver), so that
a program that is killed twenty times is twenty real processes and twenty moments.
"""

import multiprocessing
import os
import resource
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
IMPORTED = [
    *("train", "evaluate", "visualize", "lab.training", "sampler", "data_loader", "figures.sheets"),
    *("torch._dynamo", "sklearn.datasets", "matplotlib.backends.backend_agg"),
]


def _program(script: str, argv: list[str], out: str, err: str, options: dict) -> None:
    """What runs in the new process."""
    if options["cwd"] is not None:
        os.chdir(options["cwd"])
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    if options["largest_file"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options["largest_file"],) * 2)
    os.environ.update(options["env"])
    sys.argv = [script, *argv]
    sys.path.insert(0, os.path.dirname(script))
    runpy.run_path(script, run_name="__main__")


def _server():
    """The context of the server, which starts with the first program."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


class Program:
    """`python SCRIPT ARGV...`, running: the part of subprocess.Popen that the tests use.

    Arguments:
        script: a file of this repository, or one in cwd
        argv: its arguments, of any type
        cwd: where it runs; None: where the server was started
        env: variables beside those of the server
        largest_file: a limit on the size of files, which stands in for a disk that is full
    """

    def __init__(self, script: str, *argv, cwd=None, env=None, largest_file: int | None = None):
        self.folder = tempfile.TemporaryDirectory()  # gone with this object
        self.files = [Path(self.folder.name, name) for name in ("out", "err")]
        path = ROOT / script
        if not path.is_file():
            path = Path(cwd or ".").absolute() / script
        options = dict(cwd=cwd, env=env or {}, largest_file=largest_file)
        arguments = (str(path), [str(arg) for arg in argv], *map(str, self.files), options)
        # The server does not take over sys.path, and its threads are those of its environment.
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([before] if before else [])])
        try:
            self.process = _server().Process(target=_program, args=arguments)
            self.process.start()
        finally:
            if before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = before

    @property
    def returncode(self) -> int | None:
        """The exit code, None while it runs."""
        return self.process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self.process.exitcode

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()

    def send_signal(self, number: int) -> None:
        """Send a signal to it."""
        os.kill(self.process.pid, number)

    def wait(self, timeout: float | None = 120) -> int:
        """Its exit code, once it has ended."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self.process), timeout)
        return self.process.exitcode

    def communicate(self, timeout: float | None = 120) -> tuple[str, str]:
        """What it wrote to stdout and to stderr, once it has ended."""
        self.wait(timeout)
        out, err = (path.read_text() if path.exists() else "" for path in self.files)
        return out, err
