# SPDX-License-Identifier: Apache-2.0
"""The look of a place's images (light, contrast, sharpness, noise), given to images of another.

What a camera and its light do to an image is, to first order, a gain, a linear filter and added
noise. All three show in mean spectra, for which no image needs a partner or a label: images whose
power is lower at a frequency there are filtered, what they lack is added as noise. A kin of Fourier
domain adaptation (Yang and Soatto 2020, arXiv 2004.05498), which swaps amplitudes of single images
and so neither blurs nor adds noise. Each channel by itself: a grey camera takes no colours away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

from training.data.samples import F32, F64

# Cycles over an image between which the gain is read: as low as no blur reaches, above the mean.
GAIN_BAND = (0.9, 2.5)
TINY = 1e-9
# More power than known images have is edges made steeper up to this factor, and noise beyond it.
BOOST = 2.0
SMOOTHED = 1.0  # sigma, in cycles over the image, by which mean spectra are smoothed


@dataclass(frozen=True)
class Statistics:
    """Of images (N, H, W, 3) in 0..1: mean and deviation of their means (3,), and the mean power
    (H, W // 2 + 1, 3) at each frequency about them, under a Hann window.
    """

    mean: F64
    deviation: F64
    power: F64

    @classmethod
    def of(cls, images: F32) -> Statistics:
        """Measured on images (N, H, W, 3) float32 in 0..1."""
        rows, columns = images.shape[1:3]
        window = np.outer(np.hanning(rows + 2)[1:-1], np.hanning(columns + 2)[1:-1])[..., None]
        window = (window / np.sqrt(np.mean(window**2))).astype(np.float32)
        means = images.mean(axis=(1, 2), dtype=np.float64)
        power = np.zeros((rows, columns // 2 + 1, 3))
        for image, mean in zip(images, means, strict=True):
            centred = (image - mean.astype(np.float32)) * window
            power += np.abs(fft.rfft2(centred, axes=(0, 1), norm="ortho")) ** 2
        power /= len(images)
        whole = fft.fftshift(power, axes=0)  # so that neighbours are neighbours
        smooth = ndimage.gaussian_filter(whole, (SMOOTHED, SMOOTHED, 0), mode="nearest")
        return cls(means.mean(axis=0), means.std(axis=0), fft.ifftshift(smooth, axes=0))


class Appearance:
    """Changes images that look like `of` so that they look like `to`."""

    def __init__(self, to: F32, of: F32) -> None:
        """to, of: images (N, H, W, 3) float32 in 0..1 of one size."""
        there, here = Statistics.of(to), Statistics.of(of)
        rows, columns = to.shape[1:3]
        cycles = np.hypot(
            fft.fftfreq(rows, 1 / rows)[:, None], fft.rfftfreq(columns, 1 / columns)[None]
        )
        low = (cycles > GAIN_BAND[0]) & (cycles < GAIN_BAND[1])
        gain = np.sqrt(_ratio(there.power[low].mean(axis=0), here.power[low].mean(axis=0)))
        known = gain**2 * here.power
        passed = np.sqrt(np.minimum(_ratio(there.power, known), BOOST**2))
        self._filter = _of_twice_the_size(gain * passed, columns).astype(np.float32)
        self._noise = np.sqrt(np.maximum(there.power - known * passed**2, 0)).astype(np.float32)
        self._means = here.mean, there.mean
        self._spread = _ratio(there.deviation, here.deviation)

    def __call__(self, image: F32, rng: np.random.Generator) -> F32:
        """The image (H, W, 3) float32 in 0..1, of the size that was measured, as it would look."""
        rows, columns = image.shape[:2]
        mean = image.mean(axis=(0, 1), dtype=np.float64)
        # Mirrored, so that the filter does not bring one border's light to the other.
        doubled = np.pad(
            image - mean.astype(np.float32), ((0, rows), (0, columns), (0, 0)), mode="symmetric"
        )
        spectrum = fft.rfft2(doubled, axes=(0, 1)) * self._filter
        shown = fft.irfft2(spectrum, doubled.shape[:2], axes=(0, 1))[:rows, :columns]
        white = rng.standard_normal(image.shape, dtype=np.float32)
        grain = fft.rfft2(white, axes=(0, 1)) * self._noise
        shown += fft.irfft2(grain, (rows, columns), axes=(0, 1))
        shown += (self._means[1] + (mean - self._means[0]) * self._spread).astype(np.float32)
        return np.clip(shown, 0, 1).astype(np.float32, copy=False)


def _ratio(to: F64, of: F64) -> F64:
    """to / of, and 1 where there is nothing to change: one image, or images of one colour."""
    return np.divide(to, of, out=np.ones_like(to), where=of > TINY)


def _of_twice_the_size(values: F64, columns: int) -> F64:
    """Values at the frequencies of rfft2 (H, W // 2 + 1, C), for images of twice the sides."""
    rows = len(values)
    down = fft.fftfreq(2 * rows, 1 / rows)  # in the frequencies that are given
    along = np.minimum(np.arange(columns + 1) / 2, columns // 2)
    places = np.meshgrid(down, along, indexing="ij")
    return np.stack(
        [
            ndimage.map_coordinates(v, places, order=1, mode="grid-wrap")
            for v in values.transpose(2, 0, 1)
        ],
        axis=2,
    )
