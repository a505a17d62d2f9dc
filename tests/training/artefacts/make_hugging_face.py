"""Makes the artefacts of Hugging Face's transformers and optimum.

pip install torch==2.13.0 transformers==4.57.6 "optimum[onnxruntime]==2.1.0" optimum-onnx==0.1.0 timm pillow
python make_hugging_face.py
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from optimum.exporters.onnx import main_export
from optimum.onnxruntime import ORTQuantizer
from optimum.onnxruntime.configuration import AutoQuantizationConfig
from pictures import HERE, LABELS, SIDE_PX, crops, save, whole
from transformers import ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification

torch.manual_seed(0)
pixels, classes = crops()


def prepared(pixels):
    scaled = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32) / 255
    return torch.from_numpy((scaled - 0.5) / 0.5)


names = dict(enumerate(LABELS))
config = ResNetConfig(
    embedding_size=8,
    hidden_sizes=[8, 12, 16, 16],
    depths=[1, 1, 1, 1],
    layer_type="basic",
    downsample_in_first_stage=False,
    id2label=names,
    label2id={label: index for index, label in names.items()},
)
net = ResNetForImageClassification(config)
optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
for _ in range(12):
    for batch in torch.randperm(len(classes)).split(20):
        given = prepared(pixels[batch.numpy()])
        loss = net(pixel_values=given, labels=torch.from_numpy(classes)[batch]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
net.eval()
with torch.inference_mode():
    save("optimum", net(pixel_values=prepared(whole())).logits.softmax(-1).numpy())

with tempfile.TemporaryDirectory() as folder:
    source, target = Path(folder) / "net", Path(folder) / "onnx"
    net.save_pretrained(source)
    ConvNextImageProcessor(size={"shortest_edge": SIDE_PX}).save_pretrained(source)
    main_export(str(source), target, task="image-classification")
    shutil.copy(target / "model.onnx", HERE / "optimum.onnx")
    shutil.copy(target / "config.json", HERE / "optimum.json")

    dynamic = AutoQuantizationConfig.avx2(is_static=False, per_channel=False)
    ORTQuantizer.from_pretrained(target).quantize(dynamic, save_dir=Path(folder) / "int8")
    shutil.copy(Path(folder) / "int8" / "model_quantized.onnx", HERE / "optimum-int8.onnx")
