#!/usr/bin/env bash
# Packages:  uv 0.13.9, six 1.17.0, on Linux, cache and environment on one file system
# Expected:  an edit of an installed file changes the environment in which it is made.
# Seen:      uv links files from its cache into each environment: a write into the file in place changes the file in
#            all other environments and in the cache, and a new environment gets the changed file without a word. A
#            tool that writes a new file and renames it over the old one changes its own environment only.
# Matters:   tools that patch installed packages must replace files, not write into them; set-up scripts, too.
# Source:    uv's documentation of --link-mode; here with a cache in the temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
uv venv -q --python 3.11 tool
uv pip install -q -p tool uv==0.13.9
PATH="$folder/tool/bin:$PATH"
export UV_CACHE_DIR="$folder/cache"
unset UV_LINK_MODE
uv --version
for name in first second third; do
    uv venv -q --python 3.11 $name
    [ $name = third ] || uv pip install -q -p $name six==1.17.0
done
file=lib/python3.11/site-packages/six.py
echo "changed_in_place = True" >>first/$file
uv pip install -q -p third six==1.17.0
for name in second third; do
    $name/bin/python -c "import six; print('$name: changed', hasattr(six, 'changed_in_place'))"
    $name/bin/python -c "import six; six.changed_in_place"
done
cp first/$file copy.py
echo "changed_by_rename = True" >>copy.py
mv copy.py first/$file
second/bin/python -c "import six; print('second: changed by a rename', hasattr(six, 'changed_by_rename'))"
! second/bin/python -c "import six; six.changed_by_rename" 2>/dev/null
