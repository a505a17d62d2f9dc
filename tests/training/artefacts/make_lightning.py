"""Makes a checkpoint of Lightning's Trainer, of the tiny network of the tests.

pip install -e ".[training]" lightning==2.6.6
python -m tests.training.artefacts.make_lightning, from the root of the repository
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.training.helpers.tinynet import SIDE_PX, TinyNet


class Classifier(lightning.LightningModule):
    def __init__(self, learning_rate: float = 1e-3) -> None:  # noqa: ARG002 # becomes a hyperparameter
        super().__init__()
        self.save_hyperparameters()
        self.model = TinyNet()
        self.loss = nn.CrossEntropyLoss(weight=torch.ones(3))

    def training_step(self, batch, _):
        return self.loss(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.learning_rate)


torch.manual_seed(0)
data = TensorDataset(torch.rand(6, 3, SIDE_PX, SIDE_PX), torch.arange(6) % 3)
with tempfile.TemporaryDirectory() as folder:  # the checkpoint names it
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        callbacks=[ModelCheckpoint(dirpath=folder, filename="lightning")],
    )
    trainer.fit(Classifier(), DataLoader(data, batch_size=3))
    shutil.copy(Path(folder) / "lightning.ckpt", Path(__file__).parent)
