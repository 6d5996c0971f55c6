"""Images of noise that are as rough as photos are."""

import numpy as np
import numpy.typing as npt


def coloured_noise(count: int, *, size: int) -> npt.NDArray[np.uint8]:
    """Return images, uint8 (count, size, size, 3), that are always the same and as rough at each scale as photos are.

    Their amplitude falls as one over the frequency, after Field 1987 (doi 10.1364/JOSAA.4.002379).
    """
    rng = np.random.default_rng(0)
    rows, columns = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]
    falloff = 1 / np.maximum(np.hypot(rows, columns), 1 / size)  # (size, size // 2 + 1)
    white = rng.standard_normal((count, 3, size, size))
    planes = np.fft.irfft2(np.fft.rfft2(white) * falloff, s=(size, size))
    planes /= planes.std(axis=(2, 3), keepdims=True)
    return (128 + 50 * planes).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
