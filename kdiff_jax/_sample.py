"""The loop: initial sample, noise of a row, one step, whole trajectory under one `lax.scan`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdiff_jax._checks import check_int, is_traced
from kdiff_jax._denoise import Denoise, Prediction, as_pytree, per_sample, prediction_type_of
from kdiff_jax._noise_schedule import state_dtype
from kdiff_jax._schedule import Row, Schedule, State

# `split(key, n)[i] == fold_in(key, i)`: without a domain of its own, the initial noise of sample
# 3 would be the step noise of row 3.
_INITIAL_DOMAIN = 0x696E6974
_STEP_DOMAIN = 0x73746570


def initial_sample(schedule: Schedule, key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Pure noise at the first row's level: `init_noise_sigma * z`.

    Args:
      schedule: the run that begins there.
      key: one key, or [B] keys, one a sample; one key means `vmap(fold_in)(key, arange(B))`.
      shape: (B, ...), the batch axis first.

    Returns:
      [B, ...] float32 (float64 under x64, its noise drawn in float32).

    Raises:
      ValueError: a key that is no key, of another number than B, or of an implementation whose
        noise depends on the neighbours; a shape without a batch axis.

    Example:
      >>> import jax, kdiff_jax as kd
      >>> schedule = kd.dpm2_schedule(kd.noise_schedule("scaled_linear"), 25)
      >>> kd.initial_sample(schedule, jax.random.key(0), (4, 8, 8, 1)).shape
      (4, 8, 8, 1)

    Source: `init_noise_sigma` of diffusers' schedulers.
    """
    shape = _check_shape(shape)
    noise = _draw(_sample_keys(key, shape[0]), jnp.int32(0), shape, _INITIAL_DOMAIN)
    return schedule.init_noise_sigma * noise.astype(schedule.init_noise_sigma.dtype)


def row_noise(key: jax.Array, row: Row, shape: Sequence[int]) -> jax.Array:
    """The noise z that `step` and `sample` draw for a row.

    It depends on the sample's key and `row.index` alone: not on the batch, its order, its
    sharding, or where the run was resumed.

    Args:
      key: one key, or [B] keys, one a sample; one key means `vmap(fold_in)(key, arange(B))`.
      row: a row, leaves scalar or [B].
      shape: (B, ...), the shape of the sample.

    Returns:
      [B, ...] float32 unit Gaussian noise.

    Raises:
      ValueError: as for `initial_sample`.

    Example:
      >>> import jax, kdiff_jax as kd
      >>> schedule = kd.lcm_schedule(kd.noise_schedule("scaled_linear"), 4)
      >>> kd.row_noise(jax.random.key(0), schedule[0], (2, 8)).shape
      (2, 8)
    """
    shape = _check_shape(shape)
    return _draw(_sample_keys(key, shape[0]), jnp.asarray(row.index), shape, _STEP_DOMAIN)


def add_noise(row: Row, x0: jax.Array, eps: jax.Array) -> jax.Array:
    """Clean data brought to the noise level of a row: `alpha * x0 + sigma * eps`.

    Args:
      row: where the run is to begin, usually `schedule[0]`; leaves scalar or [B].
      x0: [B, ...] clean samples.
      eps: the shape of x0, unit Gaussian noise.

    Returns:
      [B, ...] float32 (float64 where x0 is).

    Raises:
      ValueError: shapes that differ, samples that are not of a floating dtype.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> schedule = kd.dpm2_schedule(kd.noise_schedule("scaled_linear"), 25).start_at(10)
      >>> eps = jax.random.normal(jax.random.key(0), (2, 8))
      >>> kd.add_noise(schedule[0], jnp.zeros((2, 8)), eps).shape
      (2, 8)

    Source: `add_noise` of diffusers' KDPM2DiscreteScheduler and LCMScheduler.
    """
    x0, eps = jnp.asarray(x0), jnp.asarray(eps)
    if x0.ndim < 1 or x0.shape != eps.shape:
        raise ValueError(f"x0 {x0.shape} and eps {eps.shape} differ; expected [B, ...] both.")
    x0 = x0.astype(state_dtype(x0))
    return per_sample(row.alpha, x0) * x0 + per_sample(row.sigma, x0) * eps.astype(x0.dtype)


def init(schedule: Schedule, x: jax.Array) -> State:
    """The state at the start of a run, for stepping by hand.

    Args:
      schedule: the run.
      x: [B, ...] a sample at the level of `schedule[0]`.

    Returns:
      A State in float32 (float64 where x is), whatever the dtype of x.

    Raises:
      ValueError: a sample without a batch axis or not of a floating dtype.

    Example:
      >>> import jax, kdiff_jax as kd
      >>> schedule = kd.dpm2_schedule(kd.noise_schedule("scaled_linear"), 25)
      >>> x = kd.initial_sample(schedule, jax.random.key(0), (2, 8))
      >>> kd.init(schedule, x).sample.shape
      (2, 8)
    """
    del schedule  # every sampler starts alike today; the name keeps the call of the public face
    x = _check_sample(x)
    return State(sample=x, anchor=x)


