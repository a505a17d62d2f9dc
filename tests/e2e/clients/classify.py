"""Classifies a picture in each form that the API accepts: python classify.py URL PICTURE BROKEN

A client of the package that openapi-python-client generates as `generated`, beside this file.
"""

import base64
import io
import json
import sys
from pathlib import Path

from generated import Client
from generated.api.classify import classify, classify_with_model
from generated.models import ClassifyDocument, ClassifyFiles, ClassifyRequest, ProblemDocument
from generated.types import File

url, *files = sys.argv[1:]
picture, broken = (Path(file).read_bytes() for file in files)
client = Client(base_url=url)


def first(answer):
    assert isinstance(answer, ClassifyDocument)
    return [answer.predictions[0].label, answer.predictions[0].probability]


raw = classify.sync(client=client, body=File(io.BytesIO(picture)), top_k=1)
form = ClassifyFiles(image=[File(io.BytesIO(picture), "cat.jpg", "image/jpeg")])
files = classify_with_model.sync("efficientnet_lite0", client=client, body=form, top_k=1)
request = ClassifyRequest(image=base64.b64encode(picture).decode(), top_k=1)
problem = classify.sync(client=client, body=File(io.BytesIO(broken)))
assert isinstance(problem, ProblemDocument)

answers = {
    "raw": first(raw),
    "files": first(files),
    "json": first(classify.sync(client=client, body=request)),
    "broken": problem.code,
}
print(json.dumps(answers))  # noqa: T201
