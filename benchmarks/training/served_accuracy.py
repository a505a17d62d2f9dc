"""Compares a running service's answers to labelled pictures with the published version's own.

    python benchmarks/training/served_accuracy.py http://127.0.0.1:8000 models/clothing/1 DATA/test

Posts each file unchanged. Prints one JSON object: top-1 over HTTP, top-1 of the graph from the same
bytes without a service, the number of pictures whose first class differs, and the largest
difference of its probability.
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from pathlib import Path

from contract.versions import read_version
from training.data.pictures import scan_labelled
from training.evaluation.scorer import Scorer


def ask(url: str, model: str, data: bytes) -> tuple[int, float]:
    """Returns the class index and probability of the first prediction."""
    request = urllib.request.Request(  # noqa: S310 # the user's own service
        f"{url}/v1/models/{model}/classify?top_k=1",
        data,
        {"Content-Type": "application/octet-stream"},
    )
    with urllib.request.urlopen(request) as response:  # noqa: S310
        first = json.load(response)["predictions"][0]
    return first["index"], first["probability"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("version", type=Path, help="<models>/<name>/<number>")
    parser.add_argument("folder", type=Path, help="of class folders")
    args = parser.parse_args()

    models_dir, name, number = args.version.parts[:-2], *args.version.parts[-2:]
    version = read_version(Path(*models_dir), name, int(number))
    pictures = list(scan_labelled(args.folder, version.manifest.labels))
    expected = Scorer(version.graph, version.manifest).probabilities(pictures, 1)

    hits = differing = 0
    worst = 0.0
    for picture, row in zip(pictures, expected, strict=True):
        index, probability = ask(args.url, name, picture.data)
        hits += index == picture.index
        # Against the graph's own answer, not the label: a service must not change it.
        differing += index != int(row.argmax())
        worst = max(worst, abs(probability - float(row[index])))

    truth = [picture.index for picture in pictures]
    own = sum(int(row.argmax()) == index for row, index in zip(expected, truth, strict=True))
    result = {
        "version": f"{name}/{number}",
        "n": len(pictures),
        "top1_percent_over_http": round(100 * hits / len(pictures), 3),
        "top1_percent_of_the_graph": round(100 * own / len(pictures), 3),
        "other_first_class": differing,
        "largest_difference": worst,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
