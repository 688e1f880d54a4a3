#!/usr/bin/env bash
# What one GPU can tell in nine minutes: what holds, how fast it is, and where the time goes.
#
#   bench/gpu_check.sh                  from a fresh checkout, on a machine with a GPU and nvcc
#   bench/gpu_check.sh --pretend        every step in short on emulated kernels, without a GPU
#   bench/gpu_check.sh --out FOLDER     for the results, at most 8 files; else runs/gpu_check
#
# PYTHON is the interpreter whose torch is checked, else python3. Nothing is installed: what a step
# misses is named, and the step skipped. Steps come in the order of what they tell. None is stopped
# by another that fails or takes too long, and what the time does not suffice for is skipped. The
# exit status is 0 where none has failed.
set -uo pipefail
cd "$(dirname "$0")/.."

OUT=runs/gpu_check
PRETEND=
while (($#)); do
  case $1 in
    --pretend) PRETEND=1 ;;
    --out) OUT=${2:?--out needs a folder} && shift ;;
    *) echo "usage: bench/gpu_check.sh [--pretend] [--out FOLDER], got $1" >&2 && exit 2 ;;
  esac
  shift
done
export PYTHON=${PYTHON:-python3} PYTHONPATH=$PWD:$PWD/examples:$PWD/bench PYTHONUNBUFFERED=1 PRETEND
PATH=$PATH:/usr/local/cuda/bin
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd)
rm -f "$OUT"/{summary.txt,log.txt,kernels.json,hook_path.json,trace.json.gz,ncu.csv}

END=$((SECONDS + 530))  # nine minutes, less what it may take to kill a step
FAILED=0

# ------------------------------------------------------------------------------- what a step is

say() { echo "$*" | tee -a "$OUT/summary.txt"; }

row() { say "$(printf '%-22s %-8s %4s s  %s' "$1" "$2" "$3" "${4:0:200}")"; }

# The first of some modules that the interpreter does not find.
missing() {
  "$PYTHON" -c 'import sys; from importlib.util import find_spec
print(next((name for name in sys.argv[1:] if not find_spec(name)), ""))' "$@"
}

# step NAME LIMIT "MODULES" COMMAND...: its last line is the one that matters.
step() {
  local name=$1 limit=$2 lacks left=$((END - SECONDS)) begin=$SECONDS result=ok status line
  lacks=$(missing $3)
  shift 3
  if [[ $lacks ]]; then row "$name" skipped 0 "$lacks is not installed"; return; fi
  if ((left < 10)); then row "$name" skipped 0 "no time is left"; return; fi
  echo "==== $name" >>"$OUT/log.txt"
  timeout --kill-after=5 $((limit < left ? limit : left)) "$@" >"$OUT/step.txt" 2>&1
  status=$?
  line=$(grep -v '^[[:space:]]*$' "$OUT/step.txt" | tail -n 1)
  cat "$OUT/step.txt" >>"$OUT/log.txt" && rm "$OUT/step.txt"
  if ((status)); then result=failed FAILED=1; fi
  if ((status == 124 || status == 137)); then line="stopped at its limit, after: $line"; fi
  row "$name" $result $((SECONDS - begin)) "$line"
}

# with_tool TOOL NAME LIMIT COMMAND...: a step of a tool that runs kernels on a GPU.
with_tool() {
  local tool=$1 name=$2 limit=$3
  shift 3
  if [[ $PRETEND ]]; then row "$name" skipped 0 "needs a GPU"; return; fi
  if ! command -v "$tool" >/dev/null; then row "$name" skipped 0 "$tool is not installed"; return; fi
  step "$name" "$limit" torch "$tool" "$@"
}

# ------------------------------------------------------------------- steps of more than one line

versions() {
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  nvcc --version | tail -n 1
  git log -1 --format='commit %h'
  "$PYTHON" -c 'import os, platform, torch
card = "no GPU"
if torch.cuda.is_available():
    card = "%s, sm_%d%d" % (torch.cuda.get_device_name(), *torch.cuda.get_device_capability())
versions = f"Python {platform.python_version()}, torch {torch.__version__}"
print(f"{card}, CUDA {torch.version.cuda}, {os.cpu_count()} cores, {versions}")'
}

