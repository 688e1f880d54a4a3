"""Fabric: `attach` what `fabric.setup` has returned, and save the state of all ranks.

torchrun --nproc_per_node=2 examples/with_fabric.py
torchrun --nproc_per_node=2 examples/with_fabric.py --epochs 20 --resume runs/fabric/epoch-8.ckpt
"""

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from lightning.fabric.loggers import CSVLogger
from torch.utils.data import DataLoader

import ddp_compress as dc  # <- compression
from data import image_task
from models import ConvNet

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=8)
parser.add_argument("--resume", metavar="FILE")
args = parser.parse_args()

fabric = Fabric(
    devices=2, strategy="ddp", loggers=CSVLogger("runs/fabric", flush_logs_every_n_steps=1)
)
fabric.launch()
fabric.seed_everything(0)

network = ConvNet(in_channels=1)
model, optimizer = fabric.setup(network, torch.optim.AdamW(network.parameters(), lr=3e-3))
state = dc.attach(model, "topk", density=0.01)  # <- compression
loader = fabric.setup_dataloaders(DataLoader(image_task(None).train, batch_size=64, shuffle=True))

parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "epoch": 0}
parts["compression"] = dc.AllRanks(state)  # <- compression
if args.resume:
    fabric.load(args.resume, parts)

for epoch in range(parts["epoch"], args.epochs):
    for pixels, labels in loader:
        loss = F.cross_entropy(model(pixels), labels)
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
    metrics = state.metrics()  # <- compression
    fabric.log_dict({"loss": loss.item(), **metrics}, step=epoch)
    fabric.print(f"epoch {epoch + 1}: loss {loss:.3f}, 1/{metrics['compression/ratio']:.0f} sent")
    parts["epoch"] = epoch + 1
    fabric.save(f"runs/fabric/epoch-{epoch + 1}.ckpt", parts)
