"""How good answers are, measured on the ONNX file from image bytes."""
