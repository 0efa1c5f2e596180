"""Three judges of digits: two classifiers of different kinds, and the pixels.

    judges = judges_of(DATA, CACHE)
    figures = judges["first"].measure(images, labels)       # images uint8 [N, 28, 28, 1]

Each sees an image as a vector: the 64 features of a classifier (`Classifier`; `LeNet`, of another
architecture and seed), or the pixels on the 50 principal components of 10,000 training images. It
measures, against all test images,

* the Frechet distance;
* the recall: the share of test images (of every fourth) within the manifold of the samples, which
  is every ball around a sample that reaches to its third nearest neighbour among the samples
  (Kynkaanniemi et al. 2019, arXiv:1904.06991): how much of what is real the samples reach;
* the agreement: the share of samples that a classifier sees as the class asked for.

Each figure comes with its values without a tenth of the samples, for each tenth: standard errors of
figures and of differences (see `error`) come from these. Sample i belongs to tenth `i // 10 % 10`,
so that all tenths hold all classes, and two samplers have the same starting noise in each.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import classifier
import mnist

COMPONENTS = 50
NEIGHBOUR = 3  # of Kynkaanniemi et al., with as many samples as here
EVERY = 4  # test image is looked for: 2,500 of them
PARTS = 10
MIN_ACCURACY = 0.99
Figures = dict[str, dict[str, Any]]  # "frechet", "recall", "agreement": its value and the tenths'


class Judge(NamedTuple):
    """How a judge sees images; `see` gives vectors [N, D] and classes [N], or None."""

    see: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]
    test: np.ndarray
    facts: dict[str, Any]

    def measure(self, images: np.ndarray, labels: np.ndarray) -> Figures:
        seen, classes = self.see(images)
        part = np.arange(len(images)) // 10 % PARTS
        test = classifier.statistics(self.test)
        reach = Reach(seen, self.test[::EVERY])

        def figures(keep: np.ndarray) -> dict[str, float]:
            found = {
                "frechet": classifier.frechet_distance(classifier.statistics(seen[keep]), test),
                "recall": reach.recall(keep),
            }
            if classes is not None:
                found["agreement"] = float(np.mean((classes == labels)[keep]))
            return found

        whole, without = figures(part >= 0), [figures(part != i) for i in range(PARTS)]
        return {
            name: {
                "value": float(f"{value:.5g}"),
                "without": [float(f"{one[name]:.5g}") for one in without],
            }
            for name, value in whole.items()
        }


class Reach:
    """Squared distances from real images to samples and between samples, made once."""

    def __init__(self, samples: np.ndarray, real: np.ndarray):
        samples, real = samples.astype(np.float32), real.astype(np.float32)
        self.between = _squared(samples, samples)
        np.fill_diagonal(self.between, np.inf)
        self.across = _squared(real, samples)

    def recall(self, keep: np.ndarray) -> float:
        near = np.where(keep, self.between, np.float32(np.inf))
        radius = np.partition(near, NEIGHBOUR - 1, axis=1)[:, NEIGHBOUR - 1]
        return float(np.mean(np.any(self.across <= np.where(keep, radius, -1), axis=1)))


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T, 0)


def error(first: dict[str, Any], second: dict[str, Any] | None = None) -> float:
    """The standard error of a figure, or of the difference of two, by the jackknife of tenths.

    Samples of one number begin as the same noise with every sampler, so that a difference is known
    better than either figure. Source: Efron and Tibshirani 1993, chapter 11.
    """
    without = np.array(first["without"]) - (np.array(second["without"]) if second else 0.0)
    return float(np.sqrt((PARTS - 1) * np.var(without)))


def beats(first: Figures, second: Figures, name: str = "frechet") -> bool:
    """Whether a figure is lower by more than two standard errors of the difference."""
    a, b = first[name], second[name]
    return bool(a["value"] + 2 * error(a, b) < b["value"])


def judges_of(data: str, cache: Path, fingerprint: Callable[[Path], str]) -> dict[str, Judge]:
    """The judges, trained where the cache holds none; a bad classifier is refused."""
    found: dict[str, Judge] = {}
    test, _ = mnist.load(data, "test")
    train, _ = mnist.load(data, "train")
    architectures: tuple[classifier.Architecture, ...] = classifier.Classifier, classifier.LeNet
    for name, of in zip(("first", "second"), architectures, strict=True):
        path = cache / f"{of.__name__.lower()}.safetensors"
        params, accuracy = classifier.load_or_train(data, path, of=of)
        if accuracy < MIN_ACCURACY:
            raise ValueError(
                f"the {name} classifier reaches {accuracy:.2%} on the test images, and below"
                f" {MIN_ACCURACY:.0%} it is no judge; delete {path} and check the data folder."
            )

        def see(
            images: np.ndarray, params: Any = params, of: classifier.Architecture = of
        ) -> tuple[np.ndarray, np.ndarray]:
            features, logits = classifier.apply(params, images, of)
            return features, logits.argmax(-1)

        facts = {"weights": fingerprint(path), "accuracy": accuracy}
        found[name] = Judge(see, see(test)[0], facts)

    flat = mnist.to_pixels(train[:10_000]).reshape(-1, 28 * 28)
    middle = flat.mean(axis=0)
    values, axes = np.linalg.eigh(np.cov(flat, rowvar=False))
    axes = axes[:, ::-1][:, :COMPONENTS]

    def project(images: np.ndarray) -> tuple[np.ndarray, None]:
        return (mnist.to_pixels(images).reshape(len(images), -1) - middle) @ axes, None

    share = round(float(values[-COMPONENTS:].sum() / values.sum()), 4)
    found["pixels"] = Judge(
        project, project(test)[0], {"components": COMPONENTS, "variance": share}
    )
    return found
