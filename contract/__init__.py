"""What a model is: the package that training and serving share.

The manifest, decoding (bytes to RGB), preprocessing (RGB to tensor) and predictions (from logits)
exist only here, so training measures accuracy with the functions that the service runs. Must not
import torch, onnxruntime or a web framework.
"""
