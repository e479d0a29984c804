"""Every option of every script and of every `python -m` command is checked when it is parsed.

Run: python -m pytest tests/test_options.py
"""

import argparse
import importlib
from pathlib import Path

import pytest

import data
from utils import runs

ROOT = Path(__file__).parent.parent
FOLDERS = (".", "data", "utils", "experiments")
COMMANDS = sorted(
    file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for folder in FOLDERS
    for file in (ROOT / folder).glob("*.py")
    if "ArgumentParser(" in file.read_text() and file.name != "runs.py"
)
TEXTS = (runs.path, runs.words, runs.weights_file, data.place)  # of names, "nan" is one as good as others
MAY_BE_NEGATIVE = {"--center-frequency", "--snr"}
# A model's name is looked up, shapes are told by the parser, words may be none, a mirror is asked
UNCHECKED = {"MODEL", "--inputs", "--rows", "--url"}
NO_NUMBERS = ("nan", "inf", "-inf", "-1", str(2**62), "1e999", "", "x")


class Captured(Exception):
    """Carries the parser out of a command."""


def parser_of(command: str, monkeypatch) -> argparse.ArgumentParser:
    def capture(parser, *_):
        raise Captured(parser)

    module = importlib.import_module(command)
    with monkeypatch.context() as patch, pytest.raises(Captured) as caught:
        patch.setattr(argparse.ArgumentParser, "parse_args", capture)
        (getattr(module, "parse_args", None) or module.main)()
    return caught.value.args[0]


def refused(parser: argparse.ArgumentParser, arguments: list[str], name: str, capsys) -> bool:
    """Whether the arguments end with exit code 2 and a sentence that names the option."""
    try:
        parser.parse_args(arguments)
    except SystemExit as stop:
        return stop.code == 2 and f"argument {name}" in capsys.readouterr().err
    return False


def test_there_are_as_many_commands_as_the_documents_name():
    assert len(COMMANDS) >= 34 and {"train_seg", "data.synthetic", "utils.checkpoint"} < set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_no_option_can_be_is_refused_by_the_parser_which_names_it(command, monkeypatch, capsys):
    parser = parser_of(command, monkeypatch)
    accepted, before = [], []  # arguments that stand before this one, and are all right
    for action in parser._actions:
        name = "/".join(action.option_strings) or action.metavar or action.dest
        if action.nargs == 0 or action.choices is not None or name in UNCHECKED:
            before += [] if action.option_strings else [next(iter(action.choices)) if action.choices else "a"]
            continue
        bad = ("", " ", "\0") if action.type in TEXTS else NO_NUMBERS
        for value in bad if name not in MAY_BE_NEGATIVE else [value for value in bad if value != "-1"]:
            arguments = [f"{name}={value}"] if action.option_strings else ["--", *before, value]
            if not refused(parser, arguments, name, capsys):
                accepted.append((name, value))
        before += [] if action.option_strings else ["a"]
    assert not accepted


@pytest.mark.parametrize("value", ["meta", "cuda:99", "cuda:-1", "nonsense", "cpu:7", "", "CPU"])
def test_a_device_that_is_not_there_is_refused_by_the_parser(value, monkeypatch, capsys):
    commands = [command for command in COMMANDS if "." not in command and command not in ("export",)]
    for command in commands:
        assert refused(parser_of(command, monkeypatch), [f"--device={value}"], "--device", capsys), command
