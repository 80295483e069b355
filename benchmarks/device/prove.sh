#!/usr/bin/env bash
# Proves that a machine without TRL, datasets, polars and pydantic needs nothing but what prepare.py has put into a folder: makes a
# Python 3.12 environment like such a machine's, on a CPU, installs the carried wheels without an index, converts the model, and runs the
# smoke run of every part.
#
#     benchmarks/device/prove.sh build/device/carry /tmp/clean            # PYTHON=… names another Python 3.12
#
# The base's versions are those of such a machine where they can be had (transformers 5.17); torch is 2.13, a CPU build where the index has
# one for this Python, else one with CUDA (5 GB), of which nothing but its CPU side runs here.
set -euo pipefail
cd "$(dirname "$0")/../.."
carry=$1 clean=$2 python=${PYTHON:-python3.12}

if [ ! -x "$clean/bin/python" ]; then
  "$python" -m venv "$clean"
  "$clean/bin/pip" install -q torch==2.13.0 'transformers==5.17.*' accelerate peft safetensors pyarrow pandas scipy rich typer
fi
# What an earlier proof has installed, and pydantic, which new versions of typer bring and such a machine's has not.
for wheel in "$carry"/wheels-*/*.whl; do basename "$wheel" | cut -d- -f1; done | xargs "$clean/bin/pip" uninstall -q -y
for absent in trl datasets polars pydantic; do
  "$clean/bin/python" -c "import importlib.util, sys; sys.exit(bool(importlib.util.find_spec('$absent')))" \
    || { echo "$absent is in the base already: this proves nothing"; exit 1; }
done
"$clean/bin/pip" install -q --no-index --no-deps "$carry"/wheels-*/*.whl
"$clean/bin/pip" list --format freeze | grep -iE '^(python|torch|transformers|accelerate|peft|trl|datasets|polars|pydantic)=='
"$clean/bin/python" --version
"$clean/bin/python" benchmarks/device/model.py "$carry" "$clean/smollm2-135m"
rm -rf "$clean/smoke"
"$clean/bin/python" benchmarks/device/run.py --smoke --out "$clean/smoke" --budget 900  # exit code 2: flash attention alone is missing
