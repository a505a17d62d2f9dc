#!/usr/bin/env bash
# Checks the service as a user gets it from the wheel alone: builds the wheel, installs it with the
# locked dependencies into a clean environment, and serves the bundled model from an empty folder.
set -euo pipefail

root=$(cd "$(dirname "$0")/../../.." && pwd)
work=$(mktemp -d)
server=
cleanup() {
  [[ -z $server ]] || kill "$server" 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT

"${PYTHON:-python3}" -m venv "$work/venv"
pip="$work/venv/bin/python -m pip --quiet --disable-pip-version-check"
$pip wheel --no-deps --wheel-dir "$work/wheels" "$root"
$pip install --require-hashes --only-binary :all: -r "$root/requirements/service.lock"
$pip install --no-deps "$work"/wheels/*.whl
$pip check

for module in torch torchvision timm onnx onnxscript; do
  if "$work/venv/bin/python" -c "import $module" 2>/dev/null; then
    echo "service-only: $module must not be installed with the service" >&2
    exit 1
  fi
done

mkdir "$work/empty"
cd "$work/empty"
site=$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
test -f "$site/training/example_pictures/cat.jpg"
for package in contract convserve service training; do
  test -f "$site/$package/py.typed" || { echo "service-only: $package has no types" >&2; exit 1; }
done
"$work/venv/bin/convserve" verify
touch "$work/log"
"$work/venv/bin/convserve" serve --port 0 --drain-s 0 >"$work/log" 2>&1 &
server=$!
for _ in $(seq 200); do
  url=$(sed -n 's/.*"url": "\([^"]*\)".*/\1/p' "$work/log")
  [[ -z $url ]] || break
  kill -0 "$server" || { cat "$work/log"; exit 1; }
  sleep 0.1
done
answer=$("$work/venv/bin/python" - "$url" "$root/examples/cat.jpg" <<'PY'
import sys, urllib.request
request = urllib.request.Request(
    sys.argv[1] + "/v1/classify",
    open(sys.argv[2], "rb").read(),
    {"Content-Type": "application/octet-stream"},
)
print(urllib.request.urlopen(request, timeout=30).read().decode())
PY
)
echo "service-only: $answer"
[[ $answer == *cat* ]]
kill -TERM "$server"
wait "$server"
server=
echo "service-only: 1 passed, 0 failed"
