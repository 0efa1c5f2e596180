"""Wrong calls of denoisers: of what makes them, and of what they are called with and return."""

import dataclasses
import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from refusals import Refusal

import kdiff_jax as kd

X = jnp.ones((2, 3))
SCHEDULE = kd.dpm2(kd.levels(kd.noise_schedule("scaled_linear"), 3))
ROW = SCHEDULE[0]
HUGE = 10**400
MASK = np.array([0.0, 1.0, 1.0])


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    """A network that counts its calls in itself, as flax NNX does for dropout."""

    count: Any

    def __call__(self, x: jax.Array) -> jax.Array:
        self.count = self.count + 1
        return x


class Tensor:
    """An array of another library, which JAX does not take, with a dtype of its own."""

    dtype = "float32"

    def __jax_array__(self) -> jax.Array:
        return X


@dataclasses.dataclass
class Output:
    sample: jax.Array


def network(params: Any, x: jax.Array, timestep: jax.Array, cond: Any = None) -> jax.Array:
    del params, timestep, cond
    return x


DENOISE = kd.denoiser(network)
guided = functools.partial(kd.guided, DENOISE, 2.0)


def returned(value: Any) -> Any:
    return kd.denoiser(lambda params, x, timestep: value)(None, X, ROW)


def sample(params: Any = None, cond: Any = None, denoise: Any = DENOISE) -> Any:
    return kd.sample(denoise, params, SCHEDULE, X, cond=cond)


def conditioned(cond: Any, uncond: Any, **options: Any) -> Any:
    return sample(cond=cond, denoise=guided(uncond, **options))


def with_row(**leaves: Any) -> kd.Row:
    return dataclasses.replace(ROW, **leaves)


LABELS, SMALL = jnp.array([3, 4]), np.array([3, 4], np.uint8)
IDS = {"e": jnp.ones((2, 4)), "ids": jnp.ones((7, 3), int)}
NO_IDS = {"e": jnp.zeros(4), "ids": jnp.zeros((7, 3), int)}
TWICE = {"e": jnp.ones((2, 4)), "ids": jnp.ones((4, 3), int)}
NAN = np.array([1, np.nan, 1], np.float32)

CONDITIONS: list[Refusal] = [
    (
        lambda: conditioned(IDS, NO_IDS),
        r"cond\['ids'\] has shape \(7, 3\) and the batch 2.*batched",
    ),
    (
        lambda: guided(NO_IDS)(None, X, ROW, IDS),
        r"cond\['ids'\] has shape \(7, 3\) and the batch 2.*give it a batch axis",
    ),
    (
        lambda: conditioned(TWICE, {"e": 0.0, "ids": 0}),
        r"cond\['ids'\] has shape \(4, 3\) and the batch 2.*pass the conditional half",
    ),
    (lambda: conditioned(jnp.float32(1), 0.0), r"cond has shape \(\) and the batch 2"),
    (lambda: conditioned(LABELS, 0.5), "uncond = 0.5 changes when it is cast to the int32 of cond"),
    (lambda: conditioned(LABELS, jnp.float32(0.5)), "uncond = .*0.5.* changes.*int32"),
    (lambda: conditioned(SMALL, -1), "uncond = -1 changes when it is cast to the uint8 of cond"),
    (lambda: conditioned(SMALL, jnp.int32(256)), "uncond = .*256.* changes.*uint8"),
    (lambda: conditioned(X.astype(jnp.float16), 1e6), "uncond = 1000000.0 changes .*float16"),
    (lambda: conditioned(X, 1j), "uncond = 1j changes .*float32"),
    (lambda: conditioned(X.astype(jnp.bfloat16), 257), "uncond = 257 changes .*bfloat16"),
    (lambda: conditioned(X, jnp.zeros(4)), r"uncond has shape \(4,\) and cond \(2, 3\); pass one"),
    (lambda: guided("nothing"), "uncond = 'nothing' is neither.*text encoder"),
    (lambda: guided({"label": HUGE}), r"uncond\['label'\] = 1000.* is neither an array nor a"),
    (lambda: guided(float("nan")), "uncond = nan is not finite; pass the condition"),
    (lambda: guided(np.datetime64("2020")), "uncond = .*2020.* is neither an array"),
    (lambda: sample(cond="a cat"), "cond = 'a cat' is neither an array.*text encoder"),
    (lambda: sample(cond=["a", "b"]), r"cond\[0\] = 'a' is neither an array nor a number"),
    (lambda: DENOISE(None, X, ROW, "a cat"), "cond = 'a cat' is neither an array.*text encoder"),
    (lambda: sample({"act": jnp.tanh}), r"params\['act'\] = .* is neither an.*eqx.partition"),
    (lambda: DENOISE({"act": jnp.tanh}, X, ROW), r"params\['act'\] = .* is neither an.*eqx.par"),
    (
        lambda: sample({"w": Tensor()}),
        r"params\['w'\] = .* is neither.*extract_jax.*variable.value",
    ),
    (lambda: sample(cond=Tensor()), r"cond = .*Tensor.* is neither.*asarray\(tensor.numpy"),
    (lambda: sample({"w": HUGE}), r"params\['w'\] = 1000.* is neither"),
]

