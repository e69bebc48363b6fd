"""Image filters for the corruptions; none of them is random.

Each has the same result as the function of OpenCV, scikit-image, scipy or ImageMagick that the
official scripts call (the tests compare them), and is fast for many small and few large images.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy.fft import irfft2, next_fast_len, rfft2
from scipy.ndimage import correlate1d, gaussian_filter1d
from scipy.sparse import csr_array, kron


def correlate(images: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Images float [n,H,W,3] filtered with a symmetric kernel [k,k] with odd k.

    Borders are mirrored, as in OpenCV's filter2D.
    """
    height, width = images.shape[1:3]
    reach = len(kernel) // 2
    padded = np.pad(images, _margin(reach), mode="reflect")
    size = [next_fast_len(side, real=True) for side in padded.shape[1:3]]
    spectrum = rfft2(kernel.astype(float), size)[..., None]
    result = np.empty(images.shape)
    # One image at a time: in a batch, rounding might depend on an image's position.
    for image, filtered in zip(padded, result):
        full = irfft2(rfft2(image, size, axes=(0, 1)) * spectrum, size, axes=(0, 1))
        filtered[:] = full[2 * reach:2 * reach + height, 2 * reach:2 * reach + width]
    return result


def _margin(width: int) -> tuple[tuple[int, int], ...]:
    return (0, 0), (width, width), (width, width), (0, 0)


