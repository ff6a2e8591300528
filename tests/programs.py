"""The command lines as processes of their own, without the seconds that importing torch takes.

A server that has imported everything forks for each program (multiprocessing's forkserver), so that
a program that is killed twenty times is twenty real processes and twenty moments.
"""

import multiprocessing
import os
import resource
import runpy
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
IMPORTED = [
    *("train", "evaluate", "visualize", "training_loop", "set_sampler", "data_loader", "sheets"),
    *("torch._dynamo", "sklearn.datasets", "matplotlib.backends.backend_agg", "docstring_parser"),
]


def _program(script: str, argv: list[str], out: str, err: str, largest_file: int | None) -> None:
    import sys

    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY), number)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.argv = [script, *argv]
    runpy.run_path(script, run_name="__main__")


def _server():
    """The context of the server, which starts with the first program."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


class Program:
    """`python SCRIPT ARGV...`, running: the part of subprocess.Popen that the tests use.

    Arguments:
        script: a file of this repository
        argv: its arguments, of any type
        largest_file: a limit on the size of files, which stands in for a disk that is full
    """

    def __init__(self, script: str, *argv, largest_file: int | None = None):
        paths = [tempfile.mkstemp()[1] for _ in range(2)]
        self.files = [Path(path) for path in paths]
        arguments = (str(ROOT / script), [str(arg) for arg in argv], *paths, largest_file)
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
        texts = [path.read_text() for path in self.files]
        for path in self.files:
            path.unlink()
        return texts[0], texts[1]