NETWORKS: list[Refusal] = [
    (lambda: returned(None), "model_fn returned None, no array; return the array"),
    (
        lambda: returned((X, X)),
        r"returned a tuple of \['float32\[2, 3\]', 'flo.*out\[0\].*ControlNet",
    ),
    (lambda: returned([1.0]), r"returned a list of \['1.0'\], no array; return"),
    (
        lambda: returned({"sample": X}),
        r"returned a dict of \['sample'\], no array; return its entry",
    ),
    (lambda: returned(Output(X)), "returned a Output, no array; return its .sample"),
    (lambda: returned("x"), "model_fn returned 'x', no array"),
    (lambda: returned(X.astype(int)), r"model_fn returned int32\[2, 3\]; return real floats"),
    (lambda: returned(X > 0), r"model_fn returned bool\[2, 3\]"),
    (lambda: returned(X.astype(complex)), r"model_fn returned complex64\[2, 3\]"),
    (
        lambda: returned(jnp.ones((2, 6))),
        r"\(2, 6\) for a sample of shape \(2, 3\).*cut off learned",
    ),
    (
        lambda: kd.denoiser(lambda module, x, timestep: module(x))(Module(jnp.ones(())), X, ROW),
        r"wrote into its params at \['.count'\].*\.eval\(\)",
    ),
    (
        lambda: sample(
            Module(jnp.ones(())), denoise=kd.denoiser(lambda module, x, timestep: module(x))
        ),
        r"wrote into its params at \['.count'\].*\.eval\(\)",
    ),
    (
        lambda: sample(denoise=kd.denoiser(lambda x, timestep: x)),
        r"takes \(x, timestep\), and is called as model_fn\(params, x, timestep\).*networks.md",
    ),
    (
        lambda: kd.denoiser(lambda params, x, timestep, cond: x)(None, X, ROW),
        r"takes \(params, x, timestep, cond\), and is called as .*timestep\), with cond where",
    ),
    (lambda: kd.denoiser(types.SimpleNamespace()), "model_fn = namespace.* is not callable"),  # type: ignore[arg-type]
    (lambda: kd.denoiser(Unhashable()), "has no hash.*pass a function"),
    (lambda: kd.denoiser(network, dtype="floaty"), "dtype = 'floaty' is no floating dtype; pass"),
    (lambda: kd.denoiser(network, dtype=X), "dtype = .* is no floating dtype; pass"),
    (lambda: kd.denoiser(network, ["sample"]), r"prediction_type = \['sample'\] is not known"),  # type: ignore[arg-type]
]


def deep(depth: int = 2000) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, *arguments: Any) -> Any:
        raise AssertionError


