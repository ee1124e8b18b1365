#!/usr/bin/env bash
# Make the virtual environment: scripts/install.sh PYTHON VENV. Asks nothing, pulls no CUDA, can be run again.
set -euo pipefail
python=$1
venv=$2
torch=2.13.0

refuse() { printf 'error: %s\n  where: %s\n  fix: %s\n' "$1" "$2" "$3" >&2; exit 2; }

command -v "$python" >/dev/null || refuse "no $python on the path" "make, PYTHON=$python" \
  "install Python 3.10 or newer (Debian, Ubuntu: apt-get install python3 python3-venv) or say make PYTHON=/path/to/python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || refuse "$("$python" --version) is too old" \
  "$(command -v "$python")" "install Python 3.10 or newer and say make PYTHON=python3.12"

if [ ! -x "$venv/bin/pip" ]; then
  "$python" -c 'import ensurepip, venv' 2>/dev/null || refuse "this Python cannot make virtual environments" \
    "$(command -v "$python"), module venv" \
    "Debian, Ubuntu: apt-get install python3-venv; openSUSE: zypper install python3-pip; Fedora and Arch have it in python3"
  "$python" -m venv "$venv"
fi
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }

have_torch() { "$venv/bin/python" -c "import sys, torch; sys.exit(torch.__version__.split('+')[0] != '$torch')" 2>/dev/null; }

# A plain `pip install torch` on x86-64 brings gigabytes of CUDA. These three bring a CPU build or nothing: a wheel that says
# +cpu from wherever pip is set up to look; PyTorch's own CPU index; and the registry's, if it would bring no CUDA package.
install_torch() {
  echo "installing torch $torch for CPUs ..."
  pip install -q --only-binary :all: "torch==$torch+cpu" 2>/dev/null && return
  pip install -q --only-binary :all: --retries 1 --timeout 20 "torch==$torch" \
    --index-url https://download.pytorch.org/whl/cpu 2>/dev/null && return
  pip install -q 'pip>=23.3' # from there on a dry run reads metadata and downloads nothing
  local plan
  if plan=$(pip install -q --only-binary :all: --dry-run --report - "torch==$torch" 2>/dev/null) &&
    ! grep -qE '"name": "(nvidia|cuda)[-_]' <<<"$plan"; then
    pip install -q --only-binary :all: "torch==$torch" && return
  fi
  refuse "no CPU build of torch $torch for $("$venv/bin/python" --version) on $(uname -m) was found" "scripts/install.sh" \
    "put one into $venv by hand ($venv/bin/pip install FILE.whl; see https://pytorch.org, platform CPU) and run make again"
}
have_torch || install_torch

echo "installing edgewm and what its tests use ..."
pip install -q -e '.[dev]'

# Tools pip cannot bring: qemu runs the aarch64 bundles, sshd is logged in to as if it were a board's (the tests start
# their own, with their own keys). Without them the tests that need them are skipped by name. Where systemd runs, the
# package would open the machine to the network by itself, so there it is the user's to install.
packages=
loader=/usr/aarch64-linux-gnu/lib/ld-linux-aarch64.so.1
if [ "$(uname -m)" != aarch64 ] && { [ ! -e $loader ] || ! command -v qemu-aarch64 >/dev/null; }; then
  packages="qemu-user libc6-arm64-cross"
fi
if [ ! -x /usr/sbin/sshd ] && ! command -v sshd >/dev/null; then
  if [ -d /run/systemd/system ]; then
    echo "tests that log in to a device will be skipped; to run them: sudo apt-get install openssh-server" >&2
  else
    packages="$packages openssh-server openssh-client"
  fi
fi
if [ -n "$packages" ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing $packages ..."
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages; } \
      >/dev/null </dev/null || echo "could not install $packages: tests that need them will be skipped" >&2
  else
    echo "tests that need them will be skipped; to run them: sudo apt-get install $packages" >&2
  fi
fi
