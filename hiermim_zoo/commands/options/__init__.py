"""Options of a command: one dataclass, from which its parser, its help, its checks and its twin in Python are made.

Nothing here imports torch or timm, so ``--help`` answers at once. A command is a :class:`Verb`::

    @dataclass(frozen=True, kw_only=True)
    class Options(OptionSet):
        data: str = option("folder of images", positional=True)
        epochs: float | None = option("epochs", default=None, kind=POSITIVE, auto="the recipe's")

    VERB = Verb("pretrain", __doc__, Options, EXAMPLES, execute)
    run = VERB.run  # run(data="...", epochs=3): the same names, defaults and checks
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from itertools import zip_longest
from typing import Any, NoReturn

from ...text import counted, printable
from ...version import __version__
from .fields import Option, flag_of, long_flag, option_of
from .problems import EXAMPLES, BadOptions, gathered, lines_of, names
from .values import ASSIGNMENT, FLAG, SIDES

BAD_INPUT = 2  # exit code
CLOSED_PIPE = 141  # 128 and the number of SIGPIPE


# ---- the options of a command


class OptionSet:
    """Base of the options of a command: frozen dataclasses whose values are checked when they are made."""

    def __post_init__(self) -> None:
        sound, wrong = _sorted_out(type(self), {field.name: getattr(self, field.name) for field in _fields(self)})
        for field in _fields(self):  # where one is wrong its default, so that the others can be looked at
            object.__setattr__(self, field.name, sound[field.name] if field.name in sound else _default(field))
        clashes = unnamed(gathered(self.missing, self.check_together), type(self), wrong)
        if wrong or clashes:
            raise BadOptions([*wrong.values(), *clashes], sound)

    @classmethod
    def unchecked(cls, values: Mapping[str, Any]) -> Any:
        """Options with these values, which need not go together, and with the defaults of the others."""
        made = object.__new__(cls)
        for field in _fields(cls):
            object.__setattr__(made, field.name, values[field.name] if field.name in values else _default(field))
        return made

    def having(self, **changes: Any) -> Any:
        """The same with other values, which are not checked."""
        return self.unchecked({field.name: getattr(self, field.name) for field in _fields(self)} | changes)

    def missing(self) -> Iterable[str]:
        """A line for each option that must be given, unless another one is."""
        for field in _fields(self):
            about = option_of(field)
            if about.unless and getattr(self, field.name) is None and not getattr(self, about.unless):
                shown = "" if about.positional else f" {about.metavar}"
                yield f"{flag_of(field.name, about)}{shown} is missing; only {long_flag(about.unless)} does without"

    def check_together(self) -> Iterable[str]:
        """Lines about options that do not go together, which name them; for a command to override."""
        return ()

    def given(self) -> dict[str, Any]:
        """The options that are not at their defaults."""
        return {
            field.name: value
            for field in _fields(self)
            if (value := getattr(self, field.name)) is not None and value != _default(field)
        }

    def command(self, verb: str) -> str:
        """The command line that means these options."""
        words = ["python", "-m", f"hiermim_zoo.{verb}"]
        abouts = {field.name: option_of(field) for field in _fields(self)}
        given = self.given()
        for name in sorted(given, key=lambda name: not abouts[name].positional):
            about, value = abouts[name], given[name]
            if about.kind is FLAG:
                words += [long_flag(name)] if value else [about.off] * bool(about.off)
            else:
                words += [] if about.positional else [long_flag(name)]
                words += _texts(about, value)
        return shlex.join(words)

    def own_model_kwargs(self, *taken: str) -> dict[str, Any]:
        """What ``model_kwargs`` says.

        Args:
            taken: arguments of a model that have an option of their own.

        Raises:
            ValueError: one of these is among them.
        """
        given = dict(getattr(self, "model_kwargs", None) or {})
        if twice := [name for name in taken if name in given]:
            raise BadOptions(f"--model-kwargs {name}={given[name]}: this has an option of its own" for name in twice)
        return given


def unnamed(lines: Iterable[str], options: type[OptionSet], wrong: Collection[str]) -> list[str]:
    """The lines that name none of some options.

    Args:
        wrong: options that are wrong by themselves, of which nothing else is to be said.
    """
    flags = [flag_of(field.name, option_of(field)) for field in _fields(options) if field.name in wrong]
    return [line for line in lines if not names(line, flags)]


def _fields(options: OptionSet | type[OptionSet]) -> tuple[dataclasses.Field[Any], ...]:
    derived: Any = options  # the base is no dataclass, all that derive from it are
    return dataclasses.fields(derived)


def _default(field: dataclasses.Field[Any]) -> Any:
    """The default as it would be checked; None where there is none."""
    if field.default is MISSING or field.default is None:
        return None
    return _checked(field.name, option_of(field), field.default)


def _sorted_out(options: type[OptionSet], said: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The values with which nothing is wrong, as their kinds have them, and lines about the others."""
    sound: dict[str, Any] = {}
    wrong: dict[str, str] = {}
    for field in _fields(options):
        if field.name not in said:
            continue
        value = said[field.name]
        try:
            as_it_is = value is None and field.default is None
            sound[field.name] = None if as_it_is else _checked(field.name, option_of(field), value)
        except ValueError as error:
            wrong[field.name] = str(error)
    return sound, wrong


