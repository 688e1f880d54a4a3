"""Lightning: compression is one more callback.

torchrun --nproc_per_node=2 examples/with_lightning.py
torchrun --nproc_per_node=2 examples/with_lightning.py --epochs 20   # goes on from the last one
"""

import argparse

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

from data import image_task
from ddp_compress.integrations.lightning import CompressionCallback  # <- compression
from models import ConvNet


class Digits(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = ConvNet(in_channels=1)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        pixels, labels = batch
        loss = F.cross_entropy(self.network(pixels), labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        pixels, labels = batch
        hits = self.network(pixels).argmax(1) == labels
        self.log("accuracy", hits.float().mean(), prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=8)
args = parser.parse_args()

L.seed_everything(0)
train, validation = image_task(None)
trainer = L.Trainer(
    max_epochs=args.epochs,
    devices=2,
    strategy="ddp",
    logger=CSVLogger("runs/lightning"),  # its metrics.csv has columns named compression/...
    log_every_n_steps=5,
    callbacks=[
        ModelCheckpoint("runs/lightning", save_last=True),
        CompressionCallback("topk", density=0.01),  # <- compression
    ],
)
loader = DataLoader(train, batch_size=64, shuffle=True)
trainer.fit(Digits(), loader, DataLoader(validation, batch_size=64), ckpt_path="last")
