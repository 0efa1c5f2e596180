#!/usr/bin/env bash
# Installs this package and one of the Flax clients that its tests run, into a new environment.
#   bash tests/clients/install_flax.sh maxdiffusion FOLDER   (Python 3.12 or later)
#   bash tests/clients/install_flax.sh diffusers FOLDER      (Python 3.11)
# PYTHON names the interpreter; MAXDIFFUSION a checkout of maxdiffusion, which is cloned otherwise.
set -euo pipefail
client=${1:?maxdiffusion or diffusers} folder=${2:?a folder for the environment}
root=$(cd "$(dirname "$0")/../.." && pwd)
"${PYTHON:-python3}" -m venv "$folder"
folder=$(cd "$folder" && pwd)
pip=("$folder/bin/python" -m pip install --quiet)
case $client in
  maxdiffusion)
    # It is in no package registry. Of its requirements those that these tests import: it wants
    # huggingface_hub < 1, as transformers 4 does.
    source=${MAXDIFFUSION:-$folder/maxdiffusion}
    if [ ! -d "$source" ]; then
      git clone --quiet https://github.com/AI-Hypercomputer/maxdiffusion "$source"
      git -C "$source" checkout --quiet 7cfb8801d41d1728f0232cd7ee59e900a151fecf
    fi
    "${pip[@]}" "jax==0.10.2" "jaxlib==0.10.2" "flax==0.12.8" "orbax-checkpoint==0.12.8" \
      "transformers==4.57.6" "huggingface_hub<1" "datasets==4.8.5" "torch==2.13.0" \
      "tensorflow==2.21.0" "grain==0.2.18" "qwix==0.1.8" "aqtp==0.9.0" tokamax einops ftfy \
      google-cloud-storage imageio imageio-ffmpeg opencv-python-headless parameterized pillow \
      PyYAML safetensors sentencepiece tensorboardX
    "$folder/bin/python" -c \
      "import sys, sysconfig; open(sysconfig.get_path('purelib') + '/maxdiffusion.pth', 'w').write(sys.argv[1])" \
      "$(cd "$source" && pwd)/src"
    ;;
  diffusers)
    # The last versions with Flax of both libraries, and a JAX of before pmap was rewritten.
    "${pip[@]}" "jax==0.6.2" "jaxlib==0.6.2" "flax==0.10.7" "diffusers==0.35.2" \
      "transformers==4.57.6"
    ;;
  *)
    echo "client = $client; expected maxdiffusion or diffusers." >&2
    exit 1
    ;;
esac
"${pip[@]}" -e "$root[test]"
echo "$folder/bin/pytest -n 0 tests/clients"