def step(
    state: State,
    row: Row,
    prediction: Prediction,
    *,
    key: jax.Array | None = None,
    noise: jax.Array | None = None,
) -> State:
    """One row of any sampler.

        x_next = anchor_weight * anchor + denoised_weight * D + epsilon_weight * epsilon
                 + noise_weight * z
        anchor = where(advances, x_next, anchor)

    Args:
      state: from `init` or from the step before.
      row: the row that the prediction was made for; leaves scalar or [B].
      prediction: `denoise(params, state.sample, row, cond)`.
      key: one key, or [B] keys, one a sample; the noise drawn is `row_noise(key, row, shape)`.
        Pass the same key at every row: the row's index makes the noise fresh.
      noise: [B, ...] unit Gaussian noise in place of a key.

    Returns:
      The next State.

    Raises:
      ValueError: both key and noise; a row that draws noise and neither of them. Where the row
        is traced its weight cannot be seen: without key and noise, a row that should have drawn
        noise then gives NaN, not a sample without its noise.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> schedule = kd.dpm2_ancestral_schedule(kd.noise_schedule("scaled_linear"), 5)
      >>> denoise = kd.denoiser(lambda params, x, timestep: params * x)
      >>> key, params = jax.random.key(0), jnp.float32(0.1)
      >>> state = kd.init(schedule, kd.initial_sample(schedule, key, (2, 8)))
      >>> for row in schedule:
      ...     prediction = denoise(params, state.sample, row)
      ...     state = kd.step(state, row, prediction, key=key)
      >>> state.sample.shape
      (2, 8)

    Source: the table of each sampler; see `euler_schedule`, `dpm2_schedule`, `lcm_schedule`.
    """
    if key is not None and noise is not None:
        raise ValueError("step was given both key and noise; give one of them.")
    shape = state.sample.shape
    if noise is not None and jnp.shape(noise) != shape:
        raise ValueError(
            f"noise has shape {jnp.shape(noise)} and the sample {shape}; give one z a sample."
        )
    unseen = is_traced(row.noise_weight)
    if key is None and noise is None and not unseen and np.any(np.asarray(row.noise_weight)):
        raise ValueError(
            f"row {np.asarray(row.index)} draws noise (noise_weight = "
            f"{np.asarray(row.noise_weight)}) and step was given neither key nor noise; pass "
            "key=..., the same at every row, or noise=..., an array of the sample's shape."
        )
    keys = None if key is None else _sample_keys(key, shape[0])
    return _step(state, row, prediction, keys, noise)


def sample(
    denoise: Denoise,
    params: Any,
    schedule: Schedule,
    x: jax.Array,
    key: jax.Array | None = None,
    cond: Any = None,
) -> jax.Array:
    """A whole run: every row of the schedule under one `lax.scan`, jit-compiled.

    The network is traced once and evaluated `schedule.num_rows` times. Nothing recompiles for
    other numbers in the schedule, the denoiser, params, key or cond; another `model_fn`, shape or
    number of rows does.

    Args:
      denoise: from `kd.denoiser` and its wrappers, or any function of the same signature.
      params: any pytree, handed to the network: its weights.
      schedule: the run.
      x: [B, ...] the sample at the level of `schedule[0]`, from `initial_sample` or `add_noise`.
      key: one key, or [B] keys, one a sample; None where the schedule draws no noise.
      cond: any pytree, handed to the network: labels, embeddings.

    Returns:
      [B, ...] the sample after the last row, float32 (float64 where x is).

    Raises:
      ValueError: no key for a stochastic schedule; an epsilon network on a schedule with zero
        terminal SNR; a sample without a batch axis or not of a floating dtype.

    Example:
      >>> import jax, jax.numpy as jnp, kdiff_jax as kd
      >>> schedule = kd.dpm2_schedule(kd.noise_schedule("scaled_linear"), 25, grid="karras")
      >>> denoise = kd.denoiser(lambda params, x, timestep: params * x)
      >>> x = kd.initial_sample(schedule, jax.random.key(0), (2, 8))
      >>> kd.sample(denoise, jnp.float32(0.1), schedule, x).shape
      (2, 8)

    Source: the loops of `sample_dpm_2(_ancestral)` of k-diffusion and of diffusers' pipelines.
    """
    if key is None and not schedule.deterministic:
        raise ValueError(
            "this schedule draws noise and sample was given no key; pass key=jax.random.key(seed) "
            "or [B] keys, one a sample."
        )
    if schedule.zero_terminal_snr and prediction_type_of(denoise) == "epsilon":
        raise ValueError(
            "prediction_type='epsilon' says nothing about x0 where rescale_zero_terminal_snr=True "
            "leaves no signal (alpha = 0); use a v_prediction or sample network, or a noise "
            "schedule without the rescaling."
        )
    x = _check_sample(x)
    keys = None if schedule.deterministic else _sample_keys(key, x.shape[0])
    return _sample(as_pytree(denoise), params, schedule, x, keys, cond)


