#!/usr/bin/env bash
# Proves that a machine without TRL, datasets, polars and pydantic needs nothing but what prepare.py has put into a folder: makes a
# Python 3.12 environment like such a machine's, on a CPU, and for each part takes out what is installed, installs the loads of its row in
# docs/device.md without an index, and makes its smoke run, of which only the named cases may fail.
#
#     benchmarks/device/prove.sh build/device/carry build/device/clean    # PYTHON=… names another Python 3.12
#
# The base's versions are those of such a machine where they can be had (transformers 5.17); torch is 2.13, a CPU build where the index has
# one for this Python, else one with CUDA (5 GB), of which nothing but its CPU side runs here.
set -euo pipefail
cd "$(dirname "$0")/../.."
carry=$1 clean=$2 python=${PYTHON:-python3.12}

if [ ! -x "$clean/bin/pip" ]; then
  "$python" -m venv "$clean"
  "$clean/bin/pip" install -q torch==2.13.0 'transformers==5.17.*' accelerate peft safetensors pyarrow pandas scipy rich typer
fi

bare() {  # takes out what a load has brought, and pydantic, which new versions of typer bring and such a machine's has not
  for wheel in "$carry"/wheels-*/*.whl; do basename "$wheel" | cut -d- -f1; done | xargs "$clean/bin/pip" uninstall -q -y
  "$clean/bin/python" -c "
import importlib.util, sys
found = [name for name in ('trl', 'datasets', 'polars', 'pydantic', 'bitsandbytes') if importlib.util.find_spec(name)]
sys.exit(f'{found}: in the base already, so this proves nothing' if found else 0)"
}

load() { "$clean/bin/pip" install -q --no-index --no-deps "$carry/$1"/*.whl; }

smoke() {  # smoke PART FAILING: the cases that may and must fail, in order
  "$clean/bin/python" benchmarks/device/run.py "$1" --smoke --retry --out "$clean/smoke" --model "$clean/smollm2-135m" || [ $? = 4 ]
  "$clean/bin/python" - "$clean/smoke/$1" "$2" <<'P'
import json, pathlib, sys
cases = {path.stem: json.loads(path.read_text())["status"] for path in sorted(pathlib.Path(sys.argv[1]).glob("*.json"))}
failed = " ".join(name for name, status in cases.items() if status != "measured")
sys.exit(f"failed: {failed}; expected: {sys.argv[2]}" if failed != sys.argv[2] or not cases else 0)
P
}

rm -rf "$clean/smoke" "$clean/smollm2-135m"
bare; load wheels-1
smoke agreement packing-flash
smoke probe 4bit-4096
smoke corpus ""
load wheels-3
smoke probe ""
bare; load wheels-1; load wheels-2
"$clean/bin/python" --version
"$clean/bin/pip" list --format freeze | grep -iE '^(torch|transformers|accelerate|peft|trl|datasets|polars|pydantic)=='
smoke training ""
"$clean/bin/python" benchmarks/device/model.py "$carry" "$clean/smollm2-135m"
smoke arms ""
echo "every part runs with its loads"