@lru_cache(maxsize=None)
def disk(radius: float, alias: float) -> np.ndarray:
    """Kernel float32 [k,k]: a disk of sum 1, then blurred with a few taps within its square.

    After the blur, the sum of large disks differs from 1, as in the official scripts.
    """
    reach, taps = (8, 3) if radius <= 8 else (int(radius), 5)
    offsets = np.arange(-reach, reach + 1)
    kernel = (offsets ** 2 + offsets[:, None] ** 2 <= radius ** 2).astype(np.float32)
    kernel /= kernel.sum()
    blur = np.exp(-0.5 * (np.arange(taps) - taps // 2) ** 2 / alias ** 2)
    weights = (blur / blur.sum()).astype(np.float32)  # OpenCV's weights: a flat area stays flat
    for axis in (0, 1):
        kernel = correlate1d(kernel, weights, axis=axis, mode="mirror")
    used = kernel.any(axis=0)
    return kernel[used][:, used]


def displace(images: np.ndarray, moves: np.ndarray, reach: int) -> np.ndarray:
    """Replace each inner pixel by its neighbour at (dx, dy) = moves[n, i, j].

    The official loop goes from the lower right to the upper left and writes in place, so a pixel
    may be replaced by one that was replaced before. Here these chains are followed for all pixels
    at once, to find the final source of each.

    Args:
        images: uint8 [n,H,W,3].
        moves: int [n,H-2*reach,W-2*reach,2], in the order of the official loop.
        reach: width in pixels of the border above and to the left that is not changed; the border
            below and to the right is one pixel narrower.

    Returns:
        uint8 [n,H,W,3].
    """
    num, height, width, _ = images.shape
    own = np.arange(num * height * width)
    source, visited = own.copy(), np.zeros(own.shape, bool)
    inner = np.s_[:, reach + 1:height - reach + 1, reach + 1:width - reach + 1]
    steps = moves[..., 1] * width + moves[..., 0]
    source.reshape(num, height, width)[inner] += steps[:, ::-1, ::-1]
    visited.reshape(num, height, width)[inner] = True
    chained = visited[source] & (source > own)
    while chained.any():
        links = np.flatnonzero(chained)
        via = source[links]
        source[links], chained[links] = source[via], chained[via]
    return images.reshape(-1, 3)[source].reshape(images.shape)


def smear(images: np.ndarray, angles: list[float], radius: int, sigma: float) -> np.ndarray:
    """ImageMagick's motion blur of images uint8 [n,H,W,C], each at its own angle in degrees.

    It filters with half a Gaussian along a line, with borders continued outwards. ImageMagick
    rounds to 16 bits and truncates to 8 bits when it writes the image; so does this.
    """
    height, width = images.shape[1:3]
    reach = 2 * radius
    padded = np.pad(images, _margin(reach), mode="edge").astype(np.float32)
    steps = np.arange(reach + 1)
    weights = np.exp(-steps ** 2 / (2 * sigma ** 2))
    weights /= weights.sum()
    smeared = np.zeros(images.shape, np.float32)
    for image, result, angle in zip(padded, smeared, np.deg2rad(angles)):
        rows = reach + np.ceil(steps * np.sin(angle) - 0.5).astype(int)
        columns = reach + np.ceil(steps * np.cos(angle) - 0.5).astype(int)
        for weight, row, column in zip(weights.tolist(), rows.tolist(), columns.tolist()):
            result += weight * image[row:row + height, column:column + width]
    return (np.rint(257 * smeared) // 257).astype(np.uint8)


@lru_cache(maxsize=4)
def zoom(height: int, width: int, factors: tuple[float, ...]) -> csr_array:
    """Matrix [H*W,H*W] that maps an image to the sum of its enlargements by all factors."""
    return csr_array(sum(kron(_zoom_side(height, factor), _zoom_side(width, factor), format="csr")
                         for factor in factors))


def _zoom_side(side: int, factor: float) -> csr_array:
    """Matrix [side,side] of scipy's linear zoom into the centre of a line, cropped to its length.
    """
    cut = int(np.ceil(side / factor))
    size = round(cut * factor)
    start, trim = (side - cut) // 2, (size - side) // 2
    points = np.arange(trim, trim + side) * ((cut - 1) / max(1, size - 1))
    low = np.floor(points).astype(int)
    matrix = np.zeros((side, side))
    matrix[np.arange(side), start + low] = 1 - (points - low)
    matrix[np.arange(side), start + np.minimum(low + 1, cut - 1)] += points - low
    return csr_array(matrix)


@lru_cache(maxsize=16)
def smoother(side: int, sigma: float) -> np.ndarray:
    """A Gaussian filter of a line as a matrix [side,side], which is fast for a large sigma."""
    identity = np.eye(side)
    if sigma == 0:
        return identity
    return gaussian_filter1d(identity, sigma, axis=0, mode="reflect", truncate=3)


def affine(height: int, width: int, moves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The source (rows, columns), [n,H,W] each, of every pixel under n affine maps.

    The maps displace three points around the centre by `moves` (x, y) [n,3,2], in pixels.
    """
    reach = max(1, min(height, width) // 3)
    signs = np.array([(1, 1), (1, -1), (-1, -1)])
    before = np.array([width // 2, height // 2]) + reach * signs
    after = np.concatenate([before + moves, np.ones((len(moves), 3, 1))], axis=2)
    back = np.linalg.solve(after, np.broadcast_to(before.astype(float), moves.shape))
    y, x = np.indices((height, width))
    a, b, c = back.swapaxes(0, 1)[..., None, None]
    columns, rows = np.moveaxis(a * x + b * y + c, 1, 0)
    return rows, columns


def sample(images: np.ndarray, rows: np.ndarray, columns: np.ndarray,
           fold: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
    """Values [n,H,W,3] of images float [n,H,W,3] at points [n,H,W], interpolated bilinearly.

    Args:
        rows, columns: the points, in pixels.
        fold: maps positions outside of a line of the given length into it: `mirrored` or
            `reflected`.
    """
    num, height, width, channels = images.shape
    top, left = np.floor(rows), np.floor(columns)
    down, right = rows - top, columns - left
    top, left = top.astype(int), left.astype(int)
    first = np.arange(num)[:, None, None] * height
    lines = [(first + fold(top + k, height)) * width for k in (0, 1)]
    offsets = [fold(left + k, width) for k in (0, 1)]
    weights = [(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right]
    corners = [line + offset for line in lines for offset in offsets]
    pixels = images.reshape(-1, channels)
    # The sparse product adds the four corners without four copies of the images.
    matrix = csr_array((np.stack(weights, axis=-1).ravel(), np.stack(corners, axis=-1).ravel(),
                        np.arange(0, 4 * len(pixels) + 1, 4)), shape=(len(pixels), len(pixels)))
    return (matrix @ pixels).reshape(images.shape)


def mirrored(positions: np.ndarray, length: int) -> np.ndarray:
    """Map positions into range(length), continued as d c b | a b c d | c b a."""
    period = max(1, 2 * (length - 1))
    positions = positions % period
    return np.minimum(positions, period - positions)


def reflected(positions: np.ndarray, length: int) -> np.ndarray:
    """Map positions into range(length), continued as c b a | a b c d | d c b."""
    positions = positions % (2 * length)
    return np.minimum(positions, 2 * length - 1 - positions)


def plasma(numbers: np.ndarray, side: int, decay: float) -> np.ndarray:
    """Height maps [n,side,side] in [0,1] by the diamond-square algorithm on a torus.

    Args:
        numbers: random numbers [n,side*side-1], uniform in [-1,1].
        side: a power of two.
        decay: divisor, from level to level, of the square root of the random numbers' factor.
    """
    maps = np.zeros((len(numbers), side, side))
    step, wibble, used = side, 100.0, 0
    while step >= 2:
        half = step // 2
        cells = side // step
        new = numbers[:, used:used + 3 * cells ** 2].reshape(-1, 3, cells, cells) * wibble ** 2
        corners = maps[:, ::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=1)
        centres = (pairs + np.roll(pairs, -1, axis=2)) / 4 + new[:, 0]
        maps[:, half::step, half::step] = centres
        maps[:, ::step, half::step] = new[:, 1] + (
            centres + np.roll(centres, 1, axis=1) + corners + np.roll(corners, -1, axis=2)) / 4
        maps[:, half::step, ::step] = new[:, 2] + (
            centres + np.roll(centres, 1, axis=2) + corners + np.roll(corners, -1, axis=1)) / 4
        step, wibble, used = half, wibble / decay, used + 3 * cells ** 2
    maps -= maps.min(axis=(1, 2), keepdims=True)
    return maps / maps.max(axis=(1, 2), keepdims=True)