build() {
  if [[ $PRETEND ]]; then
    ls ddp_compress/_C*.so || DDP_COMPRESS_CUDA=0 "$PYTHON" setup.py build_ext --inplace
    "$PYTHON" -c 'from tests.make import make; print(make("build/emulated.so"))'
    return
  fi
  local card='import torch; print("%d.%d" % torch.cuda.get_device_capability())'
  TORCH_CUDA_ARCH_LIST=$("$PYTHON" -c "$card") MAX_JOBS=$(nproc)
  export TORCH_CUDA_ARCH_LIST MAX_JOBS DDP_COMPRESS_CUDA=1
  "$PYTHON" setup.py build_ext --inplace && echo "built for $TORCH_CUDA_ARCH_LIST, $MAX_JOBS jobs"
}

# Settings that an older pytest, or one without a plug-in, does not know are no error here; nor is a
# file that imports what is not installed the end of the others.
tests() {
  "$PYTHON" -m pytest -q -p no:cacheprovider -W default -o strict=false \
    --continue-on-collection-errors "$@"
}

export -f versions build tests

# ------------------------------------------------------------------------------------ the steps

HAZARDS=(beside_a_long_kernel two_states nccl_alone)
if [[ $PRETEND ]]; then
  SMOKE=(--pretend --numel 1000)
  OPS=(-m 'not needs_cuda' tests/ops/test_raw.py)
  KERNELS=(--pretend --numel 1000 --density 0.01 --rounds 1)
  HOOK=(--pretend --numel 1000 --parameters 4 --world-size 4 --messages 2 --rounds 1)
else
  if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "$PYTHON finds no torch with a GPU: PYTHON=... names another, --pretend needs none" >&2
    exit 2
  fi
  SMOKE=()
  OPS=(-m needs_cuda tests/ops)
  KERNELS=()
  HOOK=(--trace "$OUT/trace.json.gz")
  REST=(-m needs_cuda tests --ignore tests/ops)
  if [[ ! $(missing xdist) ]]; then REST+=(-n 4); fi
fi
say "bench/gpu_check.sh${PRETEND:+ --pretend}, $(date -u '+%Y-%m-%d %H:%M') UTC"

step versions 30 torch bash -c versions
step build 180 'torch setuptools' bash -c build
step smoke 60 torch "$PYTHON" bench/gpu_smoke.py "${SMOKE[@]}"
step 'tests of ops' 120 'torch pytest hypothesis' bash -c 'tests "$@"' tests "${OPS[@]}"
step kernels 120 'torch rich tqdm' "$PYTHON" bench/kernels.py --device cuda "${KERNELS[@]}" \
  --json "$OUT/kernels.json"
step "hook's path" 120 'torch rich' "$PYTHON" bench/hook_path.py "${HOOK[@]}" \
  --json "$OUT/hook_path.json"
if [[ $PRETEND ]]; then  # nothing hangs there
  step hazards 45 torch "$PYTHON" bench/hazards.py "${HAZARDS[@]}" --pretend --numel 1000
  row 'rest of the tests' skipped 0 'make test runs them'
else
  for hazard in "${HAZARDS[@]}"; do
    step $hazard 45 torch "$PYTHON" bench/hazards.py $hazard
  done
  step 'rest of the tests' 120 'torch pytest hypothesis' bash -c 'tests "$@"' tests "${REST[@]}"
fi
with_tool ncu ncu 60 --clock-control none --log-file "$OUT/ncu.csv" --csv \
  --kernel-name 'regex:^(select|move|add_entries)$' --launch-count 20 \
  --section SpeedOfLight --section Occupancy --section LaunchStats \
  "$PYTHON" bench/gpu_smoke.py --numel 50000000 --ops topk accumulate scatter_add
export PYTORCH_NO_CUDA_MEMORY_CACHING=1  # each tensor's end is known to the checker then
for tool in memcheck racecheck; do
  with_tool compute-sanitizer $tool 60 --tool $tool --error-exitcode 9 \
    "$PYTHON" bench/gpu_smoke.py --numel 100000
done

say "$SECONDS seconds; all results are in $OUT"
exit $FAILED