@jax.jit
def _sample(
    denoise: Denoise, params: Any, schedule: Schedule, x: jax.Array, keys: Any, cond: Any
) -> jax.Array:
    def body(state: State, row: Row) -> tuple[State, None]:
        if schedule.unit_alpha:
            row = replace(row, alpha=jnp.ones_like(row.alpha))  # a constant, folded away
        prediction = denoise(params, state.sample, row, cond)
        z = None if schedule.deterministic else _row_noise_or_zeros(keys, row, state.sample)
        return _advance(state, row, prediction, z), None

    state = State(sample=x, anchor=None if schedule.anchorless else x)
    return jax.lax.scan(body, state, schedule.rows)[0].sample


@jax.jit
def _step(state: State, row: Row, prediction: Prediction, keys: Any, noise: Any) -> State:
    x = state.sample
    if keys is not None:
        z = _row_noise_or_zeros(keys, row, x)
    elif noise is not None:
        z = noise.astype(x.dtype)
    else:
        z = jnp.where(per_sample(row.noise_weight, x) != 0, jnp.nan, jnp.zeros((), x.dtype))
    return _advance(state, row, prediction, z)


def _advance(state: State, row: Row, prediction: Prediction, z: jax.Array | None) -> State:
    x = state.sample
    denoised, epsilon = prediction.denoised.astype(x.dtype), prediction.epsilon.astype(x.dtype)
    x_next = per_sample(row.denoised_weight, x) * denoised
    x_next += per_sample(row.epsilon_weight, x) * epsilon
    if state.anchor is not None:
        x_next += per_sample(row.anchor_weight, x) * state.anchor
    if z is not None:
        x_next += per_sample(row.noise_weight, x) * z
    if state.anchor is None:
        return State(x_next, None)
    advances = jnp.asarray(row.advances)
    advances = advances.reshape(advances.shape + (1,) * (x.ndim - 1)) if advances.ndim else advances
    return State(x_next, jnp.where(advances, x_next, state.anchor))


def _row_noise_or_zeros(keys: jax.Array, row: Row, x: jax.Array) -> jax.Array:
    def draw() -> jax.Array:
        return _draw(keys, row.index, x.shape, _STEP_DOMAIN).astype(x.dtype)

    if jnp.ndim(row.noise_weight):
        return draw()
    # Random bits are most of the cost of a stochastic run on CPU; half its rows need none.
    return jax.lax.cond(row.noise_weight != 0, draw, lambda: jnp.zeros_like(x))


def _draw(keys: jax.Array, index: jax.Array, shape: tuple[int, ...], domain: int) -> jax.Array:
    def one(key: jax.Array, index: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(key, domain), index)
        # float32 always: jax.random.normal has 128 distinct values in bfloat16.
        return jax.random.normal(key, shape[1:], jnp.float32)

    return jax.vmap(one)(keys, jnp.broadcast_to(index, shape[:1]))


def _sample_keys(key: Any, batch: int) -> jax.Array:
    """[B] typed keys from one key, [B] keys, or the same as legacy uint32 arrays."""
    if not isinstance(key, (jax.Array, np.ndarray)):
        raise ValueError(f"key = {key!r} is no PRNG key; pass jax.random.key(seed) or [B] of them.")
    if not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.dtype != jnp.uint32 or key.ndim not in (1, 2):
            raise ValueError(
                f"key is {key.dtype}{key.shape}, no PRNG key; pass jax.random.key(seed), or [B] "
                "of them from jax.random.split."
            )
        try:
            key = jax.random.wrap_key_data(jnp.asarray(key))
        except TypeError:
            raise ValueError(
                f"key is uint32{key.shape}, which is no key of JAX's default implementation; "
                "pass jax.random.key(seed, impl='threefry2x32')."
            ) from None
    if "rbg" in str(jax.random.key_impl(key)):
        raise ValueError(
            f"key is of the implementation {jax.random.key_impl(key)!r}, whose noise under vmap "
            "depends on the other samples of the batch; pass jax.random.key(seed, "
            "impl='threefry2x32')."
        )
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    if key.shape != (batch,):
        raise ValueError(
            f"key holds {key.shape} keys for {batch} samples; pass one key, or [{batch}] keys."
        )
    return key


def _check_sample(x: Any) -> jax.Array:
    x = jnp.asarray(x)
    if x.ndim < 1:
        raise ValueError("the sample is a scalar; expected [B, ...], the batch axis first.")
    return x.astype(state_dtype(x))


def _check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    shape = tuple(check_int("shape", size, 0) for size in shape)
    if not shape:
        raise ValueError("shape is empty; expected (B, ...), the batch axis first.")
    return shape
