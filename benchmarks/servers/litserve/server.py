"""LitServe: the LitAPI of its documentation, which prepares in `decode_request` and batches.

No postponed annotations here: LitServe hands the annotation of `request` on to FastAPI, which is how
the raw body gets in. Without it LitServe accepts JSON and forms only.
"""

from typing import Annotated, Any

import litserve
import numpy as np
import picture
from fastapi import Depends, Request


async def body(request: Request) -> bytes:
    """Reads the whole upload."""
    return await request.body()


class One(litserve.LitAPI):
    """Without batching."""

    def setup(self, device: str) -> None:
        """Opens the session in the worker's own process."""
        self.session = picture.open_session(picture.THREADS)

    def decode_request(self, request: Annotated[bytes, Depends(body)]) -> np.ndarray:
        """Prepares one picture."""
        return picture.prepare(request)

    def predict(self, row: np.ndarray) -> np.ndarray:
        """Runs one picture."""
        return picture.infer(self.session, row[None])[0]

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        """Names the labels."""
        return picture.top5(output)


class Several(One):
    """With batching."""

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        """Stacks the rows."""
        return np.stack(inputs)

    def predict(self, batch: np.ndarray) -> np.ndarray:
        """Runs one batch."""
        return picture.infer(self.session, batch)

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        """Takes the rows apart."""
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
