# SPDX-License-Identifier: Apache-2.0
"""Transfer of the look of one set of images (light, contrast, sharpness, noise) to another set.

What a camera and its light do to an image is, to first order, a gain, a linear filter and added
noise. All three can be measured in mean spectra, which need neither paired images nor labels: where
the target images have less power at a frequency the image is filtered, where they have more it is
sharpened up to a limit and the rest is added as noise. The method is related to Fourier domain
adaptation (Yang and Soatto 2020, arXiv 2004.05498), which swaps the amplitudes of single images and
therefore neither blurs nor adds noise. Each channel is treated separately: a grey target does not
remove the colours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

from training.data.samples import F32, F64

# Frequencies, in cycles per image, at which the gain is measured: above the mean, but too low for
# a blur to change them.
GAIN_BAND = (0.9, 2.5)
TINY = 1e-9
# A frequency is amplified by up to this factor; power that is still missing is added as noise.
BOOST = 2.0
SMOOTHED = 1.0  # sigma of the Gaussian that smooths mean spectra, in cycles per image


@dataclass(frozen=True)
class Statistics:
    """Statistics of images (N, H, W, 3) in 0..1.

    mean and deviation (3,): mean and standard deviation of the images' means. power
    (H, W // 2 + 1, 3): mean power at each frequency about the image's mean, under a Hann window.
    """

    mean: F64
    deviation: F64
    power: F64

    @classmethod
    def of(cls, images: F32) -> Statistics:
        """Measure the statistics of images (N, H, W, 3) float32 in 0..1."""
        rows, columns = images.shape[1:3]
        window = np.outer(np.hanning(rows + 2)[1:-1], np.hanning(columns + 2)[1:-1])[..., None]
        window = (window / np.sqrt(np.mean(window**2))).astype(np.float32)
        means = images.mean(axis=(1, 2), dtype=np.float64)
        power = np.zeros((rows, columns // 2 + 1, 3))
        for image, mean in zip(images, means, strict=True):
            centred = (image - mean.astype(np.float32)) * window
            power += np.abs(fft.rfft2(centred, axes=(0, 1), norm="ortho")) ** 2
        power /= len(images)
        whole = fft.fftshift(power, axes=0)  # neighbouring frequencies become neighbouring rows
        smooth = ndimage.gaussian_filter(whole, (SMOOTHED, SMOOTHED, 0), mode="nearest")
        return cls(means.mean(axis=0), means.std(axis=0), fft.ifftshift(smooth, axes=0))


class Appearance:
    """Change of images that look like `of`, so that they look like `to`."""

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
        """Return the image (H, W, 3) float32 in 0..1 with the look of `to`.

        It must have the size of the images that were measured.
        """
        rows, columns = image.shape[:2]
        mean = image.mean(axis=(0, 1), dtype=np.float64)
        # Mirrored, because the filter is cyclic and would carry light from one border to the other.
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
    """Return to / of, and 1 where `of` is 0: for a single image, or images of one colour."""
    return np.divide(to, of, out=np.ones_like(to), where=of > TINY)


def _of_twice_the_size(values: F64, columns: int) -> F64:
    """Interpolate values at rfft2's frequencies (H, W // 2 + 1, C) for images of twice the size.

    Returns (2 H, W + 1, C). columns: W of the images that the values belong to.
    """
    rows = len(values)
    down = fft.fftfreq(2 * rows, 1 / rows)  # in units of the given rows' frequencies
    along = np.minimum(np.arange(columns + 1) / 2, columns // 2)
    places = np.meshgrid(down, along, indexing="ij")
    return np.stack(
        [
            ndimage.map_coordinates(v, places, order=1, mode="grid-wrap")
            for v in values.transpose(2, 0, 1)
        ],
        axis=2,
    )
