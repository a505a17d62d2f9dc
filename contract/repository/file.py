"""`repository.toml`: the default model, and for each model which versions are loaded and which answers.

    default = "cats"

    [models.cats]
    load = { newest = 2 }             # or "answering", [3, 5], "all", "none"
    answer = "stable"                 # or "latest", or a version's number
    previous = 2                      # what `convserve models rollback` returns to
    aliases = { stable = 3 }
    require = { labels = "keep", min_top1_percent = 80.0 }

Every key is optional, and so is the file.
"""

from __future__ import annotations

import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from contract.errors import RepositoryFileInvalid
from contract.manifest import NAME_PATTERN, NAME_RULE, Percent

REPOSITORY_FILE: Final = "repository.toml"
HEADER: Final = "What is served from the model repository; `convserve models` edits this file."
MAX_FILE_BYTES: Final = 1 << 20  # a model takes about 100 bytes

_ALIAS: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_LOAD_RULE: Final = '"answering", "all", "none", { newest = N } or a list of version numbers'
_ANSWER_RULE: Final = '"latest", a version number or one of the aliases'

Load = Literal["answering", "all", "none"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Newest(_Strict):
    """The newest versions that satisfy the requirements."""

    newest: int = Field(ge=1, le=1000)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_alias(name: str) -> bool:
    """Returns whether a name may be an alias."""
    return _ALIAS.fullmatch(name) is not None and name != "latest"


def _parse_load(value: Any) -> Any:
    if isinstance(value, list) and value and all(map(_is_number, value)):
        return tuple(sorted(set(value)))
    if value in ("answering", "all", "none"):
        return value
    if isinstance(value, Mapping) and set(value) == {"newest"}:
        return Newest(newest=value["newest"])
    raise ValueError(f"must be {_LOAD_RULE}")


def _parse_answer(value: Any) -> Any:
    if _is_number(value) or (isinstance(value, str) and _ALIAS.fullmatch(value)):
        return value
    raise ValueError(f"must be {_ANSWER_RULE}")


def _parse_alias(value: Any) -> Any:
    if isinstance(value, str) and is_alias(value):
        return value
    raise ValueError(
        "an alias has up to 32 lower-case letters, digits, hyphens and underscores, starts with "
        'a letter and is not "latest"'
    )


def _parse_name(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(NAME_PATTERN, value):
        return value
    raise ValueError(f"a model's name has {NAME_RULE}")


Number = Annotated[int, Field(ge=1)]
Alias = Annotated[str, BeforeValidator(_parse_alias)]
ModelName = Annotated[str, BeforeValidator(_parse_name)]


class Requirements(_Strict):
    """What a version must satisfy to become the latest one by itself.

    Attributes:
        labels: "keep": it has every label of the version before it. "same": also in the same order,
            and no others. "any": no condition.
        min_top1_percent: least top-1 accuracy in its manifest.
        max_top1_drop_percent: most percentage points below the version before it.
        min_test_pictures: fewest pictures that the accuracy was measured on.
    """

    labels: Literal["keep", "same", "any"] = "keep"
    min_top1_percent: Percent | None = None
    max_top1_drop_percent: Percent | None = None
    min_test_pictures: Number | None = None


class ModelPolicy(_Strict):
    """Which versions of a model are loaded, and which one answers.

    Attributes:
        load: the versions loaded besides the one that answers and those with an alias. "none" loads
            nothing, not even those.
        answer: "latest" is the newest version that satisfies `require`. A number or an alias is that
            version, whatever it satisfies.
        previous: the version that answered before the last change.
        aliases: version number by alias.
        require: for "latest", and for versions that `load` selects without naming them.
    """

    load: Annotated[Load | Newest | tuple[int, ...], BeforeValidator(_parse_load)] = "answering"
    answer: Annotated[str | int, BeforeValidator(_parse_answer)] = "latest"
    previous: Number | None = None
    aliases: dict[Alias, Number] = Field(default_factory=dict)
    require: Requirements = Requirements()

    def pinned(self) -> int | None:
        """Returns the version that answers by number or by alias, None for "latest"."""
        if isinstance(self.answer, int):
            return self.answer
        return self.aliases.get(self.answer)

    def named(self) -> set[int]:
        """Returns every version number that the policy names."""
        listed = self.load if isinstance(self.load, tuple) else ()
        pinned = self.pinned()
        return {*listed, *self.aliases.values(), *(() if pinned is None else (pinned,))}


class RepositoryFile(_Strict):
    """The content of `repository.toml`.

    Attributes:
        default: the model of requests that name none.
        models: policies; models that are not here have the default policy.
    """

    default: ModelName | None = None
    models: dict[ModelName, ModelPolicy] = Field(default_factory=dict)

    def policy(self, name: str) -> ModelPolicy:
        """Returns the policy of a model, whether the file mentions it or not."""
        return self.models.get(name, _DEFAULT_POLICY)


_DEFAULT_POLICY: Final = ModelPolicy()
_NO_FILE: Final = RepositoryFile()


@dataclass(frozen=True, slots=True)
class ReadRepositoryFile:
    """The file and its exact content, None if there is no file."""

    path: Path
    text: bytes | None = None
    parsed: RepositoryFile = _NO_FILE


def repository_file_path(models_dir: Path, configured: Path | None = None) -> Path:
    """Returns where the file is, or would be."""
    return configured or models_dir / REPOSITORY_FILE


def read_repository_file(path: Path) -> ReadRepositoryFile:
    """Reads and checks the file; without one, every key has its default.

    Raises:
        RepositoryFileInvalid: the file cannot be read, or is not valid.
    """
    try:
        if stat.S_ISFIFO(path.stat().st_mode):  # opening it could wait for ever
            raise RepositoryFileInvalid(f"{path}: is a pipe; it must be a file")
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        if path.is_symlink():
            raise RepositoryFileInvalid(f"{path}: is a link to a file that is missing") from error
        return ReadRepositoryFile(path)
    except OSError as error:
        raise RepositoryFileInvalid(f"{path}: cannot be read: {error.strerror}") from error
    if len(text) > MAX_FILE_BYTES:
        raise RepositoryFileInvalid(f"{path}: larger than {MAX_FILE_BYTES} bytes")
    return ReadRepositoryFile(path, text, parse_repository_file(text, str(path)))


def parse_repository_file(text: bytes, where: str) -> RepositoryFile:
    """Parses and checks the content; `where` begins the messages.

    Raises:
        RepositoryFileInvalid: it is not TOML, or a key or a value is wrong.
    """
    try:
        document = tomllib.loads(text.decode("utf-8-sig").replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        raise RepositoryFileInvalid(f"{where}: not UTF-8, at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        # An integer of more than 4,300 digits is a plain ValueError.
        fact = "nested too deeply" if isinstance(error, RecursionError) else error
        raise RepositoryFileInvalid(f"{where}: not TOML: {fact}") from error

    try:
        parsed = RepositoryFile.model_validate(document)
    except ValidationError as error:
        raise RepositoryFileInvalid(f"{where}: {_explain(error)}") from error
    for name, policy in parsed.models.items():
        if isinstance(policy.answer, str) and policy.answer != "latest" and policy.pinned() is None:
            raise RepositoryFileInvalid(
                f"{where}: models.{name}.answer: must be {_ANSWER_RULE}; there is no alias "
                f"{policy.answer!r}"
            )
    return parsed


_KEYS: Final = {
    0: tuple(RepositoryFile.model_fields),
    2: tuple(ModelPolicy.model_fields),
    3: tuple(Requirements.model_fields),
}


_RULES: Final = {
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
}


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = [str(part) for part in first["loc"] if part != "[key]"]
    where = ".".join(place)
    if first["type"] == "extra_forbidden":
        keys = ", ".join(_KEYS.get(len(place) - 1, ()))
        return f"{where}: unknown key; the keys are {keys}" if keys else f"{where}: unknown key"
    message = str(first["msg"]).removeprefix("Value error, ").removeprefix("Input should ")
    message = _RULES.get(first["type"], message)
    message = message.replace("greater than or equal to", "at least")
    message = message.replace("less than or equal to", "at most")
    value = first["input"]
    shown = repr(value) if isinstance(value, str | int | float | list) else _kind(value)
    if len(shown) > 80:
        shown = f"{shown[:77]}..."
    message = f"must {message}" if message.startswith("be ") else message
    return f"{where}: {message}, got {shown}"


def _kind(value: object) -> str:
    return "a table" if isinstance(value, Mapping) else f"a {type(value).__name__}"
