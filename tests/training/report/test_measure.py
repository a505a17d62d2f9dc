import csv

import numpy as np

from contract.manifest import Label
from training.data.samples import DataSet, Sample
from training.release.trained import SplitPredictions
from training.report.measure import write_predictions


def test_write_predictions_has_a_line_for_each_picture(tmp_path):
    labels = (Label(index=0, name="owl"), Label(index=1, name="crow, hooded"))
    samples = (Sample("test/a.jpg", 1), Sample("test/b.jpg", 0))
    data = DataSet("birds", labels, train=(), validation=(), test=samples)
    probabilities = np.array([[0.75, 0.25], [0.5, 0.5]], dtype=np.float32)
    answers = SplitPredictions(probabilities, np.log(probabilities), np.array([1, 0]))

    write_predictions(tmp_path / "p.csv", data, {"test": answers})

    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    assert first == {
        "split": "test",
        "picture": "test/a.jpg",
        "label": "crow, hooded",
        "prediction": "owl",
        "probability": "0.750000",
        "label_probability": "0.250000",
    }
    assert (second["label"], second["prediction"]) == ("owl", "owl")
