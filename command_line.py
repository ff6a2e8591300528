"""What the command lines share: parsers made of settings, one line for a mistake, exit codes.

Exit codes: 0 success; 1 failure; 2 bad input; 128 + signal when stopped (130 Ctrl-C, 143 SIGTERM,
141 nobody reads stdout). Nothing here imports torch, so that `--help` and mistakes answer at once.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from itertools import takewhile
from pathlib import Path
from typing import Any, Callable, Mapping, NoReturn, Sequence

from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from config import reject

set_parsing_settings(docstring_parse_attribute_docstrings=True, add_print_completion_argument=True)

# What the number types of config.py accept.
KINDS = {
    "Count": "a whole number > 0, at most a billion",
    "Seed": "a whole number >= 0 and < 2^63",
    "CountOrZero": "a whole number >= 0, at most a billion",
    "LogSigma": "a number from -10 to 10",
    "Sigma": "a number from 1e-6 to 1e6",
    "Positive": "a number > 0",
    "NonNegative": "a number >= 0",
    "PositiveFloat": "a number > 0 or inf",
    "NonNegativeFloat": "a number >= 0 or inf",
    "ClosedUnitInterval": "a number from 0 to 1",
}


def _one_line(message: str) -> str:
    """jsonargparse's report of a bad value as one line: key, value, what is accepted."""
    found = re.search(r'Parser key "([^"]+)":', message)
    if not found:
        return " ".join(message.split())
    key = found.group(1)
    text = " ".join(message[found.end() :].split())

    missing = re.search(r"File does not exist: '(.*)'", text)
    if missing:
        return f"{key}: {missing.group(1)} was not found; accepted: a YAML file"
    if "Expected a <class 'list'>" in text:
        given_value = re.split("(?:Given|Got) value:", text)[-1].strip()
        return f"{key}: got {given_value!r}; accepted: a list of numbers, 3,5 or [3,5]"
    builtin = re.search(r"Expected a <class '(bool|int|float)'>\. Got value: (.*)", text)
    if builtin:
        words = dict(bool="true, false", int="a whole number", float="a number")
        return f"{key}: got {builtin.group(2)}; accepted: {words[builtin.group(1)]}"
    choices = re.search(r"Literal\[(.*?)\]", text)
    kinds = list(dict.fromkeys(re.findall(r"Not of type (\w+)", text)))
    if not choices and not kinds:
        return f"{key}: {text}"
    if choices:
        accepted = choices.group(1)
    else:
        accepted = " or ".join(KINDS.get(kind, kind) for kind in kinds)
    if "typing.List" in text:
        accepted = f"a list, each {accepted}"
    if "<class 'NoneType'>" in text:
        accepted += ", or null"
    # The value stands after one of these, or in quotes at the end of what int() and float() say.
    value = (
        re.search(r"(?:Given value|Got value): (.*)", text)
        or re.search(r"(\S+) does not conform", text)
        or re.search(r"'([^']*)'$", text)
    )
    shown = value.group(1).strip() if value else text
    return f"{key}: got {'null' if shown == 'NoneType' else shown}; accepted: {accepted}"


class HelpFormatter(DefaultHelpFormatter):
    """Help that says in words what a setting accepts, and its default as YAML writes it."""

    def _get_help_string(self, action) -> str:
        kind = self._get_type_str(action)
        if kind is None or not action.option_strings:
            return super()._get_help_string(action)
        words = [KINDS[name].split(",")[0] for name in re.findall(r"\w+", kind) if name in KINDS]
        words += re.findall(r"^Optional\[Literal\[(.*)\]\]", kind)
        each = "each " if "List" in kind else ""
        accepted = "".join(f"{each}{word}; " for word in words)
        default = action.default
        shown = default if isinstance(default, (str, float)) else json.dumps(default)
        return f"{action.help} ({accepted}default: {shown})"


# A number as argparse sees it: a value, although it may begin with the - of a flag.
_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+|inf|nan)(e[-+]?\d+)?", re.I)


