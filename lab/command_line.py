"""What the command lines share: parsers made of settings, one line for a mistake, exit codes.

Exit codes: 0 success; 1 failure; 2 bad input; 128 + signal when stopped (130 Ctrl-C, 143 SIGTERM,
141 nobody reads stdout). Nothing here imports torch, so that `--help` and mistakes answer at once.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import inspect
import itertools
import json
import os
import signal
import sys
import time
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, Callable, Mapping, NoReturn, Sequence

import yaml

from config import FORMER, Setting, as_yaml, declared
from diverse_sampling.errors import SettingError, reject


class Parser(argparse.ArgumentParser):
    """A command line made of settings groups. Mistakes end with one line and exit code 2.

    Flags win over --config files wherever they stand, and later files over earlier ones. A value
    may begin with a minus, a list is written 3,4,7 or [3,4,7], and a flag alone means true.

    Arguments:
        groups: of settings
        unread: {key: the title of its group} of settings that are taken as they were written and
            read by somebody else
        more: -> the groups that declare these, for --help_all
        options: argparse's
    """

    def __init__(
        self,
        *groups: type,
        unread: Mapping[str, str] | None = None,
        more: Callable[[], Sequence[type]] = tuple,
        **options: Any,
    ):
        super().__init__(
            add_help=False,
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=26),
            **options,
        )
        self.add_argument("-h", "--help", action="store_true", help="show what is often needed")
        self.add_argument("--help_all", action="store_true", help="show every setting")
        if groups:
            self.add_argument(
                "--config", action="append", metavar="", help="YAML file with any of the settings"
            )
            self.add_argument("--print_config", action="store_true", help="print such a file")
        self.groups = groups
        self.settings: dict[str, Setting] = {}
        self.flags: dict[str, argparse.Action] = {}  # those that are keys of files too
        self.unread = unread or {}
        self.more = more
        for group in groups:
            titled = self.add_argument_group(group.__doc__)
            for setting in declared(group):
                self.settings[setting.name] = setting
                alone: dict = dict(nargs="?", const=True) if setting.base is bool else {}
                self.flags[setting.name] = titled.add_argument(
                    f"--{setting.name}", default=argparse.SUPPRESS, metavar="", **alone
                )
        headings = {title: self.add_argument_group(title) for title in self.unread.values()}
        for key, title in self.unread.items():
            self.flags[key] = headings[title].add_argument(
                f"--{key}", default=argparse.SUPPRESS, metavar="", help=argparse.SUPPRESS
            )

    def given(self, argv: Sequence[str] | None) -> dict[str, Any]:
        """Only what flags and --config files set, as a flat dictionary {setting: value}.

        Every value has passed the check of its own setting. Arguments that are no settings, such
        as positional ones, are in it too.
        """
        words = sys.argv[1:] if argv is None else argv
        if {"-h", "--help", "--help_all"} & set(words):
            self._show_help("--help_all" in words)
        found, unknown = self.parse_known_args(self._joined(words))
        if unknown:
            self.error(self._unknown(unknown[0].partition("=")[0]))
        typed = vars(found)
        for option in ("help", "help_all", "print_config"):
            typed.pop(option, None)
        values: dict[str, Any] = {}
        try:
            for source in (*map(self._of_file, typed.pop("config", None) or []), typed):
                for key in source:
                    values.pop(f"{key}_sha256", None)  # of what it takes the place of
                for key, value in source.items():
                    known = self.settings.get(key)
                    values[key] = known.read(value) if known else value
        except SettingError as error:
            self.error(str(error))
        return values

    def parse_args(self, args=None, namespace=None):
        """The values of all settings, the defaults included, as a namespace.

        With --print_config, prints them instead and exits.
        """
        values = self.given(args)
        if asks_for_config(args):
            print_config(self, values)
        return argparse.Namespace(**(self.defaults() | values))

    def defaults(self) -> dict[str, Any]:
        """{setting: its default}."""
        return {name: setting.default for name, setting in self.settings.items()}

    def error(self, message: str) -> NoReturn:
        """End the program: one line on stderr, exit code 2."""
        fail(message.removeprefix("argument --"), prog=self.prog)

    def _joined(self, words: Sequence[str]) -> list[str]:
        """The words with each flag joined to its value, which may begin with a minus."""
        joined = []
        rest = list(words)
        while rest:
            word = rest.pop(0)
            key = word.removeprefix("--")
            if key != word and key in self.flags and rest and not rest[0].startswith("--"):
                word += f"={rest.pop(0)}"
                if key in self.settings and self.settings[key].listed:
                    # The items of a list that was written with spaces are refused together.
                    more = list(takewhile(_is_number, rest))
                    word = " ".join([word, *more])
                    del rest[: len(more)]
            joined.append(word)
        return joined

    def _of_file(self, path: str) -> dict[str, Any]:
        """What a --config file sets. Raises SettingError."""
        accepted = "a YAML file of settings, in UTF-8"
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            reject("config", path, f"{accepted}; {Path(path).absolute()} was not found")
        except Exception as error:  # PyYAML lets out whatever a value's constructor raises
            reject("config", path, f"{accepted}; {error}")
        if not isinstance(values, dict):
            reject("config", path, accepted)
        values = {k: v for k, v in values.items() if k not in FORMER or v != FORMER[k]}
        for key in values:
            if key not in self.flags:
                raise SettingError(f"{self._unknown(str(key))}, in {path}")
        return values

    def _unknown(self, word: str) -> str:
        """What is said of a flag or key that is no setting."""
        near = difflib.get_close_matches(word.lstrip("-"), self.flags, 1)
        return f"{word}: not a setting here" + "".join(f"; did you mean {name}?" for name in near)

    def _show_help(self, everything: bool) -> NoReturn:
        """Print the help and end the program."""
        more = self.more() if everything else ()
        texts = texts_of([*self.groups, *more])
        for setting in (each for group in (*self.groups, *more) for each in declared(group)):
            name, action = setting.name, self.flags[setting.name]
            if setting.rare and not everything:
                action.help = argparse.SUPPRESS
                continue
            default = setting.default
            shown = default if isinstance(default, (str, float)) else json.dumps(default)
            said = f"{texts[name]} ({setting.accepted(everything)}; default: {shown})"
            action.help = said.replace("%", "%%")
        self.print_help()
        sys.exit(0)


def texts_of(groups: Sequence[type]) -> dict[str, str]:
    """{setting: its help}: the string below each field of some groups, read from the source."""
    names = {(group.__module__, group.__name__) for group in groups}
    texts = {}
    for module in {module for module, _ in names}:
        for node in ast.parse(inspect.getsource(sys.modules[module])).body:
            if isinstance(node, ast.ClassDef) and (module, node.name) in names:
                for field, text in pairwise(node.body):
                    if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                        words = ast.literal_eval(text.value).split()
                        texts[ast.unparse(field.target)] = " ".join(words)
    return texts


def _is_number(word: str) -> bool:
    """Whether a word may be an item of a list that was written with spaces."""
    try:
        float(word.strip("[],"))
    except ValueError:
        return False
    return True


def as_flags(values: Mapping[str, Any]) -> list[str]:
    """Flags that set what a flat dictionary {setting: value} holds: undone by `Parser.given`."""
    return [
        f"--{key}={value if isinstance(value, (str, float)) else json.dumps(value)}"
        for key, value in values.items()
    ]


def without_flags(argv: Sequence[str], *names: str) -> list[str]:
    """An argv without some flags and their values: names such as `--outdir`."""
    kept = []
    rest = iter(argv)
    for arg in rest:
        if arg in names:
            next(rest, None)
        elif arg.partition("=")[0] not in names:
            kept.append(arg)
    return kept


def asks_for_config(argv: Sequence[str] | None) -> bool:
    """Whether a command line has --print_config."""
    return "--print_config" in (sys.argv[1:] if argv is None else argv)


def print_config(parser: Parser, values: Mapping[str, Any]) -> NoReturn:
    """Print the configuration of all settings, those without a value at their default, and exit."""
    settings = parser.defaults()
    keys = [*settings, *parser.unread]
    print(as_yaml(settings | {key: values[key] for key in keys if key in values}), end="")
    sys.exit(0)


def fail(message: str, prog: str = "") -> NoReturn:
    """End the program: one line on stderr, exit code 2."""
    print(f"{prog or _name()}: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _name() -> str:
    return sys.argv[0].rsplit("/", 1)[-1]


def make_parser(*groups: type, **options: Any) -> Parser:
    """A parser of the settings of all groups, and of --config; `options` are argparse's."""
    return Parser(*groups, usage="%(prog)s [options]", **options)


