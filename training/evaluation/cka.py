# SPDX-License-Identifier: Apache-2.0
"""Similarity of two networks by centred kernel alignment (CKA), layer by layer.

CKA (Kornblith et al. 2019) of features X (n, p) and Y (n, q) of the same n inputs is 1 if one is a
rotated and scaled version of the other, and near 0 if they have nothing in common. MeSa uses it to
find the layers of a pre-trained encoder that fine-tuning had to change.

    python -m training cka A B --data DIR --out DIR
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from depth_node.recordings.files import new_folder
from depth_node.recordings.frames import IMAGE_SUFFIXES
from depth_node.visualization import colours, panels, text
from training import checkpoints
from training.checkpoints import TrainingError
from training.data.files import below, read_image
from training.data.samples import F64, DataError
from training.models import networks
from training.models.network_io import NetworkInput

ENCODERS = r"encoder\.layer|stem|stages|context|unet\.(down_blocks|mid_block)"
LEAST_ROWS = 4  # fewest rows of a batch: the unbiased estimate divides by n - 3


# --- the number ----------------------------------------------------------------------------------


def linear_cka(x: F64, y: F64) -> float:
    """Return the linear CKA, ||Y^T X||^2 / (||X^T X|| ||Y^T Y||), of x (n, p) and y (n, q).

    The columns are centred first. NaN if all rows of x or of y are equal.
    """
    x, y = _centred(x), _centred(y)
    above = np.linalg.norm(y.T @ x) ** 2
    below = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(above / below) if below > 0 else float("nan")


def _centred(features: F64) -> F64:
    """Return features (n, p) minus their mean; 0 in columns that differ by rounding only."""
    values = np.asarray(features, np.float64)
    centred: F64 = values - values.mean(axis=0)
    rounding = len(values) * np.finfo(np.float64).eps * np.abs(values).max(axis=0, initial=0.0)
    return np.where(np.abs(centred).max(axis=0, initial=0.0) > rounding, centred, 0.0)


def gram(features: F64) -> F64:
    """Return the Gram matrix (n, n) of features (n, p), its diagonal 0, for `unbiased_hsic`."""
    # Centring does not change the estimate; it only reduces its rounding error.
    features = _centred(features)
    products = features @ features.T
    np.fill_diagonal(products, 0.0)
    return products


def unbiased_hsic(k: F64, l: F64) -> float:  # noqa: E741  # the symbols of the paper
    """Return the unbiased HSIC of two Gram matrices (n, n) with zero diagonals.

    Song et al. 2012, equation 5. Raises ValueError for fewer than LEAST_ROWS rows.
    """
    n = len(k)
    if n < LEAST_ROWS:
        raise ValueError(f"An unbiased estimate needs {LEAST_ROWS} or more rows, not {n}.")
    means = k.sum() * l.sum() / ((n - 1) * (n - 2))
    mixed = 2.0 * float(k.sum(0) @ l.sum(1)) / (n - 2)
    return float((np.sum(k * l.T) + means - mixed) / (n * (n - 3)))


class LayerSimilarity:
    """CKA of all layers of one network with all layers of another, accumulated batch by batch.

    Estimator "unbiased" takes the ratio of unbiased HSICs that are averaged over the batches
    (Nguyen et al. 2021); their expectation does not depend on the batch size. Estimator "linear"
    stores all rows and takes linear_cka of them at the end. Raises ValueError for another one.
    """

    def __init__(self, estimator: str = "linear") -> None:
        if estimator not in ("linear", "unbiased"):
            raise ValueError(f"No estimator is called {estimator!r}: use linear or unbiased.")
        self.estimator = estimator
        self._rows: tuple[list[list[F64]], list[list[F64]]] = ([], [])
        self._sums: tuple[F64, F64, F64] | None = None

    def add(self, a: Sequence[F64], b: Sequence[F64]) -> None:
        """Add the features (n, channels) of every layer of both networks for one batch."""
        if self.estimator == "linear":
            self._rows[0].append(list(a))
            self._rows[1].append(list(b))
            return
        first, second = [gram(x) for x in a], [gram(x) for x in b]
        both = np.array([[unbiased_hsic(k, l) for l in second] for k in first])  # noqa: E741
        own = [np.array([unbiased_hsic(k, k) for k in grams]) for grams in (first, second)]
        now = (both, own[0], own[1])
        if self._sums is None:
            self._sums = now
        else:
            self._sums = tuple(x + y for x, y in zip(self._sums, now, strict=True))

    def matrix(self) -> F64:
        """Return the CKA of each layer of the first network with each layer of the second.

        (layers of the first, layers of the second); NaN for a layer whose output is constant.
        Raises ValueError without features.
        """
        if self.estimator == "linear":
            if not self._rows[0]:
                raise ValueError("There are no features: add batches first.")
            a, b = (
                [np.concatenate(layer) for layer in zip(*side, strict=True)] for side in self._rows
            )
            return np.array([[linear_cka(x, y) for y in b] for x in a])
        if self._sums is None:
            raise ValueError("There are no features: add batches first.")
        both, first, second = self._sums
        below = np.sqrt(np.maximum(np.outer(first, second), 0.0))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(below > 0, both / below, np.nan)


# --- the layers ----------------------------------------------------------------------------------


def layers(model: nn.Module, pattern: str = ENCODERS) -> dict[str, nn.Module]:
    """Return the blocks of a network, by name, whose name contains a match of `pattern`.

    Blocks are the items of the network's outermost module lists, and modules that are called stem,
    mid_block or context. Raises TrainingError if none matches.
    """
    blocks: dict[str, nn.Module] = {}

    def visit(module: nn.Module, prefix: str) -> None:
        for name, child in module.named_children():
            path = f"{prefix}.{name}" if prefix else name
            if isinstance(module, nn.ModuleList) or name in ("stem", "mid_block", "context"):
                if re.search(pattern, path):
                    blocks[path] = child
            else:
                visit(child, path)

    visit(model, "")
    if not blocks:
        raise TrainingError(
            f"No layer of this network is called like {pattern!r}: choose others with --layers."
        )
    return blocks


class Probe:
    """Capture of the features of chosen layers during a forward pass."""

    def __init__(self, model: nn.Module, chosen: dict[str, nn.Module]) -> None:
        self.model, self.chosen = model.eval(), chosen

    @torch.no_grad()
    def __call__(self, read_images: Tensor, rows: str = "image", seed: int = 0) -> list[F64]:
        """Return the features (n, C) of each layer for images (N, 3, H, W) of the network's input.

        rows "image" takes the mean over the pixels or tokens of an image (n = N), "tokens" takes up
        to 16 random ones of each image.
        """
        outputs: dict[str, Tensor] = {}
        hooks = [
            module.register_forward_hook(
                lambda _m, _i, out, name=name: outputs.__setitem__(name, _first(out))
            )
            for name, module in self.chosen.items()
        ]
        try:
            self.model(read_images)
        finally:
            for hook in hooks:
                hook.remove()
        return [_rows(outputs[name], rows, seed) for name in self.chosen]


def _first(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = output[0]
    return output


def _rows(features: Tensor, rows: str, seed: int) -> F64:
    # Maps (N, C, h, w) and tokens (N, T, C) both become (N, places, C).
    locations = features.flatten(2).mT if features.ndim == 4 else features
    if locations.ndim == 2:
        locations = locations[:, None]
    if rows == "image":
        return locations.double().mean(dim=1).cpu().numpy()
    generator = np.random.default_rng(seed)  # layers of equal size take the same places
    chosen = generator.permutation(locations.shape[1])[:16]
    return locations[:, chosen].flatten(0, 1).double().cpu().numpy()


# --- the command ---------------------------------------------------------------------------------


def read_images(folder: Path, count: int, height: int, width: int) -> list[NDArray[np.uint8]]:
    """Return up to `count` images below a folder, each (height, width, 3) uint8 RGB.

    Raises DataError for too few images or an unreadable one.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}: give one of images.")
    files = below(folder, lambda path: path.suffix.lower() in IMAGE_SUFFIXES)[:count]
    if len(files) < LEAST_ROWS:
        raise DataError(
            f"{folder} holds {len(files)} images: CKA needs {LEAST_ROWS}, and hundreds to mean"
            " something."
        )
    images = []
    for path in files:
        rgb = read_image(path)
        images.append(
            np.asarray(cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        )
    return images


def open_checkpoint(path: Path) -> tuple[nn.Module, NetworkInput]:
    """Open a run of any recipe, or a folder of Depth Anything; return the network and its input."""
    if (path / "config.json").is_file():
        network = networks.open_network(networks.NetworkConfig(kind="small", source=str(path)))
    elif checkpoints.read(path)["recipe"] == "depthmaster":
        from training.models import diffusion

        teacher = diffusion.open_run(path)
        return teacher, teacher.spec
    else:
        network = networks.open_run(path)
    return network, network.spec


def compare(
    a: tuple[nn.Module, NetworkInput],
    b: tuple[nn.Module, NetworkInput],
    images: Sequence[NDArray[np.uint8]],
    comparison: LayerSimilarity,
    pattern: str = ENCODERS,
    rows: str = "image",
    batch: int = 16,
    console: Console | None = None,
) -> dict[str, Any]:
    """Return the content of cka.json: the layers' names, the CKA matrix and its diagonal.

    The diagonal compares each layer with the layer of the same number. images: (H, W, 3) uint8 RGB
    of one size.
    """
    probes = [Probe(model, layers(model, pattern)) for model, _ in (a, b)]
    groups = list(_batches(images, batch))
    steps = track(groups, "comparing", console=console) if console is not None else groups
    for k, group in enumerate(steps):
        x = torch.from_numpy(np.stack(group)).permute(0, 3, 1, 2).float() / 255
        features = [
            probe(spec.normalise(x), rows, k)
            for probe, (_, spec) in zip(probes, (a, b), strict=True)
        ]
        comparison.add(*features)
    matrix = comparison.matrix()
    names = [list(probe.chosen) for probe in probes]
    same = [float(matrix[k, k]) for k in range(min(matrix.shape))]
    return {
        "estimator": comparison.estimator,
        "rows": rows,
        "images": len(images),
        "layers_a": names[0],
        "layers_b": names[1],
        "layer_by_layer": [_plain(value) for value in same],
        "matrix": [[_plain(value) for value in row] for row in matrix],
    }


def _plain(value: float) -> float | None:
    """Return the value rounded, or None where it is not finite: JSON has no NaN."""
    return round(float(value), 6) if np.isfinite(value) else None


def _batches(
    images: Sequence[NDArray[np.uint8]], size: int
) -> Iterator[Sequence[NDArray[np.uint8]]]:
    """Yield batches of nearly equal size, each with enough images for the unbiased estimate."""
    parts = max(len(images) // max(size, LEAST_ROWS), 1)
    ends = np.linspace(0, len(images), parts + 1).astype(int)
    for first, last in itertools.pairwise(ends):
        yield images[first:last]


def draw(result: dict[str, Any], a: str, b: str) -> NDArray[np.uint8]:
    """Draw the matrix as a heat map (H, W, 3) uint8 RGB with the values in the cells.

    A row is a layer of the first network, a column a layer of the second. a and b are their names.
    """
    cells = np.array(
        [[np.nan if v is None else v for v in row] for row in result["matrix"]], np.float64
    )
    rows, columns = cells.shape
    side = int(np.clip(720 // max(rows, columns), 26, 64))
    left, top = 90, 96
    # The canvas is at least as wide as the title, which a small matrix would cut.
    title = f"CKA of layers, {result['images']} images, {result['estimator']}"
    width = max(left + columns * side + 24, text.text_width(title, 12) + 48)
    canvas = np.full((top + rows * side + 56, width, 3), colours.BACKGROUND, np.uint8)
    table = colours.colour_table("deviation")
    text.put_text(canvas, title, (24, 16), 12)
    text.put_text(canvas, f"down: {a}", (24, 38), 8, colours.MUTED)
    text.put_text(canvas, f"right: {b}", (24, 56), 8, colours.MUTED)
    for r in range(rows):
        y = top + r * side
        text.put_text(canvas, str(r), (left - 34, y + side // 2 - 7), 8, colours.MUTED)
        for c in range(columns):
            x, value = left + c * side, cells[r, c]
            if r == 0:
                text.put_text(canvas, str(c), (x + side // 2 - 6, top - 20), 8, colours.MUTED)
            colour = np.array(colours.UNKNOWN, np.uint8)
            if np.isfinite(value):
                colour = table[int(np.clip(value, 0, 1) * 255)]
            canvas[y : y + side - 1, x : x + side - 1] = colour
            if side >= 34 and np.isfinite(value):
                ink = (20, 20, 20) if value > 0.6 else colours.TEXT
                text.put_text(
                    canvas,
                    f"{value:.2f}",
                    (x + side // 2, y + side // 2 - 5),
                    8,
                    ink,
                    align="centre",
                )
    same = " ".join("-" if v is None else f"{v:.2f}" for v in result["layer_by_layer"])
    text.put_text(canvas, f"layer by layer: {same}", (24, canvas.shape[0] - 36), 8, colours.TEXT)
    return canvas


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m training cka`."""
    parser.add_argument("a", type=Path, metavar="A", help="run, checkpoint or network folder")
    parser.add_argument("b", type=Path, metavar="B", help="what to compare it with")
    parser.add_argument("--data", type=Path, required=True, help="folder of images")
    parser.add_argument(
        "--out", type=Path, required=True, help="new folder for cka.json and cka.png"
    )
    parser.add_argument("--count", type=int, default=512, help="largest number of images")
    parser.add_argument("--batch", type=int, default=64, help="images per batch")
    parser.add_argument("--height", type=int, default=224, help="images are brought to this size")
    parser.add_argument("--width", type=int, default=224)
    parser.add_argument("--rows", choices=("image", "tokens"), default="image")
    parser.add_argument(
        "--estimator", choices=("unbiased", "linear"), default="unbiased",
        help="linear is biased upwards if the images are few",
    )  # fmt: skip
    parser.add_argument("--layers", default=ENCODERS, help="regular expression of layer names")


def command(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Compare two checkpoints and write OUT/cka.json and OUT/cka.png; return the JSON's content."""
    out = new_folder(args.out, args.out)
    a, b = open_checkpoint(args.a), open_checkpoint(args.b)
    unit = int(np.lcm(a[1].multiple_px, b[1].multiple_px))
    size = [max(round(side / unit), 1) * unit for side in (args.height, args.width)]
    images = read_images(args.data, args.count, *size)
    result = compare(
        a, b, images, LayerSimilarity(args.estimator), args.layers, args.rows, args.batch, console
    )
    result = {"a": str(args.a), "b": str(args.b), "height": size[0], "width": size[1], **result}
    out.mkdir(parents=True, exist_ok=True)
    (out / "cka.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    panels.write_image(
        out / "cka.png",
        draw(result, *("/".join(path.parts[-2:]) for path in (args.a, args.b))),
    )
    same = ", ".join("-" if v is None else f"{v:.3f}" for v in result["layer_by_layer"])
    console.print(f"layer by layer: {same}")
    return result
