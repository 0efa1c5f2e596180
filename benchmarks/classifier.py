"""Two small classifiers of MNIST digits, and the Frechet distance between images in their eyes.

params, accuracy = classifier.load_or_train(DATA, CACHE / "classifier.safetensors")
features, logits = classifier.apply(params, images)     # images uint8 [N, 28, 28, 1]

The other one, of another architecture and seed: `of=LeNet` in both.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

import mnist
from unet import fold

NUM_FEATURES = 64
MAX_SHIFT = 2
PEAK_LEARNING_RATE = 2e-3
APPLY_BATCH = 500
HALVES = 10  # random splits of the test images
Stats = tuple[np.ndarray, np.ndarray]  # mean and covariance


def neighbourhoods(x: jax.Array, size: int = 3) -> jax.Array:
    """The 3 x 3 pixels around each pixel as channels: [B, H, W, C] -> [B, H, W, 9C]; or 5 x 5.

    A linear layer on top is a convolution as one matrix product, forwards and backwards.
    """
    height, width = x.shape[1:3]
    rim = (size // 2, size // 2)
    x = jnp.pad(x, ((0, 0), rim, rim, (0, 0)))
    shifted = [x[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
    return jnp.concatenate(shifted, axis=-1)


class Classifier(nnx.Module):
    """Three convolutions, at 14 x 14 and 7 x 7, and a hidden layer: the features."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.conv1 = nnx.Linear(9 * 4, 24, rngs=rngs)
        self.conv2 = nnx.Linear(9 * 4 * 24, 64, rngs=rngs)
        self.conv3 = nnx.Linear(9 * 64, 64, rngs=rngs)
        self.hidden = nnx.Linear(7 * 7 * 64, NUM_FEATURES, rngs=rngs)
        self.out = nnx.Linear(NUM_FEATURES, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = nnx.silu(self.conv1(neighbourhoods(fold(x))))
        h = nnx.silu(self.conv2(neighbourhoods(fold(h))))
        h = nnx.silu(self.conv3(neighbourhoods(h)))
        features = nnx.silu(self.hidden(h.reshape(h.shape[0], -1)))
        return features, self.out(features)


class LeNet(nnx.Module):
    """Two convolutions of 5 x 5, at 14 x 14 and 7 x 7, ReLU, a maximum, and a hidden layer."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.conv1 = nnx.Linear(25 * 4, 16, rngs=rngs)
        self.conv2 = nnx.Linear(25 * 16, 32, rngs=rngs)
        self.hidden = nnx.Linear(7 * 7 * 32, NUM_FEATURES, rngs=rngs)
        self.out = nnx.Linear(NUM_FEATURES, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = nnx.relu(self.conv1(neighbourhoods(fold(x), 5)))
        h = h.reshape(h.shape[0], 7, 2, 7, 2, -1).max((2, 4))
        h = nnx.relu(self.conv2(neighbourhoods(h, 5)))
        features = nnx.relu(self.hidden(h.reshape(h.shape[0], -1)))
        return features, self.out(features)


Architecture = type[Classifier] | type[LeNet]
SEEDS: dict[Architecture, int] = {Classifier: 0, LeNet: 1}  # of the weights and the order of images


@functools.cache
def _split(of: Architecture) -> Any:
    return nnx.split(nnx.eval_shape(lambda: of(rngs=nnx.Rngs(0))), nnx.Param)


@functools.partial(jax.jit, static_argnames="of")
def _apply(params: Any, images: jax.Array, of: Architecture) -> tuple[jax.Array, jax.Array]:
    return nnx.merge(_split(of)[0], params)(images.astype(jnp.float32) / 127.5 - 1.0)


def apply(
    params: Any, images: np.ndarray, of: Architecture = Classifier
) -> tuple[np.ndarray, np.ndarray]:
    """Features float64 [N, 64] and logits [N, 10] of bytes [N, 28, 28, 1], batch by batch."""
    outputs = []
    for i in range(0, len(images), APPLY_BATCH):
        batch = images[i : i + APPLY_BATCH]
        padded = np.concatenate(
            [batch, np.zeros_like(images[:1]).repeat(APPLY_BATCH - len(batch), 0)]
        )
        outputs.append([np.asarray(out)[: len(batch)] for out in _apply(params, padded, of)])
    features, logits = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
    return features.astype(np.float64), logits


def shifted_batches(
    images: np.ndarray, labels: np.ndarray, batch: int, epochs: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Shuffled batches, every image moved by up to two pixels each way."""
    rng = np.random.default_rng(seed)
    margin = ((0, 0), (MAX_SHIFT, MAX_SHIFT), (MAX_SHIFT, MAX_SHIFT), (0, 0))
    padded = np.pad(images, margin)
    windows = np.lib.stride_tricks.sliding_window_view(padded[..., 0], images.shape[1:3], (1, 2))
    for _ in range(epochs):
        order = rng.permutation(len(images))
        for i in range(0, len(images) - batch + 1, batch):
            index = order[i : i + batch]
            down, right = rng.integers(0, 2 * MAX_SHIFT + 1, (2, batch))
            yield windows[index, down, right][..., None], labels[index]


def train(data: str | Path, epochs: int, batch: int = 128, of: Architecture = Classifier) -> Any:
    """Weights trained on the MNIST training images with Adam and a cosine decay."""
    images, labels = mnist.load(data, "train")
    if not 1 <= batch <= len(images) or epochs < 1:
        raise ValueError(
            f"epochs = {epochs}, batch = {batch}; expected at least one epoch, and a batch between"
            f" 1 and the number of training images, {len(images)}."
        )
    total = epochs * (len(images) // batch)
    warmup = min(100, total // 10 + 1)
    optimizer = optax.adam(
        optax.warmup_cosine_decay_schedule(0.0, PEAK_LEARNING_RATE, warmup, max(total, warmup + 1))
    )
    seed = SEEDS[of]
    params = nnx.state(of(rngs=nnx.Rngs(seed)), nnx.Param)
    opt_state = optimizer.init(params)

    def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        _, logits = _apply(params, x, of)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(params: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
        updates, opt_state = optimizer.update(jax.grad(loss_fn)(params, x, y), opt_state)
        return optax.apply_updates(params, updates), opt_state

    with tqdm(total=total, desc="training the classifier", unit="step", mininterval=1.0) as bar:
        for x, y in shifted_batches(images, labels, batch, epochs, seed):
            params, opt_state = step(params, opt_state, x, y)
            bar.update()
    return params


def load_or_train(
    data: str | Path, path: Path, epochs: int = 5, of: Architecture = Classifier
) -> tuple[Any, float]:
    """Weights and their accuracy on the 10,000 test images; from the file where it is there.

    The file is written after training; a file of another number of epochs is trained afresh.
    """
    leaves, treedef = jax.tree.flatten(_split(of)[1])
    settings = {"epochs": str(epochs), "shapes": str([leaf.shape for leaf in leaves])}
    found = None
    if path.is_file():
        with safe_open(path, "numpy") as file:
            if file.metadata() == settings:
                found = [jnp.asarray(file.get_tensor(name)) for name in sorted(file.keys())]
    if found is None:
        found = jax.tree.leaves(train(data, epochs, of=of))
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({f"{i:04d}": np.asarray(x) for i, x in enumerate(found)}, path, settings)
    params = jax.tree.unflatten(treedef, found)
    images, labels = mnist.load(data, "test")
    _, logits = apply(params, images, of)
    return params, float(np.mean(logits.argmax(-1) == labels))


def statistics(features: np.ndarray) -> Stats:
    """Mean [D] and covariance [D, D] of features [N, D], in float64."""
    features = features.astype(np.float64)
    return features.mean(axis=0), np.cov(features, rowvar=False)


def frechet_distance(first: Stats, second: Stats) -> float:
    """`|m1 - m2|^2 + tr(S1 + S2 - 2 (S1^(1/2) S2 S1^(1/2))^(1/2))`, by symmetric eigenvalues.

    Source: Dowson and Landau 1982; Heusel et al. 2017 (arXiv:1706.08500), equation 6.
    """
    (mean1, cov1), (mean2, cov2) = first, second
    values, vectors = np.linalg.eigh(cov1)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov2 @ root), 0.0)).sum()
    return float(np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2.0 * cross)


def reference(params: Any, data: str, samples: int) -> tuple[Stats, dict[str, float]]:
    """Statistics of the test images, and what the distance is between real images."""
    images, _ = mnist.load(data, "test")
    features, _ = apply(params, images)
    test, half = statistics(features), len(features) // 2
    halves = []
    for seed in range(HALVES):
        order = np.random.default_rng(seed).permutation(len(features))
        halves.append(
            frechet_distance(statistics(features[order[:half]]), statistics(features[order[half:]]))
        )
    images, labels = mnist.load(data, "train")
    order = np.random.default_rng(0).permutation(len(images))
    each = [order[labels[order] == label][: -(-samples // 10)] for label in range(10)]
    chosen, _ = apply(params, images[np.concatenate(each)])
    return test, {
        "halves": float(np.mean(halves)),
        "halves_std": float(np.std(halves, ddof=1)),
        "train_images": frechet_distance(statistics(chosen), test),
    }
