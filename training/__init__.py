"""Makes models: from weights or pictures to a published version in the model repository.

Nothing here is needed to serve a version. Pictures are decoded and prepared by `contract`, the very
functions the service runs; torch, timm and onnx appear in this package only.
"""
