# SPDX-License-Identifier: Apache-2.0
"""Panels: depth, points, regions and errors of a frame as titled cards on one image.

Every image is (H, W, 3) uint8 RGB. Depth is in metres along the optical axis, NaN where unknown.
Unknown pixels are drawn as hatched dark ground, never in a colour of the scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from depth_node.gates import Gates
from depth_node.geometry.camera import Camera
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.visualization.clouds import point_cloud_view, top_view
from depth_node.visualization.colours import (
    ACCENT,
    BACKGROUND,
    CARD,
    MUTED,
    TEXT,
    Scale,
    colour_map,
    colour_regions,
    colour_table,
    depth_scale,
    deviation_scale,
    error_scale,
    relative_error_percent,
    relative_scale,
)
from depth_node.visualization.points import draw_crosses, points_on_image, sparse_map
from depth_node.visualization.text import put_text, text_width


@dataclass(frozen=True)
class ImageCard:
    """A card of a panel: a title, an image (H, W, 3), a caption, and the scale drawn as a bar."""

    title: str
    image: npt.NDArray[Any]
    caption: str = ""
    scale: Scale | None = None
    columns: int = 1  # how many columns of the panel the card covers


@dataclass(frozen=True)
class TableCard:
    """A card of a panel with a table: its first column is left-aligned, the others right-aligned.

    highlight: index of the row to emphasise.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    highlight: int | None = None
    notes: Sequence[str] = ()
    columns: int = 1


CARD_WIDTH = 620
MARGIN = 18
PADDING = 12
TITLE_HEIGHT = 34
CAPTION_HEIGHT = 26
BAR_WIDTH = 84
LEAST_IMAGE_HEIGHT = 60  # of a card, for the labels of its bar
MOST_IMAGE_HEIGHT = 2 * CARD_WIDTH  # of a card; a taller image is made narrower
MIN_BELIEVED = 0.3  # of the known pixels; if fewer pass the gates, the cloud shows them all


def compose(
    heading: str,
    subheading: str,
    cards: Sequence[ImageCard | TableCard],
    *,
    columns: int = 3,
    card_width: int = CARD_WIDTH,
) -> npt.NDArray[Any]:
    """Draw cards in rows of `columns` on a dark ground under a heading -> (H, W, 3) RGB.

    A row has the height of its tallest one-column card, or of its tallest card if it has none. A
    card may cover several columns.
    """
    rows: list[list[ImageCard | TableCard]] = [[]]
    for card in cards:
        if sum(c.columns for c in rows[-1]) + card.columns > columns:
            rows.append([])
        rows[-1].append(card)
    total_width = MARGIN + columns * (card_width + MARGIN)
    strips = [_heading_strip(heading, subheading, total_width)]
    for row in rows:
        widths = [c.columns * card_width + (c.columns - 1) * MARGIN for c in row]
        heights = [_card_height(c, w) for c, w in zip(row, widths, strict=True)]
        single = [h for c, h in zip(row, heights, strict=True) if c.columns == 1]
        height = max(single) if single else max(heights)
        strip = np.empty((height + MARGIN, total_width, 3), dtype=np.uint8)
        strip[:] = BACKGROUND
        x = MARGIN
        for card, width in zip(row, widths, strict=True):
            strip[:height, x : x + width] = _draw_card(card, height, width)
            x += width + MARGIN
        strips.append(strip)
    return np.vstack(strips)


def cloud_size(image_size: tuple[int, ...], *, columns: int) -> tuple[int, int]:
    """Return (height, width) of an image that fills a card of `columns` columns.

    image_size: (height, width) of the images in the one-column cards of the same row.
    """
    single = ImageCard("", np.zeros((*image_size, 3), np.uint8), scale=Scale("depth", 1, 2))
    height = _card_height(single, CARD_WIDTH) - TITLE_HEIGHT - CAPTION_HEIGHT
    return height, columns * CARD_WIDTH + (columns - 1) * MARGIN - 2 * PADDING


def _heading_strip(heading: str, subheading: str, width: int) -> npt.NDArray[Any]:
    strip = np.empty((86, width, 3), dtype=np.uint8)
    strip[:] = BACKGROUND
    strip[20:70, MARGIN : MARGIN + 5] = ACCENT
    put_text(strip, heading, (MARGIN + 18, 15), 19, TEXT, bold=True)
    put_text(strip, subheading, (MARGIN + 18, 53), 11, MUTED)
    return strip


def _image_width(card: ImageCard, width: int) -> int:
    return width - 2 * PADDING - (BAR_WIDTH if card.columns == 1 else 0)


def _card_height(card: ImageCard | TableCard, width: int) -> int:
    if isinstance(card, TableCard):
        return TITLE_HEIGHT + PADDING + 26 * (len(card.rows) + 1) + 20 * len(card.notes) + PADDING
    height, source_width = card.image.shape[:2]
    drawn = round(height * _image_width(card, width) / source_width)
    drawn = min(max(drawn, LEAST_IMAGE_HEIGHT), MOST_IMAGE_HEIGHT)
    return TITLE_HEIGHT + drawn + CAPTION_HEIGHT


