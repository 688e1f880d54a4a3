"""Small networks that learn quickly on a CPU."""

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

BYTES = 256


class CausalConv(nn.Conv1d):
    """A dilated convolution along time that sees the past only; ``(batch, time, channels)``."""

    def forward(self, x: Tensor) -> Tensor:
        past = (self.kernel_size[0] - 1) * self.dilation[0]
        y: Tensor = super().forward(F.pad(x.transpose(1, 2), (past, 0)))
        return y.transpose(1, 2)


class ResidualBlock(nn.Module):
    """``x + W · gelu(conv(norm(x)))``."""

    def __init__(self, channels: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = CausalConv(channels, channels, kernel_size, dilation=dilation)
        self.mix = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(F.gelu(self.conv(self.norm(x))))


class ByteModel(nn.Module):
    """Predicts the next byte from the 64 before it: WaveNet's dilated causal convolutions.

    Three blocks of kernel 4 with dilations 1, 4 and 16 see exactly 64 bytes. Unlike a transformer
    of this size, the network trains fast and evenly with plain SGD.
    """

    def __init__(self, channels: int = 256, kernel_size: int = 4, blocks: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(BYTES, channels)
        self.blocks = nn.Sequential(
            *(ResidualBlock(channels, kernel_size, kernel_size**i) for i in range(blocks))
        )
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, BYTES)

    def forward(self, text: Tensor) -> Tensor:
        """Bytes ``(batch, time)`` to logits ``(batch, time, 256)``."""
        logits: Tensor = self.head(self.norm(self.blocks(self.embed(text))))
        return logits


class GPT(nn.Module):
    """Predicts the next byte from those before it: a small transformer."""

    def __init__(
        self,
        context: int,
        channels: int = 128,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(BYTES, channels)
        self.places = nn.Embedding(context, channels)
        shape = (channels, heads, 4 * channels, dropout, "gelu")
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(*shape, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, BYTES, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        """Bytes ``(batch, time)`` to logits ``(batch, time, 256)``."""
        time = text.shape[1]
        x = self.embed(text) + self.places.weight[:time]
        mask = nn.Transformer.generate_square_subsequent_mask(time, device=x.device)
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        logits: Tensor = self.head(self.norm(x))
        return logits


class ConvNet(nn.Module):
    """Three convolutions and a linear classifier, for 8 × 8 digits and 32 × 32 photographs alike.

    Group normalization, unlike batch normalization, keeps no buffers that the ranks must share.
    """

    def __init__(self, in_channels: int, classes: int = 10, width: int = 32) -> None:
        super().__init__()
        widths = (in_channels, width, 2 * width, 4 * width)
        self.features = nn.Sequential(
            *(self._stage(c_in, c_out) for c_in, c_out in itertools.pairwise(widths)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(widths[-1], classes)

    @staticmethod
    def _stage(in_channels: int, out_channels: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
            nn.GroupNorm(8, out_channels),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels 0–255 ``(batch, channels, height, width)`` to logits ``(batch, classes)``."""
        logits: Tensor = self.classifier(self.features(pixels.float() / 127.5 - 1))
        return logits


class PlainConvNet(nn.Module):
    """Two 5 × 5 convolutions and two linear layers, for 28 × 28; other images are scaled.

    The network of federated averaging (McMahan et al., 2017) and federated dropout (Caldas et al.,
    2018): without a norm over several channels, a channel can be left out.
    """

    def __init__(self, in_channels: int, classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(in_channels, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(64 * 7 * 7, 512), nn.ReLU()),
            nn.Linear(512, classes),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels 0–255 ``(batch, channels, height, width)`` to logits ``(batch, classes)``."""
        logits: Tensor = self.layers(F.interpolate(pixels.float() / 127.5 - 1, size=28))
        return logits


def count_parameters(model: nn.Module) -> int:
    """Number of trained elements."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
