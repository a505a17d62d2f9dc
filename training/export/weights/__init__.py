"""Chooses the int8 weights and biases of a quantized graph, layer by layer.

onnxruntime's quantizer sets the ranges of the activations and rounds each weight by itself. This
package keeps the ranges and chooses better weights: small enough for every processor (`pairs`),
rounded so that the errors of a layer cancel on real inputs (`rounding`), with biases that keep the
mean of each channel (`bias`).
"""
