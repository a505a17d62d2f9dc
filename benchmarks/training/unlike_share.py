"""Counts the pictures that a published version calls unlike anything it was trained on.

    python benchmarks/training/unlike_share.py models/clothing/1 DATA/test OTHER

Labels do not matter: OTHER should hold pictures of other things. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from contract.manifest import EnergyRule
from contract.versions import read_version
from training.data.pictures import scan_plain
from training.evaluation.calibrate import energy, is_out_of_distribution
from training.evaluation.scorer import Scorer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version", type=Path, help="<models>/<name>/<number>")
    parser.add_argument("folders", type=Path, nargs="+")
    args = parser.parse_args()

    models_dir, name, number = args.version.parts[:-2], *args.version.parts[-2:]
    version = read_version(Path(*models_dir), name, int(number))
    calibration = version.manifest.calibration
    if not isinstance(calibration.unlike, EnergyRule):
        parser.error(f"{name}/{number} has no limit on the energy")

    scorer = Scorer(version.graph, version.manifest)
    shares = {}
    for folder in args.folders:
        probabilities, logits = scorer.probabilities_and_logits(scan_plain(folder))
        flagged = is_out_of_distribution(logits, calibration.unlike, calibration.temperature)
        # The rule is a limit on the energy, so its quartiles show how far a folder is from the
        # limit.
        energies = energy(logits, calibration.temperature)
        shares[folder.name] = {
            "n": len(flagged),
            "unlike_percent": round(100 * float(flagged.mean()), 1),
            "energy_quartiles": [round(float(q), 3) for q in np.percentile(energies, (25, 50, 75))],
            "mean_top_probability": round(float(probabilities.max(axis=1).mean()), 3),
        }

    print(json.dumps({"version": f"{name}/{number}", **shares}))


if __name__ == "__main__":
    main()
