"""Makes the artefact of Paddle.

pip install paddlepaddle==3.3.1 paddle2onnx==2.1.0 onnx onnxruntime pillow
python make_paddle.py
"""

from __future__ import annotations

import numpy as np
import paddle
from paddle import nn
from pictures import HERE, SIDE_PX, crops, save, whole

paddle.seed(0)
pixels, classes = crops()


def prepared(pixels):
    return paddle.to_tensor(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32) / 255)


parts = []
for before, width in ((3, 8), (8, 16), (16, 16)):
    parts += [nn.Conv2D(before, width, 3, padding=1, bias_attr=False), nn.BatchNorm2D(width)]
    parts += [nn.ReLU(), nn.MaxPool2D(2)]
net = nn.Sequential(*parts, nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.Linear(16, 5))

optimizer = paddle.optimizer.Adam(5e-3, parameters=net.parameters())
generator = np.random.default_rng(0)
for _ in range(25):
    for batch in np.split(generator.permutation(len(classes)), 10):
        scores = net(prepared(pixels[batch]))
        loss = nn.functional.cross_entropy(scores, paddle.to_tensor(classes[batch]))
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
net.eval()

save("paddle", nn.functional.softmax(net(prepared(whole()))).numpy())
shape = paddle.static.InputSpec([None, 3, SIDE_PX, SIDE_PX], "float32", "x")
paddle.onnx.export(net, str(HERE / "paddle"), input_spec=[shape], opset_version=15)
