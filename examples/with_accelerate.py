"""Accelerate: `attach` what `accelerator.prepare` has returned.

torchrun --nproc_per_node=2 examples/with_accelerate.py
torchrun --nproc_per_node=2 examples/with_accelerate.py --epochs 20 --resume runs/accelerate/epoch_8
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch.utils.data import DataLoader

from data import image_task
from ddp_compress.integrations.accelerate import attach  # <- compression
from models import ConvNet

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=8)
parser.add_argument("--resume", type=Path, metavar="FOLDER")
args = parser.parse_args()

accelerator = Accelerator(
    cpu=not torch.cuda.is_available(),
    dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),  # orders by epoch
    log_with="tensorboard",
    project_dir="runs/accelerate",
)
accelerator.init_trackers("logs")
set_seed(0)

model = ConvNet(in_channels=1)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
loader = DataLoader(image_task(None).train, batch_size=64, shuffle=True)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
state = attach(accelerator, model, "topk", density=0.01)  # <- compression

done = 0
if args.resume:
    accelerator.load_state(args.resume)  # with what every rank still owes to the model
    done = int(args.resume.name.removeprefix("epoch_"))

for epoch in range(done, args.epochs):
    loader.set_epoch(epoch)
    for pixels, labels in loader:
        loss = F.cross_entropy(model(pixels), labels)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
    metrics = state.metrics()  # <- compression
    accelerator.log({"loss": loss.item(), **metrics}, step=epoch)
    ratio = metrics["compression/ratio"]
    accelerator.print(f"epoch {epoch + 1}: loss {loss:.3f}, 1/{ratio:.0f} sent")
    accelerator.save_state(f"runs/accelerate/epoch_{epoch + 1}")
accelerator.end_training()
