"""What the command lines share: parsers made of settings, one line for a mistake, exit codes, a run's folder.

Exit codes: 0; 1 failed; 2 bad input; 128 + signal when stopped (130 Ctrl-C, 143 SIGTERM, 141 nobody reads stdout).
Nothing here imports torch, so `--help` and mistakes answer at once.
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
    key = re.search(r'Parser key "([^"]+)"', message)
    text = re.sub(r"^.*?Parser key \"[^\"]+\":", "", message, flags=re.S)
    kinds = list(dict.fromkeys(re.findall(r"Not of type (\w+)", text)))
    if key and "Expected a <class 'list'>" in text:
        return f"{key.group(1)}: got {text.split('Given value: ')[-1]!r}; accepted: a list of numbers, 3,5 or [3,5]"
    choices = re.search(r"Literal\[(.*?)\]", text)
    text = " ".join(text.split())
    if key and (choices or kinds):
        accepted = (
            choices.group(1) if choices else " or ".join(KINDS.get(kind, kind) for kind in kinds)
        )
        accepted += ", or null" if "NoneType" in text else ""
        # The value stands after one of these, or in quotes at the end of what int() and float() say.
        value = (
            re.search(r"(?:Given value|Got value): (.*)", text)
            or re.search(r"(\S+) does not conform", text)
            or re.search(r"'([^']*)'$", text)
        )
        return (
            f"{key.group(1)}: got {value.group(1).strip() if value else text}; accepted: {accepted}"
        )
    return f"{key.group(1)}: {text}" if key else text


class HelpFormatter(DefaultHelpFormatter):
    """What a setting accepts, in words unless its choices stand beside its name, and its default as in YAML."""

    def _get_help_string(self, action) -> str:
        kind = self._get_type_str(action)
        if kind is None or not action.option_strings:
            return super()._get_help_string(action)
        words = [KINDS[name].split(",")[0] for name in re.findall(r"\w+", kind) if name in KINDS]
        words += re.findall(r"^Optional\[Literal\[(.*)\]\]", kind)
        accepted = "".join(("each " if "List" in kind else "") + word + "; " for word in words)
        default = action.default
        shown = default if isinstance(default, (str, float)) else json.dumps(default)
        return f"{action.help} ({accepted}default: {shown})"


class Parser(ArgumentParser):
    """A command line made of settings groups. Mistakes end with one line and exit code 2.

    Beyond what jsonargparse does, flags win over `--config` files wherever they stand, a negative
    number may follow its flag in any notation, and lists may be written 3,4,7 as well as [3,4,7].
    """

    def parse_args(self, args=None, *more, **options):
        """As of jsonargparse, after the arguments were put into the form that it understands."""
        return super().parse_args(
            self._arranged(sys.argv[1:] if args is None else args), *more, **options
        )

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
                value, equals = rest.pop(0), "="
            if equals and _is_list(action):
                if rest and _NUMBER.match(rest[0]):
                    numbers = [
                        word.strip("[],") for word in (value, *takewhile(_NUMBER.match, rest))
                    ]
                    self.error(
                        f"{action.dest}: got {' '.join(numbers)!r}; accepted: a list without "
                        f"spaces, {','.join(numbers)} or [{','.join(numbers)}]"
                    )
                if re.fullmatch(r"[^\[\]{}]*\d", value):
                    value = f"[{value}]"
            (configs if flag == "--config" else others).append(flag + equals + value)
        return configs + others

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(_one_line(str(ex or message)), prog=self.prog.replace(" [options]", ""))


# The start of a negative or positive number, which no flag looks like.
_NUMBER = re.compile(r"[-+]?(\d|\.\d|inf|nan)", re.I)


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


def print_config(parser: Parser, argv: Sequence[str] | None, defaults: Mapping[str, Any]) -> None:
    """Where argv asks for it, print the configuration that repeats this command, and exit.

    `defaults` are values below the flags and files, such as those of a checkpoint.
    """
    argv = sys.argv[1:] if argv is None else argv
    if any(arg.startswith("--print_config") for arg in argv):
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


def silent(argv: list[str] | None) -> list[str]:
    """A command line without --print_config: to ask it something before all defaults are known."""
    return [
        flag
        for flag in (sys.argv[1:] if argv is None else argv)
        if not flag.startswith("--print_config")
    ]


def _stop(number: int, frame) -> None:
    raise KeyboardInterrupt(number)


def run_program(main: Callable[[], Any]) -> None:
    """Run a command line to its end, and end with its exit code; whoever handles a KeyboardInterrupt on its way
    may add to its arguments how to go on."""
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
        if int(os.environ.get("RANK", 0)) == 0:
            print(
                "; ".join([f"{_name()}: stopped by {signal.Signals(number).name}", *how]),
                file=sys.stderr,
            )
    except BrokenPipeError:
        # What is left in the buffer has no reader; the interpreter would complain about it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except OSError as error:
        print(f"{_name()}: failed: {error}", file=sys.stderr)
        code = 1
    sys.exit(code)


def run_folder(outdir: str | None, name: str) -> Path:
    """Make and return the folder of a run: `outdir`, or a new runs/<name>-<time>."""
    path = Path(outdir or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reject("outdir", str(path), f"a folder that can be written ({error.strerror})")
    return path


def claim(folder: Path):
    """Take a run's folder for oneself: a context manager that gives it back. Raises SettingError."""
    from filelock import FileLock, Timeout

    try:
        return FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        reject("outdir", str(folder), "a folder that no other run is writing to")
