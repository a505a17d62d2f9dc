"""Trains or imports models and publishes them to the model repository.

The service needs nothing from here. Images are decoded and preprocessed by `contract`, with the same
functions that the service calls. Only this package imports torch, timm and onnx.
"""
