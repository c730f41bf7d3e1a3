#!/usr/bin/env bash
# Packages:  ray 2.60.0, CPU
# Expected:  a local `ray.init()`, without a cluster or any setting, leaves nothing behind outside its temporary
#            folder.
# Seen:      Ray turns token authentication on, makes `.ray/auth_token` in the home folder where there is none, and
#            leaves it there after the shutdown.
# Matters:   where the home folder is read-only, or missing in a container, a local run needs RAY_AUTH_MODE or
#            RAY_AUTH_TOKEN; two machines that make a token each cannot join each other.
# Source:    a new home folder inside the temporary one. Usage reports are off.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
uv venv -q --python 3.11 .venv
uv pip install -q -p .venv ray==2.60.0
unset RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_AUTH_TOKEN_PATH
mkdir home
HOME="$folder/home" RAY_TMPDIR="$folder" RAY_USAGE_STATS_ENABLED=0 .venv/bin/python - <<'EOF'
import ray

print("ray", ray.__version__)
ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
print("one task:", ray.get(ray.remote(lambda: "done").remote()))
ray.shutdown()
EOF
echo "in the home folder now: $(cd home && find . -type f)"
[ -s home/.ray/auth_token ]
