"""ONNX files: exported, described, quantized."""
