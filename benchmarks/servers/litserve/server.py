"""LitServe: the LitAPI of its documentation, which prepares in `decode_request` and batches.

No postponed annotations here: LitServe passes the annotation of `request` on to FastAPI, which then
reads the raw body. Without it, LitServe accepts only JSON and forms.
"""

from typing import Annotated, Any

import litserve
import numpy as np
import picture
from fastapi import Depends, Request


async def body(request: Request) -> bytes:
    return await request.body()


class One(litserve.LitAPI):
    """Without batching; the session is opened in each worker's own process."""

    def setup(self, device: str) -> None:
        self.session = picture.open_session(picture.THREADS)

    def decode_request(self, request: Annotated[bytes, Depends(body)]) -> np.ndarray:
        return picture.prepare(request)

    def predict(self, row: np.ndarray) -> np.ndarray:
        return picture.infer(self.session, row[None])[0]

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        return picture.top5(output)


class Several(One):
    """With batching."""

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, batch: np.ndarray) -> np.ndarray:
        return picture.infer(self.session, batch)

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return list(output)


if __name__ == "__main__":
    if picture.MAX_BATCH_SIZE == 1:
        api: litserve.LitAPI = One()
    else:
        api = Several(max_batch_size=picture.MAX_BATCH_SIZE, batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=picture.WORKERS)
    server.run(
        host="127.0.0.1",
        port=picture.PORT,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