class Parser(ArgumentParser):
    """A command line made of settings groups. Mistakes end with one line and exit code 2.

    Beyond what jsonargparse does, flags win over `--config` files wherever they stand, a negative
    number may follow its flag in any notation, and lists may be written 3,4,7 as well as [3,4,7].
    """

    def parse_args(self, args=None, *more, **options):
        """Parse arguments as jsonargparse does, after putting them into a form that it accepts."""
        arranged = self._arranged(sys.argv[1:] if args is None else args)
        try:
            return super().parse_args(arranged, *more, **options)
        except UnicodeDecodeError as error:
            self.error(f"config: not a text file ({error}); accepted: a YAML file in UTF-8")

    def _arranged(self, args: Sequence[str]) -> list[str]:
        """The arguments with every --config first and each flag joined with its value."""
        flags = {flag: action for action in self._actions for flag in action.option_strings}
        rest = list(args)
        configs: list[str] = []
        others: list[str] = []
        while rest:
            arg = rest.pop(0)
            if arg == "--":
                others += [arg, *rest]
                break
            flag, equals, value = arg.partition("=")
            action = flags.get(flag)
            if action is None or action.nargs == 0:
                others.append(arg)
                continue
            if not equals and rest and (_NUMBER.match(rest[0]) or not rest[0].startswith("-")):
                equals = "="
                value = rest.pop(0)
            if _is_list(action):
                self._refuse_spaces(action.dest, value, rest)
                if all(_NUMBER.fullmatch(item) for item in value.split(",")):
                    value = f"[{value}]"
            (configs if flag == "--config" else others).append(flag + equals + value)
        return configs + others

    def _refuse_spaces(self, key: str, first: str, rest: list[str]) -> None:
        """End with a line that says how a list is written, where more numbers follow its first."""
        more = list(takewhile(lambda word: _NUMBER.fullmatch(word.strip(",]")), rest))
        if more:
            numbers = ",".join(word.strip("[],") for word in (first, *more))
            self.error(
                f"{key}: got {' '.join([first, *more])!r}; accepted: a list without spaces, "
                f"{numbers} or [{numbers}]"
            )

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(_one_line(str(ex or message)), prog=self.prog.replace(" [options]", ""))


def _is_list(action: argparse.Action) -> bool:
    return "List" in str(getattr(action, "_typehint", ""))


def given(parser: Parser, argv: Sequence[str] | None) -> dict[str, Any]:
    """Only what flags and --config files set, as a flat dictionary {setting: value}; flags win.

    Every value has passed the check of its own setting. `--print_config` is left to
    `print_config`, which knows the defaults of a checkpoint or of a run to continue.
    """
    argv = sys.argv[1:] if argv is None else argv
    asked = [arg for arg in argv if not arg.startswith("--print_config")]
    values = parser.parse_args(asked, defaults=False).as_dict()
    return {key: value for key, value in values.items() if key != "config"}


def as_flags(values: Mapping[str, Any]) -> list[str]:
    """Flags that set what a flat dictionary {setting: value} holds: the inverse of `given`."""
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
    argv = sys.argv[1:] if argv is None else argv
    return any(arg.startswith("--print_config") for arg in argv)


def print_config(parser: Parser, argv: Sequence[str] | None, defaults: Mapping[str, Any]) -> None:
    """Where argv asks for it, print the configuration that repeats this command, and exit.

    `defaults` are values below the flags and files, such as those of a checkpoint.
    """
    if asks_for_config(argv):
        parser.set_defaults(dict(defaults))
        parser.parse_args(argv)


def fail(message: str, prog: str = "") -> NoReturn:
    """End the program: one line on stderr, exit code 2."""
    print(f"{prog or _name()}: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _name() -> str:
    return sys.argv[0].rsplit("/", 1)[-1]


def make_parser(*groups: type, description: str | None, **options: Any) -> Parser:
    """A parser of the settings of all groups, and of --config; `options` are argparse's."""
    parser = Parser(
        description=description,
        default_env=False,
        allow_abbrev=False,
        formatter_class=HelpFormatter,
        **options,
    )
    parser.add_argument(
        "--config", action="config", help="YAML file with any of the settings below"
    )
    for group in groups:
        parser.add_class_arguments(group)
    return parser


def this_process() -> tuple[int, int]:
    """(the number of this process, how many torchrun started): (0, 1) without torchrun."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def _stop(number: int, frame) -> None:
    raise KeyboardInterrupt(number)


def run_program(main: Callable[[], Any]) -> None:
    """Run a command line and end the process with its exit code.

    Code that handles a KeyboardInterrupt on its way may add to its `args` how to continue.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    code: Any = 0
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
    except SystemExit as stop:
        code = stop.code
    except KeyboardInterrupt as stop:
        number, *how = stop.args or (signal.SIGINT,)
        code = 128 + number
        if this_process()[0] == 0:
            print(
                "; ".join([f"{_name()}: stopped by {signal.Signals(number).name}", *how]),
                file=sys.stderr,
            )
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
    path = Path(outdir or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reject("outdir", str(path), f"a folder that can be written ({error.strerror})")
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
