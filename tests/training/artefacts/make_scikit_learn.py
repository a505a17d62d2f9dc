"""Makes the artefacts of scikit-learn and LightGBM, which take features and not pictures.

pip install skl2onnx==1.20.0 onnxmltools==1.16.0 lightgbm pillow
python make_scikit_learn.py
"""

from __future__ import annotations

import lightgbm
import numpy as np
from onnxmltools import convert_lightgbm
from onnxmltools.convert.common.data_types import FloatTensorType
from pictures import HERE, crops
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression

pixels, classes = crops()
features = pixels[:, ::8, ::8].reshape(len(pixels), -1).astype(np.float32) / 255

regression = LogisticRegression(max_iter=200).fit(features, classes)
(HERE / "scikit-learn.onnx").write_bytes(to_onnx(regression, features[:1]).SerializeToString())

trees = lightgbm.LGBMClassifier(n_estimators=2, num_leaves=4, verbose=-1).fit(features, classes)
kind = [("features", FloatTensorType([None, features.shape[1]]))]
converted = convert_lightgbm(trees, initial_types=kind)
(HERE / "lightgbm.onnx").write_bytes(converted.SerializeToString())
