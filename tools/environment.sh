# Sourced by tools/test and tools/quickstart: make_environment FOLDER EXTRA builds a virtual environment from nothing
# but Python 3.11+ and a package index, or finds that it is already there.
#
# UWS_PYTHON           the interpreter to use, instead of the first fitting one on the path
# UWS_TORCH_INDEX_URL  an extra index with CPU builds of torch (such as https://download.pytorch.org/whl/cpu)

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { printf '%s\n' "$*" >&2; }

find_python() {
  local candidate
  for candidate in ${UWS_PYTHON:+"$UWS_PYTHON"} python3 python3.13 python3.12 python3.11 python3.14 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      command -v "$candidate"
      return 0
    elif [ "$candidate" = "${UWS_PYTHON:-}" ]; then
      say "UWS_PYTHON=$UWS_PYTHON does not run, or is older than Python 3.11"
      return 1
    fi
  done
  say "no Python 3.11 or newer on the path (python3 is: $(python3 --version 2>&1 || true))."
  say "Install one, or name it: UWS_PYTHON=/path/to/python3.11 $0"
  return 1
}

# What the environment is made from; the folder is made again when it changes.
environment_stamp() { # PYTHON EXTRA
  "$1" - "$2" pyproject.toml constraints.txt <<'PY'
import hashlib, sys
digest = hashlib.sha256(f"{sys.version}\0{sys.prefix}\0{sys.argv[1]}".encode())
for path in sys.argv[2:]:
    with open(path, "rb") as file:
        digest.update(b"\0" + file.read())
print(digest.hexdigest())
PY
}

make_environment() { # FOLDER EXTRA
  local folder=$1 extra=$2 python stamp started=$SECONDS
  python=$(find_python) || return 1
  stamp=$(environment_stamp "$python" "$extra") || return 1
  if [ "$(cat "$folder/uws-stamp" 2>/dev/null)" = "$stamp" ] && "$folder/bin/python" -c '' 2>/dev/null; then
    return 0
  fi
  say "making the environment $folder with $("$python" --version) (once; torch is the large part)"
  if [ -z "${UWS_TORCH_INDEX_URL:-}" ] && [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then
    say "  if pip fetches CUDA packages here, stop it and set UWS_TORCH_INDEX_URL to an index of CPU builds"
  fi
  if [ -e "$folder" ] && [ ! -e "$folder/pyvenv.cfg" ]; then
    say "$folder exists and is not a virtual environment: move it away, or name another folder in UWS_VENV"
    return 1
  fi
  if ! "$python" -m venv --clear "$folder"; then
    say "python -m venv failed: on Debian and Ubuntu, install python3-venv"
    return 1
  fi
  local index=()
  [ -n "${UWS_TORCH_INDEX_URL:-}" ] && index=(--extra-index-url "$UWS_TORCH_INDEX_URL")
  # By the environment too: it reaches the one in which pip builds the package. pip from 25.3 on has another name for that.
  local -x PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt
  # torch first and by its exact version: a range would let another package draw the newest CUDA build.
  "$folder/bin/python" -m pip install -qq -c constraints.txt ${index[@]+"${index[@]}"} 'torch==2.13.0' || return 1
  "$folder/bin/python" -m pip install -qq -c constraints.txt -e ".[$extra]" || return 1
  printf '%s\n' "$stamp" >"$folder/uws-stamp"
  say "  done in $((SECONDS - started)) s"
}
