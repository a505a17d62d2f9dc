"""Publishes a version again with other names for its classes. Nothing is trained."""

from __future__ import annotations

import csv
import difflib
import io
import json
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from contract.comparison import unique_names
from contract.errors import ContractError
from contract.manifest import Comparison, GoldenExample, Label, Manifest, Relabelling
from contract.versions import Version, read_version, sha256
from convserve.versions.republish import republish
from service.models.repository import EngineConfig

_CARD: Final = "MODEL_CARD.md"
_MAX_NAME: Final = 200  # characters, as in the manifest
_MAX_NAMED: Final = 10  # names in a line
# Control characters, line and paragraph separators, and halves of surrogate pairs.
_UNPRINTABLE: Final = frozenset({"Cc", "Zl", "Zp", "Cs"})

Pair = tuple[str, str]  # old name, new name


class RelabellingInvalid(ContractError):
    """The file of new names is unreadable, or does not fit the version."""

    code = "relabelling_invalid"


def read_names(path: Path) -> list[Pair]:
    """Reads pairs of an old and a new name, UTF-8 with or without a byte order mark.

    Args:
        path: `.json` with one object, `.toml` with one table, or `.csv` with two columns, whose first
            row may be `old,new`.

    Raises:
        RelabellingInvalid: the file is not such a file.
        OSError: the file cannot be read.
    """
    readers: dict[str, Callable[[str], list[Pair]]] = {
        ".json": _from_json,
        ".csv": _from_csv,
        ".toml": _from_toml,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise RelabellingInvalid(f"{path}: the file must end in one of {', '.join(readers)}")
    try:
        pairs = reader(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RelabellingInvalid(f"{path}: not UTF-8 text; save it as UTF-8") from error
    except (ValueError, csv.Error, RecursionError) as error:
        raise RelabellingInvalid(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error
    if not pairs:
        raise RelabellingInvalid(f"{path}: has no names")
    return pairs


def _from_json(text: str) -> list[Pair]:
    # The parser's own dict would keep only the last of two equal names.
    def as_pairs(members: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        return members

    content = json.loads(text, object_pairs_hook=as_pairs)
    if not text.lstrip().startswith("{"):
        raise ValueError('expected one object, such as {"old name": "new name"}')
    return [_text_pair(old, new) for old, new in content]


def _from_toml(text: str) -> list[Pair]:
    return [_text_pair(old, new) for old, new in tomllib.loads(text).items()]


def _text_pair(old: str, new: object) -> Pair:
    if not isinstance(new, str):
        raise ValueError(
            f"the new name of {old!r} is not a text; names with dots need quotes in TOML"
        )
    return old, new


def _from_csv(text: str) -> list[Pair]:
    rows = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    pairs: list[Pair] = []
    for row in rows:
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if len(cells) != 2:
            raise ValueError(
                f"line {rows.line_num} is not an old and a new name with a comma between them; put names "
                "that contain a comma in double quotes"
            )
        pairs.append((cells[0], cells[1]))
    has_header = bool(pairs) and [name.casefold() for name in pairs[0]] == ["old", "new"]
    return pairs[1:] if has_header else pairs


def rename(
    labels: Sequence[Label], pairs: Iterable[Pair]
) -> tuple[tuple[Label, ...], dict[str, str]]:
    """Gives classes their new names.

    An old name is a class's name, its synset, or, where several classes share a name, the name with
    the synset in parentheses. Names may be swapped.

    Returns:
        The labels, and old name -> new name of each class that is renamed.

    Raises:
        RelabellingInvalid: the message lists every name that is wrong.
    """
    pairs = list(pairs)
    known = _indexes_by_name(labels)
    new_names = {known[old]: new.strip() for old, new in pairs if len(known.get(old, ())) == 1}
    by_index = {index: new for (index,), new in new_names.items()}
    renamed = tuple(
        label.model_copy(update={"name": by_index.get(label.index, label.name)}) for label in labels
    )

    problems = [*_wrong_old_names(pairs, known, labels), *_wrong_new_names(pairs)]
    changed = {label.index for label in renamed if label.name != labels[label.index].name}
    problems += _names_of_two(renamed, changed, labels)
    if problems:
        raise RelabellingInvalid("; ".join(problems))
    if not changed:
        raise RelabellingInvalid("every class has that name already; nothing to rename")

    before = unique_names(labels)
    return renamed, {before[index]: renamed[index].name for index in sorted(changed)}


def _indexes_by_name(labels: Sequence[Label]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for label in labels:
        found[label.name] = (*found.get(label.name, ()), label.index)
    for label, name in zip(labels, unique_names(labels), strict=True):
        found.setdefault(name, (label.index,))
        if label.synset:
            found.setdefault(label.synset, (label.index,))
    return found


def _wrong_old_names(
    pairs: Sequence[Pair], known: Mapping[str, tuple[int, ...]], labels: Sequence[Label]
) -> Iterable[str]:
    if unknown := [_with_a_guess(old, known) for old, _ in pairs if old not in known]:
        yield f"no class is called {_some(unknown)}"
    exact = unique_names(labels)
    for old in dict.fromkeys(old for old, _ in pairs if len(known.get(old, ())) > 1):
        choices = " or ".join(repr(exact[index]) for index in known[old])
        yield f"several classes are called {old!r}; write {choices}"
    counts = Counter(known[old] for old, _ in pairs if old in known)
    if twice := [repr(exact[index[0]]) for index, count in counts.items() if count > 1]:
        yield f"more than one new name for {_some(twice)}"


def _with_a_guess(old: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(old, known, n=1)
    return f"{old!r} (did you mean {close[0]!r}?)" if close else repr(old)


def _wrong_new_names(pairs: Sequence[Pair]) -> Iterable[str]:
    if empty := [repr(old) for old, new in pairs if not new.strip()]:
        yield f"the new name is empty for {_some(empty)}"
    if long := [repr(old) for old, new in pairs if len(new.strip()) > _MAX_NAME]:
        yield f"the new name has more than {_MAX_NAME} characters for {_some(long)}"
    if odd := [
        repr(old) for old, new in pairs if _UNPRINTABLE & {*map(unicodedata.category, new.strip())}
    ]:
        yield f"the new name has a line break or another control character for {_some(odd)}"


def _names_of_two(
    renamed: Sequence[Label], changed: set[int], labels: Sequence[Label]
) -> Iterable[str]:
    # ImageNet has two classes called "crane". Only a name that is new to one of them is a mistake.
    owners: dict[str, list[int]] = {}
    for label in renamed:
        owners.setdefault(label.name, []).append(label.index)
    exact = unique_names(labels)
    clashes = [
        f"{name!r} ({', '.join(repr(exact[index]) for index in indexes)})"
        for name, indexes in owners.items()
        if name and len(indexes) > 1 and changed.intersection(indexes)
    ]
    if clashes:
        yield f"two classes would have the same name: {_some(clashes)}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def relabel(
    models_dir: Path, name: str, number: int, pairs: Iterable[Pair], config: EngineConfig
) -> Manifest:
    """Publishes a version with other names for its classes, under the next number of its model.

    The graph and everything that was measured stay the same. The new version is verified as the
    service verifies it. The old one stays. `comparison` of the new one says what was renamed.

    Raises:
        RelabellingInvalid: the names do not fit the version.
        ModelError: the version is not valid, old or new.
        ProviderUnavailable: the provider does not work here.
        OSError: the model repository cannot be written.
    """
    old = read_version(models_dir, name, number)
    labels, renamed = rename(old.manifest.labels, pairs)
    files = _new_card(old, renamed)
    return republish(models_dir, old, _changes(old, labels, renamed, files), config, files)


def _changes(
    old: Version,
    labels: tuple[Label, ...],
    renamed: dict[str, str],
    files: Mapping[str, bytes],
) -> dict[str, Any]:
    manifest = old.manifest
    origin = Relabelling(version=manifest.version, manifest_sha256=old.manifest_sha256)
    return {
        "labels": labels,
        "golden": tuple(_with_labels(example, labels) for example in manifest.golden),
        "files": {**manifest.files, **{path: sha256(data) for path, data in files.items()}},
        "comparison": Comparison(
            version=manifest.version, n_images=0, changed_answers=0, labels_renamed=renamed
        ),
        # "Migrated, and nothing else changed" is no longer true.
        "provenance": manifest.provenance.model_copy(
            update={"relabelled_from": origin, "migrated_from": None}
        ),
    }


def _with_labels(example: GoldenExample, labels: Sequence[Label]) -> GoldenExample:
    top5 = tuple(one.model_copy(update={"label": labels[one.index].name}) for one in example.top5)
    return example.model_copy(update={"top5": top5})


def _new_card(old: Version, renamed: Mapping[str, str]) -> dict[str, bytes]:
    card = old.contents.get(_CARD)
    if card is None:
        return {}
    rows = "\n".join(f"- {before!r} is now {after!r}" for before, after in renamed.items())
    note = (
        f"# {old.manifest.name}, relabelled\n\n"
        f"Made from version {old.manifest.version} by renaming classes. The graph is the same, and so "
        f"is everything below, which describes version {old.manifest.version} with the old "
        f"names.\n\n{rows}\n\n"
    )
    return {_CARD: note.encode() + card}