def _texts(about: Option, value: Any) -> list[str]:
    """A value as the words of a command line."""
    if about.kind is ASSIGNMENT:
        return [f"{name}={content!r}" for name, content in value.items()]
    return [_word(v) for v in (value if isinstance(value, tuple) else (value,))]


def _word(value: Any) -> str:
    """2, not 2.0: as people write it."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _checked(name: str, about: Option, value: Any) -> Any:
    """A value as its kind has it; of several a tuple, of arguments of a model a dictionary.

    Raises:
        ValueError: it is not of the kind.
    """
    called = flag_of(name, about)
    if value is None:
        raise ValueError(f"{called} None is not {about.kind.wanted}")
    try:
        if about.many in (None, "?"):
            return about.kind(value)
        values = tuple(value.items()) if isinstance(value, Mapping) else value
        found = tuple(about.kind(v) for v in (values if isinstance(values, (list, tuple)) else (values,)))
    except ValueError as error:
        example = EXAMPLES.get(name, about.kind.example)
        raise ValueError(f"{called} {error}" + (f"; {example} would work" if example else "")) from error
    if about.kind is ASSIGNMENT:
        return dict(found)
    if not found:
        raise ValueError(f"{called} needs one value or more")
    if about.kind is SIDES:
        if len(found) not in (1, 2):
            raise ValueError(f"{called} {' '.join(map(str, found))}: one number, or height and width")
        return found[0], found[-1]
    if isinstance(about.many, int) and len(found) != about.many:
        raise ValueError(f"{called} takes {counted(about.many, 'values')}, got {len(found)}")
    return found


# ---- the parser


class Parser(argparse.ArgumentParser):
    """Reads words; what is wrong with them is a ValueError, as all bad input is."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} ({self.prog} --help shows all options)")