CALLS: list[Refusal] = [
    (lambda: DENOISE(None, None, ROW), "x = None is not a list of numbers"),  # type: ignore[arg-type]
    (lambda: DENOISE(None, "x", ROW), "x = 'x' is not a list of numbers"),  # type: ignore[arg-type]
    (lambda: DENOISE(None, 1.0, ROW), r"sample is a scalar or empty.*expected \[B"),  # type: ignore[arg-type]
    (lambda: DENOISE(None, NAN, ROW), "x = array.*nan.* is not finite; pass"),  # type: ignore[arg-type]
    (lambda: DENOISE(None, X, SCHEDULE), "row = Schedule.* is no Row; pass one row of a schedule"),  # type: ignore[arg-type]
    (lambda: DENOISE(None, X, 0), "row = 0 is no Row; pass one row"),  # type: ignore[arg-type]
    (lambda: DENOISE({"w": deep()}, X, ROW), "params is a dict nested more than 200 deep; pass"),
    (lambda: DENOISE(None, X, with_row(timestep=jnp.ones(3))), r"timesteps of shape \(3,\) met"),
    (lambda: DENOISE(None, X, with_row(sigma=X > 0)), "row.sigma = .* is not a list of numbers"),
    (lambda: DENOISE(None, X, with_row(sigma=jnp.ones(3))), r"row.sigma: values of shape \(3,\) "),
    (lambda: DENOISE(None, X, with_row(sigma=None)), "row.sigma = .*None.* is not a list"),
    (lambda: DENOISE(None, np.ones((2, 0)), ROW), r"scalar or empty, of shape \(2, 0\); expec"),  # type: ignore[arg-type]
    (lambda: DENOISE(None, X, with_row(sigma=[1.0])), "row.sigma = .*list.* is not a list of num"),
    (lambda: DENOISE(None, X, with_row(sigma=jax.random.key(0))), "row.sigma = .* is not a list"),
    (lambda: conditioned(X, jax.random.key(0)), "uncond = .*key.* changes when"),
    (lambda: DENOISE(None, X, with_row(sigma=np.nan)), "row.sigma = nan is not finite; pass"),
    (lambda: DENOISE(None, X, with_row(alpha="1")), "row.alpha = '1' is not a list of numbers"),
    (lambda: kd.clipped(network)(None, X, ROW), r"network returned float32\[2, 3\].*kd.denoiser"),  # type: ignore[arg-type]
    (
        lambda: kd.continuous(DENOISE, lambda level: (level,))(None, X, ROW),  # type: ignore[arg-type, return-value]
        r"c_noise returned a tuple of \['float32\[\]'\] for levels of float32\[\]; return",
    ),
    *(
        (
            lambda wrap=wrap, given=given: wrap(given),
            r"(denoise|weak) = .* is not callable; pass a denoiser",
        )
        for given in (None, 3, "network", SCHEDULE)
        for wrap in (
            kd.clipped,
            kd.thresholded,
            kd.consistency,
            kd.continuous,
            lambda denoise: kd.guided(denoise, 2.0, 0),
            lambda denoise: kd.cfg_plus_plus(denoise, 0.6, 0),
            lambda denoise: kd.projected(denoise, 2.0, 0),
            lambda denoise: kd.autoguided(denoise, 2.0),
            lambda denoise: kd.autoguided(DENOISE, 2.0, weak=denoise or 3),  # type: ignore[arg-type]
            lambda denoise: kd.inpainted(denoise, 0.0, 0.0),
        )
    ),
]

