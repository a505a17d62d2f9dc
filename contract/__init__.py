"""What a model is: the one package that training and serving share.

The manifest, the decoder (bytes to RGB), the preprocessing (RGB to tensor) and the predictions (from
logits) live here and nowhere else, so that the accuracy training prints is measured through the
very functions the service runs. Depends on the standard library, numpy, pydantic, Pillow and two
libraries that decode and resize faster, simplejpeg and cykooz-resizer.
"""