def this_process() -> tuple[int, int]:
    """(the number of this process, how many torchrun started): (0, 1) without torchrun.

    Raises SettingError if the environment has a part of what torchrun sets, which somebody may have
    left there.
    """
    rank, ranks = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE"))
    if rank is None and ranks in (None, "1"):
        return 0, 1
    needed = ["RANK", "WORLD_SIZE"]
    if ranks != "1":
        needed += ["MASTER_ADDR", "MASTER_PORT"]
    missing = [name for name in needed if name not in os.environ]
    accepted = f"what torchrun sets, {', '.join(needed)}, or none of them"
    if missing:
        reject("RANK", rank, f"{accepted}; the environment has no {' and no '.join(missing)}")
    assert rank is not None and ranks is not None
    if not (rank.isdecimal() and ranks.isdecimal() and int(rank) < int(ranks)):
        reject("RANK", rank, f"{accepted}; WORLD_SIZE is {ranks!r}")
    return int(rank), int(ranks)


class Stopped(KeyboardInterrupt):
    """The signal `number` asks the program to end.

    `hint` says how to continue, if somebody on the way knows it.
    """

    hint = ""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def _stop(number: int, frame: Any) -> NoReturn:
    raise Stopped(number)


def run_program(main: Callable[[], Any]) -> None:
    """Run a command line and end the process with its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    code: Any = 0
    try:
        try:
            this_process()
            main()
        finally:
            sys.stdout.flush()
    except SystemExit as stop:
        code = stop.code
    except SettingError as error:
        fail(str(error))
    except Stopped as stop:
        code = 128 + stop.number
        if this_process()[0] == 0:
            stopped = f"{_name()}: stopped by {signal.Signals(stop.number).name}"
            print("; ".join(filter(None, (stopped, stop.hint))), file=sys.stderr)
    except BrokenPipeError:
        # What is left in the buffer has no reader; the interpreter would complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except OSError as error:
        print(f"{_name()}: failed: {error}", file=sys.stderr)
        code = 1
    sys.exit(code)


def run_folder(outdir: str | None, name: str) -> Path:
    """Make and return the folder of a run: `outdir`, or a new runs/<name>-<time>.

    Raises SettingError where it cannot be made.
    """
    new = Path(f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    path = Path(outdir) if outdir else new
    for number in itertools.count(2):
        try:
            path.mkdir(parents=True, exist_ok=outdir is not None)
        except OSError as error:
            if outdir is None and path.is_dir():  # of a run that began in the same second
                path = new.with_name(f"{new.name}-{number}")
                continue
            reject("outdir", str(path), f"a folder that can be written ({error.strerror})")
        break
    return path


def claim(folder: Path):
    """Lock a run's folder: a context manager that unlocks it.

    Raises SettingError if another run holds it.
    """
    from filelock import FileLock, Timeout

    try:
        return FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        reject("outdir", str(folder), "a folder that no other run is writing to")
