"""k-diffusion's names, in its argument order: its samplers, grids and model wrappers.

    from kdiff_jax.adapters import k_diffusion as K

    model = K.DiscreteEpsDDPMDenoiser(network, alphas_cumprod)
    x = K.sample_dpm_2(model, x, K.get_sigmas_karras(25, 0.03, 14.6), extra_args={"params": params})

Each sampler builds its table and calls `kd.sample`: one compiled loop, so a model is a pure
function, and what changes from call to call goes into extra_args.

What differs from k-diffusion:
  noise      comes from `key=`, or from a noise_sampler that is called for every step before the
             run; nothing is drawn from a global generator. With a key the SDE samplers follow a
             Brownian path, as there, whose clock is log sigma and not sigma. An ancestral step has
             its noise wherever sigma_next > 0, also where k-diffusion's sigma_down rounds to 0 and
             it drops it.
  eta        beyond what a step allows is refused with the bound, where k-diffusion stops short.
  disable    False shows a bar (tqdm); None, the default, and True do not.
  callback   is called from inside the compiled program, in order, with the same dict; it needs one
             device, and the function is kept: another one compiles again.
  sigmas     may be traced (to be optimised); then the last one is taken for the closing 0. A grid
             that ends above 0 is a part of a run, and ends there.
"""

from kdiff_jax.adapters.k_diffusion.absent import (
    sample_dpm_adaptive,
    sample_dpm_fast,
    sample_lms,
)
from kdiff_jax.adapters.k_diffusion.ancestral import (
    sample_dpm_2_ancestral,
    sample_dpmpp_2s_ancestral,
    sample_euler_ancestral,
    sample_lcm,
)
from kdiff_jax.adapters.k_diffusion.brownian import BrownianTreeNoiseSampler
from kdiff_jax.adapters.k_diffusion.continuous import VDenoiser
from kdiff_jax.adapters.k_diffusion.deterministic import (
    sample_dpm_2,
    sample_dpmpp_2m,
    sample_euler,
    sample_heun,
)
from kdiff_jax.adapters.k_diffusion.grids import (
    append_zero,
    get_ancestral_step,
    get_sigmas_exponential,
    get_sigmas_karras,
    get_sigmas_polyexponential,
    get_sigmas_vp,
    to_d,
)
from kdiff_jax.adapters.k_diffusion.models import (
    CompVisDenoiser,
    CompVisVDenoiser,
    DiscreteDenoiser,
    DiscreteEpsDDPMDenoiser,
    DiscreteVDDPMDenoiser,
)
from kdiff_jax.adapters.k_diffusion.openai import OpenAIDenoiser
from kdiff_jax.adapters.k_diffusion.sde import (
    sample_dpmpp_2m_sde,
    sample_dpmpp_3m_sde,
    sample_dpmpp_sde,
)

__all__ = [
    "BrownianTreeNoiseSampler",
    "CompVisDenoiser",
    "CompVisVDenoiser",
    "DiscreteDenoiser",
    "DiscreteEpsDDPMDenoiser",
    "DiscreteVDDPMDenoiser",
    "OpenAIDenoiser",
    "VDenoiser",
    "append_zero",
    "get_ancestral_step",
    "get_sigmas_exponential",
    "get_sigmas_karras",
    "get_sigmas_polyexponential",
    "get_sigmas_vp",
    "sample_dpm_2",
    "sample_dpm_2_ancestral",
    "sample_dpm_adaptive",
    "sample_dpm_fast",
    "sample_dpmpp_2m",
    "sample_dpmpp_2m_sde",
    "sample_dpmpp_2s_ancestral",
    "sample_dpmpp_3m_sde",
    "sample_dpmpp_sde",
    "sample_euler",
    "sample_euler_ancestral",
    "sample_heun",
    "sample_lcm",
    "sample_lms",
    "to_d",
]
