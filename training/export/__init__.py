"""Makes ONNX files: exported, described, quantized."""