def _draw_card(card: ImageCard | TableCard, height: int, width: int) -> npt.NDArray[Any]:
    ground = np.empty((height, width, 3), dtype=np.uint8)
    ground[:] = CARD
    put_text(ground, card.title, (PADDING, 10), 12, TEXT, bold=True)
    if isinstance(card, TableCard):
        _draw_table(ground, card)
        return ground
    room_h = height - TITLE_HEIGHT - CAPTION_HEIGHT
    room_w = width - 2 * PADDING - (BAR_WIDTH if card.scale is not None else 0)
    source_h, source_w = card.image.shape[:2]
    ratio = min(room_w / source_w, room_h / source_h)
    size = (max(1, round(source_w * ratio)), max(1, round(source_h * ratio)))
    interpolation = cv2.INTER_AREA if ratio < 1 else cv2.INTER_CUBIC
    resized = cv2.resize(card.image, size, interpolation=interpolation)
    x = PADDING + (room_w - size[0]) // 2
    y = TITLE_HEIGHT + (room_h - size[1]) // 2
    ground[y : y + size[1], x : x + size[0]] = resized
    put_text(ground, card.caption, (PADDING, height - CAPTION_HEIGHT + 7), 9, MUTED)
    if card.scale is not None:
        bar = min(max(size[1], LEAST_IMAGE_HEIGHT), room_h)
        y = TITLE_HEIGHT + (room_h - bar) // 2
        _draw_bar(ground, card.scale, (PADDING + room_w + 12, y, 15, bar))
    return ground


def _draw_bar(ground: npt.NDArray[Any], scale: Scale, box: tuple[int, int, int, int]) -> None:
    """Draw a vertical colour bar with ticks, high values on top; box: (x, y, width, height)."""
    x, y, width, height = box
    top, bottom = y, y + height
    if scale.high_word:
        put_text(ground, scale.high_word, (x - 2, y), 8, MUTED)
        top = y + 17
    if scale.low_word:
        put_text(ground, scale.low_word, (x - 2, y + height - 11), 8, MUTED)
        bottom = y + height - 19
    ramp = np.linspace(255, 0, bottom - top).astype(np.uint8)
    ground[top:bottom, x : x + width] = colour_table(scale.table)[ramp][:, None]
    if not scale.unit:
        return
    labels = [(scale.position(np.array(t)), f"{t:g}") for t in scale.ticks()]
    for position, label in labels:
        row = bottom - 1 - round(float(position) * (bottom - top - 1))
        ground[row, x + width : x + width + 4] = MUTED
        row = int(np.clip(row - 5, top - 3, bottom - 8))
        put_text(ground, f"{label} {scale.unit}", (x + width + 6, row), 9, TEXT)


def _draw_table(ground: npt.NDArray[Any], card: TableCard) -> None:
    width = ground.shape[1]
    count = len(card.head)
    first = max(text_width(r[0], 11, True) for r in (card.head, *card.rows)) + 24
    step = (width - 2 * PADDING - first) / max(count - 1, 1)
    ends = [round(PADDING + first + step * (k + 1)) - 4 for k in range(count - 1)]
    y = TITLE_HEIGHT + PADDING
    for number, row in enumerate((card.head, *card.rows)):
        is_head, strong = number == 0, number - 1 == card.highlight
        colour = MUTED if is_head else ACCENT if strong else TEXT
        size = 9 if is_head else 11
        put_text(ground, row[0], (PADDING, y), size, colour, bold=strong)
        for end, text in zip(ends, row[1:], strict=True):
            put_text(ground, text, (end, y), size, colour, bold=strong, align="right")
        y += 26
        if is_head:
            ground[y - 8, PADDING : width - PADDING] = (60, 65, 78)
    for note in card.notes:
        put_text(ground, note, (PADDING, y + 6), 9, MUTED)
        y += 20


