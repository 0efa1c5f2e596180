"""The Flax schedulers of maxdiffusion and diffusers (up to 0.39), on the tables of this library.

Their pipelines call `create_state`, `set_timesteps`, `scale_model_input` and `step` of an object
that holds a config, and carry a state from call to call. The classes here do the same, and need
neither flax nor one of those libraries.
"""

from __future__ import annotations

from types import ModuleType

from kdiff_jax._checks import check_kind
from kdiff_jax.adapters.flax.scheduler import FlaxScheduler


class FlaxKDPM2DiscreteScheduler(FlaxScheduler):
    """DPM2."""


class FlaxKDPM2AncestralDiscreteScheduler(FlaxScheduler):
    """Ancestral DPM2."""


class FlaxLCMScheduler(FlaxScheduler):
    """LCM, for latent consistency models."""


class FlaxTCDScheduler(FlaxScheduler):
    """TCD, for trajectory consistency models."""


class FlaxEulerDiscreteScheduler(FlaxScheduler):
    """Euler."""


class FlaxEulerAncestralDiscreteScheduler(FlaxScheduler):
    """Ancestral Euler."""


class FlaxHeunDiscreteScheduler(FlaxScheduler):
    """Heun."""


class FlaxDDIMScheduler(FlaxScheduler):
    """DDIM, eta = 0."""


class FlaxDPMSolverMultistepScheduler(FlaxScheduler):
    """DPM++ 2M; 3M with solver_order=3, SDE with algorithm_type="sde-dpmsolver++"."""


class FlaxDPMSolverSinglestepScheduler(FlaxScheduler):
    """DPM++ 2S."""


class FlaxUniPCMultistepScheduler(FlaxScheduler):
    """UniPC."""


class FlaxFlowMatchEulerDiscreteScheduler(FlaxScheduler):
    """Euler on a rectified flow."""


class FlaxFlowMatchHeunDiscreteScheduler(FlaxScheduler):
    """Heun on a rectified flow."""


class FlaxFlowMatchLCMScheduler(FlaxScheduler):
    """LCM on a rectified flow."""


def register(module: ModuleType) -> None:
    """Puts these classes into maxdiffusion or diffusers, where their configs look for them.

    Classes of the same name are replaced; each becomes one of the library's FlaxSchedulerMixin too,
    by which its pipelines know a scheduler.

    Args:
      module: `maxdiffusion` or `diffusers`.

    Raises:
      ValueError: what is no module, as its name.

    Example:
      >>> import types
      >>> from kdiff_jax.adapters import flax as kd_flax
      >>> maxdiffusion = types.ModuleType("maxdiffusion")  # or: import maxdiffusion
      >>> kd_flax.register(maxdiffusion)
      >>> maxdiffusion.FlaxKDPM2DiscreteScheduler(beta_schedule="scaled_linear").config.steps_offset
      0
    """
    check_kind("module", module, ModuleType, "the imported maxdiffusion or diffusers")
    mixin = getattr(module, "FlaxSchedulerMixin", object)
    place = {"__module__": f"{module.__name__}.schedulers.kdiff_jax"}
    for scheduler in FlaxScheduler.__subclasses__():
        setattr(module, scheduler.__name__, type(scheduler.__name__, (scheduler, mixin), place))


__all__ = ["register", *(scheduler.__name__ for scheduler in FlaxScheduler.__subclasses__())]