OPTIONS: list[Refusal] = [
    (lambda: guided(0, batched="no"), "batched = 'no' is neither True nor False"),  # type: ignore[arg-type]
    (lambda: guided(0, per_step=1), "per_step = 1 is neither True nor False"),  # type: ignore[arg-type]
    (lambda: guided(0, rescale="0.7"), "rescale = '0.7' is not a list of numbers"),  # type: ignore[arg-type]
    (lambda: guided(0, rescale=0.7, rescale_of=""), "rescale_of = '' is not known"),  # type: ignore[arg-type]
    (lambda: guided(0, interval=("0", "1")), "interval = '0' is not a list of numbers"),  # type: ignore[arg-type]
    (lambda: guided(0, interval=(0, 1j)), r"interval = 1j is not"),
    (lambda: guided(0, interval=(1, 1)), r"interval = \(1, 1\) holds no noise level"),
    (lambda: guided(0, interval=([], [])), r"interval = .* holds no noise level"),  # type: ignore[arg-type]
    (lambda: guided(0, interval=([0, 0], [1, 1, 1])), r"interval = .* holds no noise level"),  # type: ignore[arg-type]
    (lambda: kd.guided(DENOISE, "2", 0), "scale = '2' is not a list of numbers"),  # type: ignore[arg-type]
    (lambda: kd.guided(DENOISE, HUGE, 0), "scale = 1000.* holds a number that no float can"),
    (lambda: kd.guided(DENOISE, 1e39, 0), r"scale = 1e\+39 is no guidance scale"),
    (lambda: kd.guided(DENOISE, [], 0), r"scale = \[\] is no guidance scale"),  # type: ignore[arg-type]
    (lambda: kd.cfg_plus_plus(DENOISE, np.nan, 0), "scale = nan is out of range; pass a finite"),
    (lambda: kd.cfg_plus_plus(DENOISE, 0.6, "no"), "uncond = 'no' is neither.*text encoder"),
    (lambda: kd.cfg_plus_plus(DENOISE, 0.6, 0, batched=1), "batched = 1 is neither True nor"),  # type: ignore[arg-type]
    (lambda: kd.cfg_plus_plus(DENOISE, 0.6, 0)(None, X, ROW), "without cond; pass cond="),
    (lambda: kd.projected(DENOISE, "7", 0), "scale = '7' is not a list of numbers"),  # type: ignore[arg-type]
    (lambda: kd.projected(DENOISE, 7, np.inf), "uncond = inf is not finite; pass the condition"),
    (lambda: kd.projected(DENOISE, 7, 0, eta=np.inf), "eta = inf is out of range; pass a finite"),
    (lambda: kd.projected(DENOISE, 7, 0, norm_threshold=0), "norm_threshold = 0.* above 0"),
    (lambda: kd.projected(DENOISE, 7, 0, batched="no"), "batched = 'no' is neither True nor"),  # type: ignore[arg-type]
    (lambda: kd.autoguided(DENOISE, X), "scale = .* of rank 2, .*one a sample"),
    (lambda: kd.autoguided(DENOISE, 2.0)(X, X, ROW), r"params is float32\[2, 3\].*pass the pair"),
    (lambda: kd.autoguided(DENOISE, 2.0)((1.0,), X, ROW), "params is a tuple; .*pass the pair"),
    (lambda: kd.clipped(DENOISE, "1"), "clip_range = '1' is not a list of numbers"),  # type: ignore[arg-type]
    (lambda: kd.clipped(DENOISE, True), "clip_range = True is not a list of numbers"),
    (lambda: kd.clipped(DENOISE, []), r"clip_range = \[\] is empty.*pass one number"),  # type: ignore[arg-type]
    (lambda: kd.clipped(DENOISE, X), r"clip_range = .* of rank 2, .*one a sample, \[B\]"),
    (lambda: kd.clipped(DENOISE, 1e39), r"clip_range = 1e\+39 .* leaves what float32 holds; pass"),
    (lambda: kd.clipped(DENOISE, 1e-46), "clip_range = 1e-46 .* leaves what float32 holds; pass"),
    (lambda: kd.clipped(DENOISE, HUGE), "clip_range = 1000.* holds a number that no float can"),
    (lambda: kd.thresholded(DENOISE, "0.9"), "ratio = '0.9' is not a number"),  # type: ignore[arg-type]
    (lambda: kd.thresholded(DENOISE, 0.9, "2"), "sample_max_value = '2' is not a list"),  # type: ignore[arg-type]
    (lambda: kd.consistency(DENOISE, 1e20), r"timestep_scaling = 1e\+20 .* leaves what float32"),
    (lambda: kd.consistency(DENOISE, sigma_data=1e-30), "sigma_data = 1e-30 .* leaves what"),
    (lambda: kd.edm_denoiser(network, "0.5"), "sigma_data = '0.5' is not a list of numbers"),  # type: ignore[arg-type]
    (lambda: kd.edm_denoiser(network, 1e30), r"sigma_data = 1e\+30 .* leaves what float32 holds"),
    (lambda: kd.continuous(DENOISE, None), "c_noise = None is not known; choose"),  # type: ignore[arg-type]
    (lambda: kd.inpainted(DENOISE, "0", 1.0), "known = '0' is not a list of numbers"),  # type: ignore[arg-type]
    (lambda: kd.inpainted(DENOISE, 0.0, None), "mask = None is not a list of numbers"),  # type: ignore[arg-type]
    (lambda: kd.inpainted(DENOISE, 0.0, np.nan), r"mask spans \[nan, nan\]"),
    (lambda: kd.inpainted(DENOISE, 0.0, 1.0, "z"), "noise = 'z' is not a list of numbers"),  # type: ignore[arg-type]
    (lambda: kd.inpainted(DENOISE, 0.0, []), r"mask is empty, of shape \(0,\); pass"),  # type: ignore[arg-type]
    (lambda: kd.inpainted(DENOISE, NAN, 0.5), "known holds a NaN or an infinity where mask is bel"),
    (
        lambda: kd.inpainted(DENOISE, NAN[:2], MASK),
        r"known has shape \(2,\) and mask \(3,\), wh",
    ),
    (lambda: kd.inpainted(DENOISE, 1e39, 0.5), "known holds a NaN or an infinity where mask is"),
    (lambda: kd.inpainted(DENOISE, 0.0, 0.5, NAN), "noise holds a NaN or an infinity where mask"),
    (lambda: kd.guidance_embedding(None, 8), "w = None holds no real numbers; pass"),  # type: ignore[arg-type]
    (lambda: kd.guidance_embedding([[1.0], [1.0, 2.0]], 8), "w = .* holds no real numbers; pass"),  # type: ignore[arg-type]
    (lambda: kd.guidance_embedding(HUGE, 8), "w = 1000.* holds no real numbers; pass"),
    (lambda: kd.guidance_embedding(np.array([1e37]), 8), "w = .*pass finite guidance scales"),
    (lambda: kd.guidance_embedding(np.ones(2), True), "dim = True is not an integer"),
]

REFUSED = CONDITIONS + NETWORKS + CALLS + OPTIONS
