#!/bin/sh
# Installs edgeseg on the Jetson that this archive was made for, without the internet, and tries it.
set -eu

usage() {
    cat <<'END'
usage: ./install.sh [--venv DIR] [--backend NAME] [--only-install]

Checks every file of this archive, makes a virtual environment that sees JetPack's TensorRT and
OpenCV, installs edgeseg into it from ./wheels, builds the TensorRT engines (minutes), compares one
frame with stored results, and measures the latency.

  --venv DIR       the environment (default: ./venv)
  --backend NAME   tensorrt (default), or onnxruntime for the processor
  --only-install   stop before engines are built

PYTHON names another interpreter than python3. Exit codes: 2 usage, 3 something is missing on this
device, 4 a damaged archive, 8 the results differ from the stored ones.
END
}

fail() {
    code=$1
    shift
    printf 'install.sh: %s\n' "$*" >&2
    exit "$code"
}

step() {
    printf '== %s\n' "$*"
}

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
venv=$here/venv
backend=tensorrt
only_install=no
while [ $# -gt 0 ]; do
    case $1 in
    --venv | --backend)
        [ $# -ge 2 ] || fail 2 "$1 needs a value; see --help"
        if [ "$1" = --venv ]; then venv=$2; else backend=$2; fi
        shift 2
        ;;
    --only-install)
        only_install=yes
        shift
        ;;
    -h | --help)
        usage
        exit 0
        ;;
    *) fail 2 "option '$1' is unknown; see --help" ;;
    esac
done
case $backend in
tensorrt | onnxruntime) ;;
*) fail 2 "--backend '$backend' is neither tensorrt nor onnxruntime" ;;
esac
case $venv in
/*) ;;
*) venv=$PWD/$venv ;;
esac
if [ -e "$venv" ] && [ ! -f "$venv/pyvenv.cfg" ]; then
    fail 2 "'$venv' is there and is no virtual environment; name another folder by --venv"
fi
cd -- "$here"

# Nothing of the caller's environment may decide what is imported or installed.
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV PIP_TARGET PIP_PREFIX PIP_USER
export PIP_CONFIG_FILE=/dev/null PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONNOUSERSITE=1

step "checking the files"
sha256sum --check --quiet --strict SHA256SUMS ||
    fail 4 "this archive is damaged; copy it again and unpack it into an empty folder"

[ "$(uname -m)" = aarch64 ] ||
    fail 3 "this archive is for aarch64 and this machine is $(uname -m); copy it to the Jetson"

python=$(command -v "${PYTHON:-python3}") ||
    fail 3 "'${PYTHON:-python3}' is not installed; run 'sudo apt install python3'"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
requirements=requirements-$version.txt
if [ ! -f "$requirements" ]; then
    have=$(find . -maxdepth 1 -name 'requirements-*.txt' |
        sed 's/.*requirements-\(.*\)\.txt/\1/' | sort | tr '\n' ' ')
    fail 3 "the wheels here are for Python ${have% } and this is $version; use JetPack 6 or later" \
        "(on JetPack 5 only the C library in ./c runs), or name another Python by PYTHON=..."
fi

step "making $venv for Python $version"
# Without pip, because JetPack lacks what installs it; a wheel of pip can be run as it lies here.
"$python" -m venv --without-pip --system-site-packages --clear "$venv" ||
    fail 3 "a virtual environment cannot be made in '$venv'; name another folder by --venv"
run=$venv/bin/python

step "installing"
pip=
for pip in wheels/pip-*.whl; do :; done
"$run" "$pip/pip" install --quiet --no-index --no-cache-dir --ignore-installed --find-links wheels \
    --requirement "$requirements" ||
    fail 3 "the wheels cannot be installed; see what pip says above"
"$run" -m edgeseg --version

"$run" -c 'import cv2' 2>/dev/null ||
    printf 'install.sh: note: OpenCV cannot be imported, and cameras and videos need it: %s\n' \
        "run 'sudo apt install nvidia-jetpack' or 'sudo apt install python3-opencv'" >&2
if [ "$backend" = tensorrt ]; then
    "$run" -c 'import tensorrt' 2>/dev/null ||
        fail 3 "TensorRT cannot be imported; run 'sudo apt install nvidia-jetpack', or choose" \
            "--backend onnxruntime to run on the processor"
fi
if [ "$only_install" = yes ]; then
    printf 'installed: %s/bin/edgeseg\n' "$venv"
    exit 0
fi

step "building what $backend needs, and comparing a frame with stored results"
status=0
"$run" -m edgeseg.runtime.golden bundle --backend "$backend" || status=$?
[ "$status" -eq 0 ] ||
    fail "$status" "the self-test of ./bundle on $backend ended with $status; do not use it here"

step "measuring"
# The figures are printed; a broken measurement does not unmake the installation.
"$run" -m edgeseg profile bundle --device jetson --backend "$backend" ||
    printf 'install.sh: note: the latency could not be measured (exit code %s)\n' "$?" >&2
printf 'try it: %s/bin/edgeseg run %s/bundle --backend %s --camera 0\n' "$venv" "$here" "$backend"
