"""Torchvision's models on plain DDP, laid out as PyTorch's ImageNet example; compression is marked.

torchrun --nproc_per_node=4 examples/imagenet.py --data imagenet --arch resnet50
torchrun --nproc_per_node=4 examples/imagenet.py --data imagenet --arch resnet50 --resume
torchrun --nproc_per_node=2 examples/imagenet.py --dummy 512 --size 64 --epochs 3    # on CPUs
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from torchvision import datasets, models, transforms

import ddp_compress as dc  # <- compression

NORMALIZE = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
Loader = DataLoader[Any]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, help="a folder with train and val")
    parser.add_argument("--dummy", type=int, metavar="IMAGES", help="made-up images in its place")
    parser.add_argument("--size", type=int, default=224, help="of images (default: 224)")
    parser.add_argument("--arch", default="resnet18", help="a model of torchvision")
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--batch-size", type=int, default=64, help="of each rank (default: 64)")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint.pth.tar"))
    parser.add_argument("--resume", action="store_true", help="go on from --checkpoint")
    args = parser.parse_args()

    dist.init_process_group()  # NCCL for GPUs, Gloo for CPUs
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    torch.manual_seed(0)

    train_loader, val_loader = loader(args, "train"), loader(args, "val")
    sampler: Any = train_loader.sampler
    network = models.get_model(args.arch).to(device)
    model = DistributedDataParallel(network)
    density = dc.exponential_warmup(0.01, steps=4 * len(train_loader))  # <- compression
    state = dc.attach(model, "topk", density=density)  # <- compression
    optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30, gamma=0.1)

    parts = {"model": network, "optimizer": optimizer, "scheduler": scheduler}
    parts["compression"] = dc.AllRanks(state)  # <- compression
    start = 0
    if args.resume:
        checkpoint = torch.load(args.checkpoint, map_location=device)
        start = checkpoint["epoch"]
        for name, part in parts.items():
            part.load_state_dict(checkpoint[name])

    for epoch in range(start, args.epochs):
        sampler.set_epoch(epoch)
        torch.manual_seed(epoch * dist.get_world_size() + dist.get_rank())  # of augmentations
        loss = train(train_loader, model, optimizer, device)
        accuracy = validate(val_loader, network, device)
        scheduler.step()
        checkpoint = {name: part.state_dict() for name, part in parts.items()}  # on every rank
        if dist.get_rank() == 0:
            ratio = state.metrics()["compression/ratio"]  # <- compression
            done = epoch + 1
            print(f"epoch {done}: loss {loss:.4f}, accuracy {accuracy:.2%}, 1/{ratio:.0f} sent")
            torch.save({**checkpoint, "epoch": done}, args.checkpoint)
    dist.destroy_process_group()


def loader(args: argparse.Namespace, name: str) -> Loader:
    """This rank's share of images: of a folder, or made up."""
    crop = [transforms.RandomResizedCrop(args.size), transforms.RandomHorizontalFlip()]
    if name == "val":
        crop = [transforms.Resize(args.size * 8 // 7), transforms.CenterCrop(args.size)]
    transform = transforms.Compose([*crop, transforms.ToTensor(), NORMALIZE])
    if args.dummy:
        images = datasets.FakeData(args.dummy, (3, args.size, args.size), 1000, transform)
    else:
        images = datasets.ImageFolder(args.data / name, transform)
    sampler: Any = DistributedSampler(images, shuffle=name == "train")
    return DataLoader(images, args.batch_size, sampler=sampler, num_workers=args.workers)


def train(loader: Loader, model: nn.Module, optimizer: Any, device: torch.device) -> float:
    """An epoch; the loss of its last batch on this rank."""
    model.train()
    for images, labels in loader:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = F.cross_entropy(model(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


@torch.no_grad()
def validate(loader: Loader, network: nn.Module, device: torch.device) -> float:
    """Top-1 accuracy; every rank takes its share of the images."""
    network.eval()
    sums = torch.zeros(2, device=device)  # hits, images
    for images, labels in loader:
        hits = network(images.to(device)).argmax(1) == labels.to(device)
        sums += torch.tensor([hits.sum(), hits.numel()], device=device)
    dist.all_reduce(sums)
    return (sums[0] / sums[1]).item()


if __name__ == "__main__":
    main()
