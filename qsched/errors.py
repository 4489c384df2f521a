"""Every error that qsched expects, in one tree.

    QschedError               an expected error: one line, exit code 2
    ├── CoefficientsError     coefficients, their bounds, parametrisations and files
    ├── ScheduleError         a scheduler that cannot be preconditioned, or is stepped wrongly
    ├── ConfigError           a study file
    ├── DocumentError         a file that is no text or no document; another error names it
    ├── PluginError           a plug-in that can't be found, or breaks its protocol
    ├── PromptError           prompts and their seeds
    ├── HubError              a file that can't be fetched from the Hugging Face hub
    ├── ModelError            a model that cannot be found, loaded or used
    ├── QuantizationError     a scheme or backend that cannot quantize the model
    ├── GenerationError       images that cannot be made
    ├── ScoreError            a scorer that failed or returned a number that is not finite
    ├── StorageError          the database
    │   ├── Unreadable        what is stored of a study is not what it should be
    │   ├── LeaseLost         a slot that went to another worker
    │   └── MirrorLost        a study whose trials somebody deleted in Optuna
    └── StudyError            creating, resuming, running or validating a study
        ├── OutputError       what a command leaves, and cannot be written
        ├── StudyGone         a study that was deleted in the meantime
        └── NotOurs           a study of plain Optuna that has the name

A message gives place, value, rule and remedy, in that order and on one line:
"studies/demo.toml: steps = 0; expected 1 to 64; set sampling.steps".
"""

import re
from collections.abc import Iterator

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class QschedError(Exception):
    """An expected error: the command line prints its one line and exits with code 2."""


class CoefficientsError(QschedError):
    """Coefficients, bounds, a search vector or a coefficients file break their contract."""


class ScheduleError(QschedError):
    """A scheduler cannot be preconditioned, or is stepped outside its schedule."""


class ConfigError(QschedError):
    """A study file is missing, unreadable or invalid."""


class DocumentError(QschedError):
    """A file is no text of a reasonable size, or no document of its format; the words lack its
    name, which whoever asked for it knows."""


class PluginError(QschedError):
    """A plug-in cannot be found or imported, or breaks the protocol of its kind."""


class PromptError(QschedError):
    """Prompts or their seeds are missing, unreadable or invalid."""


class HubError(QschedError):
    """A file cannot be fetched from the Hugging Face hub."""


class ModelError(QschedError):
    """A model cannot be found, loaded or used."""


class QuantizationError(QschedError):
    """A quantization scheme or its backend cannot be applied to the model."""


class GenerationError(QschedError):
    """Images cannot be made."""


class ScoreError(QschedError):
    """A scorer failed, or returned a number that is not finite.

    `scorer`: the scorer's name. `prompt`: the prompt it failed on; either is "" where unknown.
    """

    def __init__(self, message: str, scorer: str = "", prompt: str = "") -> None:
        super().__init__(message)
        self.scorer = scorer
        self.prompt = prompt


class StorageError(QschedError):
    """The database cannot be reached, read or written as its contract says."""


class Unreadable(StorageError):  # noqa: N818 - it says what it is
    """What is stored of a study is not what it should be; others may be."""


class LeaseLost(StorageError):  # noqa: N818 - it says what happened
    """A worker wrote for a slot that is no longer its own; nothing was written."""


class MirrorLost(StorageError):  # noqa: N818 - it says what happened
    """A study's trials in Optuna were deleted by somebody else; nothing was written."""


class StudyError(QschedError):
    """A study cannot be created, resumed, run or validated."""


class OutputError(StudyError):
    """What a command leaves cannot be written."""


class StudyGone(StudyError):  # noqa: N818 - it says what happened
    """A study was deleted since it was loaded, and perhaps made anew; nothing was written."""


class NotOurs(StudyError):  # noqa: N818 - it says what it is
    """A study of plain Optuna has the name; nothing was written."""


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, at most 200 characters; its class if it is mute."""
    lines = str(error).strip().splitlines()
    return one_line(lines[0][:200]) if lines else type(error).__name__


def one_line(text: str) -> str:
    """A text with its line breaks and other control characters written as escapes."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def in_one_line(error: BaseException) -> str:
    """An exception's class and the first line of what it says."""
    said = first_line(error)
    name = type(error).__name__
    return name if said == name else f"{name}: {said}"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, then what it was raised from or while handling, to the first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
