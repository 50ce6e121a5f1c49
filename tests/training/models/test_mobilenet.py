# SPDX-License-Identifier: Apache-2.0
"""MobileNetV2 as an encoder: torchvision's weights under torchvision's names."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

from torch import nn

from training.checkpoints import TrainingError
from training.models import mobilenet
from training.models.alignment import Alignment
from training.models.mobilenet import STAGES, TAPS, MobileNetV2, imagenet_weights, renamed
from training.models.network_io import IMAGENET_MEAN, IMAGENET_STD, NetworkInput
from training.models.networks import NetworkConfig, open_dino

IMAGENET = NetworkInput(IMAGENET_MEAN, IMAGENET_STD, 32)


def layer(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6())


class Block(nn.Module):
    """An inverted residual with torchvision's names of its parts."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        parts: list[nn.Module] = [layer(inputs, hidden, 1)] if expansion > 1 else []
        parts += [layer(hidden, hidden, 3, stride, hidden), *layer(hidden, outputs, 1)[:2]]
        self.conv = nn.Sequential(*parts)
        self.around = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.around else self.conv(x)


class Theirs(nn.Module):
    """MobileNetV2 as torchvision names it, with the layer before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = [layer(3, 32, 3, 2)]
        inputs = 32
        for expansion, channels, count, stride in STAGES:
            for k in range(count):
                blocks.append(Block(inputs, channels, stride if k == 0 else 1, expansion))
                inputs = channels
        self.features = nn.Sequential(*blocks, layer(320, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(1280, 10))


def test_torchvisions_weights_give_its_features() -> None:
    torch.manual_seed(0)
    theirs = Theirs()
    x = torch.rand(1, 3, 64, 96)
    theirs.train().features(x)  # so that statistics differ from those of a fresh layer
    theirs.eval()
    ours = MobileNetV2(NetworkInput((0.5,) * 3, (0.25,) * 3, 32)).eval()
    ours.load_state_dict(renamed(theirs.state_dict()))
    with torch.no_grad():
        found = ours((x - 0.5) / 0.25)
        y, expected = IMAGENET.normalise(x), []
        for index, block in enumerate(theirs.features):
            y = block(y)
            expected += [y] if index in TAPS else []
    assert [tuple(f.shape[1:]) for f in found] == [
        (channels, 64 >> k, 96 >> k) for k, channels in enumerate(TAPS.values(), 1)
    ]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_its_features_stand_where_dinov2s_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "mobilenet.pth"
    torch.save(Theirs().state_dict(), weights)
    monkeypatch.setattr(mobilenet, "SHA256", "")
    external = open_dino(NetworkConfig(source=str(weights)))
    images = torch.rand(1, 3, 56, 70, generator=torch.Generator().manual_seed(1))
    aligned = Alignment(24, external)
    loss = aligned(images, torch.rand(1, 24, 3, 4, requires_grad=True))
    loss.backward()
    assert external.channels == 96 and float(loss.detach()) > 0
    assert all(p.grad is not None for p in aligned.parameters()), "the projector learns"
    assert not any(p.requires_grad for p in external.parameters())


def test_another_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mobilenet.pth"
    with pytest.raises(TrainingError, match=r"cannot be read .*give torchvision's"):
        imagenet_weights(file)
    file.write_bytes(b"weights")
    with pytest.raises(TrainingError, match=r"not torchvision's mobilenet_v2-b0353104\.pth"):
        imagenet_weights(file)