class Formatter(argparse.HelpFormatter):
    """Paragraphs as wide as the terminal; indented lines as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(
            p if "\n  " in p else super(Formatter, self)._fill_text(p, width, indent) for p in paragraphs
        )


def make_parser(
    verb: Verb, values: Mapping[str, str], options: type[OptionSet], lenient: bool = False, words: Collection[str] = ()
) -> Parser:
    """The parser of a command. It leaves values as words: the options check them, wherever they come from.

    Args:
        values: defaults in words, by option, where a model's family says them.
        options: of the command, with those that the family adds.
        lenient: nothing must be given, and words that belong to no option are left alone.
        words: of the command line, which may do without an option.
    """
    must = [(field.name, option_of(field)) for field in _fields(options) if must_be_given(field)]
    usage = [flag_of(*one) for one in must if one[1].positional]
    usage += [f"{flag_of(*one)} {one[1].metavar or one[0].upper()}" for one in must if not one[1].positional]
    may = [(field.name, option_of(field)) for field in _fields(options) if not must_be_given(field)]
    usage += [f"[{flag_of(*one)}]" for one in may if one[1].positional]
    parser = Parser(
        prog=f"python -m hiermim_zoo.{verb.name}",
        usage=" ".join(["%(prog)s", *usage, "[options]"]),
        description=inspect.cleandoc(verb.about).strip(),
        epilog="\n".join(["examples:", *(f"  {line}" for line in verb.examples)]),
        formatter_class=Formatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--version", action="version", version=__version__)
    groups: dict[str, Any] = {"": parser}
    for field in _fields(options):
        group = option_of(field).group
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        if not (lenient and option_of(field).positional):
            needed = not lenient and must_be_given(field, words)
            _add(groups[group], field, values.get(field.name, ""), lenient, needed)
    return parser


def must_be_given(field: dataclasses.Field[Any], words: Collection[str] = ()) -> bool:
    """Whether an option must be given, in a command line with these words."""
    unless = option_of(field).unless
    return field.default is MISSING or bool(unless and long_flag(unless) not in words)


def _add(group: Any, field: dataclasses.Field[Any], value: str, lenient: bool, needed: bool) -> None:
    """An option of the parser, and its flags of earlier versions, which the help does not show."""
    about = option_of(field)
    help = argparse.SUPPRESS if about.unlisted else described(field, value).replace("%", "%%")
    kwargs: dict[str, Any] = {"help": help}
    names = [*about.flags, long_flag(field.name)]
    if about.kind is FLAG:
        kwargs["action"] = "store_false" if about.off else "store_true"
        names = [about.off] if about.off else names
    else:
        kwargs["nargs"] = ("?" if about.many in (None, "?") else "*") if lenient else about.many
        if about.choices or about.metavar is not None:
            kwargs["metavar"] = about.metavar or f"{{{','.join(about.choices)}}}"
        if about.many == "?":
            kwargs["const"] = about.const
    if about.positional:
        kwargs["metavar"] = about.metavar or field.name.upper()
        if not needed:
            kwargs["nargs"] = about.many or "?"
            kwargs["default"] = argparse.SUPPRESS  # or argparse would ask for a "*"
        group.add_argument(field.name, **kwargs)
        return
    if about.adds:
        kwargs["action"] = "extend"
    group.add_argument(*names, dest=field.name, required=needed, **kwargs)
    for old in about.hidden:
        group.add_argument(old, dest=field.name, **{**kwargs, "help": argparse.SUPPRESS})


def described(field: dataclasses.Field[Any], value: str = "") -> str:
    """What an option is, and its default.

    Args:
        value: the default in words, where a model's family says it.
    """
    about = option_of(field)
    shown = value or (about.auto if field.default is None else _shown(field.default))
    hidden = about.kind is FLAG or field.default is MISSING or not shown
    return about.help if hidden else f"{about.help} (default: {shown})"


def _shown(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return " ".join(map(str, value))
    return "" if value is None or value is False else str(value)


# ---- commands


@dataclass(frozen=True)
class Outcome:
    """What a command has done: its twin in Python returns the result, the command also prints the text."""

    result: Any
    text: str = ""


@dataclass(frozen=True)
class Verb:
    """A command.

    Args:
        name: python -m hiermim_zoo.NAME.
        about: what it does, the first line in short.
        options: their dataclass.
        examples: command lines at the end of its help.
        execute: does it; what it returns is the result of the twin in Python, or an :class:`Outcome` that holds it.
        family_values: default values in words, by option, that the family of a model has.
        family_options: (value of --model, all words of a command line) -> the options, with those of a model's family.
        more_problems: (options with which nothing is wrong, by name) -> what else can be said of them without the data;
            asked where something is wrong with others, so that all is said at once.
    """

    name: str
    about: str
    options: type[Any]
    examples: tuple[str, ...]
    execute: Callable[[Any], Any]
    family_values: Callable[[str], Mapping[str, str]] | None = None
    family_options: Callable[[str | None, Sequence[str]], type[Any]] | None = None
    more_problems: Callable[[Mapping[str, Any]], Iterable[str]] | None = None

    @property
    def summary(self) -> str:
        """One line."""
        return self.about.strip().partition("\n")[0]

    def parse(self, argv: Sequence[str] | None = None) -> Any:
        """The options on a command line; ``--help`` prints and leaves, with the values of a family if a model is named.

        Raises:
            ValueError: naming an option that is not of its kind, or does not go with another.
        """
        words = list(sys.argv[1:] if argv is None else argv)
        asked, model = bool({"-h", "--help"} & set(words)), value_of(words, "--model")
        values = self.family_values(model) if asked and model and self.family_values else {}
        options = self.options
        if self.family_options and (model or not asked):  # without a model, help has no need of torch
            options = self.family_options(model, words)
        try:
            words = _spelt_out(options, words)
            said = vars(make_parser(self, values, options, words=words).parse_args(words))
        except ValueError as error:
            sound, wrong = self._understood(options, words)
            said_already = [line for line in wrong.values() if names(str(error), [line.partition(" ")[0]])]
            lines = [*lines_of(error), *(line for line in wrong.values() if line not in said_already)]
            lines += unnamed(gathered(options.unchecked(sound).check_together), options, wrong)
            raise self._refusal(options, lines, sound, wrong) from None
        return self._made(options, said)

    def _made(self, options: type[Any], said: Mapping[str, Any]) -> Any:
        try:
            return options(**said)
        except BadOptions as error:
            raise self._refusal(options, error.lines, error.sound, said.keys() - error.sound) from None

    def _refusal(
        self, options: type[Any], lines: Iterable[str], sound: Mapping[str, Any], wrong: Collection[str]
    ) -> BadOptions:
        """An error with these lines, and with what else is wrong: not of options that are wrong by themselves."""
        ask = self.more_problems
        more = unnamed(gathered(lambda: ask(sound)), options, wrong) if ask else ()
        return BadOptions(dict.fromkeys([*lines, *more]), sound)

    def _understood(self, options: type[Any], words: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
        """See :func:`_sorted_out`, of a command line that cannot be parsed as a whole."""
        try:
            said = vars(make_parser(self, {}, options, lenient=True).parse_known_args(words)[0])
        except ValueError:
            return {}, {}
        return _sorted_out(options, said)

    def main(self, argv: Sequence[str] | None = None) -> Any:
        """Run it with the options of a command line, and print what it says of its outcome."""
        found = self.execute(self.parse(argv))
        if isinstance(found, Outcome) and found.text:
            print(found.text)
        return _result(found)

    @property
    def run(self) -> Callable[..., Any]:
        """Its twin in Python: options by their names, with the same defaults and checks."""

        def run(**options: Any) -> Any:
            words, model = [str(value) for value in options.values()], options.get("model")
            made = self.options
            if self.family_options:
                made = self.family_options(None if model is None else str(model), words)
            return _result(self.execute(self._made(made, options)))

        lines = [f"    {field.name}: {described(field)}." for field in _fields(self.options)]
        twin = f"The twin of ``python -m hiermim_zoo.{self.name}``: options have the same names, defaults and checks."
        run.__doc__ = "\n".join([self.summary, "", twin, "", "Args:", *lines])
        run.__signature__ = inspect.signature(self.options)  # type: ignore[attr-defined]
        return run


def _result(found: Any) -> Any:
    return found.result if isinstance(found, Outcome) else found


def _spelt_out(options: type[OptionSet], words: Sequence[str]) -> list[str]:
    """A command line as argparse reads it.

    No option takes a word that is none of its choices: in ``--compile DATA`` it is DATA. What stands behind the flag of
    a positional argument comes first, without the flag.

    Raises:
        ValueError: nothing stands behind such a flag.
    """
    abouts = {long_flag(field.name): option_of(field) for field in _fields(options)}
    short = {name: about for name, about in abouts.items() if about.many == "?" and about.choices and about.const}
    spelt = {flag for about in abouts.values() for flag in about.spelt}
    first: list[str] = []
    found: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        flag, equals, value = word.partition("=")
        if flag in spelt:
            if not equals and (not left or left[0].startswith("-")):
                raise ValueError(f"{flag} needs the name of a file")
            first.append(value if equals else left.pop(0))
            continue
        found.append(word)
        if word in short and (left[0] if left else "") not in short[word].choices:
            found.append(short[word].const)
    return first + found


def value_of(words: Sequence[str], flag: str) -> str | None:
    """What a command line says behind a flag, the last time it does."""
    found = None
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        if word == flag and not following.startswith("-"):
            found = following or None
        elif word.startswith(f"{flag}="):
            found = word.removeprefix(f"{flag}=")
    return found


def run_command(main: Callable[[], Any]) -> None:
    """Run a command; bad input ends it with a line on stderr for each thing that is wrong, and exit code 2.

    Set HIERMIM_DEBUG=1 to see the traceback instead. Who reads the output may stop reading, as ``head`` does: that is
    no error, and ends the command without a word, with the code that shells give.
    """
    write_anything(sys.stdout)
    try:
        try:
            main()
        finally:  # --help leaves by an exception
            if sys.stdout is not None:  # it is closed from the beginning
                sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left goes there when Python ends
        sys.exit(CLOSED_PIPE)
    except (ValueError, OSError) as error:
        if os.environ.get("HIERMIM_DEBUG"):
            raise
        for line in lines_of(error):
            print(f"error: {printable(line)}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def write_anything(stream: Any) -> None:
    """Let a stream of text write escapes in place of what its encoding lacks, as stderr always does.

    The names of files may hold bytes that are no text, and a terminal may know little more than ASCII.
    """
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
