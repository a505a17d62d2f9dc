"""MLServer: a custom runtime, batched over the V2 protocol or with raw bytes in a custom handler.

V2 over REST carries bytes as base64 in JSON. Adaptive batching works only there.
"""

from __future__ import annotations

import asyncio
import base64
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import picture
from mlserver import MLModel
from mlserver.handlers import custom_handler
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput
from starlette.requests import Request
from starlette.responses import JSONResponse


class Classifier(MLModel):
    """The runtime that model-settings.json names. MLServer loads it in each worker process."""

    async def load(self) -> bool:
        self.session = picture.open_session(picture.THREADS)
        self.pool = ThreadPoolExecutor(2)
        return True

    def answer(self, uploads: list[bytes]) -> list[dict[str, Any]]:
        batch = np.stack([picture.prepare(data) for data in uploads])
        return [picture.top5(row) for row in picture.infer(self.session, batch)]

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        # MLServer has joined several requests along the first axis.
        uploads = [base64.b64decode(one) for one in payload.inputs[0].data]
        loop = asyncio.get_running_loop()
        answers = await loop.run_in_executor(self.pool, self.answer, uploads)

        output = ResponseOutput(
            name="predictions",
            shape=[len(answers)],
            datatype="BYTES",
            data=[json.dumps(answer["predictions"]) for answer in answers],
        )
        return InferenceResponse(model_name=self.name, outputs=[output])

    @custom_handler(rest_path="/classify")
    async def classify(self, request: Request) -> JSONResponse:
        data = await request.body()
        loop = asyncio.get_running_loop()
        (answer,) = await loop.run_in_executor(self.pool, self.answer, [data])
        return JSONResponse(answer)