@dataclass(frozen=True)
class FrameImages:
    """All images of one processed frame, to be saved singly or as a panel."""

    heading: str
    subheading: str
    cards: tuple[ImageCard | TableCard, ...]

    def panel(self) -> npt.NDArray[Any]:
        """Draw all cards on one (H, W, 3) RGB image."""
        return compose(self.heading, self.subheading, self.cards)

    def save(self, folder: Path, stem: str, *, singles: bool = True) -> list[Path]:
        """Write `<stem>_panel.png` and, with `singles`, a PNG per image card.

        Returns the paths, the panel's first. Raises OSError if a file cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{stem}_panel.png"]
        write_image(paths[0], self.panel())
        for card in self.cards:
            if singles and isinstance(card, ImageCard):
                name = "_".join(card.title.lower().replace("-", " ").split())
                paths.append(folder / f"{stem}_{name}.png")
                write_image(paths[-1], card.image)
        return paths


def frame_cards(
    image: npt.NDArray[Any],
    camera: Camera,
    points: SparseDepth,
    rejected: npt.NDArray[Any],
    labels: npt.NDArray[Any] | None,
    relative: npt.NDArray[Any],
    gates: Gates,
    *,
    truth: npt.NDArray[Any] | None = None,
    method: str = "",
    relative_caption: str = "prediction of the network, without metres",
    regions_caption: str = "",
) -> list[ImageCard]:
    """Return the cards of one frame.

    image: (H, W, 3) RGB. points: N metric points. rejected: (N,) bool, outliers of the fit, marked
    by crosses. labels: (H, W), None without regions. relative: (H, W) relative depth, large = far.
    gates: depth, its standard deviation, and which pixels pass. truth: (H, W) m; without it the
    standard deviation takes the place of the error.
    """
    depth, believed = gates.depth, gates.believed_depth()
    few_pass = np.isfinite(believed).sum() <= MIN_BELIEVED * np.isfinite(depth).sum()
    trusted = depth if few_pass else believed
    scale = depth_scale(trusted, points.depth, *([] if truth is None else [truth]))
    if labels is None:
        labels = np.zeros(depth.shape, np.int32)
    regions = f"{int(labels.max(initial=0))} regions"
    deviation = deviation_scale(gates.std)
    deviation_card = ImageCard(
        "Standard deviation",
        colour_map(gates.std, deviation),
        "standard deviation stated by the method",
        deviation,
    )
    cards = [
        ImageCard("Camera image", image, f"{image.shape[1]} x {image.shape[0]} px"),
        _points_card(image, points, rejected, scale),
        ImageCard(
            "Regions",
            colour_regions(labels, image),
            ", ".join(filter(None, (regions, regions_caption))),
        ),
        ImageCard(
            "Relative depth",
            colour_map(relative, relative_scale(relative)),
            relative_caption,
            relative_scale(relative),
        ),
        ImageCard(
            "Metric depth",
            colour_map(depth, scale),
            f"method {method}, {100 * np.isfinite(depth).mean():.0f} % of the pixels answered",
            scale,
        ),
        deviation_card if truth is None else _error_card(depth, truth, image),
    ]
    shown = "all pixels, as few pass the gates" if few_pass else "what passes the gates"
    cards += _cloud_cards(image, camera, trusted, shown, columns=2 if truth is None else 1)
    return cards if truth is None else [*cards, deviation_card]


def _points_card(
    image: npt.NDArray[Any], points: SparseDepth, rejected: npt.NDArray[Any], scale: Scale
) -> ImageCard:
    drawn = points_on_image(image, points.rows, points.cols, points.depth, scale)
    caption = f"{len(points)} metric points"
    if rejected.any():
        drawn = draw_crosses(drawn, points.rows[rejected], points.cols[rejected])
        caption += f", {np.count_nonzero(rejected)} rejected (red crosses)"
    return ImageCard("LiDAR on image", drawn, caption, scale)


def _cloud_cards(
    image: npt.NDArray[Any], camera: Camera, depth: npt.NDArray[Any], shown: str, columns: int
) -> list[ImageCard]:
    size = image.shape[:2]
    view = point_cloud_view(depth, image, camera, *cloud_size(size, columns=columns))
    caption = f"metric depth in 3-D from beside and above, {shown}"
    plan = top_view(depth, image, camera, *cloud_size(size, columns=1))
    return [
        ImageCard("Point cloud", view, caption, columns=columns),
        ImageCard("Seen from above", plan, "floor plan in the camera's axes, camera in yellow"),
    ]


def _error_card(
    depth: npt.NDArray[Any], truth: npt.NDArray[Any], image: npt.NDArray[Any]
) -> ImageCard:
    error = relative_error_percent(depth, truth)
    known = np.isfinite(error)
    scale = error_scale()
    dense = known.mean() > 0.3
    panel_image = colour_map(error, scale) if dense else sparse_map(error, scale, image)
    caption = "no pixel has a truth"
    if known.any():
        metres = float(np.median(np.abs(depth - truth)[known]))
        caption = f"mean {np.abs(error[known]).mean():.1f} %, median {metres:.3g} m off the truth"
    return ImageCard("Error against the truth", panel_image, caption, scale)


def write_image(path: Path, image: npt.NDArray[Any]) -> None:
    """Write an image (H, W, 3) RGB as PNG or JPEG by the suffix. Raises OSError if that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    try:
        encoded, data = cv2.imencode(path.suffix, bgr)
    except cv2.error:  # an unknown suffix
        encoded = False
    if not encoded:
        raise OSError(f"Could not write {path}: name a file with the suffix .png or .jpg")
    path.write_bytes(data.tobytes())  # imwrite would not say that the disk is full
