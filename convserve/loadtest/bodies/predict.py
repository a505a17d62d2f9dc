"""The REST calls of TF Serving and TorchServe."""

from __future__ import annotations

import json
from collections.abc import Sequence

from convserve.loadtest.bodies.answers import (
    are_scores,
    highest,
    parse_json,
    read_each,
    read_first_classes,
)
from convserve.loadtest.bodies.call import (
    Call,
    Options,
    check_some,
    media_type,
    only_picture,
    path_of,
    to_base64,
    version_part,
)


class TfServing:
    """TF Serving's predict call, row format, which is KServe's V1 protocol as well."""

    name = "tfserving"
    help = "TF Serving and KServe V1: JSON instances. --field: the input's name [none]."
    many = True

    def call(self, pictures: Sequence[bytes], options: Options) -> Call:
        check_some(pictures)
        values = [{"b64": to_base64(picture)} for picture in pictures]
        # With a single input its name can be left out.
        instances = [{options.field: one} for one in values] if options.field else values
        path = path_of(options, "/v1/models/", version_part(options, "/versions/") + ":predict")
        content = json.dumps({"instances": instances}).encode("utf-8")
        return Call("POST", path, (("Content-Type", "application/json"),), content)

    def first_classes(self, content: bytes) -> list[str]:
        answer = parse_json(content)
        predictions = answer.get("predictions") if isinstance(answer, dict) else None
        # One item for each picture, so a list of labels is no ranking here.
        if not isinstance(predictions, list):
            raise ValueError(f"no list of predictions in the answer {content[:200]!r}")
        return read_each(predictions, bare=True)


class TorchServe:
    """TorchServe's predictions call; its image classifier answers {label: probability}."""

    name = "torchserve"
    help = "TorchServe: the picture is the whole body, the answer is label: probability."
    many = False

    def call(self, pictures: Sequence[bytes], options: Options) -> Call:
        picture = only_picture(pictures, self.name)
        path = path_of(options, "/predictions/", version_part(options, "/"))
        return Call("POST", path, (("Content-Type", media_type(picture)),), picture)

    def first_classes(self, content: bytes) -> list[str]:
        answer = parse_json(content)
        scores = list(answer.values()) if isinstance(answer, dict) else []
        if are_scores(scores):
            return [list(answer)[highest(scores)]]
        return read_first_classes(answer)  # another handler's answer
