"""Makes the artefacts of Keras and tf2onnx.

pip install tensorflow-cpu==2.21.0 keras==3.15.1 tf2onnx==1.17.0 onnxruntime pillow "numpy<2.2"
python make_keras.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import onnx
import tensorflow as tf
from keras import layers
from pictures import HERE, LABELS, SIDE_PX, crops, save, softmax, whole

pixels, classes = crops()
pixels = pixels.astype(np.float32)
rows = whole().astype(np.float32)


def network(n_scores: int, activation: str | None) -> keras.Model:
    keras.utils.set_random_seed(0)
    entry = layers.Input((SIDE_PX, SIDE_PX, 3), name="image")
    x = layers.Rescaling(1 / 255)(entry)
    for width in (8, 16, 16):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = layers.MaxPooling2D()(layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x)))
    x = layers.Dropout(0.1)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(entry, layers.Dense(n_scores, activation=activation)(x))


def trained(n_scores: int, activation: str | None, targets, loss) -> keras.Model:
    net = network(n_scores, activation)
    net.compile(keras.optimizers.Adam(5e-3), loss)
    net.fit(pixels, targets, batch_size=20, epochs=25, verbose=0)
    return net


def convert(*flags: str) -> None:
    subprocess.run([sys.executable, "-m", "tf2onnx.convert", *flags], check=True)  # noqa: S603


single = trained(5, "softmax", classes, "sparse_categorical_crossentropy")
single.export(str(HERE / "keras.onnx"), format="onnx", verbose=False)
save("keras", single.predict(rows, verbose=0))

logits = trained(5, None, classes, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
logits.export(str(HERE / "keras-logits.onnx"), format="onnx", verbose=False)
save("keras-logits", softmax(logits.predict(rows, verbose=0)))

# A person on the pictures of the helmet and of the photographer, a machine on two.
several = np.zeros((len(classes), 2), np.float32)
several[:, 0] = np.isin(classes, [LABELS.index("helmet"), LABELS.index("photographer")])
several[:, 1] = np.isin(classes, [LABELS.index("photographer"), LABELS.index("rocket")])
multi = trained(2, "sigmoid", several, "binary_crossentropy")
multi.export(str(HERE / "keras-sigmoids.onnx"), format="onnx", verbose=False)
save("keras-sigmoids", multi.predict(rows, verbose=0))

binary = trained(1, "sigmoid", several[:, :1], "binary_crossentropy")
binary.export(str(HERE / "keras-binary.onnx"), format="onnx", verbose=False)
second = binary.predict(rows, verbose=0)
save("keras-binary", np.concatenate((1 - second, second), axis=1))

with tempfile.TemporaryDirectory() as folder:
    single.export(folder, verbose=False)
    convert("--saved-model", folder, "--output", str(HERE / "tf2onnx.onnx"), "--opset", "17")
    save("tf2onnx", single.predict(rows, verbose=0))
    name = onnx.load(HERE / "tf2onnx.onnx").graph.input[0].name
    nchw = str(HERE / "tf2onnx-nchw.onnx")
    convert("--saved-model", folder, "--output", nchw, "--inputs-as-nchw", name)
    save("tf2onnx-nchw", single.predict(rows, verbose=0))

    converter = tf.lite.TFLiteConverter.from_keras_model(single)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([row[None]] for row in pixels[:60])
    lite = converter.convert()
    file = Path(folder) / "net.tflite"
    file.write_bytes(lite)
    convert("--tflite", str(file), "--output", str(HERE / "tflite.onnx"), "--opset", "17")

interpreter = tf.lite.Interpreter(model_content=lite)
interpreter.allocate_tensors()
entry, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
answers = []
for row in rows:
    interpreter.set_tensor(entry["index"], row[None])
    interpreter.invoke()
    answers.append(interpreter.get_tensor(result["index"])[0])
save("tflite", np.stack(answers))
