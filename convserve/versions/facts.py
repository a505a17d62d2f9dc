"""What the manifests and files of two versions say, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from contract.comparison import LabelChanges, compare_labels, unique_names
from contract.manifest import Manifest

_METRICS: Final = ("top1_percent", "standard_error", "top5_percent", "n_images", "dataset")


@dataclass(frozen=True, slots=True)
class Fact:
    """One value of both versions.

    Attributes:
        group: metrics, preprocessing, graph or size.
        name: of the value, with its unit.
        a: of the first version; None if it does not say.
        b: of the second.
    """

    group: str
    name: str
    a: Any
    b: Any

    @property
    def same(self) -> bool:
        return bool(self.a == self.b)


def label_changes(a: Manifest, b: Manifest) -> LabelChanges:
    """Finds out which classes two versions share.

    Besides what the labels say: the classes of equal graphs are the same in the same order, and a
    version of the same model says which classes of the other it renamed.
    """
    if a.graph.sha256 == b.graph.sha256 and a.n_classes == b.n_classes:
        return compare_labels(a.labels, b.labels, {index: index for index in range(a.n_classes)})
    return compare_labels(a.labels, b.labels, {**_renamed(a, b), **_flipped(_renamed(b, a))})


def _renamed(a: Manifest, b: Manifest) -> dict[int, int]:
    # Index in b -> index in a.
    made_from = b.comparison
    if made_from is None or (b.name, made_from.version) != (a.name, a.version):
        return {}
    before = {name: index for index, name in enumerate(unique_names(a.labels))}
    after = {name: index for index, name in enumerate(unique_names(b.labels))}
    return {
        after[new]: before[old]
        for old, new in made_from.labels_renamed.items()
        if old in before and new in after
    }


def _flipped(places: Mapping[int, int]) -> dict[int, int]:
    return {old: new for new, old in places.items()}


def moved(b: Manifest, changes: LabelChanges) -> dict[str, tuple[int, int]]:
    """Returns the classes with another index: name in `b` -> index before, index in `b`."""
    names = unique_names(b.labels)
    return {names[new]: (old, new) for new, old in sorted(changes.places.items()) if new != old}


def facts(models_dir: Path, a: Manifest, b: Manifest) -> list[Fact]:
    """Returns metrics, preprocessing, graph and size of two versions, also where they are the same."""
    both = [dict(_facts_of(models_dir, one)) for one in (a, b)]
    # Both have the same keys in the same order.
    return [Fact(*key, both[0][key], both[1][key]) for key in both[0]]


def _facts_of(models_dir: Path, one: Manifest) -> Iterator[tuple[tuple[str, str], Any]]:
    for name in _METRICS:
        yield ("metrics", name), getattr(one.metrics, name, None)
    yield ("metrics", "ece_percent"), one.calibration.ece_percent
    yield ("metrics", "temperature"), one.calibration.temperature

    for name, value in one.preprocessing.model_dump(mode="json").items():
        yield ("preprocessing", name), value

    graph = one.graph
    yield ("graph", "architecture"), one.architecture
    yield ("graph", "precision"), one.precision
    quantization = one.quantization or one.half_precision
    yield ("graph", "precision_method"), quantization.method if quantization else None
    yield ("graph", "input_dtype"), graph.input.dtype
    yield ("graph", "input_layout"), graph.input.layout
    yield ("graph", "input_shape"), list(graph.input.shape)
    yield ("graph", "outputs"), [output.kind for output in graph.outputs]
    yield ("graph", "activation"), one.activation
    yield ("graph", "opset"), graph.opset
    yield ("graph", "sha256"), graph.sha256

    folder = models_dir / one.name / str(one.version)
    files = [path for path in folder.rglob("*") if path.is_file()]
    yield ("size", "version_bytes"), sum(path.stat().st_size for path in files)
    yield ("size", "graph_bytes"), (folder / graph.file).stat().st_size
