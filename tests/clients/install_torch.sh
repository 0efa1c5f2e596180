#!/usr/bin/env bash
# Makes a virtual environment in which tests/clients/test_torch_pipelines.py runs:
#
#     bash tests/clients/install_torch.sh FOLDER
#     FOLDER/bin/pytest -n 0 tests/clients/test_torch_pipelines.py
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:?the folder of the new environment}
python3 -m venv "$folder"
"$folder/bin/pip" install torch==2.13.0
"$folder/bin/pip" install diffusers==0.42.1 transformers torchax==0.0.13 pytest pytest-xdist
"$folder/bin/pip" install -e "$root"
